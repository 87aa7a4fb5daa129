"""Unix sockets that hold out: an accept loop of our own, a cap, deadlines, and who is at the other end.

asyncio's own loop floods the log when descriptors run out (python/cpython#151615), its start_unix_server takes a
living daemon's socket away, and from 3.13 on it unlinks sockets that were passed in.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import shlex
import socket
import stat
import struct
import sys
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ghapp import client
from ghapp.errors import RuntimeDirectoryRefused


BACKLOG = 1024  # with git's 5, 494 of 500 simultaneous clients failed at once
MAX_CONNECTIONS = 2000  # beyond it clients wait in the backlog; the soft descriptor limit is raised to 4,096
CROWDED = 3 / 4  # of the connections: from here on whoever has been sending longest makes room
FRESH = 1.0  # seconds after which a client that has not sent its request may have to make room; a burst is no attack
LEAST_FRESH = 0.1  # seconds, where there are few places: 200 silent clients would hold 20 of them for 10 s
LAST_CALL = 0.1  # seconds, when we end, for those just accepted: what they have sent is on its way
SEND_LIMIT = 10.0  # seconds for a client to send its request; it takes microseconds
WRITE_LIMIT = 10.0  # seconds for a client to take its answer
OUT_OF_DESCRIPTORS_PAUSE = 0.1  # seconds; a connection of ours that ends sooner ends the pause
QUIET = 60.0  # seconds between two lines in the log about missing descriptors
_CHUNK = 64 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as the kernel says."""

    pid: int
    uid: int


class Connection:
    """One accepted client. Reads are bounded in size and time, an answer is written once."""

    def __init__(self, sock: socket.socket, peer: Peer, send_limit: float = SEND_LIMIT) -> None:
        self._sock = sock
        self._rest = b""
        self._send_limit = send_limit
        self.peer = peer
        self.since = asyncio.get_running_loop().time()
        self.asked = False
        """Whether a whole request has arrived: such a client is not dropped to make room."""
        self.held = False
        """Whether the client has its answer and stays: it is not dropped either, and nobody waits for it at the end."""

    async def read_until(self, end: bytes, most: int) -> bytes:
        """Return what the client sends up to `end` (excluded) or its half-close.

        Raises `TimeoutError` for a slow client, `ValueError` for one that sends more than `most` bytes.
        """
        loop = asyncio.get_running_loop()
        data = self._rest
        self.asked = False
        async with asyncio.timeout(self._send_limit):
            while end not in data:
                if len(data) > most:
                    raise ValueError("the request is too large")
                chunk = await loop.sock_recv(self._sock, _CHUNK)
                if not chunk:
                    break
                data += chunk
        data, _, self._rest = data.partition(end)
        if len(data) > most:
            raise ValueError("the request is too large")
        self.asked = True
        return data

    async def write(self, answer: bytes) -> None:
        """Send `answer`, which was built and checked whole."""
        async with asyncio.timeout(WRITE_LIMIT):
            await asyncio.get_running_loop().sock_sendall(self._sock, answer)

    async def until_closed(self) -> None:
        """Return when the client lets go, however long that takes; whatever it sends is not read as a request."""
        self.held, self.asked = True, False
        with contextlib.suppress(ConnectionError):
            while await asyncio.get_running_loop().sock_recv(self._sock, _CHUNK):
                pass

    def close(self) -> None:
        """Close; only when no task waits on this connection, for the descriptor's number is soon another's."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


Handler = Callable[[Connection], Awaitable[None]]


class Listener:
    """One listening socket and its clients."""

    def __init__(
        self,
        path: str,
        handle: Handler,
        *,
        on_activity: Callable[[], None] = lambda: None,
        most: int = MAX_CONNECTIONS,
        send_limit: float = SEND_LIMIT,
        fresh: float = FRESH,
        uids: Collection[int] = (),
    ) -> None:
        """`uids` may connect too, beside us and root; the socket's mode lets them, and who it is decides."""
        self._uids = frozenset((0, os.geteuid(), *uids))
        self._mode = 0o666 if uids else 0o600
        self.path = path
        self._handle = handle
        self._on_activity = on_activity
        self._most = most
        self._send_limit = send_limit
        self._fresh = min(fresh, max(LEAST_FRESH, fresh * most / MAX_CONNECTIONS))
        self._sock: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._adopted = False
        self._tasks: dict[asyncio.Task[None], Connection] = {}
        self._paused = False
        self._quiet_until = 0.0
        self.peak = 0
        self.rejected = 0
        self.timeouts = 0

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._tasks)

    @property
    def busy(self) -> bool:
        """Whether anybody waits for us; one that has its answer and stays does not."""
        return any(not connection.held for connection in self._tasks.values())

    def open(self) -> None:
        """Bind and listen. Whatever lies on the path is ours to replace only if it is a dead socket of ours.

        Call only while holding the daemon's lock. Raises `RuntimeDirectoryRefused`.
        """
        clear_path(self.path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            mask = os.umask(0o177)
            try:
                _bind(sock, self.path)
            finally:
                os.umask(mask)
            if self._mode != 0o600:  # noqa: PLR2004  # what the umask made it
                Path(self.path).chmod(self._mode)
            sock.listen(BACKLOG)
            sock.settimeout(0)
            status = os.lstat(self.path)
        except BaseException:
            sock.close()
            raise
        self._sock, self._inode = sock, (status.st_dev, status.st_ino)
        self._resume()

    def adopt(self, sock: socket.socket) -> None:
        """Serve a listening socket that was passed to us: its path is not ours to unlink."""
        sock.settimeout(0)
        self.path = sock.getsockname()
        with contextlib.suppress(OSError):  # gone already: not in place, which is mended like any other
            status = os.lstat(self.path)
            self._inode = (status.st_dev, status.st_ino)
        self._sock, self._adopted = sock, True
        self._resume()

    def is_replaced(self) -> bool:
        """Tell whether whoever passed our socket has made its path lead elsewhere since."""
        return self._adopted and not self.is_in_place() and os.path.lexists(self.path)

    def is_in_place(self) -> bool:
        """Tell whether the path still leads to our socket."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return self._inode == (status.st_dev, status.st_ino)

    def stop_accepting(self) -> None:
        """Let go of the listening socket, and of the path if it is still ours. Clients already here are served.

        Who waits in the backlog is here too: first the path goes, so that nobody comes after them, then they come in.
        """
        if self._sock is None:
            return
        if self.is_in_place() and not self._adopted:
            with contextlib.suppress(OSError):  # what stays is a dead socket, which the next daemon replaces
                Path(self.path).unlink()
        self._accept()
        sock, self._sock, self._inode, self._adopted = self._sock, None, None, False
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()

    async def drain(self, limit: float) -> None:
        """Wait up to `limit` seconds for those who have asked, then close whoever is left."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=min(LAST_CALL, limit))
        asked = [task for task, connection in self._tasks.items() if connection.asked]
        if asked:
            await asyncio.wait(asked, timeout=limit)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _resume(self) -> None:
        if self._sock is not None:
            self._paused = False
            asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def _pause(self, seconds: float) -> None:
        if self._sock is not None:
            self._paused = True
            asyncio.get_running_loop().remove_reader(self._sock)
            asyncio.get_running_loop().call_later(seconds, self._resume)

    def _accept(self) -> None:
        while self._sock is not None:
            if len(self._tasks) >= self._most and not self._drop_the_slowest():
                self._pause(self._fresh)  # the rest wait in the backlog, until one of ours leaves or may be dropped
                return
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:  # no descriptors, no memory: asyncio would try again at once, and log, for ever
                self._complain(error)
                self._pause(OUT_OF_DESCRIPTORS_PAUSE)
                return
            self._admit(sock)

    def _complain(self, error: OSError) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET
            log.warning("clients have to wait: %s", error.strerror)

    def _admit(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        try:
            peer = peer_of(sock)
        except OSError:
            peer = None
        # As ssh-agent: us, or root, who could become us anyway and who runs containers.
        if peer is None or peer.uid not in self._uids:
            self.rejected += 1
            sock.close()
            return
        if len(self._tasks) >= self._most * CROWDED:
            self._drop_the_slowest()
        connection = Connection(sock, peer, self._send_limit)
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks[task] = connection
        self.peak = max(self.peak, len(self._tasks))
        task.add_done_callback(functools.partial(self._left, connection))

    def _drop_the_slowest(self) -> bool:
        """Make room by one who came a while ago and has not asked yet; tell whether there was one."""
        now = asyncio.get_running_loop().time()
        for task, connection in self._tasks.items():  # in the order of arrival
            if now - connection.since < self._fresh:
                return False
            if not connection.asked and not connection.held:
                self.timeouts += 1
                del self._tasks[task]
                task.cancel()
                return True
        return False

    def _left(self, connection: Connection, task: asyncio.Task[None]) -> None:
        connection.close()  # again, for a task that was cancelled before it ran
        self._tasks.pop(task, None)
        if self._paused:
            self._resume()

    async def _serve(self, connection: Connection) -> None:
        self._on_activity()
        try:
            await self._handle(connection)
        except TimeoutError:
            self.timeouts += 1
        except MemoryError:
            os._exit(1)  # nothing that would follow can be trusted to work; the next request starts a daemon
        except (OSError, ValueError):
            pass  # the client went away, or sent what no client of git sends
        except Exception as error:  # noqa: BLE001  # one client's trouble must not end the others'
            # The class alone: a text or a traceback may hold what was received.
            log.error("a request failed: %s", type(error).__name__)  # noqa: TRY400  # as said
        finally:
            connection.close()
            self._on_activity()


def peer_of(sock: socket.socket) -> Peer:
    """Return who is connected; raises OSError."""
    if sys.platform == "darwin":
        # struct xucred { u_int version; uid_t uid; …; } at level SOL_LOCAL; LOCAL_PEERPID is 2.
        uid = struct.unpack_from("=II", sock.getsockopt(0, 1, 76))[1]
        return Peer(sock.getsockopt(0, 2), uid)
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid)


def clear_path(path: str) -> None:
    """Remove a dead socket of ours from `path`; move anything else aside, for it is not ours to delete.

    The directory is ours alone, so whatever lies there got in by mistake. Raises `RuntimeDirectoryRefused`.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid():
            Path(path).unlink()
            return
        aside = next(name for name in (f"{path}.aside-{number}" for number in itertools.count(1)) if _is_free(name))
        Path(path).rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        why = f"{path} is in the way and cannot be moved: {error.strerror}"
        raise RuntimeDirectoryRefused(why, hint=f"remove it: rm -r {shlex.quote(path)}") from None
    log.warning("%s was not our socket; it lies in %s now", path, aside)


def _is_free(path: str) -> bool:
    return not os.path.lexists(path)


def _bind(sock: socket.socket, path: str) -> None:
    """Bind to `path` also where it is longer than the kernel's field; only while nothing else needs the directory."""
    if len(os.fsencode(path)) <= client.LONGEST_NAME:
        sock.bind(path)
        return
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(Path(path).parent)
        sock.bind(Path(path).name)
    finally:
        os.fchdir(here)
        os.close(here)
