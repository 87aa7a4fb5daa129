"""Sockets that systemd passed: adopted whole or refused cleanly, and left to the next daemon."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes_process import (
    DEAF,
    LIMIT,
    WITH_PID,
    end_daemon,
    eventually,
    holding_lock,
    listener,
    make,
    remove_signal_handlers,
    soon,
    talk,
)

from ghapp import activation, autostart, config, paths, process
from ghapp.clock import SystemClock
from ghapp.daemon import Daemon
from ghapp.errors import DaemonFailed


HELLO = b"action=hello\ntimeout=0\nghapp=1\n"
OURS = ("git", "control")


class Manager:
    """What systemd is to us: it binds both sockets, keeps them, and starts daemons that get copies at 3 and 4."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sockets: dict[str, socket.socket] = {}
        self.started: list[subprocess.Popen[str]] = []
        for name in OURS:
            self.listen(name)
        self.inodes = self.seen()

    def listen(self, name: str) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.directory / f"{name}.sock"))
        sock.listen(16)
        if name in self.sockets:
            self.sockets[name].close()
        self.sockets[name] = sock

    def seen(self) -> list[int | None]:
        """Return what the paths lead to."""
        paths = [self.directory / f"{name}.sock" for name in OURS]
        return [path.lstat().st_ino if os.path.lexists(path) else None for path in paths]

    def activate(
        self,
        *passed: socket.socket | None,
        pid: str = "$$",
        names: str = "git:control",
        count: str = "",
        command: tuple[str, ...] = ("ghapp.daemon",),
        **more: str,
    ) -> "subprocess.Popen[str]":
        """Start a daemon with the sockets of that order, or with `passed`; None leaves its number closed."""
        sockets = passed or tuple(self.sockets[name] for name in names.split(":"))
        # First above the target numbers, then onto them: one of ours may stand at 3 itself.
        copies = [None if sock is None else os.dup(sock.fileno()) for sock in sockets]
        high = [None if copy is None else os.dup2(copy, 40 + number) for number, copy in enumerate(copies)]
        moves = " ".join(f"{3 + n}<&{'-' if fd is None else fd}" for n, fd in enumerate(high))
        shut = " ".join(f"{fd}<&-" for fd in high if fd is not None)
        script = f'exec {moves}; exec {shut}; LISTEN_PID={pid} exec "$@"'
        environment = {**os.environ, "LISTEN_FDS": count or str(len(sockets)), "LISTEN_FDNAMES": names, **more}
        # bash: dash takes one digit for a descriptor's number.
        daemon = subprocess.Popen(
            ["bash", "-c", script, "bash", sys.executable, "-m", *command],
            env=environment,
            pass_fds=[fd for fd in high if fd is not None],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for descriptor in (*copies, *high):
            if descriptor is not None:
                os.close(descriptor)
        self.started.append(daemon)
        return daemon

    def hello(self, name: str = "git") -> dict[str, str]:
        answer = talk(self.directory / f"{name}.sock", HELLO)
        return dict(line.split("=", 1) for line in answer.decode().splitlines())

    def close(self) -> None:
        for daemon in self.started:
            if daemon.poll() is None:
                daemon.kill()
            daemon.communicate()
        for sock in self.sockets.values():
            sock.close()


def refused(daemon: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return the error and the hint of a daemon that refuses."""
    _, stderr = daemon.communicate(timeout=LIMIT * 2)
    assert daemon.returncode == 1, stderr
    error, hint = stderr.splitlines()
    assert error.startswith("ghapp: error: ")
    assert error.endswith(" (E41)")
    assert hint.startswith("ghapp: hint: ")
    return error.removeprefix("ghapp: error: "), hint.removeprefix("ghapp: hint: ")


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(paths.runtime_dir())
    make(path)
    yield path
    end_daemon(path)


@pytest.fixture
def manager(directory: Path) -> Iterator[Manager]:
    manager = Manager(directory)
    yield manager
    manager.close()


# -- a daemon's life under a manager -------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["git:control", "control:git"])
def test_a_daemon_ends_well_and_leaves_its_sockets_to_the_next_one(manager: Manager, names: str) -> None:
    for _ in range(2):
        daemon = manager.activate(names=names)

        assert manager.hello()["pid"] == str(daemon.pid)
        assert b'"running": true' in talk(
            manager.directory / "control.sock", b'{"jsonrpc": "2.0", "id": 1, "method": "status"}\n'
        )
        daemon.send_signal(signal.SIGTERM)

        assert daemon.wait(LIMIT) == 0
        assert manager.seen() == manager.inodes


def test_a_daemon_asked_to_stop_leaves_the_sockets_too(manager: Manager) -> None:
    daemon = manager.activate()
    talk(manager.directory / "control.sock", b'{"jsonrpc": "2.0", "id": 1, "method": "stop"}\n')

    assert daemon.wait(LIMIT) == 0
    assert manager.seen() == manager.inodes


def test_an_idle_daemon_ends_and_the_next_one_is_activated(manager: Manager) -> None:
    config.config_dir().mkdir(parents=True)
    config.config_file().write_text('[daemon]\nidle_timeout = "1s"\n')
    first = manager.activate()
    assert first.wait(LIMIT) == 0

    config.config_file().write_text("")
    second = manager.activate()

    assert manager.hello()["pid"] == str(second.pid)
    assert manager.seen() == manager.inodes


@pytest.mark.parametrize("command", [("ghapp.daemon",), ("ghapp", "daemon", "run")])
def test_a_daemon_says_hello_to_nobody(directory: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Its answer would come from itself, later: it waits in vain. Here its paths are others', to see who comes."""
    came: list[str] = []

    def note(client: socket.socket) -> None:
        came.append(client.recv(4096).decode())

    with contextlib.ExitStack() as stack:
        manager = Manager(tmp_path)
        stack.callback(manager.close)
        for name in OURS:
            stack.enter_context(listener(directory / f"{name}.sock", note))
        first = manager.activate(command=command)
        assert manager.hello()["pid"] == str(first.pid)
        second = manager.activate(command=command)
        assert first.wait(LIMIT) == 0
        assert manager.hello()["pid"] == str(second.pid)

        assert came == []


def test_whoever_holds_the_lock_is_asked_to_stop(manager: Manager) -> None:
    first = manager.activate()
    assert manager.hello()["pid"] == str(first.pid)

    second = manager.activate()

    assert first.wait(LIMIT) == 0
    assert manager.hello()["pid"] == str(second.pid)
    assert process.lock_holder(str(manager.directory)) == second.pid


def test_a_holder_that_does_not_stop_is_killed(manager: Manager) -> None:
    deaf = DEAF + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WITH_PID
    with holding_lock(manager.directory, deaf) as holder:
        daemon = manager.activate()

        assert holder.wait(LIMIT) == -signal.SIGKILL
        assert manager.hello()["pid"] == str(daemon.pid)


def test_a_starter_leaves_an_activated_daemon_alone(manager: Manager) -> None:
    daemon = manager.activate()
    assert manager.hello()["pid"] == str(daemon.pid)

    autostart.start()

    assert manager.hello()["pid"] == str(daemon.pid)
    assert manager.seen() == manager.inodes


def test_a_daemon_that_git_starts_hears_nothing_of_its_starters_sockets() -> None:
    given = dict.fromkeys((*activation._UNSET, "NOTIFY_SOCKET", "HOME"), "1")

    assert set(autostart.daemon_environment(given)) - {"DBUS_SESSION_BUS_ADDRESS"} == {"HOME", "PATH"}


# -- a path that changes -------------------------------------------------------------------------------------------


def test_a_path_that_is_gone_is_made_anew_and_then_is_the_daemons_own(manager: Manager) -> None:
    daemon = manager.activate()
    assert manager.hello()["pid"] == str(daemon.pid)
    (manager.directory / "git.sock").unlink()

    daemon.send_signal(signal.SIGHUP)
    eventually((manager.directory / "git.sock").exists)

    assert manager.hello()["pid"] == str(daemon.pid)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(LIMIT) == 0
    assert manager.seen() == [None, manager.inodes[1]]


def test_a_daemon_whose_manager_listens_anew_ends_and_touches_nothing(manager: Manager) -> None:
    first = manager.activate()
    assert manager.hello()["pid"] == str(first.pid)
    (manager.directory / "git.sock").unlink()
    manager.listen("git")
    anew = manager.seen()

    first.send_signal(signal.SIGHUP)

    assert first.wait(LIMIT) == 0
    assert manager.seen() == anew
    second = manager.activate()
    assert manager.hello()["pid"] == str(second.pid)


# -- refusals ------------------------------------------------------------------------------------------------------


def test_sockets_meant_for_another_process_are_refused(manager: Manager) -> None:
    error, hint = refused(manager.activate(pid="1"))

    assert "LISTEN_PID is '1'" in error
    assert hint == "unset LISTEN_PID LISTEN_FDS LISTEN_FDNAMES"


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ("git:git", "2"),
        ("git:other", "2"),
        ("", "2"),
        ("git", "1"),
        ("git:control:more", "3"),
        ("git:control", "3"),
        ("git:control", "x"),
        ("git:control", "-1"),
        ("git:control", "99999999999999999999"),
    ],
)
def test_other_sockets_than_our_two_are_refused(manager: Manager, names: str, count: str) -> None:
    git, control = manager.sockets.values()
    passed = [git, control, control][: int(count)] if count in {"1", "2", "3"} else [git, control]

    error, _ = refused(manager.activate(*passed, names=names, count=count))

    assert error.startswith("two sockets are needed, named git and control, not LISTEN_FDS=")


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("tcp", "is not a unix stream socket"),
        ("datagram", "is not a unix stream socket"),
        ("silent", "does not listen"),
        ("abstract", "has no path"),
        ("closed", "is not a socket"),
    ],
)
def test_what_is_no_listening_unix_socket_is_refused(manager: Manager, tmp_path: Path, kind: str, problem: str) -> None:
    with contextlib.ExitStack() as closing:
        odd = None if kind == "closed" else closing.enter_context(odd_socket(kind, tmp_path))

        error, hint = refused(manager.activate(manager.sockets["git"], odd))

    assert error.startswith(f"descriptor 4 (control) {problem}")
    assert "ghapp.service" in hint
    assert manager.seen() == manager.inodes


def odd_socket(kind: str, directory: Path) -> socket.socket:
    if kind == "tcp":
        return socket.create_server(("127.0.0.1", 0))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
    sock.bind("" if kind == "abstract" else str(directory / "odd"))  # of the abstract ones the kernel gives a free one
    if kind == "abstract":
        sock.listen()
    return sock


# -- in this process -----------------------------------------------------------------------------------------------


@pytest.fixture
def first(manager: Manager) -> Iterator[int]:
    """The number of the first of two neighbouring descriptors, inheritable as a manager passes them."""
    base = 200
    for number, sock in enumerate(manager.sockets.values()):
        os.dup2(sock.fileno(), base + number, inheritable=True)
    yield base
    for number in range(len(OURS)):
        with contextlib.suppress(OSError):
            os.close(base + number)


def asking(**more: str) -> dict[str, str]:
    given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "git:control", "OTHER": "stays"}
    return given | {"LISTEN_PIDFDID": "7"} | more


def test_without_the_variables_nothing_was_passed() -> None:
    environment = {"OTHER": "stays"}

    assert activation.take_sockets(environment) == {}
    assert environment == {"OTHER": "stays"}


def test_sockets_are_told_apart_by_name_and_no_child_gets_them(first: int) -> None:
    environment = asking(LISTEN_FDNAMES="control:git")

    sockets = activation.take_sockets(environment, first)

    assert {name: sock.fileno() for name, sock in sockets.items()} == {"control": first, "git": first + 1}
    assert not any(sock.get_inheritable() for sock in sockets.values())
    assert environment == {"OTHER": "stays"}
    for sock in sockets.values():
        sock.close()


@pytest.mark.parametrize("name", ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"])
@pytest.mark.parametrize("value", [None, "", "0"])
def test_half_a_request_is_no_ordinary_start_and_is_forgotten(first: int, name: str, value: str | None) -> None:
    environment = asking() | ({} if value is None else {name: value})
    if value is None:
        del environment[name]

    with pytest.raises(DaemonFailed) as refusal:
        activation.take_sockets(environment, first)

    assert refusal.value.hint
    assert environment == {"OTHER": "stays"}


async def test_a_daemon_in_this_loop_ends_when_its_manager_listens_anew(manager: Manager, first: int) -> None:
    sockets = activation.take_sockets(asking(), first)
    daemon = Daemon(str(manager.directory), SystemClock(), sockets=sockets)
    ready = asyncio.Event()
    task = asyncio.create_task(daemon.run(ready.set))
    await asyncio.wait_for(ready.wait(), LIMIT)
    (manager.directory / "control.sock").unlink()
    manager.listen("control")
    anew = manager.seen()

    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.wait_for(task, LIMIT)
    remove_signal_handlers()

    assert manager.seen() == anew


@pytest.mark.parametrize("kind", ["tcp", "datagram", "silent", "abstract", "closed"])
def test_each_wrong_descriptor_is_named(first: int, tmp_path: Path, kind: str) -> None:
    if kind == "closed":
        os.close(first + 1)
    else:
        with odd_socket(kind, tmp_path) as odd:
            os.dup2(odd.fileno(), first + 1)

    with pytest.raises(DaemonFailed, match=rf"^descriptor {first + 1} \(control\) "):
        activation.take_sockets(asking(), first)


async def test_a_daemon_in_this_loop_serves_what_was_passed_and_tells_its_manager(
    manager: Manager, first: int, tmp_path: Path
) -> None:
    with listening_for_states(str(tmp_path / "notify")) as (told, address):
        environment = {"NOTIFY_SOCKET": address}
        notify = activation.take_notify(environment)
        assert environment == {}
        sockets = activation.take_sockets(asking(), first)
        daemon = Daemon(str(manager.directory), SystemClock(), sockets=sockets, notify=notify)
        ready = asyncio.Event()
        task = asyncio.create_task(daemon.run(ready.set))
        await asyncio.wait_for(ready.wait(), LIMIT)

        assert b"ghapp=1" in await asyncio.to_thread(talk, manager.directory / "git.sock", HELLO)
        os.kill(os.getpid(), signal.SIGHUP)
        await soon(lambda: len(told()) == 3)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, LIMIT)
        remove_signal_handlers()

        states = [state.split("\n")[0] for state in told()]
        assert states == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
        assert told()[1].split("\n")[1].startswith("MONOTONIC_USEC=")
    assert manager.seen() == manager.inodes


async def test_paths_that_are_gone_before_the_daemon_begins_are_made_anew(manager: Manager, first: int) -> None:
    sockets = activation.take_sockets(asking(), first)
    for name in OURS:
        (manager.directory / f"{name}.sock").unlink()
    daemon = Daemon(str(manager.directory), SystemClock(), sockets=sockets)
    ready = asyncio.Event()
    task = asyncio.create_task(daemon.run(ready.set))
    await asyncio.wait_for(ready.wait(), LIMIT)

    await soon(lambda: None not in manager.seen())
    assert b"ghapp=1" in await asyncio.to_thread(talk, manager.directory / "git.sock", HELLO)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(task, LIMIT)
    remove_signal_handlers()

    assert manager.seen() == [None, None]


# -- what the manager hears ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening_for_states(address: str) -> Iterator[tuple["States", str]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.settimeout(0)
        yield States(sock), address


class States:
    """All that was told so far."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._told: list[str] = []

    def __call__(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._told.append(self._sock.recv(4096).decode())
        return self._told


def test_a_manager_hears_when_a_daemon_is_ready_reloads_and_stops(manager: Manager, tmp_path: Path) -> None:
    with listening_for_states(f"@ghapp-test-{os.getpid()}-{tmp_path.name}") as (told, address):
        daemon = manager.activate(NOTIFY_SOCKET=address)
        eventually(lambda: told() == ["READY=1"])
        daemon.send_signal(signal.SIGHUP)
        eventually(lambda: len(told()) == 3)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(LIMIT) == 0

        assert [state.split("\n")[0] for state in told()] == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def test_a_daemon_that_refuses_is_never_ready(manager: Manager, tmp_path: Path) -> None:
    with listening_for_states(str(tmp_path / "notify")) as (told, address):
        refused(manager.activate(pid="1", NOTIFY_SOCKET=address))

        assert told() == []


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative"])
def test_a_manager_that_we_cannot_reach_is_told_nothing(address: str) -> None:
    assert activation.take_notify({"NOTIFY_SOCKET": address}) is activation.silent


def test_a_manager_that_is_gone_does_not_stop_us(tmp_path: Path) -> None:
    activation.take_notify({"NOTIFY_SOCKET": str(tmp_path / "gone")})("READY=1")
    activation.silent("READY=1")
