"""What git runs when git's own client got no answer: start the daemon, ask, say why there is no credential.

Imports os, sys, _socket and ghapp.paths, and nothing more (the lazy exception is `ghapp.autostart`): an interpreter
that starts for git costs 10 ms, and each further module is felt in every fetch.
"""

import _socket
import os
import sys

from ghapp import paths


DEADLINE = 30.0  # seconds; the daemon's own budget for one get is 25
MAX_REQUEST = 63 * 1024  # the daemon's 64 KiB, without the lines that we put in front; git sends less than 1 KiB
MAX_ANSWER = 64 * 1024  # a token is 520 bytes today
LONGEST_NAME = 100  # bytes; sun_path holds 107 on Linux, 103 on macOS
PAUSE = 0.02  # seconds before the next try at a full backlog
ATTEMPTS = 4  # a daemon that dies under us is replaced; one that dies at every request is not our loop to run


class NoAnswer(Exception):  # not a failure yet: the daemon is started and asked again
    """Nobody listens, or whoever listened went away before the answer was whole."""

    def __init__(self, *, foreign: bool = False) -> None:
        super().__init__()
        self.foreign = foreign


def connect(path: str, timeout: float) -> _socket.socket:
    """Return a connection to the socket at `path`, after checking that its owner is us or root.

    A full backlog is waited for. Raises OSError; PermissionError for a listener of another user.
    """
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(timeout)
    end = now() + timeout
    try:
        while not _connected(connection, path, last=now() >= end):
            wait(PAUSE)
        peer = peer_uid(connection)
    except BaseException:
        connection.close()
        raise
    if peer not in {0, os.geteuid()}:
        connection.close()
        raise PermissionError(f"{path} is served by another user (E44)")
    return connection


def _connected(connection: _socket.socket, path: str, *, last: bool) -> bool:
    try:
        if len(os.fsencode(path)) <= LONGEST_NAME:
            connection.connect(path)
        else:
            _connect_from_within(connection, path)
    except BlockingIOError:
        if last:
            raise TimeoutError from None
        return False
    return True


def _connect_from_within(connection: _socket.socket, path: str) -> None:
    """Connect to a path that is longer than the kernel's field for it, as git does: from its directory."""
    directory, _, name = path.rpartition("/")
    here = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        connection.connect(name)
    finally:
        os.fchdir(here)
        os.close(here)


def peer_uid(connection: _socket.socket) -> int:
    """Return the user at the other end: SO_PEERCRED on Linux, LOCAL_PEERCRED (struct xucred) on macOS."""
    if sys.platform == "darwin":
        return int.from_bytes(connection.getsockopt(0, 1, 76)[4:8], sys.byteorder)
    return int.from_bytes(connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)[4:8], sys.byteorder)


def exchange(connection: _socket.socket, request: bytes) -> bytes:
    """Send `request` whole and return the answer whole: up to the other end's close.

    The connection's time-out is for all of it.
    """
    end = now() + (connection.gettimeout() or DEADLINE)
    connection.sendall(request)
    connection.shutdown(_socket.SHUT_WR)
    answer = b""
    while len(answer) <= MAX_ANSWER:
        connection.settimeout(max(PAUSE, end - now()))
        chunk = connection.recv(MAX_ANSWER)
        if not chunk:
            break
        answer += chunk
    return answer


def ask(path: str, request: bytes, timeout: float) -> bytes:
    """Return the daemon's answer to `request`, without the marker that says it is whole and ours.

    Raises `NoAnswer`, `TimeoutError`, `PermissionError`.
    """
    try:
        connection = connect(path, timeout)
    except OSError as error:
        if error.errno is None:
            raise  # ours: too late, or another user
        raise NoAnswer from None  # whatever lies there: whoever starts a daemon clears the path
    try:
        answer = exchange(connection, request)
    except ConnectionError:
        raise NoAnswer from None
    finally:
        connection.close()
    # The marker is the last line, so an answer cut off by the daemon's death is not taken for a whole one.
    if answer != b"ghapp=1\n" and not answer.endswith(b"\nghapp=1\n"):
        raise NoAnswer(foreign=True)  # git's cache daemon says nothing where it knows nothing
    return answer[: -len(b"ghapp=1\n")]


def fill(attributes: bytes) -> bytes:
    """Return the answer to git's `attributes`, starting the daemon if there is none; raise OSError with a reason."""
    path = paths.git_socket()
    request = b"action=get\ntimeout=0\nghapp=1\n" + attributes
    end = now() + DEADLINE
    for _ in range(ATTEMPTS):
        try:
            return ask(path, request, max(0.1, end - now()))
        except NoAnswer as reason:
            from ghapp import autostart  # noqa: PLC0415  # only a cold start pays for what it imports

            autostart.ensure(path, foreign=reason.foreign, deadline=max(0.1, end - now()))
    raise OSError("the daemon ends at every request; see 'ghapp daemon status'")


def now() -> float:
    """Return seconds since some fixed moment: `time` without importing it."""
    return os.times().elapsed


def wait(seconds: float) -> None:
    """Sleep: `time` without importing it."""
    ours, theirs = _socket.socketpair()
    ours.settimeout(seconds)
    try:
        ours.recv(1)
    except TimeoutError:
        pass
    finally:
        ours.close()
        theirs.close()


def read_request() -> bytes:
    """Return what git sends, up to the blank line or its end; b"" if it is more than git would send."""
    data = b""
    while b"\n\n" not in data:
        try:
            chunk = os.read(0, MAX_REQUEST)
        except OSError:
            return b""
        if not chunk:
            break
        data += chunk
        if len(data) > MAX_REQUEST:
            return b""
    data = data.split(b"\n\n", 1)[0]
    return data if data.endswith(b"\n") else data + b"\n"


def say(kind: str, text: bytes) -> None:
    """Print one line to the person, in printable ASCII: part of it may come from a URL."""
    line = f"ghapp: {kind}: ".encode() + bytes(byte if 32 <= byte < 127 else 63 for byte in text)  # noqa: PLR2004  # ASCII
    write(2, line + b"\n")


def write(descriptor: int, data: bytes) -> None:
    """Write, unless that is closed or nobody reads it any more."""
    try:  # noqa: SIM105  # contextlib is not imported here
        os.write(descriptor, data)
    except OSError:
        pass


def main() -> None:
    """Answer git's `get`, in one write; git ignores the exit status and uses whatever was printed."""
    attributes = read_request()
    if attributes in {b"", b"\n"}:
        return
    try:
        answer = fill(attributes)
    except TimeoutError:
        say("error", f"the daemon did not answer within {DEADLINE:.0f} s (E41)".encode())
        answer = b"hint=ghapp daemon restart\nquit=1\n"
    except OSError as error:
        lines = explained(error).split("\n")
        say("error", lines[0].encode(errors="replace"))
        answer = f"hint={lines[1] if len(lines) > 1 else 'ghapp daemon status'}\nquit=1\n".encode(errors="replace")
    out = b""
    for line in answer.split(b"\n"):
        key, _, value = line.partition(b"=")
        if key in {b"error", b"hint"}:
            say(key.decode(), value)
        elif line:
            out += line + b"\n"
    if out:
        write(1, out)


def explained(error: OSError) -> str:
    """Return why the daemon cannot be asked: our own text, or the system's with the place."""
    if error.errno is None:
        return str(error.args[-1]) if error.args else type(error).__name__
    return f"{paths.git_socket()}: {error.strerror} (E41)"
