"""What `setup-git` does to a git that has other helpers, and that it can be taken back."""

import re
import shutil
from pathlib import Path

import pytest
from e2e.conftest import Machine
from e2e.test_git_versions import Chroot, chroot  # noqa: F401  # a fixture

from ghapp import gitconfig


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


# What is by owner: identity, proactive, rewrite-ssh


def commit_as_configured(machine: Machine, checkout: Path) -> str:
    """Commit without an identity in the environment, and return whom git says it is by."""
    nobody = [f"-u{name}" for name in machine.env if name.startswith(("GIT_AUTHOR", "GIT_COMMITTER"))]
    machine.run("env", *nobody, "git", "commit", "--allow-empty", "-m", "Change", cwd=checkout)
    return machine.git("log", "-1", "--format=%an <%ae>", cwd=checkout).stdout.strip()


def test_commits_in_the_owners_repositories_are_the_bots_and_elsewhere_ones_own(ready: Machine) -> None:
    if gitconfig.git_version(ready.env, ready.work) < (2, 36):
        pytest.skip("git before 2.36 does not include by a remote's URL")
    ready.github.add_repository("globex/press", private=False, files={"README.md": "# Press\n"})
    mine = b"[user]\n\tname = Me\n\temail = me@example.com\n"
    config = ready.home / ".gitconfig"
    ready.ghapp("setup-git", "--undo")
    config.write_bytes(mine)

    ready.ghapp("setup-git", "--identity")

    ready.git("clone", "https://github.com/acme/rocket.git")
    ready.git("clone", "https://github.com/globex/press.git")
    number = ready.github.accounts["acme-bot[bot]"].id
    bot = f"acme-bot[bot] <{number}+acme-bot[bot]@users.noreply.github.com>"
    assert commit_as_configured(ready, ready.work / "rocket") == bot
    assert commit_as_configured(ready, ready.work / "press") == "Me <me@example.com>"
    ready.git("push", cwd=ready.work / "rocket")

    ready.ghapp("setup-git")
    assert commit_as_configured(ready, ready.work / "rocket") == bot
    ready.ghapp("setup-git", "--no-identity")
    assert commit_as_configured(ready, ready.work / "rocket") == "Me <me@example.com>"

    ready.ghapp("setup-git", "--identity")
    ready.ghapp("setup-git", "--undo")
    assert config.read_bytes() == mine
    assert [path.name for path in (ready.home / ".config/ghapp").iterdir() if "gitconfig" in path.name] == []


def test_ssh_remotes_of_the_owner_work_without_ssh(ready: Machine) -> None:
    ready.env["GIT_SSH_COMMAND"] = "false"
    for url in ("git@github.com:acme/rocket.git", "ssh://git@github.com/acme/rocket.git"):
        assert ready.git("ls-remote", url, check=False).returncode != 0

    ready.ghapp("setup-git", "--rewrite-ssh")

    head = ready.git("ls-remote", "https://github.com/acme/rocket.git", "main").stdout
    assert head
    for url in ("git@github.com:acme/rocket.git", "ssh://git@github.com/acme/rocket.git"):
        assert ready.git("ls-remote", url, "main").stdout == head

    ready.ghapp("setup-git", "--undo")
    assert ready.git("ls-remote", "git@github.com:acme/rocket.git", check=False).returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("chroot", ["sid"], indirect=True)
def test_with_proactive_the_first_request_carries_the_token(ready: Machine, chroot: Chroot) -> None:  # noqa: F811  # as pytest does
    """In a chroot with git 2.46 or newer, through git's own client: our helper's Python is not in there."""
    root, inside = chroot.path, chroot.inside
    ready.env["GHAPP_RUNTIME_DIR"] = str(inside / "sockets")
    requests = [requests_of_ls_remote(ready, root, inside, *options) for options in ((), ("--proactive",))]
    ready.end()

    without, proactive = requests
    assert without[0] == 401
    assert len(proactive) == len(without) - 1
    assert 401 not in proactive


def requests_of_ls_remote(machine: Machine, root: Path, inside: Path, *options: str) -> list[int]:
    """Set git up with `options`, let the chroot's git read that file, and return the statuses of what it asked."""
    machine.ghapp("setup-git", *options)
    seen = f"/{inside.relative_to(root)}"
    owned = (machine.home / ".config/ghapp/gitconfig").read_text()
    helper = re.compile(r"^\thelper = /.*$", re.MULTILINE)
    (inside / "gitconfig").write_text(
        helper.sub(f"\thelper = cache --timeout=0 --socket={seen}/sockets/git.sock", owned)
    )
    shutil.copy(machine.github.ca_file, inside / "ca.pem")
    machine.fill()  # starts the daemon, and has a token ready
    before = len(machine.github.requests)
    machine.run(
        *("chroot", root, "/usr/bin/env", "-i", "PATH=/usr/bin:/bin", f"HOME={seen}", f"--chdir={seen}"),
        *(f"GIT_CONFIG_GLOBAL={seen}/gitconfig", f"HTTPS_PROXY={machine.env['HTTPS_PROXY']}"),
        *(f"GIT_SSL_CAINFO={seen}/ca.pem", "GIT_TERMINAL_PROMPT=0"),
        *("git", "ls-remote", "https://github.com/acme/rocket.git"),
    )
    return [entry.status for entry in machine.github.requests[before:] if "/rocket.git/" in entry.path]
