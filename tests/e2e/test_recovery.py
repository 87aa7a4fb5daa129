"""A token that died behind our back: the same git command goes on where git can, and no git asks without end."""

import shutil

import pytest
from conftest import ROOT
from e2e.conftest import PERMISSIONS, Machine
from e2e.test_git_versions import SUITES, Chroot, chroot  # noqa: F401  # a fixture
from standin.server import StandIn


ROCKET = "https://github.com/acme/rocket.git"
REQUEST = "protocol=https\nhost=github.com\npath=acme/rocket.git\n\n"
NEW_GITS = pytest.mark.parametrize("chroot", [suite for suite in SUITES if suite != "bullseye"], indirect=True)


def kill_the_token(github: StandIn, how: str) -> None:
    """Make the token that was minted last worthless, as GitHub's pages can."""
    if how == "revoked":
        github.revoke(github.mints[-1].token)
    else:
        (installation,) = github.installations.values()
        github.reinstall(installation)


def posts(github: StandIn) -> int:
    """Count the requests to the git server that carried a body."""
    return sum(request.method == "POST" and request.host == "github.com" for request in github.requests)


class Guest:
    """Git in a chroot, with one helper: git's own client, or our front, which runs that."""

    def __init__(self, chroot: Chroot, machine: Machine, client: str = "git's own") -> None:  # noqa: F811  # its value
        self._chroot = chroot
        self._machine = machine
        sockets = f"{chroot.seen}/sockets"
        if client == "ours":
            shutil.copy(ROOT / "install/git-credential-ghapp", chroot.inside)
            self._helper = f"!GHAPP_RUNTIME_DIR={sockets} {chroot.seen}/git-credential-ghapp"
        else:
            self._helper = f"cache --timeout=0 --socket={sockets}/git.sock"
        machine.env["GHAPP_RUNTIME_DIR"] = str(chroot.inside / "sockets")
        app = machine.github.add_app("acme-bot", PERMISSIONS)
        machine.github.install(app, "acme", repositories=["rocket"])
        machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
        machine.add_app(app)
        shutil.copy(machine.github.ca_file, chroot.inside / "ca.pem")

    def git(self, *arguments: str) -> str:
        settings = ("credential.helper=", f"credential.helper={self._helper}", "credential.useHttpPath=true")
        options = [part for setting in settings for part in ("-c", setting)]
        return self._chroot.git(self._machine, *options, *arguments).stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@NEW_GITS
@pytest.mark.parametrize("how", ["revoked", "installed anew"])
@pytest.mark.parametrize("client", ["git's own", "ours"])
def test_the_same_command_succeeds_with_a_new_token_where_git_can_come_back(
    chroot: Chroot,  # noqa: F811  # the fixture
    machine: Machine,
    how: str,
    client: str,
) -> None:
    guest, github = Guest(chroot, machine, client), machine.github
    assert "refs/heads/main" in guest.git("ls-remote", ROCKET)
    assert len(github.mints) == 1

    kill_the_token(github, how)
    refs = guest.git("ls-remote", ROCKET)
    kill_the_token(github, how)
    guest.git("clone", ROCKET)

    assert "refs/heads/main" in refs
    assert (chroot.inside / "rocket/README.md").read_text() == "# Rocket\n"
    assert len(github.mints) == 3
    machine.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
@NEW_GITS
@pytest.mark.parametrize("client", ["git's own", "ours"])
def test_a_git_whose_every_post_is_rejected_ends_within_three_requests_as_ghapp_never_continues_twice(
    chroot: Chroot,  # noqa: F811  # the fixture
    machine: Machine,
    client: str,
) -> None:
    guest, github = Guest(chroot, machine, client), machine.github
    guest.git("ls-remote", ROCKET)
    github.journal.clear()
    github.settings.reject_every_post = True

    with pytest.raises(AssertionError, match="128"):
        guest.git("ls-remote", ROCKET)

    assert 1 <= posts(github) <= 3
    assert len(github.mints) <= 3
    machine.end()


def test_an_old_git_whose_every_post_is_rejected_ends_within_three_requests(ready: Machine) -> None:
    ready.github.settings.reject_every_post = True

    done = ready.git("ls-remote", ROCKET, check=False)

    assert done.returncode == 128
    assert 1 <= posts(ready.github) <= 3


@pytest.mark.parametrize("how", ["revoked", "installed anew"])
def test_with_an_old_git_the_next_command_succeeds_with_a_new_token(ready: Machine, how: str) -> None:
    ready.git("ls-remote", ROCKET)
    kill_the_token(ready.github, how)

    ready.git("ls-remote", ROCKET, check=False)  # fails before git 2.46: it knows no second try
    refs = ready.git("ls-remote", ROCKET).stdout

    assert "refs/heads/main" in refs
    assert len(ready.github.mints) == 2


def test_erase_with_an_old_password_keeps_the_fresh_lease(ready: Machine) -> None:
    def reject(password: str) -> None:
        ready.git("credential", "reject", input=f"{REQUEST.strip()}\nusername=x-access-token\npassword={password}\n\n")

    old = ready.fill()["password"]
    reject(old)
    fresh = ready.fill()["password"]

    reject(old)
    kept = ready.fill()["password"]

    assert fresh != old
    assert kept == fresh
    assert len(ready.github.mints) == 2
