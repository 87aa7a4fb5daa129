"""systemd's own programs: its activator starts the daemon that git asks, its checker reads our units."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from e2e.conftest import BIN, Machine
from e2e.test_grants import use
from fakes_process import eventually

from ghapp import process


UNITS = ROOT / "install/systemd"
NAMES = ("ghapp.service", "ghapp.socket", "ghapp-control.socket")
OURS = ("git", "control")


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here (apt install systemd)")
    return found


@pytest.fixture
def activator(ready: Machine) -> Iterator["subprocess.Popen[bytes]"]:
    """Both sockets under systemd-socket-activate, which becomes `ghapp daemon run` at the first connection."""
    ready.ghapp("daemon", "stop")
    child = activate(ready)
    yield child
    if child.poll() is None:
        child.terminate()
    child.wait()


def activate(ready: Machine) -> "subprocess.Popen[bytes]":
    """Return the activator once both of its sockets are there."""
    command, before = program("systemd-socket-activate"), inodes(ready)
    passed = [f"--setenv={name}" for name in ready.env if name != "PATH"]  # it keeps PATH and hardly more
    listens = [part for name in OURS for part in ("-l", str(ready.sockets / f"{name}.sock"))]
    child = subprocess.Popen(
        [command, *passed, "--fdname=git:control", *listens, BIN / "ghapp", "daemon", "run"],
        env=ready.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: len(inodes(ready).keys() - before.keys()) == len(OURS) or child.poll() is not None)
    assert child.poll() is None
    return child


def inodes(ready: Machine) -> dict[tuple[str, int], Path]:
    """Return the sockets that are there, dead ones too, told apart by when they were made."""
    paths = [ready.sockets / f"{name}.sock" for name in OURS]
    return {(path.name, path.stat().st_ctime_ns): path for path in paths if path.exists()}


def test_git_is_answered_by_the_daemon_that_systemd_activates(
    ready: Machine, activator: "subprocess.Popen[bytes]"
) -> None:
    before = [(ready.sockets / f"{name}.sock").stat().st_ino for name in OURS]
    assert not process.is_locked(str(ready.sockets))

    ready.git("ls-remote", "https://github.com/acme/rocket.git")

    (mint,) = ready.github.mints
    assert ready.fill()["password"] == mint.token
    assert ready.daemon_pid() == activator.pid  # it became the daemon; nobody started another
    assert ready.ghapp("status").stdout

    activator.terminate()

    assert activator.wait(10) == 0
    assert [(ready.sockets / f"{name}.sock").stat().st_ino for name in OURS] == before


def test_after_the_activated_daemon_git_is_answered_by_one_of_its_own(
    ready: Machine, activator: "subprocess.Popen[bytes]"
) -> None:
    """Where systemd is gone too, its sockets lie there dead."""
    ready.fill()
    activator.terminate()
    assert activator.wait(10) == 0

    assert ready.fill()["password"]

    assert ready.daemon_pid() not in {None, activator.pid}


def test_a_grant_that_was_named_comes_back_with_the_daemon_that_systemd_activates(
    ready: Machine, activator: "subprocess.Popen[bytes]"
) -> None:
    """In the directory that a container may have mounted; what was lent without a name does not."""
    find = "ghapp", "grant", "create", "acme/rocket", "--json"
    named, other = (json.loads(ready.run(*find, *more).stdout) for more in (("--name", "box"), ()))
    directory = Path(named["socket"]).parent
    inode = directory.stat().st_ino
    os.kill(activator.pid, signal.SIGKILL)
    activator.wait()
    again = activate(ready)
    try:
        ready.fill()  # somebody on the host asks: a container cannot start it

        lent = use(named["socket"], host="https://github.com/acme")
        ready.git(*lent, "ls-remote", "https://github.com/acme/rocket.git")
        assert len(ready.github.mints) == 2  # the host's, and the grant's own
        assert directory.stat().st_ino == inode
        assert not Path(other["socket"]).exists()
        assert ready.daemon_pid() == again.pid
    finally:
        again.terminate()
        again.wait(10)


# -- the units -----------------------------------------------------------------------------------------------------


def settings(name: str) -> list[tuple[str, str]]:
    lines = (UNITS / name).read_text().splitlines()
    return [
        (key, value) for key, found, value in (line.partition("=") for line in lines if line[:1].isalpha()) if found
    ]


def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    command = program("systemd-analyze")
    (tmp_path / "run").mkdir(mode=0o700)
    program_there = tmp_path / ".local/bin/ghapp"
    program_there.parent.mkdir(parents=True)
    program_there.symlink_to("/bin/true")
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run"), "PATH": os.environ["PATH"]}

    done = subprocess.run(
        [command, "verify", "--user", "--man=no", *(str(UNITS / name) for name in NAMES)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    if "Failed to initialize manager" in done.stderr:
        pytest.skip(f"systemd-analyze does not work here: {done.stderr.strip()}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("name", "socket"), [("ghapp.socket", "git"), ("ghapp-control.socket", "control")])
def test_each_socket_is_the_users_alone_and_has_its_name(name: str, socket: str) -> None:
    found = dict(settings(name))

    assert found["ListenStream"] == f"%t/ghapp/{socket}.sock"
    assert found["FileDescriptorName"] == socket
    assert (found["DirectoryMode"], found["SocketMode"]) == ("0700", "0600")
    assert found.get("Service", name.replace(".socket", ".service")) == "ghapp.service"


def test_the_service_gets_both_sockets_and_is_hardened_as_far_as_a_user_unit_can_be() -> None:
    pairs = settings("ghapp.service")
    found = dict(pairs)

    assert found["Sockets"].split() == ["ghapp.socket", "ghapp-control.socket"]
    assert found["Requires"] == found["Sockets"]
    assert "RuntimeDirectory" not in found
    assert (found["Type"], found["Restart"]) == ("notify", "on-abnormal")
    assert [value for key, value in pairs if key == "SystemCallFilter"] == ["@system-service", "~@privileged"]
    assert found["RestrictAddressFamilies"].split() == ["AF_UNIX", "AF_INET", "AF_INET6"]
    # A manager without privileges cannot do these: the first fails the start, the others need mount namespaces.
    refused = {"CapabilityBoundingSet", "SupplementaryGroups", "User", "ProtectSystem", "ProtectHome", "PrivateTmp"}
    assert not refused & set(found)
    for key in ("NoNewPrivileges", "LockPersonality", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"):
        assert found[key] == "yes"
    assert re.fullmatch(r"%h/\S+/ghapp daemon run", found["ExecStart"])
