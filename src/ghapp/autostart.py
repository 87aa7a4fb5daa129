"""Start the daemon: from a clean environment, once, however many ask for it at the same time.

Standard library only. Readiness is the starter process' end, not a sleep: `ghapp.daemon` forks, and the parent
leaves when the sockets listen.
"""

import contextlib
import fcntl
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from ghapp import client


START_LIMIT = 20.0  # seconds; it takes 0.2 on an idle machine
STARTER_PATIENCE = 10.0  # seconds for another starter, which may be stopped by ^Z; half as much again, not all at once
DIED = b"the daemon died while it started (E41)"
_RETRY = 0.02  # seconds between looks at a lock that another starter holds

# What the daemon may see. Everything else stays out by construction: PYTHON*, LD_*, OPENSSL_CONF (loads code),
# SSLKEYLOGFILE (writes session keys), GIT_*, tokens.
_ALLOWED = frozenset(
    {
        "AWS_CONFIG_FILE",
        "AWS_PROFILE",
        "AWS_REGION",
        "DBUS_SESSION_BUS_ADDRESS",
        "DISPLAY",
        "HOME",
        "HTTPS_PROXY",
        "LANG",
        "LOGNAME",
        "NO_PROXY",
        "SSH_AUTH_SOCK",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "USER",
        "WAYLAND_DISPLAY",
        "XAUTHORITY",
        "https_proxy",
        "no_proxy",
    }
)
_ALLOWED_PREFIXES = ("GHAPP_", "LC_", "XDG_")
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


class DiedError(OSError):
    """The daemon, or the process that forks it, was killed before it listened."""


def daemon_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of `environment` that a daemon gets."""
    kept = {
        name: value for name, value in environment.items() if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }
    bus = f"/run/user/{os.geteuid()}/bus"
    if "DBUS_SESSION_BUS_ADDRESS" not in kept and Path(bus).exists():
        kept["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={bus}"
    return kept | {"PATH": _PATH}


def interpreter() -> list[str]:
    """Return this Python with flags under which neither the directory nor the environment adds to its imports.

    ``-I`` where the package is the interpreter's own; ``-E -P`` elsewhere, because ``-I`` hides what
    ``pip install --user`` installed.
    """
    package = str(Path(__file__).resolve().parent)
    inside = package.startswith(str(Path(sys.prefix).resolve()) + os.sep)
    return [sys.executable, *(["-I"] if inside else ["-E", "-P"])]


def start(deadline: float = START_LIMIT) -> None:
    """Run the daemon and return when it listens; raise OSError with the reason, and a hint on a second line."""
    if is_throw_away(sys.prefix):
        raise OSError("ghapp was started from a cache that a daemon would outlive (E41)\nuv tool install ghapp")
    command = [*interpreter(), "-m", "ghapp.daemon", "--detach"]
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env=daemon_environment(os.environ),
            timeout=max(0.1, min(deadline, START_LIMIT)),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError("the daemon did not start in time (E41)\nghapp daemon run shows why") from None
    except OSError as error:
        raise OSError(f"cannot start the daemon: {error.strerror} (E41)\nuv tool install --force ghapp") from None
    if done.returncode < 0 or done.stderr.startswith(DIED):
        raise DiedError(DIED.decode() + "\nghapp daemon run shows why")
    if done.returncode != 0:
        raise OSError(done.stderr.decode(errors="replace").strip() or "the daemon did not start (E41)")


def start_by_systemd(path: str, deadline: float = START_LIMIT) -> bool:
    """Let systemd start the daemon if our units and a user manager are there; tell whether something listens then.

    Whatever goes wrong is left to `start`, which names it: a service that failed says only that.
    """
    directory = os.path.dirname(path)  # noqa: PTH120  # as below
    runtime = manager_dir(directory)
    if not runtime:
        return False
    environment = daemon_environment(os.environ) | {
        "PATH": os.environ.get("PATH", _PATH),  # systemctl is where this system has it
        "XDG_RUNTIME_DIR": runtime,
    }
    try:
        done = subprocess.run(
            ["systemctl", "--user", "start", "ghapp.service"],  # noqa: S607  # its name; from / no directory here is on PATH
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            timeout=max(0.1, min(deadline / 2, START_LIMIT)),  # the other half is for doing without
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and listens(path)


def manager_dir(directory: str) -> str:
    """Return the runtime directory of the user manager that has units of ours for `directory`, or ""."""
    base, name = os.path.split(directory)
    needed = (f"{base}/systemd/private", unit_file())
    return base if name == "ghapp" and all(map(os.path.exists, needed)) else ""


def unit_file() -> str:
    """Return where `ghapp daemon install` puts our service."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    base = given if given.startswith("/") else os.environ.get("HOME", "") + "/.config"
    return base + "/systemd/user/ghapp.service"


def is_throw_away(prefix: str) -> bool:
    """Tell whether a path lies where `uvx` or `pipx run` keep what they may delete any day."""
    parts = prefix.split("/")
    for number, part in enumerate(parts):
        behind = parts[number + 1 :]
        if part == "uv" and any(re.match(r"(archive|environments|builds)-v", name) for name in behind):
            return True
        if part == "pipx" and behind:
            in_cache = number > 0 and re.fullmatch(r"\.?caches?", parts[number - 1], re.IGNORECASE)
            if behind[0] == ".cache" or (in_cache and behind[0] != "venvs"):
                return True
    return False


def ensure(
    path: str, *, foreign: bool = False, deadline: float = START_LIMIT, patience: float = STARTER_PATIENCE
) -> None:
    """Return when something of ours listens at `path`; raise OSError if that cannot be had within `deadline` seconds.

    A hundred callers start one daemon: whoever holds the spawn lock starts it, the others wait for the socket. If it
    fails for one, it has failed for those who waited; after `patience` seconds they start it themselves. `foreign`
    says that whoever listened there just now was not ours, or died.
    """
    end = time.monotonic() + deadline
    make_runtime_dir(os.path.dirname(path))  # noqa: PTH120  # a string in, a string out
    alone = time.monotonic() + patience * (1 + os.urandom(1)[0] / 512)
    waited = False
    while foreign or not listens(path):
        with _spawn_lock(path) as lock:
            if lock is not None:
                _start_once(path, lock, foreign=foreign, waited=waited, deadline=end - time.monotonic())
                return
        if time.monotonic() > alone:
            start(end - time.monotonic())  # should the other one go on after all, the daemon's lock lets one in
            return
        if time.monotonic() > end:
            raise OSError("another process is starting the daemon and does not finish (E41)")
        time.sleep(_RETRY * (0.5 + os.urandom(1)[0] / 256))  # apart from each other
        waited = True


def _start_once(path: str, lock: int, *, foreign: bool, waited: bool, deadline: float) -> None:
    """Start the daemon if that is still needed; the lock's file keeps why it failed, for those who waited meanwhile."""
    failure = os.pread(lock, 4096, 0)
    if waited and failure:
        raise OSError(failure.decode(errors="replace"))
    os.ftruncate(lock, 0)
    if foreign and not waited:
        end_foreign(path)
    elif listens(path):
        return
    if not foreign and start_by_systemd(path, deadline):
        return
    try:
        try:
            start(deadline)
        except DiedError:
            start(deadline)  # whoever killed it meant the one before
    except OSError as error:
        with contextlib.suppress(OSError):  # a full disk; those who waited find out for themselves
            os.pwrite(lock, str(error.args[-1]).encode(errors="replace"), 0)
        raise


def make_runtime_dir(directory: str) -> None:
    """Create the runtime directory 0700, or refuse one that is not ours alone; raise OSError.

    Created with its mode, never changed after: there is no moment in which it is open.
    """
    if not directory.startswith("/"):
        raise OSError(f"{directory} is not an absolute path (E43)\nset GHAPP_RUNTIME_DIR to one")
    try:
        _make(directory)
        status = os.lstat(directory)
    except OSError as error:
        raise OSError(f"cannot create {directory}: {error.strerror} (E43)\nset GHAPP_RUNTIME_DIR") from None
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(f"{directory} is not a directory (E43)\nremove it")
    if status.st_uid != os.geteuid():
        raise OSError(f"{directory} is not owned by you (E43)\nset GHAPP_RUNTIME_DIR to a directory of your own")
    if status.st_mode & 0o077:
        raise OSError(f"{directory} is open to others (E43)\nchmod 700 {shlex.quote(directory)}")


def _make(directory: str) -> None:
    with contextlib.suppress(FileExistsError):
        try:
            os.mkdir(directory, 0o700)  # noqa: PTH102  # the mode matters, and a string is what we have
        except FileNotFoundError:
            os.makedirs(os.path.dirname(directory), 0o700, exist_ok=True)  # noqa: PTH103,PTH120  # as above
            os.mkdir(directory, 0o700)  # noqa: PTH102  # as above


def listens(path: str) -> bool:
    """Tell whether anybody listens at `path`, however busy."""
    try:
        client.connect(path, 1.0).close()
    except TimeoutError:
        return True  # busy is not dead
    except OSError:
        return False
    return True


def end_foreign(path: str) -> None:
    """End git's own cache daemon, born of a ``cache store`` on our path when nobody listened there.

    Sent to a daemon of ours by mistake, this does nothing.
    """
    with contextlib.suppress(OSError):
        connection = client.connect(path, 2.0)
        try:
            client.exchange(connection, b"action=exit\ntimeout=0\n")
        finally:
            connection.close()


@contextlib.contextmanager
def _spawn_lock(path: str) -> Iterator[int | None]:
    """Give the lock's descriptor, or None while somebody else holds it."""
    name = os.path.dirname(path) + "/spawn.lock"  # noqa: PTH120  # as above
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
