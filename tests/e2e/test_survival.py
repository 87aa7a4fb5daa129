"""Whatever became of the daemon: the very next git command has its token, quickly and without a word."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from e2e.conftest import BIN, PERMISSIONS, Machine, set_up
from e2e.test_installs import SYSTEM_PATH, Site, site, wheels  # noqa: F401  # fixtures
from fakes_process import eventually, git_cache
from marks import files_with_secrets
from session_bus import PASSWORD, Session, session
from standin.journal import Mint
from standin.server import StandIn

from ghapp import process
from ghapp.listener import peer_of


ROCKET = "https://github.com/acme/rocket.git"
REQUEST = "protocol=https\nhost=github.com\npath=acme/rocket.git\n\n"
MINT = "/access_tokens$"
LIMIT = 5.0  # seconds for the next git command
PATIENCE = 20.0  # seconds for what has no limit of its own here
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
WITH_PROC = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


# -- one machine for all, and one daemon for as long as a row leaves it alive --------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if shutil.which("git-credential-ghapp", path=str(BIN)) is None:
        pytest.skip("ghapp is not installed in this environment")
    directory = tmp_path_factory.mktemp("survival")
    directory.chmod(0o700)
    with StandIn.start(directory / "github") as github:
        machine = Machine(directory, github)
        set_up(machine)
        yield machine
        clear(machine)
        assert not list(files_with_secrets(github, directory, apart_from=directory / "github"))


@pytest.fixture
def warm(shared: Machine) -> Iterator[Machine]:
    """The machine with a daemon that holds a token."""
    before = shared.env
    shared.env = dict(before)
    if not process.complete(str(shared.sockets)):
        clear(shared)  # what the row before has broken is not this one's subject
    check_next(shared)
    yield shared
    shared.env = before
    shared.github.faults.clear()


@pytest.fixture
def cold(warm: Machine) -> Iterator[Machine]:
    """The machine, set up, without a daemon or a runtime directory; the daemon of such a row serves no other."""
    clear(warm)
    yield warm
    clear(warm)


def clear(machine: Machine) -> None:
    """End the daemon as a crash would, and remove the runtime directory."""
    if machine.daemon_pid() is not None or process.hello(str(machine.sockets / "git.sock")):
        kill(machine)
    shutil.rmtree(machine.sockets, ignore_errors=True)


# -- what all rows ask ---------------------------------------------------------------------------------------------


def check_next(machine: Machine, *, limit: float = LIMIT) -> float:
    """Assert that the next git command goes as if nothing had happened; return how long it took."""
    seen = len(machine.github.requests)
    began = time.monotonic()
    done = machine.git("ls-remote", ROCKET, check=False, timeout=limit + 30)
    took = time.monotonic() - began
    assert done.stderr == ""
    assert done.returncode == 0
    assert "refs/heads/main" in done.stdout
    assert took < limit
    check_tokens(machine, seen, machine.github.mints[-1:])
    return took


def check_tokens(machine: Machine, seen: int, mints: Iterable[Mint]) -> None:
    """Assert that git's requests after the first `seen` carried these tokens, each minted for the repository alone."""
    names = set()
    for mint in mints:
        assert mint.repositories == ("acme/rocket",)
        names.add(mint.token_sha256)
    used = {
        request.token_sha256
        for request in machine.github.requests[seen:]
        if request.host == "github.com" and (request.user_agent or "").startswith("git/") and request.token_sha256
    }
    assert used == names


def daemon_of(machine: Machine) -> int:
    """Return the daemon's number; with a full disk it is not in the lock's file."""
    pid = machine.daemon_pid() or (process.hello(str(machine.sockets / "git.sock")) or {}).get("pid")
    assert pid is not None
    return int(pid)


def kill(machine: Machine) -> int:
    """Kill the daemon, and return its number once its lock and sockets are nobody's."""
    pid = daemon_of(machine)
    os.kill(pid, signal.SIGKILL)
    assert process.wait_for_end(pid, PATIENCE)
    return pid


def status(machine: Machine) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(PATIENCE)
        control.connect(str(machine.sockets / "control.sock"))
        control.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "status"}\n')
        result: dict[str, Any] = json.loads(control.makefile().readline())["result"]
        return result


def start_git(machine: Machine, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["git", *arguments],
        cwd=machine.work,
        env=machine.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def check_all(gits: "list[subprocess.Popen[str]]", limit: float) -> None:
    for git in gits:
        out, err = git.communicate(timeout=limit)
        assert (git.returncode, err) == (0, "")
        assert "refs/heads/main" in out


# -- the daemon ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM", "SIGINT"])
def test_after_the_daemon_was_killed_the_next_git_command_starts_another(warm: Machine, name: str) -> None:
    pid, number = daemon_of(warm), signal.Signals[name]
    os.kill(pid, number)
    if number == signal.SIGKILL:  # the others are met while they end
        assert process.wait_for_end(pid, PATIENCE)
        assert (warm.sockets / "git.sock").is_socket()

    check_next(warm)

    assert daemon_of(warm) != pid


@pytest.mark.parametrize("git_clients", [20])
def test_twenty_that_wait_for_a_mint_when_the_daemon_is_killed_are_answered_by_another(
    cold: Machine, git_clients: int
) -> None:
    cold.ghapp("daemon", "start")
    seen, never = len(cold.github.requests), threading.Event()
    held = cold.github.faults.add(MINT, hold=never, status=502)  # it mints nothing when it is let go
    gits = [start_git(cold, "ls-remote", ROCKET) for _ in range(git_clients)]
    assert held.reached.wait(PATIENCE)
    eventually(lambda: status(cold)["connections"] == git_clients + 1, 20)
    minted = len(cold.github.mints)

    pid = kill(cold)
    began = time.monotonic()
    check_all(gits, 20)

    assert time.monotonic() - began < 2 * LIMIT  # twenty interpreters start at once here
    assert daemon_of(cold) != pid
    check_tokens(cold, seen, cold.github.mints[minted:])
    assert len(cold.github.mints) == minted + 1


def test_fifty_in_flight_are_answered_by_a_daemon_that_is_told_to_end(cold: Machine) -> None:
    cold.ghapp("daemon", "start")
    minted, go = len(cold.github.mints), threading.Event()
    held = cold.github.faults.add(MINT, hold=go)
    pid = daemon_of(cold)
    with ThreadPoolExecutor(50) as threads:
        answers = [threads.submit(cold.fill, timeout=60) for _ in range(50)]
        assert held.reached.wait(PATIENCE)
        eventually(lambda: status(cold)["connections"] == 51, 30)
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not (cold.sockets / "git.sock").exists())
        threading.Timer(0.5, go.set).start()  # later than a daemon waits that has nobody to wait for
        tokens = {answer.result()["password"] for answer in answers}

    (mint,) = cold.github.mints[minted:]
    assert tokens == {mint.token}
    assert process.wait_for_end(pid, PATIENCE)
    assert cold.daemon_pid() is None  # nobody had to start another
    check_next(cold)


def test_a_daemon_that_was_stopped_for_five_seconds_answers_who_waited_and_who_comes_next(warm: Machine) -> None:
    pid, seen = daemon_of(warm), len(warm.github.requests)
    os.kill(pid, signal.SIGSTOP)
    go_on = threading.Timer(5, os.kill, (pid, signal.SIGCONT))
    try:
        waiting = start_git(warm, "ls-remote", ROCKET)
        began = time.monotonic()
        go_on.start()
        check_all([waiting], 30)
        waited = time.monotonic() - began
    finally:
        go_on.cancel()
        os.kill(pid, signal.SIGCONT)

    assert waited >= 4.5
    check_next(warm)
    check_tokens(warm, seen, warm.github.mints[-1:])
    assert daemon_of(warm) == pid


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_daemon_whose_loop_does_not_turn_is_replaced_while_git_waits(warm: Machine) -> None:
    """The configuration lies on what does not answer, and the daemon reads it where everybody else is served."""
    pid, config = daemon_of(warm), warm.home / ".config/ghapp/config.toml"
    saved = config.read_bytes()
    with dead_file(config) as opened:
        os.kill(pid, signal.SIGHUP)
        opened()
        config.unlink()
        config.touch(mode=0o600)
        config.write_bytes(saved)
        began = time.monotonic()
        check_next(warm, limit=45)
        took = time.monotonic() - began

    assert daemon_of(warm) != pid
    assert process.wait_for_end(pid, PATIENCE)
    assert took > LIMIT  # else the daemon was not held up, and nothing was shown
    assert "most recent call first" in (warm.home / ".local/state/ghapp/daemon.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_daemon_that_hangs_while_it_starts_is_replaced(cold: Machine) -> None:
    """It holds the lock, and no pid is in there: nobody could end it but itself."""
    config = cold.home / ".config/ghapp/config.toml"
    saved = config.read_bytes()
    with dead_file(config) as opened:
        first = start_git(cold, "ls-remote", ROCKET)
        opened()
        config.unlink()
        config.touch(mode=0o600)
        config.write_bytes(saved)  # the disk is back; that daemon still waits for what it asked before
        check_next(cold, limit=45)
        check_all([first], 45)


@contextlib.contextmanager
def dead_file(path: Path) -> Iterator[Callable[[], None]]:
    """Put a file that never ends to be read at `path`; the function returns once somebody reads it."""
    path.unlink()
    os.mkfifo(path, 0o600)
    writer = None

    def wait() -> None:
        nonlocal writer

        def open_for_writing() -> bool:
            nonlocal writer
            try:
                writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return False
            return True

        eventually(open_for_writing)

    try:
        yield wait
    finally:
        if writer is not None:
            os.close(writer)


# -- the sockets and their directory -------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("git.sock",), ("control.sock",), ("git.sock", "control.sock")], ids=" and ".join)
@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
def test_sockets_that_were_removed_are_made_anew(warm: Machine, names: tuple[str, ...], *, alive: bool) -> None:
    before = daemon_of(warm) if alive else kill(warm)
    for name in names:
        (warm.sockets / name).unlink()

    check_next(warm)

    assert (daemon_of(warm) == before) == alive
    assert process.complete(str(warm.sockets))


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
def test_a_runtime_directory_that_was_removed_is_made_anew(warm: Machine, *, alive: bool) -> None:
    before = daemon_of(warm) if alive else kill(warm)
    shutil.rmtree(warm.sockets)

    check_next(warm)

    assert daemon_of(warm) != before
    assert process.complete(str(warm.sockets))
    if alive:  # nobody can reach it any more, and it ends without harm to the other
        os.kill(before, signal.SIGTERM)
        assert process.wait_for_end(before, PATIENCE)
        assert process.complete(str(warm.sockets))


def test_a_dead_socket_of_another_process_is_replaced(warm: Machine) -> None:
    path = warm.sockets / "git.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
        gone.listen()

    check_next(warm)


def a_file(path: Path) -> None:
    path.write_text("mine")


def a_directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("mine")


def a_link_to_a_file(path: Path) -> None:
    (path.parent / "linked").write_text("mine")
    path.symlink_to("linked")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_link_to_a_dead_socket(path: Path) -> None:
    name = f"dead-{os.urandom(4).hex()}"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path.parent / name))
    path.symlink_to(name)


def a_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def a_datagram_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))


SQUATTERS = (
    a_file,
    a_directory,
    a_link_to_a_file,
    a_link_to_nothing,
    a_link_to_itself,
    a_link_to_a_dead_socket,
    a_fifo,
    a_datagram_socket,
)


@pytest.mark.parametrize("squat", SQUATTERS, ids=lambda squat: squat.__name__.replace("_", " "))
@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
def test_whatever_took_the_place_of_the_socket_is_moved_aside(
    warm: Machine, squat: Callable[[Path], None], *, alive: bool
) -> None:
    before = daemon_of(warm) if alive else kill(warm)
    path = warm.sockets / "git.sock"
    path.unlink()
    squat(path)
    squatter = path.lstat()

    check_next(warm)

    assert (daemon_of(warm) == before) == alive
    assert path.is_socket()
    if squat is a_datagram_socket:
        return  # a socket of ours is no loss
    (aside,) = [each for each in warm.sockets.glob("git.sock*") if each.lstat().st_ino == squatter.st_ino]
    assert aside.lstat().st_mode == squatter.st_mode
    if squat in {a_file, a_link_to_a_file, a_directory}:
        assert (aside / "inside" if squat is a_directory else aside).read_text() == "mine"


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
def test_gits_own_cache_daemon_on_our_path_makes_way(warm: Machine, *, alive: bool) -> None:
    """As `git credential-cache store` leaves one where nobody listens; it waits for whoever reads its stderr."""
    before = daemon_of(warm) if alive else kill(warm)
    path = warm.sockets / "git.sock"
    path.unlink()
    theirs = "protocol=https\nhost=other.example\nusername=u\npassword=p\n\n"
    store = ["git", "credential-cache", f"--socket={path}", "store"]
    subprocess.run(store, input=theirs.encode(), env=warm.env, stderr=subprocess.DEVNULL, check=True, timeout=PATIENCE)
    with socket.socket(socket.AF_UNIX) as found:
        found.connect(str(path))
        theirs_pid = peer_of(found).pid

    check_next(warm)

    assert (daemon_of(warm) == before) == alive
    assert process.complete(str(warm.sockets))
    assert process.wait_for_end(theirs_pid, PATIENCE)


def test_a_cache_daemon_behind_a_link_is_not_asked_to_speak_for_us(warm: Machine) -> None:
    kill(warm)
    path = warm.sockets / "git.sock"
    path.unlink()
    with git_cache(warm.runtime / "theirs"):
        path.symlink_to(warm.runtime / "theirs")

        check_next(warm)

    assert path.is_socket()
    assert not path.is_symlink()


# -- who else holds what is the daemon's ---------------------------------------------------------------------------


@pytest.fixture
def desktop(machine: Machine, tmp_path: Path) -> Iterator[Session]:
    """A machine whose only app has its key in a keyring that can be stopped."""
    # A short path: one that is longer than the kernel's field is bound by its last part, and /proc shows no more.
    with session(tmp_path / "desktop") as found, tempfile.TemporaryDirectory() as short:
        machine.env |= {"DBUS_SESSION_BUS_ADDRESS": found.address, "GHAPP_RUNTIME_DIR": f"{short}/run"}
        yield found
        machine.end()


@WITH_PROC
@pytest.mark.parametrize("moment", ["as it begins", "while it hangs"])
def test_killed_while_it_asks_a_keyring_that_hangs_the_daemon_leaves_nothing_behind(
    machine: Machine, desktop: Session, moment: str
) -> None:
    """No child keeps the lock or a socket, for a copy would outlive the daemon; and the child ends with it."""
    keyring = desktop.start_keyring(PASSWORD)
    app = machine.github.add_app("acme-bot", PERMISSIONS)
    machine.github.install(app, "acme", repositories=["rocket"])
    machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    machine.ghapp("app", "add", "--app-id", str(app.id), "--key", "-", input=app.private_key_pem.decode())
    machine.ghapp("setup-git")
    machine.ghapp("daemon", "stop")
    keyring.send_signal(signal.SIGSTOP)
    connected = connections(desktop)
    waiting = start_git(machine, "ls-remote", ROCKET)  # and starts the daemon
    try:
        eventually(lambda: (pid := machine.daemon_pid()) is not None and children(pid))
        if moment == "while it hangs":
            eventually(lambda: connections(desktop) > connected)
        pid = daemon_of(machine)
        (child,) = children(pid)
        sockets = listening_sockets(machine)
        holders = {name: who_holds(name) for name in (*sockets, lock_of(machine))}
    finally:
        os.killpg(waiting.pid, signal.SIGKILL)  # its helper too, which would start another daemon
        waiting.communicate()
    try:
        os.kill(pid, signal.SIGKILL)
        assert process.wait_for_end(pid, PATIENCE)
        assert not process.is_locked(str(machine.sockets))
        assert process.wait_for_end(child, PATIENCE)
    finally:
        keyring.send_signal(signal.SIGCONT)

    check_next(machine)
    assert len(sockets) == 2
    assert list(holders.values()) == [{pid}] * 3 if os.geteuid() == 0 else [set()] * 3


def connections(desktop: Session) -> int:
    """Count who is connected to the session's bus."""
    names = "org.freedesktop.DBus.ListNames"
    command = ["dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus", "/", names]
    done = subprocess.run(command, env=desktop.env, capture_output=True, text=True, check=True, timeout=PATIENCE)
    return done.stdout.count('":')


def children(pid: int) -> list[int]:
    """Return the processes that `pid` has started and not yet asked for their end."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(word) for task in tasks.glob("*/children") for word in task.read_text().split()]


def listening_sockets(machine: Machine) -> list[str]:
    """Return the names, as in /proc/PID/fd, of what listens in the runtime directory."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    accepting = "00010000"
    return [
        f"socket:[{row[6]}]"
        for row in rows
        if row[3] == accepting and row[7:] and Path(row[7]).parent == machine.sockets
    ]


def lock_of(machine: Machine) -> str:
    return str((machine.sockets / "daemon.lock").resolve())


def who_holds(name: str) -> set[int]:
    """Return the processes that have it open, as far as we may look."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry) == name:  # noqa: PTH115  # as it is, for it need not be a path
                found.add(int(entry.parts[2]))
    return found


# -- nothing left to work with -------------------------------------------------------------------------------------


def test_with_two_hundred_idle_clients_and_64_descriptors_git_is_served(cold: Machine) -> None:
    cold.run("sh", "-c", "ulimit -n 64; exec ghapp daemon start")
    pid, written = daemon_of(cold), len(lines_of_log(cold))
    with contextlib.ExitStack() as clients:
        for _ in range(200):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(PATIENCE)
            client.connect(str(cold.sockets / "git.sock"))
        before, began = processor_time(pid), time.monotonic()

        check_next(cold)
        check_next(cold)

        used = processor_time(pid) - before
        elapsed = time.monotonic() - began
    assert daemon_of(cold) == pid
    assert len(lines_of_log(cold)) - written <= 10
    assert used < 0.1 * elapsed + 1.0  # what the imports and two tokens cost; a loop that spins takes all of it


def processor_time(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def lines_of_log(machine: Machine) -> list[str]:
    return (machine.home / ".local/state/ghapp/daemon.log").read_text().splitlines()


def test_a_helper_without_descriptors_says_so_in_a_line(cold: Machine) -> None:
    for limit in (3, 4, 5, 6, 8, 12):
        clear(cold)

        done = cold.run("sh", "-c", f"ulimit -n {limit}; exec git-credential-ghapp get", input=REQUEST, check=False)

        assert "Traceback" not in done.stderr
        assert len([line for line in done.stderr.splitlines() if not line.startswith("ghapp: hint: ")]) <= 1
        assert "password=" in done.stdout or done.stderr
    check_next(cold)


# -- a full disk ---------------------------------------------------------------------------------------------------


def test_where_no_file_can_grow_git_is_served(cold: Machine) -> None:
    """For an ordinary user as good as a full disk: neither the log nor the lock's file takes a byte."""
    seen = len(cold.github.requests)

    for _ in range(2):
        done = cold.run("sh", "-c", f"ulimit -f 0; exec git ls-remote {ROCKET}")
        assert done.stderr == ""

    check_tokens(cold, seen, cold.github.mints[-1:])
    check_next(cold)


def test_a_log_that_cannot_be_written_stops_nobody(cold: Machine) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    state = cold.home / "full-state"
    (state / "ghapp").mkdir(parents=True)
    (state / "ghapp/daemon.log").symlink_to("/dev/full")
    cold.env["XDG_STATE_HOME"] = str(state)

    check_next(cold)
    os.kill(daemon_of(cold), signal.SIGHUP)
    check_next(cold)


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[Path]:
    """Mount a file system without a free byte."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        fill_up(path)
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill_up(path: Path) -> None:
    with (path / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4096)
    with pytest.raises(OSError, match="No space left"):
        (path / "more").write_text("x")
    (path / "more").unlink()


@AS_ROOT
@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "GHAPP_RUNTIME_DIR", "TMPDIR"])
def test_with_a_full_disk_git_is_served(cold: Machine, tmp_path: Path, variable: str) -> None:
    with full_disk(tmp_path / "full") as full:
        cold.env[variable] = f"{full}/run"
        check_next(cold)
        first = kill(cold)
        check_next(cold)
        assert daemon_of(cold) != first
        clear(cold)


@AS_ROOT
def test_a_disk_that_fills_up_under_the_daemon_does_not_stop_it(cold: Machine, tmp_path: Path) -> None:
    with full_disk(tmp_path / "full") as full:
        (full / "filler").unlink()
        cold.env |= {"XDG_STATE_HOME": str(full), "GHAPP_RUNTIME_DIR": f"{full}/run"}
        check_next(cold)
        fill_up(full)
        os.kill(daemon_of(cold), signal.SIGHUP)
        check_next(cold)
        first = kill(cold)
        check_next(cold)
        assert daemon_of(cold) != first
        clear(cold)


@pytest.mark.parametrize("how", ["no file may grow", pytest.param("full", marks=AS_ROOT)])
def test_a_configuration_that_cannot_be_written_stays_as_it_was(warm: Machine, tmp_path: Path, how: str) -> None:
    app = warm.github.add_app(f"second-bot-{how[0]}", PERMISSIONS)
    key = tmp_path / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(app.private_key_pem)
    config = warm.home / ".config/ghapp/config.toml"
    words = f"ghapp app add --app-id {app.id} --signer file:{key}"
    with contextlib.ExitStack() as stack:
        if how == "full":
            full = stack.enter_context(full_disk(tmp_path / "full"))
            (full / "filler").unlink()
            shutil.copytree(config.parent, full / "ghapp")
            fill_up(full)
            warm.env["XDG_CONFIG_HOME"] = str(full)
            config = full / "ghapp/config.toml"
            done, before = warm.run(*words.split(), check=False), config.read_bytes()
        else:
            before = config.read_bytes()
            done = warm.run("sh", "-c", f"ulimit -f 0; exec {words}", check=False)
        after, beside = config.read_bytes(), {path.name for path in config.parent.iterdir()}

    error, *hints = done.stderr.splitlines()
    assert done.returncode == 1
    assert error.startswith(f"ghapp: error: cannot write {config}: ")
    assert all(line.startswith("ghapp: hint: ") for line in hints)
    assert after == before
    assert beside == {".config.toml.lock", "config.toml", "gitconfig"}
    check_next(warm)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("this is not TOML", 0o600),
        ("nonsense = 1\n", 0o600),
        ("# " + "x" * 2_000_000, 0o600),
        ("\0\xff", 0o600),
        ("", 0o666),
    ],
    ids=["no TOML", "unknown key", "2 MB", "binary", "open to others"],
)
def test_a_broken_configuration_does_not_reach_a_daemon_that_runs(warm: Machine, text: str, mode: int) -> None:
    pid, written = daemon_of(warm), len(lines_of_log(warm))
    config = warm.home / ".config/ghapp/config.toml"
    before = config.read_text()
    try:
        config.write_text(text + before, encoding="latin-1")
        config.chmod(mode)
        os.kill(pid, signal.SIGHUP)
        eventually(lambda: any("the old configuration stays" in line for line in lines_of_log(warm)[written:]))

        check_next(warm)
    finally:
        config.write_text(before)
        config.chmod(0o600)

    assert daemon_of(warm) == pid


# -- the daemon ends of itself, between requests -------------------------------------------------------------------


ASKER = """
import json, subprocess, sys, time
from ghapp import client

gaps, burst = json.loads(sys.argv[1]), int(sys.argv[2])
request = b"protocol=https\\nhost=github.com\\npath=acme/rocket.git\\n"
front = ["git-credential-ghapp", "get"]
for number, gap in enumerate(gaps):
    time.sleep(gap)  # the daemon's clock is what this is about
    for turn in range(burst):
        if number % 2 and turn == 0:
            answer = subprocess.run(front, input=request, stdout=subprocess.PIPE, check=True).stdout
        else:
            answer = client.fill(request)
        attributes = dict(line.split("=", 1) for line in answer.decode().splitlines())
        print(attributes["password"], flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_thousand_requests_around_idle_ends_are_all_answered(cold: Machine) -> None:
    """Gaps of a second, a little less and a little more, where the daemon ends after one."""
    config = cold.home / ".config/ghapp/config.toml"
    before = config.read_text()
    gaps, burst = [0.0] + [0.997 + 0.0008 * number for number in range(26)], 75
    served, minted = cold_starts(cold), len(cold.github.mints)
    config.write_text('[daemon]\nidle_timeout = "1s"\n' + before)
    try:
        done = cold.run(sys.executable, "-c", ASKER, json.dumps(gaps), str(burst), timeout=220)
    finally:
        config.write_text(before)

    tokens = [mint.token for mint in cold.github.mints[minted:]]
    daemons = cold_starts(cold) - served
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == len(gaps) * burst >= 2000
    assert set(done.stdout.splitlines()) == set(tokens)
    assert len(tokens) == daemons
    assert daemons >= 20
    check_next(cold)


def cold_starts(machine: Machine) -> int:
    return sum(" serves, pid " in line for line in lines_of_log(machine))


# -- the package is exchanged or removed under it ------------------------------------------------------------------


NEWER = "9.9.9"


class Upgradable:
    """A machine on whose PATH is one install of its own, in a version that can be told from the next one's."""

    def __init__(self, machine: Machine, directory: Path, site: Site, newer: Path) -> None:  # noqa: F811  # its value
        self.machine = machine
        self.wheels = {"old": site.wheel, "new": newer}
        self._site = site
        self.binaries = site.venv(str(directory / "venv"))
        site.pip(self.binaries, site.wheel)
        (self.package,) = self.binaries.parent.glob("lib/python3*/site-packages/ghapp")
        machine.env["PATH"] = f"{self.binaries}:{SYSTEM_PATH}"
        set_up(machine)

    def install(self, which: str) -> None:
        self._site.pip(self.binaries, "--no-deps", "--force-reinstall", self.wheels[which])

    def version(self) -> str:
        found = process.hello(str(self.machine.sockets / "git.sock"))
        return (found or {}).get("version", "")


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Path:  # noqa: F811  # the fixture
    """A wheel of this checkout, with another number."""
    directory = tmp_path_factory.mktemp("newer")
    for name in ("src", "install", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, directory / name)
    text = (ROOT / "pyproject.toml").read_text()
    assert text.count('\nversion = "') == 1
    lines = [f'version = "{NEWER}"' if line.startswith("version = ") else line for line in text.splitlines()]
    (directory / "pyproject.toml").write_text("\n".join(lines) + "\n")
    site.run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory), cwd=directory)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture
def upgradable(machine: Machine, tmp_path: Path, site: Site, newer: Path) -> Upgradable:  # noqa: F811  # as above
    return Upgradable(machine, tmp_path, site, newer)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_version_that_was_installed_over_the_daemon_takes_over_and_nothing_is_revoked(
    upgradable: Upgradable,
) -> None:
    machine = upgradable.machine
    check_next(machine)
    first, old = machine.github.mints[-1].token, upgradable.version()

    upgradable.install("new")
    check_next(machine)
    eventually(lambda: upgradable.version() != old)  # it ends once it has answered
    check_next(machine)
    took_over = upgradable.version()

    upgradable.install("old")
    minted = len(machine.github.mints)
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: machine.fill(timeout=60), range(50)))
    check_next(machine)

    assert old != NEWER
    assert took_over == NEWER
    assert upgradable.version() == old
    right = {mint.token for mint in machine.github.mints[minted - 1 :]}
    assert {answer["password"] for answer in answers} <= right
    assert len(right) <= 2  # the new version's last one, and the old version's one
    assert machine.github.live_token(first) is not None
    assert [request.path for request in machine.github.requests if request.method == "DELETE"] == []


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_daemon_whose_package_was_removed_goes_on_to_answer(upgradable: Upgradable) -> None:
    machine = upgradable.machine
    check_next(machine)
    pid = daemon_of(machine)

    shutil.rmtree(upgradable.package)
    for _ in range(3):
        check_next(machine)
    machine.github.revoke(machine.github.mints[-1].token)
    machine.git("ls-remote", ROCKET, check=False)  # git before 2.46 knows no second try
    check_next(machine)  # with a mint by what was imported in time

    assert daemon_of(machine) == pid
    upgradable.install("old")  # for the command that ends it
