"""Old and new git, stock and with nothing of ours installed, in chroots made by debootstrap."""

import fcntl
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from e2e.conftest import PERMISSIONS, Machine


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CACHE = Path(os.environ.get("GHAPP_TEST_CACHE", ROOT / ".cache")) / "chroots"
KNOWN = {"bullseye": (2, 30), "trixie": (2, 47), "sid": (2, 50)}
"""Debian's suites and the git that each has at least."""
WANTED = os.environ.get("GHAPP_TEST_SUITES", "bullseye sid").split()  # the oldest git and the newest; trixie on demand
SUITES = {suite: KNOWN[suite] for suite in WANTED}


@dataclass(frozen=True)
class Chroot:
    """A root directory that holds Debian's base and git."""

    suite: str
    path: Path
    inside: Path
    """A directory of this test's own, as the test sees it."""

    @property
    def seen(self) -> str:
        """The same directory as git sees it."""
        return "/" + str(self.inside.relative_to(self.path))

    def git(self, machine: Machine, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:  # noqa: A002  # as subprocess calls it
        environment = {
            "HOME": self.seen,
            "HTTPS_PROXY": machine.env["HTTPS_PROXY"],
            "GIT_SSL_CAINFO": f"{self.seen}/ca.pem",
            "GIT_TERMINAL_PROMPT": "0",
        }
        return machine.run(
            *("chroot", self.path, "/usr/bin/env", "-i", f"--chdir={self.seen}", "PATH=/usr/bin:/bin"),
            *(f"{name}={value}" for name, value in environment.items()),
            *("git", *arguments),
            input=input,
        )


def make_root(suite: str, path: Path) -> None:
    """Make a root directory of `suite`, whole or not at all."""
    fresh = path.with_name(f"{suite}.{uuid.uuid4().hex}")
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=git,ca-certificates", suite, str(fresh)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"debootstrap {suite} failed: {(made.stderr or made.stdout)[-300:]}")
    fresh.rename(path)


@pytest.fixture(params=SUITES)
def chroot(request: pytest.FixtureRequest) -> Iterator[Chroot]:
    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    suite: str = request.param
    path = CACHE / suite
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be making the same one
        if not (path / "usr/bin/git").exists():
            make_root(suite, path)
    inside = path / "tmp" / uuid.uuid4().hex
    inside.mkdir(mode=0o700)
    yield Chroot(suite, path, inside)
    shutil.rmtree(inside)


def test_stock_git_is_a_full_client_of_git_sock(
    chroot: Chroot, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """`credential.helper = cache --timeout=0 --socket=…` is all the configuration a container needs."""
    machine.env["GHAPP_RUNTIME_DIR"] = str(chroot.inside / "sockets")
    app = machine.github.add_app("acme-bot", PERMISSIONS)
    machine.github.install(app, "acme", repositories=["rocket"])
    machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    machine.add_app(app)
    shutil.copy(machine.github.ca_file, chroot.inside / "ca.pem")
    version = chroot.git(machine, "--version").stdout.strip()
    helper = f"credential.helper=cache --timeout=0 --socket={chroot.seen}/sockets/git.sock"
    ours = ("-c", "credential.helper=", "-c", helper, "-c", "credential.useHttpPath=true")

    request = "protocol=https\nhost=github.com\npath=acme/rocket.git\n\n"
    answer = chroot.git(machine, *ours, "credential", "fill", input=request).stdout
    chroot.git(machine, *ours, "clone", "https://github.com/acme/rocket.git")
    (chroot.inside / "rocket/engine.txt").write_text("on\n")
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.invalid", "-C", "rocket")
    chroot.git(machine, *identity, "add", "engine.txt")
    chroot.git(machine, *identity, "commit", "-m", "Start the engine")
    chroot.git(machine, *ours, "-C", "rocket", "push")

    (mint,) = machine.github.mints
    assert f"password={mint.token}\n" in answer
    assert "username=x-access-token\n" in answer
    numbers = tuple(int(part) for part in version.split()[2].split(".")[:2])
    assert numbers >= SUITES[chroot.suite]
    with capsys.disabled():
        print(f"\n{version}: fill, clone and push through git's own client")  # noqa: T201  # asked for
    machine.end()
