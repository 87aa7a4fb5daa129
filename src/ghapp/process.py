"""The daemon as a process: one at a time, detached from whoever started it, closed to its neighbours."""

import contextlib
import ctypes
import fcntl
import itertools
import os
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ghapp import autostart, client


MIN_DESCRIPTORS = 4096  # soft limit, for 2,000 connections
RESERVED_DESCRIPTORS = 40  # of ours: log, lock, loop, listeners; 20 connections to GitHub; a keyring child's pipes
MIN_CONNECTIONS = 8  # were the limit that low, some of them would wait for descriptors
PATIENCE = 2.0  # seconds for the holder of the lock to show that it lives
START_PATIENCE = 10.0  # seconds for one that starts or ends: it has no sockets, and is not to be killed
HELLO_LIMIT = 0.5  # seconds for whoever listens on our path to say who it is
_GLANCE = 0.02
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


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
    raise_descriptor_limit(MIN_DESCRIPTORS)
    _prctl(_PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # Until the loop handles it: a starter that finds our lock taken sends it, and its default is to end us.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def raise_descriptor_limit(least: int) -> None:
    """Let this process have so many descriptors open, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = least if hard == resource.RLIM_INFINITY else min(least, hard)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_budget() -> int:
    """Return how many clients the limit of descriptors leaves room for, next to what we need ourselves."""
    return max(MIN_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_DESCRIPTORS)


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208  # a count; one is the listing's own


def harden_child() -> None:
    """Close a short-lived child that handles a secret, and let it end with its parent."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that ended before that sends no signal any more; but nobody will read what we write.
    reader = select.poll()
    reader.register(1, 0)
    if reader.poll(0):
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def detach() -> Callable[[str], None]:
    """Fork; the parent waits until the returned function is called in the child, and ends then.

    Called with "", the parent exits 0; with a text, it prints that to stderr and exits 1. A child that dies makes
    the parent exit 1 as well. The child has a session of its own, stands in /, and holds nothing of its starter's.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        code, problem = outcome(reader)
        os.write(2, problem)
        os._exit(code)
    os.close(reader)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    close_all_but(writer)
    return reporter(writer)


def reporter(writer: int) -> Callable[[str], None]:
    """Return the function that tells the starter, once, how it went."""
    said = False

    def report(problem: str) -> None:
        nonlocal said
        if said:
            return  # the number may be another file's by now
        said = True
        with contextlib.suppress(OSError):  # the starter has given up; we serve whoever comes next
            os.write(writer, (problem or "ready").encode(errors="replace"))
        os.close(writer)

    return report


def close_all_but(kept: int) -> None:
    """Close every descriptor above 2 but one, however high its number: a starter may have raised its limit."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/dev/fd"):  # noqa: PTH208  # numbers, not paths
            if int(name) not in {0, 1, 2, kept}:
                with contextlib.suppress(OSError):  # the listing's own
                    os.close(int(name))


def leave(code: int) -> NoReturn:
    """End this process now: at its normal end Python would wait for a signer or a name resolution that hangs."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def outcome(reader: int) -> tuple[int, bytes]:
    """Return the starter's exit code and what it has to print, once the daemon has told or died."""
    said = b""
    while chunk := os.read(reader, 4096):
        said += chunk
    if said == b"ready":
        return 0, b""
    return 1, said or autostart.DIED + b"\nghapp daemon run shows why"


def take_lock(directory: str, *, activated: bool = False) -> int | None:
    """Return the descriptor of the daemon's lock, which is held until the process ends, or None if a daemon serves.

    A holder whose sockets do not answer is told to mend that (SIGHUP); one that does not react in time is killed,
    its pid verified. One that starts or ends has no pid in the file and is waited for. Where systemd activated us
    the sockets are ours: the holder is told to end (SIGTERM), and nobody says hello there. Raises OSError.
    """
    path = f"{directory}/daemon.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if _lock(descriptor):
        return descriptor
    told: dict[int, float] = {}
    end = time.monotonic() + START_PATIENCE
    while time.monotonic() < end:
        if _lock(descriptor):
            return descriptor
        if not activated and complete(directory):
            os.close(descriptor)
            return None
        holder = _holder(path)
        if holder is not None and holder not in told:
            told[holder] = time.monotonic()
            _send(holder, signal.SIGTERM if activated else signal.SIGHUP)
        elif holder is not None and time.monotonic() - told[holder] >= PATIENCE:
            _send(holder, signal.SIGKILL)
        time.sleep(_GLANCE)
    os.close(descriptor)
    raise OSError(f"another process holds {path} and does not end (E41)")


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    mark_unreachable(descriptor)
    return True


def mark_serving(lock: int) -> None:
    """Write our pid into the lock's file: from now on our sockets answer, and who finds them silent may end us."""
    with contextlib.suppress(OSError):  # a full disk; a daemon without it is waited for, as one that starts
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def owns(lock: int, directory: str) -> bool:
    """Tell whether ``daemon.lock`` in `directory` is still the file whose lock we hold.

    It is not after somebody removed the directory, as systemd does at logout: whoever serves there now is right.
    """
    try:
        there = os.lstat(f"{directory}/daemon.lock")
    except OSError:
        return False
    ours = os.fstat(lock)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def mark_unreachable(lock: int) -> None:
    """Take our pid out of the lock's file: we start, or end, and are waited for."""
    os.ftruncate(lock, 0)


def is_locked(directory: str) -> bool:
    """Tell whether a daemon holds the lock in `directory`, also one that starts or ends."""
    try:
        descriptor = os.open(f"{directory}/daemon.lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def lock_holder(directory: str) -> int | None:
    """Return the pid of the daemon that serves in `directory`, or None."""
    return _holder(f"{directory}/daemon.lock") if is_locked(directory) else None


def _holder(path: str) -> int | None:
    """Return the pid in the lock file if that process is a daemon of ours."""
    try:
        pid = int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if _is_ghapp(pid) else None


def _is_ghapp(pid: int) -> bool:
    if pid <= 1 or pid == os.getpid():
        return False
    if sys.platform != "linux":
        return True
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        uids = re.search(r"^Uid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return False
    # ``python … -m ghapp.daemon …`` or ``python …/ghapp daemon run``; not an editor of a file with our name.
    as_module = (b"-m", b"ghapp.daemon") in itertools.pairwise(words)
    as_command = any(
        word.rpartition(b"/")[2] == b"ghapp" and words[number + 1 : number + 3] == [b"daemon", b"run"]
        for number, word in enumerate(words)
    )
    return (as_module or as_command) and uids is not None and int(uids[1]) == os.geteuid()


def hello(path: str, limit: float = HELLO_LIMIT) -> dict[str, str] | None:
    """Return what the daemon at `path` says of itself, {} for a foreign listener, None for nobody."""
    try:
        answer = client.ask(path, b"action=hello\ntimeout=0\nghapp=1\n", limit)
    except client.NoAnswer as reason:
        return {} if reason.foreign else None
    except OSError:
        return None
    return dict(line.split("=", 1) for line in answer.decode("ascii", "replace").splitlines() if "=" in line)


def complete(directory: str) -> bool:
    """Tell whether a daemon of ours answers in `directory`, on both sockets."""
    return bool(hello(f"{directory}/git.sock")) and autostart.listens(f"{directory}/control.sock")


def free_path(path: str) -> bool:
    """End whoever listens at `path`, so that the path can be taken. Call with the lock held.

    That is git's own cache daemon; or a daemon of ours whose lock's file was removed, which nobody would find again.
    Returns False for a listener that says nothing, such as systemd's, which waits for a client to start us.
    """
    found = hello(path)
    if found is None:
        return not autostart.listens(path)
    given = found.get("pid", "")
    pid = int(given) if re.fullmatch(r"[0-9]{1,9}", given) else 0
    if _is_ghapp(pid):
        _send(pid, signal.SIGTERM)
    elif not found:
        autostart.end_foreign(path)
    return True


def resident_bytes() -> int:
    """Return the memory this process occupies."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, and the peak
    return int(pages) * resource.getpagesize()


def wait_for_end(pid: int, limit: float) -> bool:
    """Return once the process `pid` is gone, or False if it is not within `limit` seconds."""
    return _wait_until(lambda: _is_gone(pid), limit)


def wait_for_lock(directory: str, limit: float) -> bool:
    """Return once no daemon holds the lock, or False if one does for `limit` seconds."""
    return _wait_until(lambda: not is_locked(directory), limit)


def _wait_until(over: Callable[[], bool], limit: float) -> bool:
    end = time.monotonic() + limit
    while not over():
        if time.monotonic() >= end:
            return False
        time.sleep(_GLANCE)
    return True


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return True
    try:
        status, threads = Path(f"/proc/{pid}/stat").read_bytes(), os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  # a count
    except OSError:
        return sys.platform == "linux"
    # Dead, and nobody has asked how: in a container process 1 often does not. While other threads end, its first one
    # looks the same, and the lock and the sockets are still held.
    return len(threads) <= 1 and status.rpartition(b")")[2].split()[0] in {b"Z", b"X"}
