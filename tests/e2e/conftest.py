"""A machine with nothing on it but the installed commands, git, and a stand-in for GitHub behind a proxy."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standin.model import App
from standin.server import StandIn

from ghapp import autostart, process


BIN = Path(sys.executable).parent
PERMISSIONS = {"contents": "write", "workflows": "write", "metadata": "read", "issues": "write"}


class Machine:
    """An empty HOME and an environment like a new user's, with the proxy and the CA of the stand-in."""

    def __init__(self, directory: Path, github: StandIn) -> None:
        self.github = github
        self.home = directory / "home"
        self.runtime = directory / "run"
        self.work = directory / "work"
        for path in (self.home, self.runtime, self.work):
            path.mkdir(mode=0o700)
        self.env = {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "GHAPP_DEBUG": "1",  # whatever is logged, no secret is: see marks.py
            "LANG": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "Tester",
            "GIT_AUTHOR_EMAIL": "tester@example.invalid",
            "GIT_COMMITTER_NAME": "Tester",
            "GIT_COMMITTER_EMAIL": "tester@example.invalid",
            **github.environment,
            # Debian's git is built with GnuTLS, which does not read SSL_CERT_FILE.
            "GIT_SSL_CAINFO": github.environment["SSL_CERT_FILE"],
        }

    @property
    def sockets(self) -> Path:
        given = self.env.get("GHAPP_RUNTIME_DIR")
        return Path(given) if given else self.runtime / "ghapp"

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        input: str | None = None,  # noqa: A002  # as subprocess calls it
        env: dict[str, str] | None = None,
        check: bool = True,
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd or self.work,
            env=self.env | (env or {}),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def git(self, *arguments: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run("git", *arguments, check=check, **options)

    def ghapp(self, *arguments: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run("ghapp", *arguments, check=check, **options)

    def fill(self, repository: str = "acme/rocket", **options: Any) -> dict[str, str]:
        """Ask for a credential as git does, and return the attributes git ends up with."""
        request = f"protocol=https\nhost=github.com\npath={repository}.git\n\n"
        done = self.git("credential", "fill", input=request, **options)
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    def daemon_pid(self) -> int | None:
        return process.lock_holder(str(self.sockets))

    def add_app(self, app: App) -> Path:
        """Write the app's key where only we read it, and register it."""
        key = self.home / f"{app.slug}.pem"
        key.touch(mode=0o600)
        key.write_bytes(app.private_key_pem)
        self.ghapp("app", "add", "--app-id", str(app.id), "--signer", f"file:{key}")
        return key

    def end(self) -> None:
        """Stop the daemon; a test that leaves one behind would disturb the next."""
        pid = self.daemon_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            assert process.wait_for_end(pid, 10)


@pytest.fixture
def machine(tmp_path: Path, github: StandIn) -> Iterator[Machine]:
    """A machine on which nothing was set up yet."""
    if shutil.which("git-credential-ghapp", path=str(BIN)) is None:
        pytest.skip("ghapp is not installed in this environment")
    directory = tmp_path / "machine"
    directory.mkdir(mode=0o700)
    fresh = Machine(directory, github)
    yield fresh
    fresh.end()


@pytest.fixture
def ready(machine: Machine) -> Machine:
    """A machine with one app, installed on acme with acme/rocket, and git set up."""
    set_up(machine)
    return machine


def set_up(machine: Machine) -> None:
    """Register one app, installed on acme with acme/rocket, and set git up."""
    github = machine.github
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    names = {str(machine.home): "@HOME@", str(app.id): "@ID@", app.client_id: "@CLIENT@"}
    command = shutil.which("ghapp", path=machine.env["PATH"]) or ""  # git's configuration names what lies beside it
    if command not in _WRITTEN:
        machine.add_app(app)
        machine.ghapp("setup-git")
        machine.end()
        _WRITTEN[command] = _remember(machine.home, names)
        return
    autostart.make_runtime_dir(str(machine.sockets))
    key = machine.home / f"{app.slug}.pem"
    key.touch(mode=0o600)
    key.write_bytes(app.private_key_pem)
    for path, (mode, text) in _WRITTEN[command].items():
        written = machine.home / path
        written.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        written.touch()
        written.chmod(mode)
        for name, stands_for in names.items():
            text = text.replace(stands_for, name)  # noqa: PLW2901  # step by step
        written.write_text(text)


_WRITTEN: dict[str, dict[str, tuple[int, str]]] = {}
"""What the commands of `set_up` wrote the first time, for each installed ghapp: they would take minutes in all."""


def _remember(home: Path, names: dict[str, str]) -> dict[str, tuple[int, str]]:
    """Return mode and text of what lies in `home`, keys and logs left out, with signs for the names."""
    found = {}
    for path in home.rglob("*"):
        if path.is_file() and path.suffix != ".pem" and ".local" not in path.parts:
            text = path.read_text()
            for name, stands_for in names.items():
                text = text.replace(name, stands_for)
            found[str(path.relative_to(home))] = (path.stat().st_mode & 0o777, text)
    return found
