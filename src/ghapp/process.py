"""The daemon as a process: one at a time, detached from whoever started it, closed to its neighbours."""

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ghapp import autostart, client


MIN_DESCRIPTORS = 4096  # soft limit, for 2,000 connections
PATIENCE = 2.0  # seconds for the holder of the lock to show that it lives
_GLANCE = 0.02
_PR_SET_DUMPABLE = 4


def sanitise_descriptors() -> None:
    """Make descriptors 0 to 2 exist: else the next socket gets such a number, and a stray print goes into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004  # stderr
        os.set_inheritable(descriptor, True)  # noqa: FBT003  # positional in the library
    os.close(descriptor)


def harden() -> None:
    """Close this process to others of the same user: no core file, no ptrace, no reading of its memory.

    As ssh-agent does. An exec resets it, so a child that handles a secret has to do this too.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MIN_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MIN_DESCRIPTORS, hard)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # Until the loop handles it: a starter that finds our lock taken sends it, and its default is to end us.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def detach() -> Callable[[str], None]:
    """Fork; the parent waits until the returned function is called in the child, and ends then.

    Called with "", the parent exits 0; with a text, it prints that to stderr and exits 1. A child that dies makes
    the parent exit 1 as well. The child has a session of its own, stands in /, and holds nothing of its starter's.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        _wait_and_exit(reader)
    os.close(reader)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.closerange(3, writer)
    os.closerange(writer + 1, 1024)

    def report(problem: str) -> None:
        os.write(writer, (problem or "ready").encode())
        os.close(writer)

    return report


def _wait_and_exit(reader: int) -> None:
    said = b""
    while chunk := os.read(reader, 4096):
        said += chunk
    if said == b"ready":
        os._exit(0)
    os.write(2, said or b"the daemon died while it started (E41)\nghapp daemon run shows why")
    os._exit(1)


def take_lock(directory: str) -> int | None:
    """Return the descriptor of the daemon's lock, which is held until the process ends, or None if a daemon serves.

    A holder whose socket does not answer is told to mend that (SIGHUP); one that does not react in time is killed,
    its pid verified. Raises OSError.
    """
    path = f"{directory}/daemon.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if _lock(descriptor):
        return descriptor
    for remedy in (None, signal.SIGHUP, signal.SIGKILL):
        holder = _holder(path)
        if remedy is not None and holder is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder, remedy)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if _lock(descriptor):
                return descriptor
            if remedy is not signal.SIGKILL and serving(f"{directory}/git.sock"):
                os.close(descriptor)
                return None
            time.sleep(_GLANCE)
    os.close(descriptor)
    raise OSError(f"another process holds {path} and cannot be ended (E41)")


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return True


def lock_holder(directory: str) -> int | None:
    """Return the pid of the daemon that holds the lock in `directory`, or None."""
    path = f"{directory}/daemon.lock"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(path)
    else:
        return None
    finally:
        os.close(descriptor)


def _holder(path: str) -> int | None:
    """Return the pid in the lock file if that process is a daemon of ours."""
    try:
        pid = int(Path(path).read_text(encoding="ascii"))
        if sys.platform == "linux":
            return pid if b"ghapp" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except (OSError, ValueError):
        return None
    return pid


def hello(path: str) -> dict[str, str] | None:
    """Return what the daemon at `path` says of itself, {} for a foreign listener, None for nobody."""
    try:
        answer = client.ask(path, b"action=hello\ntimeout=0\nghapp=1\n", PATIENCE)
    except client.NoAnswer as reason:
        return {} if reason.foreign else None
    except OSError:
        return None
    return dict(line.split("=", 1) for line in answer.decode("ascii", "replace").splitlines() if "=" in line)


def serving(path: str) -> bool:
    """Tell whether a daemon of ours answers at `path`."""
    return bool(hello(path))


def free_path(path: str) -> None:
    """End a foreign listener at `path`, so that the path can be taken. Call with the lock held."""
    if hello(path) == {}:
        autostart.end_foreign(path)


def resident_bytes() -> int:
    """Return the memory this process occupies."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, and the peak
    return int(pages) * resource.getpagesize()


def wait_for_end(pid: int, limit: float) -> bool:
    """Return once the process `pid` is gone, or False if it is not within `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(_GLANCE)
    return False
