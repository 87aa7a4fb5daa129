"""What `setup-git` does to a git that has other helpers, and that it can be taken back."""

from pathlib import Path

from e2e.conftest import Machine


def other_helper(machine: Machine) -> Path:
    """Make a helper like a person's own, which answers for everything and writes down what it was asked."""
    journal = machine.home / "asked.txt"
    helper = machine.home / "other-helper"
    helper.write_text(
        f'#!/bin/sh\n{{ echo "action=$1"; cat; echo; }} >>"{journal}"\n'
        '[ "$1" = get ] && printf "username=somebody\\npassword=theirs\\n"\nexit 0\n'
    )
    helper.chmod(0o755)
    journal.touch()
    machine.git("config", "--global", "credential.https://github.com.helper", str(helper))
    machine.git("config", "--global", "credential.https://github.com.useHttpPath", "true")
    return journal


def test_another_helper_answers_for_other_owners_and_is_neither_asked_for_ours_nor_given_our_token(
    machine: Machine,
) -> None:
    asked = other_helper(machine)
    app = machine.github.add_app("acme-bot", {"contents": "write", "metadata": "read"})
    machine.github.install(app, "acme", repositories=["rocket"])
    machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    machine.add_app(app)
    machine.ghapp("setup-git")

    machine.git("clone", "https://github.com/acme/rocket.git")
    assert asked.read_text() == ""
    assert machine.fill("acme/rocket")["username"] == "x-access-token"
    machine.git("credential", "approve", input=approval(machine))
    assert asked.read_text() == ""

    theirs = machine.fill("somebody/else")
    assert (theirs["username"], theirs["password"]) == ("somebody", "theirs")
    assert "path=somebody/else.git" in asked.read_text()
    assert "ghs_" not in asked.read_text()


def approval(machine: Machine) -> str:
    answer = machine.fill("acme/rocket")
    return "".join(f"{key}={value}\n" for key, value in answer.items()) + "\n"


def test_a_rejected_token_is_forgotten_and_the_next_command_gets_another(ready: Machine) -> None:
    first = ready.fill()

    ready.git("credential", "reject", input=approval(ready))

    assert ready.fill()["password"] != first["password"]


def test_undo_restores_the_users_file_byte_for_byte_and_a_second_run_changes_nothing(ready: Machine) -> None:
    config = ready.home / ".gitconfig"
    ready.ghapp("setup-git", "--undo")
    assert not config.exists()
    original = b"[user]\n\tname = Somebody\n# no newline behind this"
    config.write_bytes(original)

    ready.ghapp("setup-git")
    once, before = config.read_bytes(), config.stat()
    again = ready.ghapp("setup-git")

    assert config.read_bytes() == once != original
    assert (config.stat().st_ino, config.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "nothing to change" in again.stderr
    ready.ghapp("setup-git", "--undo")
    assert config.read_bytes() == original
    assert not (ready.home / ".config/ghapp/gitconfig").exists()


def test_a_dry_run_shows_the_change_and_makes_none(ready: Machine) -> None:
    ready.ghapp("setup-git", "--undo")

    shown = ready.ghapp("setup-git", "--dry-run").stdout

    assert '+[credential "https://github.com/acme"]' in shown
    assert not (ready.home / ".gitconfig").exists()


def test_with_all_one_section_serves_every_owner_of_the_host(ready: Machine) -> None:
    app = ready.github.add_app("other-bot", {"contents": "read", "metadata": "read"})
    ready.github.install(app, "globex", repositories=["press"])
    ready.github.add_repository("globex/press", files={"README.md": "# Press\n"})
    ready.add_app(app)

    ready.ghapp("setup-git", "--all")

    ready.git("ls-remote", "https://github.com/globex/press.git")
    ready.git("ls-remote", "https://github.com/acme/rocket.git")
    owned = (ready.home / ".config/ghapp/gitconfig").read_text()
    assert owned.count("[credential ") == 1
