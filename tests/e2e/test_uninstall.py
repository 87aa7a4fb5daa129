"""`ghapp uninstall` on a machine with everything: a keyring, git configured, a daemon with a token."""

import os
import re
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.conftest import BIN, PERMISSIONS, Machine
from session_bus import PASSWORD, Session, session
from standin.model import App

from ghapp import process


MINE = b"[user]\n\tname = Me\n# no newline behind this"


@pytest.fixture
def desktop(machine: Machine, tmp_path: Path) -> Iterator[Session]:
    """A session with an unlocked keyring, and the machine in it."""
    with session(tmp_path / "desktop") as found:
        machine.env["DBUS_SESSION_BUS_ADDRESS"] = found.address
        found.start_keyring(PASSWORD)
        yield found


@pytest.fixture
def app(machine: Machine) -> App:
    app = machine.github.add_app("acme-bot", PERMISSIONS)
    machine.github.install(app, "acme", repositories=["rocket"])
    machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    (machine.home / ".gitconfig").write_bytes(MINE)
    return app


def set_everything_up(machine: Machine, app: App) -> str:
    """Set up what there is, and return a token that lives."""
    machine.ghapp("app", "add", "--app-id", str(app.id), "--key", "-", input=app.private_key_pem.decode())
    machine.ghapp("setup-git", "--identity", "--rewrite-ssh")
    return machine.fill()["password"]


def left(machine: Machine) -> list[str]:
    return sorted(
        str(path.relative_to(root))
        for root in (machine.home, machine.runtime)
        for path in root.rglob("*")
        if not path.is_dir() or path.name == "ghapp"
    )


def assert_all_is_gone(machine: Machine, desktop: Session, token: str) -> None:
    assert left(machine) == [".gitconfig"]
    assert (machine.home / ".gitconfig").read_bytes() == MINE
    assert desktop.usernames() == []
    assert machine.github.live_token(token) is None


def test_nothing_is_left_and_the_tokens_are_dead(machine: Machine, desktop: Session, app: App) -> None:
    token = set_everything_up(machine, app)
    pid = machine.daemon_pid()
    assert pid is not None
    assert len(desktop.usernames()) == 1

    refused = machine.ghapp("uninstall", check=False)
    assert refused.returncode == 2
    assert machine.github.live_token(token)

    done = machine.ghapp("uninstall", "--yes")

    assert_all_is_gone(machine, desktop, token)
    assert process.wait_for_end(pid, 0)
    assert "SHA256:" in done.stderr
    assert machine.ghapp("uninstall").stderr.startswith("nothing of ghapp is set up here\n")


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_killed_at_any_moment_the_next_run_finds_the_rest(machine: Machine, desktop: Session, app: App) -> None:
    unfinished = 0
    for step in range(6):
        token = set_everything_up(machine, app)
        child = subprocess.Popen(
            [BIN / "ghapp", "uninstall", "--yes"], env=machine.env, cwd=machine.work, stderr=subprocess.PIPE
        )
        assert child.stderr is not None
        assert child.stderr.readline() == b"this goes:\n"
        end = select.poll()
        pidfd = os.pidfd_open(child.pid)
        end.register(pidfd, select.POLLIN)
        end.poll(step * 100)  # the moment: six tenths of a second in all, which it takes on an idle machine
        os.close(pidfd)
        child.kill()
        child.wait()
        child.stderr.close()
        unfinished += child.returncode != 0

        again = machine.ghapp("uninstall", "--yes", check=False)
        if again.returncode:  # killed while it held git's lock, which git itself would leave as well
            (hint,) = re.findall(
                r"^ghapp: hint: if no git is running: (rm .*\.gitconfig\.lock)$", again.stderr, re.MULTILINE
            )
            machine.run("sh", "-c", hint)
            machine.ghapp("uninstall", "--yes")

        if desktop.usernames() or left(machine) != [".gitconfig"]:
            pytest.fail(f"killed in step {step} it left {desktop.usernames()} and {left(machine)}")
        assert (machine.home / ".gitconfig").read_bytes() == MINE
        assert machine.daemon_pid() is None
        assert token
    assert unfinished >= 2
