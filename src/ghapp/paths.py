"""Where the daemon's sockets are.

Imports os and sys and nothing else: git may be waiting. install/git-credential-ghapp computes the same directory
in sh, without Python; a test holds the two against each other.
"""

import os
import sys


_DIRECTORY = 0o040000  # stat.S_IFDIR


def runtime_dir() -> str:
    """Return the directory of the sockets; it need not exist.

    ``$GHAPP_RUNTIME_DIR``, else ``$XDG_RUNTIME_DIR/ghapp`` if that is ours (after su it is not), else
    ``/run/user/UID/ghapp``, else one below the user's cache directory, with the host's name in it: a home may be
    shared by several hosts, and a socket is not.
    """
    given = os.environ.get("GHAPP_RUNTIME_DIR", "")
    if given:
        return given
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}"):
        if base.startswith("/") and _is_our_directory(base):
            return f"{base}/ghapp"
    return f"{_cache_dir()}/ghapp/run-{os.uname().nodename}"


def git_socket() -> str:
    """Return the path of the socket that git's own client speaks to."""
    return runtime_dir() + "/git.sock"


def control_socket() -> str:
    """Return the path of the socket that the command line speaks to."""
    return runtime_dir() + "/control.sock"


def _is_our_directory(path: str) -> bool:
    try:
        status = os.stat(path)  # noqa: PTH116  # pathlib costs 5 ms
    except OSError:
        return False
    return status.st_uid == os.geteuid() and status.st_mode & 0o170000 == _DIRECTORY


def _cache_dir() -> str:
    home = os.environ.get("HOME", "")
    if sys.platform == "darwin":
        return f"{home}/Library/Caches"
    given = os.environ.get("XDG_CACHE_HOME", "")
    return given if given.startswith("/") else f"{home}/.cache"
