"""systemd's user units: `ghapp daemon install` and `uninstall`, with a systemctl that writes down what it is asked."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Ghapp
from conftest import ROOT
from fakes_process import eventually
from fakes_systemd import VERBS, Systemctl

from ghapp import config, paths, process, service
from ghapp.errors import DaemonFailed


SOCKETS = "ghapp.socket ghapp-control.socket"


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "runtime"
    path.mkdir(mode=0o700)
    monkeypatch.delenv("GHAPP_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def systemctl(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    fake = Systemctl(runtime, binaries)
    monkeypatch.setenv("PATH", fake.path)
    return fake


def units() -> Path:
    return Path(os.environ["HOME"]) / ".config/systemd/user"


def left() -> list[Path]:
    return sorted(path for path in units().rglob("*") if not path.is_dir()) if units().exists() else []


def test_install_writes_the_units_and_enables_the_sockets_now(ghapp: Ghapp, systemctl: Systemctl) -> None:
    done = ghapp("daemon", "install")

    assert (done.code, done.out) == (0, "")
    assert systemctl.asked == ["daemon-reload", f"enable --now {SOCKETS}"]
    for name in service.UNITS:
        text = (units() / name).read_text()
        assert text.startswith('# Written by "ghapp daemon install"')
        assert f"wrote {units() / name}" in done.err
    run = re.findall(r"^ExecStart=.*$", (units() / "ghapp.service").read_text(), re.MULTILINE)
    assert run == [f"ExecStart={' '.join(service.command())}"]
    assert run[0].endswith("-m ghapp.daemon")


def test_all_but_the_path_is_what_the_source_says(systemctl: Systemctl, ghapp: Ghapp) -> None:
    ghapp("daemon", "install")

    assert systemctl.asked
    for name in service.UNITS:
        given = (ROOT / "install/systemd" / name).read_text().splitlines()
        written = (units() / name).read_text().splitlines()[1:]
        assert [line for line in written if line not in given and not line.startswith("ExecStart=")] == []
        lost = [line for line in given if line not in written and not line.startswith("ExecStart=")]
        assert all(line.startswith("#") for line in lost)


def test_the_sockets_are_where_git_asks(systemctl: Systemctl, ghapp: Ghapp, runtime: Path) -> None:
    ghapp("daemon", "install")

    found = {
        re.findall(r"^ListenStream=(.*)$", (units() / name).read_text(), re.MULTILINE)[0].replace("%t", str(runtime))
        for name in service.SOCKETS
    }
    assert systemctl.asked
    assert found == {paths.git_socket(), paths.control_socket()}


def test_no_start_enables_for_the_next_login(ghapp: Ghapp, systemctl: Systemctl) -> None:
    done = ghapp("daemon", "install", "--no-start")

    assert systemctl.asked == ["daemon-reload", f"enable {SOCKETS}"]
    assert "from the next login on" in done.err


def test_a_second_install_writes_nothing_and_leaves_the_daemon_alone(ghapp: Ghapp, systemctl: Systemctl) -> None:
    ghapp("daemon", "install")
    before = {path: path.stat().st_mtime_ns for path in left()}

    done = ghapp("daemon", "install")

    assert done.code == 0
    assert "wrote" not in done.err
    assert {path: path.stat().st_mtime_ns for path in left()} == before
    assert systemctl.asked[2:] == systemctl.asked[:2]


def test_uninstall_leaves_nothing_and_a_second_one_says_so(ghapp: Ghapp, systemctl: Systemctl) -> None:
    ghapp("daemon", "install")
    assert len(left()) == 5

    done = ghapp("daemon", "uninstall")

    assert done.code == 0
    assert "the units are removed" in done.err
    assert left() == []
    assert systemctl.asked[2:] == [
        f"disable --now {SOCKETS} ghapp.service",
        "daemon-reload",
        "reset-failed ghapp.socket ghapp-control.socket ghapp.service",
    ]
    again = ghapp("daemon", "uninstall")
    assert (again.code, again.err) == (0, "no units of ours are installed\n")


def test_uninstall_without_a_user_manager_removes_files_and_links(
    ghapp: Ghapp, systemctl: Systemctl, runtime: Path
) -> None:
    ghapp("daemon", "install")
    wants = units() / "sockets.target.wants"
    (wants / "other.socket").symlink_to("../other.socket")
    shutil.rmtree(runtime / "systemd")

    done = ghapp("daemon", "uninstall")

    assert done.code == 0
    assert left() == [wants / "other.socket"]
    assert len(systemctl.asked) == 2


def test_an_uninstall_that_was_killed_midway_can_be_run_again(ghapp: Ghapp, systemctl: Systemctl) -> None:
    ghapp("daemon", "install")
    for name in service.UNITS:
        (units() / name).unlink()

    assert ghapp("daemon", "uninstall").code == 0

    assert left() == []
    assert systemctl.asked[-1].startswith("reset-failed")


def test_a_unit_of_somebody_else_is_neither_overwritten_nor_removed(ghapp: Ghapp, systemctl: Systemctl) -> None:
    units().mkdir(parents=True)
    theirs = units() / "ghapp.service"
    theirs.write_text("[Service]\nExecStart=/bin/true\n")

    done = ghapp("daemon", "install")

    assert done.code == 1
    assert (
        f"ghapp: error: {theirs} is not ours (E41)\nghapp: hint: move it away: mv {theirs} {theirs}.mine\n" in done.err
    )
    assert left() == [theirs]
    assert ghapp("daemon", "uninstall").code == 0
    assert theirs.read_text().startswith("[Service]")
    assert systemctl.asked == []


@pytest.mark.parametrize("verb", ["daemon-reload", "enable"])
def test_what_systemd_refuses_is_told_in_its_words_and_can_be_tried_again(
    ghapp: Ghapp, systemctl: Systemctl, verb: str
) -> None:
    systemctl.fail(verb, "Failed to connect to bus: No medium found")

    done = ghapp("daemon", "install")

    assert done.code == 1
    assert f"ghapp: error: systemctl --user {verb}" in done.err
    assert "Failed to connect to bus: No medium found (E41)\nghapp: hint: journalctl --user" in done.err
    systemctl.then("exit 0")
    assert ghapp("daemon", "install").code == 0


def test_a_unit_that_systemd_has_forgotten_is_no_failure_of_uninstall(ghapp: Ghapp, systemctl: Systemctl) -> None:
    ghapp("daemon", "install")
    systemctl.fail("reset-failed")

    assert ghapp("daemon", "uninstall").code == 0


@pytest.mark.usefixtures("runtime")
def test_without_a_user_manager_it_says_that_nothing_is_lost(ghapp: Ghapp) -> None:
    done = ghapp("daemon", "install")

    assert done.code == 1
    assert re.fullmatch(
        r"ghapp: error: no systemd user manager runs for you \(\S+/runtime/systemd is missing\) \(E41\)\n"
        r"ghapp: hint: nothing is lost: git starts the daemon by itself when it needs it\n",
        done.err,
    )
    assert left() == []


def test_without_systemctl_too(ghapp: Ghapp, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(systemctl.runtime))

    done = ghapp("daemon", "install")

    assert done.code == 1
    assert "there is no systemctl on PATH (E41)" in done.err


def test_a_systemctl_that_cannot_be_run_is_told(
    ghapp: Ghapp, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(systemctl.binaries))
    (systemctl.binaries / "systemctl").write_bytes(b"\x7fELF nonsense")

    assert "systemctl cannot be run: " in ghapp("daemon", "install").err


def test_on_macos_it_says_what_happens_instead(
    ghapp: Ghapp, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")

    done = ghapp("daemon", "install")

    assert "there is no systemd on this system (E41)\nghapp: hint: nothing is lost" in done.err
    assert systemctl.asked == []


def test_sockets_that_git_would_not_find_are_refused(
    ghapp: Ghapp, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GHAPP_RUNTIME_DIR", "/tmp/elsewhere")  # noqa: S108  # a name; nothing is made there

    done = ghapp("daemon", "install")

    assert "GHAPP_RUNTIME_DIR puts the sockets into /tmp/elsewhere" in done.err
    assert "ghapp: hint: unset GHAPP_RUNTIME_DIR" in done.err
    assert systemctl.asked == []


def test_a_throw_away_installation_is_refused(
    ghapp: Ghapp, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.prefix", "/home/me/.cache/uv/archive-v0/abc")

    done = ghapp("daemon", "install")

    assert "lies in a throw-away cache (E41)\nghapp: hint: uv tool install ghapp\n" in done.err
    assert (left(), systemctl.asked) == ([], [])


def test_a_broken_configuration_is_told_before_anything_is_written(ghapp: Ghapp, systemctl: Systemctl) -> None:
    config.config_file().parent.mkdir(parents=True)
    config.config_file().write_text("[deamon]\n")

    assert "(E51)" in ghapp("daemon", "install").err
    assert (left(), systemctl.asked) == ([], [])


def test_a_proxy_of_the_shell_which_systemd_would_not_have_is_named(
    ghapp: Ghapp, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/company.pem")
    config.config_file().parent.mkdir(parents=True)
    config.config_file().write_text('[network]\nca_file = "/etc/company.pem"\n')

    done = ghapp("daemon", "install")

    assert systemctl.asked
    assert "ghapp: warning: systemd does not know your HTTPS_PROXY\nghapp: hint: set [network] proxy in" in done.err
    assert "SSL_CERT_FILE" not in done.err
    assert "proxy.example" not in done.err


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("/usr/bin/python3", "/usr/bin/python3"),
        ("/home/a b/py", '"/home/a b/py"'),
        ("/home/100%/py", "/home/100%%/py"),
        ("/grüße", '"/grüße"'),
    ],
)
def test_a_path_is_written_as_systemd_reads_it(word: str, quoted: str) -> None:
    assert f"\nExecStart={quoted}\n" in service.render("ghapp.service", [word])


@pytest.mark.parametrize("word", ["/a\nExecStartPre=/bin/sh", "/home/$HOME/x", '/q"uote', "/q'uote", "/back\\slash"])
def test_a_path_that_would_mean_something_else_to_systemd_is_refused(word: str) -> None:
    with pytest.raises(DaemonFailed, match="systemd cannot run"):
        service.render("ghapp.service", [word])


def test_a_package_without_its_units_says_so() -> None:
    with pytest.raises(DaemonFailed, match="ghapp is not whole") as failed:
        service.render("ghapp.timer", ["/bin/true"])

    assert failed.value.hint == "uv tool install --force ghapp"


def analyze(*arguments: str | Path, runtime: Path) -> "subprocess.CompletedProcess[str]":
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here (apt install systemd)")
    environment = {"HOME": os.environ["HOME"], "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(runtime)}
    return subprocess.run(
        [program, "--user", *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize("program", ["python3", "py thon", "100%h py", "grüße;&|~*"])
def test_systemd_finds_nothing_to_say_about_what_is_written(runtime: Path, tmp_path: Path, program: str) -> None:
    """The program is there under that name, so its escaping is judged too: systemd looks whether it can be run."""
    link = tmp_path / program
    link.symlink_to(sys.executable)
    directory = tmp_path / "units"
    directory.mkdir()
    for name in service.UNITS:
        (directory / name).write_text(service.render(name, [str(link), "-I", "-m", "ghapp.daemon"]))

    done = analyze("verify", "--man=no", *sorted(directory.iterdir()), runtime=runtime)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    link.unlink()
    assert "is not executable" in analyze("verify", "--man=no", *sorted(directory.iterdir()), runtime=runtime).stderr


def test_its_exposure_is_scored(ghapp: Ghapp, systemctl: Systemctl, runtime: Path) -> None:
    ghapp("daemon", "install")

    done = analyze("security", "--offline=true", "--no-pager", units() / "ghapp.service", runtime=runtime)

    assert systemctl.asked
    (score,) = re.findall(r"Overall exposure level for ghapp\.service: ([\d.]+)", done.stdout)
    assert float(score) <= 6.5


def test_the_verbs_are_those_of_the_real_systemctl() -> None:
    program = shutil.which("systemctl")
    if program is None:
        pytest.skip("systemctl is not here (apt install systemd)")
    known = subprocess.run([program, "--help", "--no-pager"], capture_output=True, text=True, check=True).stdout

    assert {verb for verb in VERBS if not re.search(rf"^  {verb}\b", known, re.MULTILINE)} == set()
    assert "--user" in known
    assert "--now" in known


@pytest.fixture
def activator(ghapp: Ghapp, systemctl: Systemctl, runtime: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Our sockets, held by systemd's own activator, which becomes what the unit runs at the first connection."""
    program = shutil.which("systemd-socket-activate")
    if program is None:
        pytest.skip("systemd-socket-activate is not here (apt install systemd)")
    assert ghapp("daemon", "install").code == 0
    assert systemctl.asked
    (run,) = re.findall(r"^ExecStart=(.*)$", (units() / "ghapp.service").read_text(), re.MULTILINE)
    (runtime / "ghapp").mkdir(mode=0o700)
    listens = [part for path in (paths.git_socket(), paths.control_socket()) for part in ("-l", path)]
    passed = [f"--setenv={name}" for name in ("HOME", "XDG_RUNTIME_DIR")]
    child = subprocess.Popen(
        [program, "--fdname=git:control", *passed, *listens, *shlex.split(run)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: all(Path(path).exists() for path in (paths.git_socket(), paths.control_socket())))
    yield child
    child.terminate()
    child.wait()


def test_looking_and_stopping_start_no_daemon_and_the_first_who_needs_one_gets_it(
    ghapp: Ghapp, activator: "subprocess.Popen[bytes]"
) -> None:
    directory = paths.runtime_dir()
    assert "no daemon runs; systemd starts it when git asks" in ghapp("status").out
    assert ghapp("daemon", "status").code == 1
    assert ghapp("daemon", "stop").err == "no daemon runs\n"
    assert process.lock_holder(directory) is None

    started = ghapp("daemon", "start")

    assert (started.code, started.err) == (0, "the daemon runs\n")
    assert process.lock_holder(directory) == activator.pid
    assert '"running": true' in ghapp("status", "--json").out
    assert ghapp("daemon", "stop").err == "the daemon is stopped\n"
    assert activator.wait(10) == 0
    assert Path(paths.git_socket()).exists()  # systemd's, which goes on listening
