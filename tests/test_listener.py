"""Sockets that hold out against the slow, the many and the foreign."""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import fakes_process
import pytest
from fakes_process import LIMIT, soon, talk

from ghapp import listener as module
from ghapp.errors import RuntimeDirectoryRefused
from ghapp.listener import Connection, Listener, clear_path


async def echo(connection: Connection) -> None:
    await connection.write(await connection.read_until(b"\n\n", 1000))


@contextlib.asynccontextmanager
async def listening(listener: Listener) -> AsyncIterator[Listener]:
    listener.open()
    try:
        yield listener
    finally:
        listener.stop_accepting()
        await listener.drain(0.5)


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(LIMIT)
    client.connect(str(path))
    return client


async def ask(path: Path, data: bytes = b"hello") -> bytes:
    return await asyncio.to_thread(talk, path, data)


async def test_a_request_is_answered_once_and_the_connection_closed(tmp_path: Path) -> None:
    async with listening(Listener(str(tmp_path / "s"), echo)) as listener:
        assert await ask(tmp_path / "s") == b"hello"
        assert await ask(tmp_path / "s", b"one\n\ntwo") == b"one"
        await soon(lambda: listener.connections == 0)
        assert listener.peak == 1


async def test_the_socket_is_ours_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with listening(Listener(str(tmp_path / "s"), echo)):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(before)


async def test_a_path_longer_than_the_kernels_field_serves_too(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    here = Path.cwd()

    async with listening(Listener(str(directory / "s"), echo)) as listener:
        assert listener.is_in_place()
        assert Path.cwd() == here

    assert not (directory / "s").exists()


async def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.close()

    async with listening(Listener(str(tmp_path / "s"), echo)):
        assert await ask(tmp_path / "s") == b"hello"


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
async def test_what_is_no_socket_is_moved_aside_and_not_lost(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "symlink":
            path.symlink_to(tmp_path / "elsewhere")
        case "fifo":
            os.mkfifo(path)
    before = path.lstat().st_ino
    (tmp_path / "s.aside-1").write_text("an earlier one")

    async with listening(Listener(str(path), echo)) as listener:
        assert listener.is_in_place()

    assert (tmp_path / "s.aside-2").lstat().st_ino == before
    assert (tmp_path / "s.aside-1").read_text() == "an earlier one"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a socket of another user")
async def test_a_socket_of_another_user_is_moved_aside_and_not_deleted(tmp_path: Path) -> None:
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(tmp_path / "s"))
    other.close()
    os.chown(tmp_path / "s", 65534, 65534)

    async with listening(Listener(str(tmp_path / "s"), echo)) as listener:
        assert listener.is_in_place()

    assert (tmp_path / "s.aside-1").stat().st_uid == 65534


def test_what_cannot_be_moved_is_named(tmp_path: Path) -> None:
    long_name = tmp_path / ("s" * 250)  # too long once ".aside-1" is put behind it
    long_name.write_text("precious")

    with pytest.raises(RuntimeDirectoryRefused, match="in the way and cannot be moved: File name too long"):
        clear_path(str(long_name))

    assert long_name.read_text() == "precious"


async def test_a_directory_that_is_gone_leaves_no_descriptor(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Listener(str(tmp_path / "gone" / "s"), echo).open()


async def test_only_our_own_socket_is_unlinked_at_the_end(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "s"), echo)
    assert not listener.is_in_place()
    listener.stop_accepting()
    listener.open()
    (tmp_path / "s").unlink()
    (tmp_path / "s").write_text("somebody else's")

    assert not listener.is_in_place()
    listener.stop_accepting()

    assert (tmp_path / "s").read_text() == "somebody else's"


async def test_a_silent_client_delays_nobody_and_is_dropped_after_the_limit(tmp_path: Path) -> None:
    async with listening(Listener(str(tmp_path / "s"), echo, send_limit=0.2)) as listener:
        silent = connect(tmp_path / "s")
        assert await ask(tmp_path / "s") == b"hello"
        assert listener.connections == 1

        assert await asyncio.to_thread(silent.recv, 1) == b""
        assert listener.timeouts == 1
        silent.close()


async def test_bytes_that_trickle_do_not_extend_the_limit(tmp_path: Path) -> None:
    async with listening(Listener(str(tmp_path / "s"), echo, send_limit=0.2)) as listener:
        slow = connect(tmp_path / "s")
        slow.sendall(b"a")
        await soon(lambda: listener.connections == 1)
        slow.sendall(b"b")
        assert await asyncio.to_thread(slow.recv, 1) == b""
        slow.close()


@pytest.mark.parametrize("end", [b"", b"\n\n"])
async def test_an_oversized_request_is_cut_off(tmp_path: Path, end: bytes) -> None:
    async with listening(Listener(str(tmp_path / "s"), echo)) as listener:
        assert await ask(tmp_path / "s", b"x" * 1001 + end) == b""
        assert await ask(tmp_path / "s", b"x" * 1000) == b"x" * 1000
        await soon(lambda: listener.connections == 0)


async def test_beyond_the_cap_clients_wait_in_the_backlog_and_are_served(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def hold(connection: Connection) -> None:
        await connection.read_until(b"\n\n", 1000)
        await go.wait()
        await connection.write(b"served")

    async with listening(Listener(str(tmp_path / "s"), hold, most=4)) as listener:
        clients = [asyncio.create_task(ask(tmp_path / "s")) for _ in range(4)]
        await soon(lambda: listener.connections == 4)
        late = connect(tmp_path / "s")
        late.sendall(b"x")
        late.shutdown(socket.SHUT_WR)
        await soon(lambda: listener._paused)

        go.set()

        assert await asyncio.gather(*clients) == [b"served"] * 4
        assert await asyncio.to_thread(late.recv, 100) == b"served"
        assert listener.peak == 4
        late.close()


async def test_when_it_gets_crowded_who_has_been_silent_longest_makes_room(tmp_path: Path) -> None:
    async with listening(Listener(str(tmp_path / "s"), echo, most=4, fresh=0.05)) as listener:
        silent = [connect(tmp_path / "s") for _ in range(3)]
        await soon(lambda: listener.connections == 3)
        await soon(lambda: all(listener._sock is not None for _ in silent) and _age(listener) > 0.06)

        assert await ask(tmp_path / "s") == b"hello"

        assert await asyncio.to_thread(silent[0].recv, 1) == b""
        silent[1].sendall(b"still here\n\n")
        assert await asyncio.to_thread(silent[1].recv, 100) == b"still here"
        for client in silent:
            client.close()


def _age(listener: Listener) -> float:
    return asyncio.get_running_loop().time() - max(connection.since for connection in listener._tasks.values())


async def test_a_burst_of_clients_drops_none_of_them(tmp_path: Path) -> None:
    async with listening(Listener(str(tmp_path / "s"), echo, most=8)) as listener:
        clients = [connect(tmp_path / "s") for _ in range(40)]
        for client in clients:
            client.sendall(b"hi\n\n")

        answers = await asyncio.gather(*(asyncio.to_thread(client.recv, 100) for client in clients))

        assert answers == [b"hi"] * 40
        assert listener.timeouts == 0
        for client in clients:
            client.close()


async def test_a_full_house_of_silent_clients_is_cleared_without_anybody_leaving(tmp_path: Path) -> None:
    async with listening(Listener(str(tmp_path / "s"), echo, most=2, fresh=0.1)) as listener:
        silent = [connect(tmp_path / "s") for _ in range(2)]
        await soon(lambda: listener.connections == 2)

        assert await ask(tmp_path / "s") == b"hello"

        for client in silent:
            client.close()


async def test_a_client_dropped_before_its_task_ran_is_closed(tmp_path: Path) -> None:
    async with listening(Listener(str(tmp_path / "s"), echo, most=2, fresh=0.0)):
        clients = [connect(tmp_path / "s") for _ in range(6)]

        assert await asyncio.to_thread(clients[0].recv, 1) == b""

        for client in clients:
            client.close()


async def test_without_descriptors_nobody_is_lost_and_nothing_spins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with listening(Listener(str(tmp_path / "s"), echo)) as listener:
        client = connect(tmp_path / "s")
        client.sendall(b"hi\n\n")
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            await soon(lambda: listener._paused)
            await soon(lambda: len(caplog.records) == 1)
            for _ in range(3):  # tried again, and not said again
                listener._resume()
                await soon(lambda: listener._paused)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await asyncio.to_thread(client.recv, 100) == b"hi"
        client.close()
    assert [record.getMessage() for record in caplog.records] == ["clients have to wait: Too many open files"]


async def test_who_waits_in_the_backlog_when_we_end_is_answered(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "s"), echo)
    listener.open()
    clients = [connect(tmp_path / "s") for _ in range(3)]  # without a turn of the loop: nobody was accepted
    for client in clients:
        client.sendall(b"hi\n\n")

    listener.stop_accepting()
    await listener.drain(1.0)

    assert not (tmp_path / "s").exists()
    assert [client.recv(100) for client in clients] == [b"hi"] * 3
    for client in clients:
        client.close()


async def test_draining_waits_for_those_who_asked_and_for_no_others(tmp_path: Path) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def hold(connection: Connection) -> None:
        await connection.read_until(b"\n\n", 1000)
        asked.set()
        await go.wait()
        await connection.write(b"late but whole")

    listener = Listener(str(tmp_path / "s"), hold)
    listener.open()
    silent = connect(tmp_path / "s")
    client = asyncio.create_task(ask(tmp_path / "s"))
    await asked.wait()

    listener.stop_accepting()
    draining = asyncio.create_task(listener.drain(LIMIT))
    await asyncio.wait({draining}, timeout=module.LAST_CALL * 2)
    assert not draining.done()
    go.set()
    await draining

    assert await client == b"late but whole"
    assert silent.recv(1) == b""
    silent.close()


async def test_draining_ends_at_its_limit(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def hang(connection: Connection) -> None:
        await connection.read_until(b"\n\n", 1000)
        asked.set()
        await asyncio.Event().wait()

    async with listening(Listener(str(tmp_path / "s"), hang)) as listener:
        client = asyncio.create_task(ask(tmp_path / "s"))
        await asked.wait()
        listener.stop_accepting()
        await listener.drain(0.05)
        assert listener.connections == 0
        assert await client == b""


async def test_a_client_that_reads_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_LIMIT", 0.1)

    async def flood(connection: Connection) -> None:
        await connection.read_until(b"\n\n", 1000)
        await connection.write(b"x" * 10_000_000)

    async with listening(Listener(str(tmp_path / "s"), flood)) as listener:
        client = connect(tmp_path / "s")
        client.sendall(b"hi\n\n")
        await soon(lambda: listener.timeouts == 1)
        client.close()


async def test_one_clients_trouble_is_logged_by_its_kind_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(connection: Connection) -> None:
        raise RuntimeError((await connection.read_until(b"\n\n", 1000)).decode())

    with caplog.at_level(logging.INFO):
        async with listening(Listener(str(tmp_path / "s"), fail)):
            assert await ask(tmp_path / "s", b"a secret") == b""

    assert "RuntimeError" in caplog.text
    assert "a secret" not in caplog.text


OUT_OF_MEMORY = """
import asyncio, sys
from ghapp.listener import Listener

async def starve(connection):
    raise MemoryError

async def main():
    Listener(sys.argv[1], starve).open()
    print("listens", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_without_memory_the_process_ends_and_leaves_its_place_to_another(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OUT_OF_MEMORY, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
    ) as starving:
        assert starving.stdout is not None
        assert starving.stdout.readline() == "listens\n"
        connect(tmp_path / "s").close()
        assert starving.wait(10) == 1


def open_the_way(tmp_path: Path) -> None:
    """Let other users come as far as `tmp_path`."""
    directory = tmp_path
    while directory != directory.parent and directory.name:
        with contextlib.suppress(PermissionError):
            directory.chmod(directory.stat().st_mode | 0o011)
        if directory.name.startswith("pytest-of"):
            break
        directory = directory.parent


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user to try")
async def test_a_user_who_was_named_is_served_and_no_other(tmp_path: Path) -> None:
    open_the_way(tmp_path)
    async with listening(Listener(str(tmp_path / "s"), echo, uids=(65533,))) as listener:

        def come(uid: int, answer: bytes) -> None:
            os.setuid(uid)
            with contextlib.suppress(BrokenPipeError):
                assert talk(tmp_path / "s", b"hello") == answer

        assert await asyncio.to_thread(fakes_process.in_child, lambda: come(65533, b"hello")) == 0
        assert await asyncio.to_thread(fakes_process.in_child, lambda: come(65534, b"")) == 0
        assert listener.rejected == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user to try")
async def test_another_user_is_not_served(tmp_path: Path) -> None:
    open_the_way(tmp_path)
    async with listening(Listener(str(tmp_path / "s"), echo)) as listener:
        (tmp_path / "s").chmod(0o666)

        def intrude() -> None:
            os.setgid(65534)
            os.setuid(65534)
            with contextlib.suppress(BrokenPipeError):
                assert talk(tmp_path / "s", b"hello") == b""

        assert await asyncio.to_thread(fakes_process.in_child, intrude) == 0
        assert listener.rejected == 1


async def test_the_kernel_says_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)

    assert module.peer_of(ours) == module.Peer(os.getpid(), os.geteuid())

    ours.close()
    theirs.close()


async def test_a_peer_that_cannot_be_told_is_rejected(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "s"), echo)
    gone = socket.socket(socket.AF_UNIX)
    gone.close()

    with contextlib.suppress(OSError):
        listener._admit(gone)

    assert listener.connections == 0


async def test_activity_is_told_at_the_begin_and_the_end(tmp_path: Path) -> None:
    told = threading.Semaphore(0)
    async with listening(Listener(str(tmp_path / "s"), echo, on_activity=told.release)):
        assert await ask(tmp_path / "s") == b"hello"
        assert told.acquire(timeout=LIMIT)
        assert told.acquire(timeout=LIMIT)
