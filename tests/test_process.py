"""The daemon as a process: one at a time, and detached."""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes_process import (
    DEAF,
    LIMIT,
    WITH_PID,
    end_daemon,
    eventually,
    git_cache,
    holding_lock,
    in_child,
    listener,
    saying,
    wait_for,
)

from ghapp import autostart, paths, process


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(paths.runtime_dir())
    path.mkdir(mode=0o700)
    yield path
    end_daemon(path)


def take(directory: Path) -> bool:
    lock = process.take_lock(str(directory))
    if lock is not None:
        os.close(lock)
    return lock is not None


def test_the_lock_is_taken_once_and_names_its_holder_while_it_serves(directory: Path) -> None:
    lock = process.take_lock(str(directory))
    assert lock is not None
    assert not os.get_inheritable(lock)
    assert process.is_locked(str(directory))
    assert (directory / "daemon.lock").read_text() == ""

    process.mark_serving(lock)
    assert (directory / "daemon.lock").read_text() == f"{os.getpid()}\n"
    process.mark_unreachable(lock)
    assert (directory / "daemon.lock").read_text() == ""

    os.close(lock)
    assert not process.is_locked(str(directory))
    assert process.lock_holder(str(directory)) is None


def test_without_a_lock_file_nobody_holds_it(tmp_path: Path) -> None:
    assert not process.is_locked(str(tmp_path))


def test_a_daemon_that_serves_keeps_the_lock(directory: Path) -> None:
    autostart.ensure(paths.git_socket())
    pid = process.lock_holder(str(directory))

    assert process.take_lock(str(directory)) is None

    assert process.lock_holder(str(directory)) == pid


@pytest.mark.parametrize("name", ["git.sock", "control.sock"])
def test_a_daemon_whose_socket_is_gone_is_told_and_makes_it_anew(directory: Path, name: str) -> None:
    autostart.ensure(paths.git_socket())
    pid = process.lock_holder(str(directory))
    (directory / name).unlink()

    autostart.ensure(str(directory / name))

    assert process.lock_holder(str(directory)) == pid
    assert process.complete(str(directory))


def test_a_daemon_that_was_stopped_is_killed_and_replaced(directory: Path) -> None:
    autostart.ensure(paths.git_socket())
    pid = process.lock_holder(str(directory))
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)

    autostart.start()

    assert process.lock_holder(str(directory)) not in {None, pid}
    assert process.complete(str(directory))


def test_a_holder_that_does_not_react_is_killed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.2)
    with holding_lock(directory, DEAF + WITH_PID) as holder:
        assert take(directory)
        assert holder.wait(LIMIT) == -signal.SIGKILL


def test_a_holder_that_starts_is_not_killed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.05)
    monkeypatch.setattr(process, "START_PATIENCE", 0.3)
    with holding_lock(directory, DEAF) as holder:
        with pytest.raises(OSError, match=r"holds .*daemon.lock and does not end \(E41\)"):
            process.take_lock(str(directory))
        assert holder.poll() is None


@pytest.mark.parametrize("name", ["sleep", "vim notes-on-ghapp.daemon", "ghapp"])
def test_a_process_that_is_no_daemon_of_ours_is_left_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(process, "START_PATIENCE", 0.2)
    monkeypatch.setattr(process, "PATIENCE", 0.05)
    with subprocess.Popen([name, "60"], executable=shutil.which("sleep")) as stranger:
        with holding_lock(directory, f"os.pwrite(lock, b'{stranger.pid}', 0)"), pytest.raises(OSError, match="E41"):
            process.take_lock(str(directory))
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize(
    "content", ["", "x", "1", "-5", "0", str(2**22 + 1), pytest.param(str(os.getpid()), id="ours")]
)
def test_a_pid_that_makes_no_sense_is_nobodys(tmp_path: Path, content: str) -> None:
    (tmp_path / "daemon.lock").write_text(content)

    assert process._holder(str(tmp_path / "daemon.lock")) is None


def test_where_proc_is_missing_the_pid_alone_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert process._is_ghapp(os.getppid() if os.getppid() > 1 else 2)


def test_a_signal_to_a_process_that_is_gone_is_no_error() -> None:
    process._send(2**22 + 1, signal.SIGHUP)


def test_hello_tells_ours_from_others_and_from_nobody(directory: Path) -> None:
    path = str(directory / "s")
    assert process.hello(path) is None
    with listener(path, saying(b"version=1\npid=2\nghapp=1\n")):
        assert process.hello(path) == {"version": "1", "pid": "2"}
    os.unlink(path)  # noqa: PTH108  # a string
    with listener(path, saying(b"")):
        assert process.hello(path) == {}
    os.unlink(path)  # noqa: PTH108  # a string
    go = threading.Event()
    with listener(path, lambda _: wait_for(go)):
        assert process.hello(path, 0.1) is None
        go.set()


def test_gits_cache_daemon_is_ended_to_free_the_path(directory: Path) -> None:
    with git_cache(directory / "git.sock") as cache:
        process.free_path(str(directory / "git.sock"))
        assert cache.wait(5) == 0


def test_a_path_with_nobody_is_free(directory: Path) -> None:
    process.free_path(str(directory / "git.sock"))


def test_a_daemon_whose_lock_file_was_removed_is_ended(directory: Path) -> None:
    autostart.ensure(paths.git_socket())
    orphan = process.lock_holder(str(directory))
    assert orphan is not None
    (directory / "daemon.lock").unlink()

    autostart.start()

    assert process.wait_for_end(orphan, LIMIT)
    assert process.lock_holder(str(directory)) not in {None, orphan}
    assert process.complete(str(directory))


def test_a_listener_that_names_a_stranger_is_left_alone(directory: Path) -> None:
    with listener(directory / "s", saying(b"pid=1\nghapp=1\n")):
        process.free_path(str(directory / "s"))


@pytest.mark.parametrize("pid", ["abc", "-1", "9" * 30])
def test_a_listener_whose_pid_makes_no_sense_is_foreign_and_no_failure(directory: Path, pid: str) -> None:
    path = f"{directory}/git.sock"
    with listener(path, saying(f"version=1\npid={pid}\nghapp=1\n".encode())):
        assert process.free_path(path)


def test_the_end_of_a_process_is_seen_also_before_anybody_asked_how() -> None:
    child = subprocess.Popen(["sleep", "60"])
    assert not process.wait_for_end(child.pid, 0.05)

    child.kill()

    assert process.wait_for_end(child.pid, LIMIT)  # a zombie: only wait() takes it away
    child.wait()
    assert process.wait_for_end(child.pid, LIMIT)


def test_the_lock_is_waited_for(directory: Path) -> None:
    with holding_lock(directory):
        assert not process.wait_for_lock(str(directory), 0.05)
    assert process.wait_for_lock(str(directory), LIMIT)


@pytest.fixture
def _restored() -> Iterator[None]:
    mask = os.umask(0o022)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGPIPE, signal.SIGHUP)}
    yield
    os.umask(mask)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits[0])
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, limits[1])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


@pytest.mark.usefixtures("_restored")
def test_a_hardened_process_leaves_no_core_and_shows_no_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    process.harden()
    process.harden()

    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(process.MIN_DESCRIPTORS, hard)
    assert os.umask(0o077) == 0o077
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    if sys.platform == "linux":
        assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0  # PR_GET_DUMPABLE


def test_descriptors_0_to_2_exist_afterwards() -> None:
    process.sanitise_descriptors()

    def close_and_mend() -> None:
        for number in range(3):
            os.close(number)
        process.sanitise_descriptors()
        assert [os.get_inheritable(number) for number in range(3)] == [True] * 3

    assert in_child(close_and_mend) == 0


def test_every_descriptor_but_one_is_closed_however_high(tmp_path: Path) -> None:
    def check() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        kept = os.open("/dev/null", os.O_RDONLY)
        high = os.dup2(kept, 2500, inheritable=True)
        process.close_all_but(kept)
        os.fstat(kept)
        for number in (0, 1, 2):
            os.fstat(number)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(high)

    assert in_child(check) == 0
    assert tmp_path.exists()


@pytest.mark.parametrize(("said", "code"), [([""], 0), (["no\nhint"], 1), (["", "later"], 0), ([], 1)])
def test_the_starter_hears_once_how_it_went(said: list[str], code: int) -> None:
    reader, writer = os.pipe()
    report = process.reporter(writer)
    for problem in said:
        report(problem)
    if not said:
        os.close(writer)

    found, text = process.outcome(reader)

    os.close(reader)
    assert found == code
    assert text.startswith((said or ["the daemon died"])[0].encode())


def test_a_starter_that_gave_up_does_not_end_the_daemon() -> None:
    reader, writer = os.pipe()
    os.close(reader)

    process.reporter(writer)("")


def starter(script: str) -> "subprocess.CompletedProcess[bytes]":
    program = f"import os, sys\nfrom ghapp import process\nreport = process.detach()\n{script}\n"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=20)


def test_the_starter_ends_well_when_the_daemon_is_ready_and_hears_no_more() -> None:
    done = starter("report(''); report('later trouble')")

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_starter_prints_why_the_daemon_cannot_serve() -> None:
    done = starter("report('no config (E51)\\nedit it')")

    assert (done.returncode, done.stderr) == (1, b"no config (E51)\nedit it")


def test_the_starter_of_a_daemon_that_dies_says_so() -> None:
    done = starter("os._exit(0)")

    assert done.returncode == 1
    assert b"the daemon died while it started (E41)" in done.stderr


def test_a_detached_daemon_has_a_session_of_its_own_and_stands_in_the_root(tmp_path: Path) -> None:
    target = tmp_path / "facts"
    facts = "os.getsid(0) == os.getpid(), os.getcwd(), [os.readlink(f'/dev/fd/{n}') for n in range(3)]"
    starter(f"open({str(target)!r}, 'w').write(repr(({facts}))); report('')")

    eventually(target.exists)
    assert target.read_text() == repr((True, "/", ["/dev/null"] * 3))


def test_leaving_does_not_wait_for_threads() -> None:
    program = (
        "import threading, sys\nfrom ghapp import process\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "print('out'); print('err', file=sys.stderr); process.leave(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=20)

    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_the_limit_of_descriptors_is_the_limit_of_clients() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        assert process.connection_budget() == 24
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, hard))
        assert process.connection_budget() == 8
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_open_descriptors_are_counted() -> None:
    before = process.open_descriptors()
    opened = os.open(os.devnull, os.O_RDONLY)
    try:
        assert process.open_descriptors() == before + 1
    finally:
        os.close(opened)


def test_memory_is_told_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.resident_bytes() > 5_000_000

    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)  # as on macOS
    assert process.resident_bytes() > 5_000
