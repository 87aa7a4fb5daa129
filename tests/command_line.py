"""`ghapp` in the test's own process, and a machine for it: an app on the stand-in, a daemon in the test's loop."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from standin.model import App, Repository
from standin.server import StandIn

from ghapp import cli, config


class Result:
    """What one command line came to."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Ghapp:
    """`ghapp` in this process; `asked` in a thread, for while a daemon runs in the test's loop."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        self._capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Result(code, *self._capsys.readouterr())

    async def asked(self, *arguments: str | Path) -> Result:
        return await asyncio.to_thread(self, *arguments)


def register(app: App, directory: Path, *, name: str = "", **more: object) -> Path:
    """Register `app` with its key in a file, as `ghapp app add` would."""
    key = directory / f"{app.slug}.pem"
    key.touch(mode=0o600)
    key.write_bytes(app.private_key_pem)
    table: dict[str, object] = {"name": name or app.slug, "app_id": app.id, "keys": [f"file:{key}"]}
    config.put_app(config.config_file(), table | more)
    return key


def app_on_acme(github: StandIn, permissions: dict[str, str], monkeypatch: pytest.MonkeyPatch, directory: Path) -> App:
    """Register an app that is on acme, with rocket and probe; this process finds the stand-in."""
    app = github.add_app("acme-bot", permissions)
    github.install(app, "acme", repositories=["rocket", "probe"])
    for name in ("rocket", "probe"):
        github.add_repository(f"acme/{name}")
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    register(app, directory)
    return app


def add_name(github: StandIn, full_name: str, number: int) -> Repository:
    """Let GitHub list one more repository, without the files that nobody will look at."""
    owner, _, name = full_name.partition("/")
    repository = Repository(number, github.add_account(owner), name, True, Path("/nonexistent"), time.time())  # noqa: FBT003  # private
    github.repositories[number] = repository
    return repository
