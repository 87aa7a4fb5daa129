"""Grants, as whoever borrows one sees them: stock git, a directory mounted read-only, and nothing of ours."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from e2e.conftest import PERMISSIONS, Machine
from e2e.test_git_versions import Chroot, chroot  # noqa: F401  # a fixture
from standin.server import StandIn


ROCKET = "https://github.com/acme/rocket.git"
PROBE = "https://github.com/acme/probe.git"
OLD_AND_NEW = pytest.mark.parametrize("chroot", ["bullseye", "sid"], indirect=True)
IDENTITY = ("-c", "user.name=Tester", "-c", "user.email=tester@example.invalid")


def set_up(machine: Machine) -> None:
    """Register an app on acme with two repositories; git itself is not set up for it."""
    github = machine.github
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket", "probe"])
    for name in ("rocket", "probe"):
        github.add_repository(f"acme/{name}", files={"README.md": f"# {name}\n"})
    machine.add_app(app)


def lend(machine: Machine, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.ghapp("grant", "create", *arguments, "--json").stdout)
    return found


@contextlib.contextmanager
def mounted_read_only(source: Path, target: Path) -> Iterator[None]:
    """Show the directory `source` at `target`, as a container does with a volume that is read-only."""
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "--bind", source, target], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", target], check=True)
        yield
    finally:
        subprocess.run(["umount", target], check=True)


@dataclass(frozen=True)
class Container:
    """A root directory with stock git alone, a CA, a git configuration, and what was lent to it."""

    chroot: Chroot
    machine: Machine
    user: str = "0"

    def configure(self) -> None:
        """Write the configuration that README shows, for the socket as it is seen inside."""
        socket = f"{self.chroot.seen}/lent/git.sock"
        helper = f"!f() {{ [ $1 = store ] || exec git credential-cache --timeout=0 --socket={socket} $1; }}; f"
        text = f'[credential "https://github.com"]\n\thelper =\n\thelper = "{helper}"\n\tuseHttpPath = true\n'
        (self.chroot.inside / ".gitconfig").write_text(text)
        shutil.copy(self.machine.github.ca_file, self.chroot.inside / "ca.pem")
        (self.chroot.inside / "work").mkdir()
        for path in (self.chroot.inside, self.chroot.inside / "work"):
            os.chown(path, int(self.user), int(self.user))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        seen = self.chroot.seen
        environment = {
            "HOME": seen,
            "HTTPS_PROXY": self.machine.env["HTTPS_PROXY"],
            "GIT_SSL_CAINFO": f"{seen}/ca.pem",
            "GIT_TERMINAL_PROMPT": "0",
            "PATH": "/usr/bin:/bin",
        }
        return self.machine.run(
            *("chroot", f"--userspec={self.user}:{self.user}", self.chroot.path, "/usr/bin/env", "-i"),
            *(f"--chdir={seen}/work", *(f"{name}={value}" for name, value in environment.items())),
            *command,
            check=False,
        )

    def git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("git", *IDENTITY, *arguments)


@pytest.fixture
def container(chroot: Chroot, machine: Machine) -> Iterator[Container]:  # noqa: F811  # the fixture
    set_up(machine)
    found = Container(chroot, machine)
    found.configure()
    yield found
    machine.end()


def commit(container: Container) -> None:
    (container.chroot.inside / "work/rocket/engine.txt").write_text("on\n")
    assert container.git("-C", "rocket", "add", "engine.txt").returncode == 0
    assert container.git("-C", "rocket", "commit", "-m", "Start the engine").returncode == 0


def tokens_of(github: StandIn) -> list[str]:
    return [mint.token for mint in github.mints]


@pytest.mark.slow
@pytest.mark.timeout(600)
@OLD_AND_NEW
def test_a_container_with_stock_git_reaches_what_was_lent_and_nothing_else_until_it_is_revoked(
    container: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, github = container.machine, container.machine.github
    socket = Path(lend(machine, "acme/rocket", "--name", "rocket")["socket"])
    inside = container.chroot.inside / "lent"
    with mounted_read_only(socket.parent, inside):
        cloned = container.git("clone", ROCKET)
        assert cloned.returncode == 0, cloned.stderr
        commit(container)
        pushed = container.git("-C", "rocket", "push")
        assert pushed.returncode == 0, pushed.stderr

        other = container.git("clone", PROBE)
        assert other.returncode == 128
        assert "ghapp: error: acme/probe is not in grant rocket (E71)" in other.stderr
        assert "told us to quit" in other.stderr

        for command in (("rm", "-f", "git.sock"), ("mv", "git.sock", "other"), ("touch", "new"), ("chmod", "0", ".")):
            assert container.run("env", f"--chdir={container.chroot.seen}/lent", *command).returncode != 0, command
        assert inside.joinpath("git.sock").is_socket()

        revoked = machine.ghapp("grant", "revoke", "rocket")
        late = container.git("-C", "rocket", "fetch")

    (mint,) = github.mints
    assert mint.repositories == ("acme/rocket",)
    assert "revoked 1 token" in revoked.stderr
    assert github.live_token(mint.token) is None
    assert late.returncode == 128
    assert "warning: invalid credential line: ghapp: error: grant rocket ended at " in late.stderr
    with capsys.disabled():
        print(f"\n{container.git('--version').stdout.strip()}: {late.stderr.splitlines()[0]}")  # noqa: T201  # asked for
