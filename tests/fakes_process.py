"""What the tests of sockets and processes share: waiting for conditions, daemons in this loop, listeners of others."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from ghapp import process
from ghapp.clock import SystemClock
from ghapp.daemon import Daemon
from ghapp.protocols import Clock


LIMIT = 20.0  # seconds, for what takes a moment


def eventually(condition: Callable[[], object], limit: float = LIMIT) -> None:
    """Return when `condition` holds; fail if it does not in time."""
    pause = threading.Event()
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.01)


async def soon(condition: Callable[[], object], limit: float = LIMIT) -> None:
    """As `eventually`, while the loop goes on."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


def make(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextlib.asynccontextmanager
async def running(directory: Path, *, lock: int | None = None, clock: Clock | None = None) -> AsyncIterator[Daemon]:
    """Run a daemon in this loop; the block begins when it listens."""
    make(directory)
    daemon = Daemon(str(directory), clock or SystemClock(), lock=lock)
    listens = asyncio.Event()
    task = asyncio.create_task(daemon.run(listens.set))
    waiting = asyncio.create_task(listens.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        await task
    try:
        yield daemon
    finally:
        daemon._ending.set()
        await asyncio.wait_for(task, LIMIT)
        remove_signal_handlers()


@contextlib.asynccontextmanager
async def ending_by_itself(daemon: Daemon) -> AsyncIterator[None]:
    """Run `daemon` in this loop; the block begins when it listens, and the daemon has to end after it, unasked."""
    listens = asyncio.Event()
    task = asyncio.create_task(daemon.run(listens.set))
    await asyncio.wait_for(listens.wait(), LIMIT)
    yield
    await asyncio.wait_for(task, LIMIT)
    remove_signal_handlers()


def closed_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def remove_signal_handlers() -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.remove_signal_handler(number)


def talk(path: Path | str, data: bytes, *, half_close: bool = True) -> bytes:
    """Send `data` and return all that comes back until the other end closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT)
        client.connect(str(path))
        client.sendall(data)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.recv(65536):
                answer += chunk
        return answer


@contextlib.contextmanager
def listener(path: Path | str, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Listen at `path` as somebody else; `answer` serves each client, in one thread."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(16)

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                answer(client)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


LISTENS_AS_NOBODY = """
import os, socket, sys
server = socket.socket(fileno=int(sys.argv[1]))
os.setuid(65534)
server.listen(16)  # the kernel keeps who listened, not who bound
print("listens", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def listener_of_another_user(path: Path) -> Iterator[None]:
    """Listen at `path` as nobody, who says nothing; only root can."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        command = [sys.executable, "-c", LISTENS_AS_NOBODY, str(server.fileno())]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=(server.fileno(),)) as nobody:
            assert nobody.stdout is not None
            assert nobody.stdout.readline() == b"listens\n"
            yield


def wait_for(event: threading.Event) -> None:
    event.wait(LIMIT)


def hang_up(client: socket.socket) -> None:
    client.recv(65536)


def greet(client: socket.socket) -> None:
    client.recv(65536)
    client.sendall(b"SSH-2.0-what\n")


def saying(answer: bytes) -> Callable[[socket.socket], None]:
    """Return a server that reads a request to its end and answers `answer`."""

    def serve(client: socket.socket) -> None:
        while client.recv(65536):
            pass
        client.sendall(answer)

    return serve


@contextlib.contextmanager
def git_cache(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run git's own cache daemon at `path`, holding one credential of somebody else."""
    exec_path = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()
    daemon = subprocess.Popen([f"{exec_path}/git-credential-cache--daemon", str(path)], stdout=subprocess.PIPE)
    assert daemon.stdout is not None
    try:
        assert daemon.stdout.read(2) == b"ok"
        store = b"action=store\ntimeout=900\nprotocol=https\nhost=example.com\nusername=u\npassword=p\n"
        talk(path, store)
        yield daemon
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()


@contextlib.contextmanager
def holding_lock(directory: Path, script: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Run a process that looks like a daemon that serves, holds the lock, and has no sockets."""
    program = (
        "import fcntl, os, signal, sys\n"
        f"lock = os.open({str(directory / 'daemon.lock')!r}, os.O_RDWR | os.O_CREAT, 0o600)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "os.ftruncate(lock, 0)\n"
        f"{script}\n"
        "print('held', flush=True)\n"
        "while True: signal.pause()\n"
    )
    command = [sys.executable, "-c", program, "-m", "ghapp.daemon"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


WITH_PID = "os.pwrite(lock, str(os.getpid()).encode(), 0)\n"
DEAF = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"


def end_daemon(directory: Path) -> None:
    """End the real daemon in `directory`, if there is one."""
    pid = process.lock_holder(str(directory))
    assert pid != os.getpid(), "the daemon in this process did not end"
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        assert process.wait_for_end(pid, LIMIT)


def in_child(function: Callable[[], None]) -> int:
    """Run `function` in a forked process and return its exit status: 0, or 1 if it raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def state_of(path: Path) -> tuple[int, int]:
    """Return what another file in its place, or a write to it, changes."""
    status = path.stat()
    return status.st_mtime_ns, status.st_ino


def wait_for_a_change(path: Path, seen: tuple[int, int], process: "subprocess.Popen[bytes]") -> None:
    """Wait until `path` is not what was seen, which may be so at once, or `process` has done all that it does."""
    end = time.monotonic() + 2 * LIMIT  # a command line with a keyring
    while state_of(path) == seen:
        if process.poll() is not None:
            assert process.returncode == 0
            return
        assert time.monotonic() < end


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End the whole process group as a crash would; it may have ended by itself just now."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
