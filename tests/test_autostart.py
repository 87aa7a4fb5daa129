"""Starting the daemon: once, clean, and with a reason when it fails."""

import concurrent.futures
import contextlib
import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes_process import end_daemon, git_cache, in_child, listener, saying
from fakes_systemd import Systemctl

from ghapp import autostart, config, paths, process, service


def break_config() -> None:
    config.config_dir().mkdir(parents=True)
    config.config_file().write_text("nonsense = 1\n")


POISON = [
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONHOME",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "DYLD_INSERT_LIBRARIES",
    "SSLKEYLOGFILE",
    "OPENSSL_CONF",
    "GIT_DIR",
    "GIT_CONFIG_GLOBAL",
    "GH_TOKEN",
    "GITHUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "NETRC",
    "BASH_ENV",
    "IFS",
    "PYTHON_KEYRING_BACKEND",
    "http_proxy",
]
WANTED = "HOME USER LOGNAME LANG LC_ALL XDG_RUNTIME_DIR GHAPP_RUNTIME_DIR DISPLAY HTTPS_PROXY no_proxy SSL_CERT_FILE"


def test_the_daemons_environment_is_an_allow_list() -> None:
    given = dict.fromkeys([*POISON, *WANTED.split()], "x") | {"PATH": "/evil", "DBUS_SESSION_BUS_ADDRESS": "unix:y"}

    kept = autostart.daemon_environment(given)

    assert set(kept) == {*WANTED.split(), "PATH", "DBUS_SESSION_BUS_ADDRESS"}
    assert "/evil" not in kept["PATH"]


def test_the_users_bus_is_found_where_no_variable_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)

    assert autostart.daemon_environment({})["DBUS_SESSION_BUS_ADDRESS"] == f"unix:path=/run/user/{os.geteuid()}/bus"


def test_the_interpreter_ignores_directory_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autostart.interpreter() == [sys.executable, "-E", "-P"]
    monkeypatch.setattr(sys, "prefix", str(Path(autostart.__file__).parent.parent))
    assert autostart.interpreter() == [sys.executable, "-I"]


def test_a_daemon_is_started_and_a_second_start_finds_it(directory: Path) -> None:
    autostart.ensure(paths.git_socket())
    pid = process.lock_holder(str(directory))
    assert pid is not None

    autostart.start()
    autostart.ensure(paths.git_socket())
    autostart.ensure(paths.git_socket(), foreign=True)

    assert process.lock_holder(str(directory)) == pid
    assert process.complete(str(directory))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for name in ("git.sock", "control.sock", "daemon.lock", "spawn.lock"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_the_daemon_holds_nothing_of_its_starters(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GH_TOKEN", "poison")
    monkeypatch.setenv("PYTHONPATH", "/evil")
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)  # noqa: FBT003  # positional in the library

    autostart.ensure(paths.git_socket())

    os.close(kept)
    pid = process.lock_holder(str(directory))
    names = Path(f"/proc/{pid}/fd")
    targets = {}
    for fd in names.iterdir():
        with contextlib.suppress(FileNotFoundError):  # opened and closed by what it still imports
            targets[int(fd.name)] = fd.readlink()
    assert {targets[number] for number in (0, 1, 2)} == {Path("/dev/null")}
    assert not [target for number, target in targets.items() if number > 2 and str(target) == "/dev/null"]
    assert not [target for target in targets.values() if str(target).startswith("pipe:")]
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"poison" not in environment
    assert b"/evil" not in environment


def test_many_at_once_start_one_daemon(directory: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(autostart.ensure, paths.git_socket()) for _ in range(12)]:
            done.result()

    pid = process.lock_holder(str(directory))
    assert pid is not None
    assert (process.hello(paths.git_socket()) or {})["pid"] == str(pid)


def test_a_start_that_fails_says_why_and_has_failed_for_those_who_waited(directory: Path) -> None:
    break_config()
    directory.mkdir(mode=0o700)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        tries = [pool.submit(autostart.ensure, paths.git_socket()) for _ in range(12)]
        reasons = {str(one.exception()) for one in tries}

    assert len(reasons) == 1
    assert "nonsense" in reasons.pop()
    with pytest.raises(OSError, match="nonsense"):
        autostart.ensure(paths.git_socket())


def test_after_a_failure_the_next_who_comes_tries_again(directory: Path) -> None:
    break_config()
    with pytest.raises(OSError, match="E51"):
        autostart.ensure(paths.git_socket())
    config.config_file().unlink()

    autostart.ensure(paths.git_socket())

    assert process.complete(str(directory))


def test_who_waited_takes_the_failure_of_whom_they_waited_for(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "spawn.lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(lock, b"it failed (E41)\na hint")

    with pytest.raises(OSError, match="it failed"):
        autostart._start_once(str(tmp_path / "s"), lock, foreign=False, waited=True, deadline=1)

    os.close(lock)


def test_who_waited_and_finds_a_listener_is_done(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "spawn.lock", os.O_RDWR | os.O_CREAT, 0o600)

    with listener(tmp_path / "s", saying(b"")):
        autostart._start_once(str(tmp_path / "s"), lock, foreign=True, waited=True, deadline=1)

    os.close(lock)


def test_a_starter_that_does_not_finish_is_waited_for_until_the_deadline(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with autostart._spawn_lock(paths.git_socket()) as lock:
        assert lock is not None
        with pytest.raises(OSError, match="does not finish"):
            autostart.ensure(paths.git_socket(), deadline=0.1)


def test_a_starter_that_is_stopped_does_not_keep_the_others_from_starting(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with autostart._spawn_lock(paths.git_socket()) as lock:
        assert lock is not None
        autostart.ensure(paths.git_socket(), patience=0.1)

    assert process.complete(str(directory))


def test_a_daemon_that_is_killed_while_it_starts_is_started_once_more(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir(mode=0o700)
    python = tmp_path / "python"  # the first to start is killed
    python.write_text(
        f"#!/bin/sh\nif [ ! -e {tmp_path}/killed ]; then touch {tmp_path}/killed; kill -9 $$; fi\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    autostart.ensure(paths.git_socket())

    assert (tmp_path / "killed").exists()
    assert process.complete(str(directory))


def test_a_daemon_that_dies_at_every_start_is_an_error(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir(mode=0o700)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    with pytest.raises(OSError, match="the daemon died while it started"):
        autostart.ensure(paths.git_socket())


def test_a_daemon_that_takes_too_long_is_an_error(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with pytest.raises(OSError, match="did not start in time"):
        autostart.start(0.0)
    autostart.ensure(paths.git_socket())  # whatever became of that one, there is one daemon now
    assert process.complete(str(directory))


def test_a_vanished_interpreter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/gone/python")

    with pytest.raises(OSError, match="cannot start the daemon: No such file"):
        autostart.start()


def test_gits_own_cache_daemon_is_ended_and_its_path_taken(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with git_cache(directory / "git.sock") as cache:
        autostart.ensure(paths.git_socket(), foreign=True)

        assert cache.wait(5) == 0
        assert process.complete(str(directory))


def test_a_runtime_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    autostart.make_runtime_dir(str(tmp_path / "a" / "b" / "ghapp"))

    assert stat.S_IMODE((tmp_path / "a" / "b" / "ghapp").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("link", "is not a directory"),
        ("file", "is not a directory"),
        ("open", "is open to others"),
        ("group", "is open"),
    ],
)
def test_a_runtime_directory_that_is_not_safe_is_refused_untouched(tmp_path: Path, kind: str, reason: str) -> None:
    path = tmp_path / "ghapp"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    match kind:
        case "link":
            path.symlink_to("elsewhere")
        case "file":
            path.touch()
        case "open":
            path.mkdir(mode=0o755)
        case "group":
            path.mkdir()
            path.chmod(0o750)
    before = path.lstat()

    with pytest.raises(OSError, match=reason):
        autostart.ensure(str(path / "git.sock"))

    assert path.lstat() == before
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_relative_runtime_directory_is_refused() -> None:
    with pytest.raises(OSError, match="not an absolute path"):
        autostart.make_runtime_dir("relative")


def test_a_runtime_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match=r"cannot create .*/file/ghapp: Not a directory"):
        autostart.make_runtime_dir(str(tmp_path / "file" / "ghapp"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of another user")
def test_a_runtime_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ghapp").mkdir(mode=0o700)
    os.chown(tmp_path / "ghapp", 65534, 65534)

    with pytest.raises(OSError, match="is not owned by you"):
        autostart.make_runtime_dir(str(tmp_path / "ghapp"))


def test_a_silent_but_living_listener_counts_as_one(tmp_path: Path) -> None:
    with listener(tmp_path / "s", saying(b"")):
        assert autostart.listens(str(tmp_path / "s"))
    assert not autostart.listens(str(tmp_path / "s"))
    assert not autostart.listens(str(tmp_path / "missing"))


def test_the_lock_of_a_daemon_is_in_no_child_of_its_starter(directory: Path) -> None:
    autostart.ensure(paths.git_socket())
    pid = process.lock_holder(str(directory))
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    assert process.wait_for_end(pid, 5)

    assert not process.is_locked(str(directory))
    assert in_child(lambda: autostart.ensure(paths.git_socket())) == 0
    assert process.complete(str(directory))


def test_a_daemon_is_not_started_from_a_cache_that_it_would_outlive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/home/me/.cache/uv/archive-v0/abc123")

    with pytest.raises(OSError, match="uv tool install ghapp"):
        autostart.start()


# systemd


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemctl]:
    """A user manager and our unit; what is started without it is ended."""
    runtime, binaries = tmp_path / "runtime", tmp_path / "bin"
    runtime.mkdir(mode=0o700)
    binaries.mkdir()
    monkeypatch.delenv("GHAPP_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    fake = Systemctl(runtime, binaries)
    monkeypatch.setenv("PATH", fake.path)
    unit = Path(autostart.unit_file())
    unit.parent.mkdir(parents=True)
    unit.touch()
    yield fake
    end_daemon(runtime / "ghapp")


def test_with_our_unit_and_a_user_manager_systemd_starts_the_daemon(systemctl: Systemctl) -> None:
    interpreter = " ".join(autostart.interpreter())
    systemctl.then(
        f'unset GHAPP_RUNTIME_DIR; echo "$PWD $GH_TOKEN" >>"{systemctl.log}.seen"\n'
        f"{interpreter} -m ghapp.daemon --detach"
    )
    os.environ["GH_TOKEN"] = "must not be seen"  # noqa: S105  # nor is it one

    try:
        autostart.ensure(paths.git_socket())
    finally:
        del os.environ["GH_TOKEN"]

    assert autostart.listens(paths.git_socket())
    assert systemctl.asked == ["start ghapp.service"]
    assert Path(f"{systemctl.log}.seen").read_text() == "/ \n"


@pytest.mark.parametrize("then", ["exit 1", "exit 0", "exec sleep 60"])
def test_what_systemd_does_not_start_in_time_is_started_without_it(systemctl: Systemctl, then: str) -> None:
    systemctl.then(then)

    autostart.ensure(paths.git_socket(), deadline=8)

    assert systemctl.asked == ["start ghapp.service"]
    assert process.lock_holder(paths.runtime_dir())


@pytest.mark.parametrize("missing", ["unit", "manager", "systemctl", "place"])
def test_without_unit_manager_or_systemctl_the_daemon_is_started_as_ever(
    systemctl: Systemctl, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "unit":
        Path(autostart.unit_file()).unlink()
    elif missing == "manager":
        (systemctl.runtime / "systemd/private").unlink()
    elif missing == "systemctl":
        monkeypatch.setenv("PATH", "/nonexistent")
    else:
        monkeypatch.setenv("GHAPP_RUNTIME_DIR", str(systemctl.runtime / "elsewhere"))

    autostart.ensure(paths.git_socket())

    assert systemctl.asked == []
    assert autostart.listens(paths.git_socket())
    end_daemon(Path(paths.runtime_dir()))


def test_the_unit_is_looked_for_where_install_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autostart.unit_file() == f"{os.environ['HOME']}/.config/systemd/user/ghapp.service"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert autostart.unit_file().startswith(os.environ["HOME"])
    monkeypatch.setenv("XDG_CONFIG_HOME", "/conf")
    assert autostart.unit_file() == "/conf/systemd/user/ghapp.service" == str(service.unit_dir() / service.SERVICE)
