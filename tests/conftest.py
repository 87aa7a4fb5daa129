"""Options and fixtures of all suites."""

import os
import signal
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import fakes_keyring
import pytest
from command_line import Ghapp
from fakes_keyring import Keyring
from fakes_process import end_daemon, running
from marks import files_with_secrets
from standin.model import App
from standin.server import StandIn

from ghapp import config, paths
from ghapp.daemon import Daemon


ROOT = Path(__file__).resolve().parent.parent
DESCRIPTION = ROOT.parent / "shared" / "reference" / "github-apps-openapi.json"


def pytest_configure() -> None:
    """Give our children the signals that who started us in the background, or with nohup, ignores."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # a handler is not inherited; to be ignored is


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", metavar="N/M", help="only the N-th of M parts of the files, for runs side by side")
    parser.addoption("--until", type=float, metavar="TIME", help="skip what has not begun by then, in Unix time")
    parser.addoption("--slow", action="store_true", help="also run what takes minutes or hundreds of megabytes")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    part = config.getoption("--part")
    if part is None or not collection_path.name.startswith("test_"):
        return None
    number, of = (int(word) for word in part.split("/"))
    return True if zlib.crc32(collection_path.name.encode()) % of != number - 1 else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.e2e)
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    until = item.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.skip("no time was left for it; sh install/test.sh --slow FILE runs it")


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep every test away from the tester's own configuration, sockets and proxies."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("XDG_", "GHAPP_", "GIT_", "SSL_CERT_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GHAPP_RUNTIME_DIR", str(home / "run"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")
    return home


@pytest.fixture
def ghapp(capsys: pytest.CaptureFixture[str]) -> Ghapp:
    """`ghapp` in this process."""
    return Ghapp(capsys)


@pytest.fixture
def keyring(_own_world: Path) -> Iterator[Keyring]:
    """A keyring in memory, named in the configuration as any other would be."""
    config.config_file().parent.mkdir(parents=True, exist_ok=True)
    with config.config_file().open("a") as file:
        file.write(f'[keyring]\nbackend = "{fakes_keyring.NAME}"\n')
    with fakes_keyring.running() as keyring:
        yield keyring


@pytest.fixture
def directory() -> Iterator[Path]:
    """The runtime directory; whichever daemon a test leaves there ends with it."""
    path = Path(paths.runtime_dir())
    yield path
    if path.exists():
        end_daemon(path)


@pytest.fixture
async def served(directory: Path, app: App) -> AsyncIterator[Daemon]:  # noqa: ARG001  # configured first
    """A daemon in the test's loop, with the `app` of the test's module."""
    async with running(directory) as daemon:
        yield daemon


@pytest.fixture
def github(tmp_path: Path, _own_world: Path) -> Iterator[StandIn]:
    """The stand-in, every request and answer of its API held against GitHub's own description where that is there.

    Whatever a test does with it: no token, JWT or key is in any file afterwards.
    """
    description = DESCRIPTION if DESCRIPTION.exists() else None
    with StandIn.start(tmp_path / "github", description=description) as standin:
        yield standin
        assert standin.violations == []
        assert not list(files_with_secrets(standin, tmp_path, _own_world, apart_from=tmp_path / "github"))
