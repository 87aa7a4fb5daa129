"""The key in a real keyring: nothing of it anywhere else, and git told what is wrong when the keyring is."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from e2e.conftest import PERMISSIONS, Machine
from e2e.hunt import found_in, key_secrets, needles, places, token_secrets
from session_bus import PASSWORD, Session, session
from standin.model import App

from ghapp import config


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
    return app


def add(machine: Machine, app: App) -> None:
    machine.ghapp("app", "add", "--app-id", str(app.id), "--key", "-", input=app.private_key_pem.decode())


def test_after_an_import_the_key_and_the_tokens_are_in_no_file_and_no_process_but_the_keyring(
    machine: Machine, desktop: Session, app: App
) -> None:
    add(machine, app)
    machine.ghapp("setup-git")

    machine.git("clone", "https://github.com/acme/rocket.git")

    hunted = needles(key_secrets(app.private_key_pem) + token_secrets(machine.github))
    searched = 0
    for name, content in places(machine, machine.home, machine.runtime, machine.work, desktop.home):
        searched += 1
        assert not found_in(content, hunted), name
    assert searched > 10
    assert 'keys = ["keyring:SHA256:' in (machine.home / ".config/ghapp/config.toml").read_text()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("locked", "ghapp: error: the keyring is locked (E31)"),
        ("locked, with a display", "ghapp: error: the keyring is locked (E31)"),
        ("daemon killed", "ghapp: error: the keyring is locked (E31)"),
        ("no bus", "ghapp: error: no keyring service runs on this session (E33)"),
        ("key removed", "ghapp: error: the key is not in the keyring (E35)"),
    ],
)
def test_git_ends_within_six_seconds_and_says_what_is_wrong_with_the_keyring(
    machine: Machine, desktop: Session, app: App, *, state: str, message: str
) -> None:
    add(machine, app)
    machine.ghapp("setup-git")
    machine.ghapp("daemon", "stop")
    if state == "no bus":
        machine.env["DBUS_SESSION_BUS_ADDRESS"] = "unix:path=/nonexistent"
    elif state == "key removed":
        remove_from_the_keyring(machine)
    else:
        desktop.kill_keyrings()
        if state != "daemon killed":
            desktop.start_keyring(None)
    if state.endswith("display"):
        machine.env["DISPLAY"] = ":99"

    with desktop.silent_prompter() if state.endswith("display") else nullcontext():
        done = machine.git("ls-remote", "https://github.com/acme/rocket.git", check=False, timeout=6)

    assert done.returncode != 0
    assert message in done.stderr
    assert "ghapp: hint: " in done.stderr
    assert "told us to quit" in done.stderr  # and nobody is asked for a password


def remove_from_the_keyring(machine: Machine) -> None:
    code = "import keyring.backends.SecretService as s, sys;s.Keyring().delete_password('ghapp', sys.argv[1])"
    (entry,) = config.load(machine.home / ".config/ghapp/config.toml").apps
    account = f"github.com/{entry.app_id}/{entry.keys[0].removeprefix('keyring:')}"
    machine.run("python", "-c", code, account, env={"PATH": machine.env["PATH"]})


def test_importing_another_key_under_the_same_name_replaces_the_old_one_in_the_keyring(
    machine: Machine, desktop: Session, app: App
) -> None:
    add(machine, app)
    first = (machine.home / ".config/ghapp/config.toml").read_text()
    second_pem = app.add_key()

    machine.ghapp("app", "add", "--app-id", str(app.id), "--key", "-", input=second_pem.decode())

    assert (machine.home / ".config/ghapp/config.toml").read_text() != first
    assert len(desktop.usernames()) == 1
    machine.ghapp("setup-git")
    machine.git("ls-remote", "https://github.com/acme/rocket.git")


def test_a_key_that_github_does_not_accept_is_not_left_in_the_keyring(
    machine: Machine, desktop: Session, app: App
) -> None:
    other = machine.github.add_app("other-bot", PERMISSIONS)
    wrong = other.add_key()

    done = machine.ghapp("app", "add", "--app-id", str(app.id), "--key", "-", input=wrong.decode(), check=False)

    assert done.returncode == 1
    assert "(E22)" in done.stderr
    assert not (machine.home / ".config/ghapp/config.toml").exists()
    assert desktop.usernames() == []
