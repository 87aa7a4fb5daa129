"""`ghapp setup`, in this process; `tests/e2e/test_setup.py` does it in a real terminal with a real keyring."""

import asyncio
import io
import os
import re
import shutil
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from command_line import Ghapp, Result, register
from fakes_process import eventually, running
from standin.model import App
from standin.server import StandIn
from test_app_create import Keyring, Person

from ghapp import cli, config, paths
from ghapp.cli import app_create


PERMISSIONS = {"contents": "write", "workflows": "write", "metadata": "read"}
INTERRUPT = "^C"


class Terminal(io.StringIO):
    """A terminal at which somebody types these lines, and then leaves."""

    def __init__(self, *lines: str) -> None:
        super().__init__()
        self.lines = list(lines)

    def isatty(self) -> bool:
        return True

    def readline(self, _size: int | None = -1, /) -> str:
        if not self.lines:
            return ""
        line = self.lines.pop(0)
        if line == INTERRUPT:
            raise KeyboardInterrupt
        return line + "\n"


class Shown(io.StringIO):
    def isatty(self) -> bool:
        return True


class Person_:
    """`ghapp setup` at a terminal."""

    def __init__(self, ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ghapp = ghapp
        self._monkeypatch = monkeypatch

    async def answers(self, *lines: str, options: tuple[str, ...] = ()) -> Result:
        with self._monkeypatch.context() as patched:
            keys, shown = Terminal(*lines), Shown()
            patched.setattr(sys, "stdin", keys)
            patched.setattr(sys, "stderr", shown)
            done = await self._ghapp.asked("setup", *options)
        assert not keys.lines, shown.getvalue()
        return Result(done.code, done.out, shown.getvalue())


@pytest.fixture
def ghapp(capsys: pytest.CaptureFixture[str]) -> Ghapp:
    return Ghapp(capsys)


@pytest.fixture
def person(ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch) -> Person_:
    return Person_(ghapp, monkeypatch)


@pytest.fixture(autouse=True)
def _machine(github: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without keyring, browser and systemd, from which GitHub can be reached."""
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_SSL_CAINFO", github.environment["SSL_CERT_FILE"])
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "SSH_CONNECTION", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent")
    monkeypatch.setattr(app_create, "PAUSE", 0.01)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def served() -> AsyncIterator[None]:
    async with running(Path(paths.runtime_dir())):
        yield


@pytest.fixture
def app(github: StandIn) -> App:
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket")
    return app


@pytest.fixture
def key(app: App, tmp_path: Path) -> Path:
    path = tmp_path / "downloaded.pem"
    path.touch(mode=0o600)
    path.write_bytes(app.private_key_pem)
    return path


def home() -> Path:
    return Path(os.environ["HOME"])


def written() -> dict[str, bytes]:
    """Return the files that setup makes or changes."""
    found = (path for path in home().rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in found if "run" not in path.relative_to(home()).parts}


def unattended(app: App, key: Path) -> tuple[str, ...]:
    return ("setup", "--yes", "--app-id", str(app.id), "--key", str(key), "--signer", f"file:{home()}/kept.pem")


@pytest.mark.usefixtures("served")
async def test_unattended_it_does_all_and_the_second_time_nothing(ghapp: Ghapp, app: App, key: Path) -> None:
    first = await ghapp.asked(*unattended(app, key), "--delete-key-file")
    before = written()
    second = await ghapp.asked(*unattended(app, key), "--delete-key-file")

    assert first.code == 0, first.err
    assert not key.exists()
    assert "repository acme/rocket: git ls-remote lists" in first.out
    assert first.err.splitlines()[-1] == "ghapp: hint: git clone https://github.com/acme/rocket"
    assert (second.code, written()) == (0, before)
    steps = [line for line in second.err.splitlines() if re.match(r"\d\.", line)]
    assert steps == [
        "1. The app: acme-bot is registered, and GitHub accepts its key",
        "2. The installation: on acme (selected repositories)",
        "3. git: it asks ghapp for acme",
        "4. The daemon: git starts it when it needs it",
        "5. The check: ghapp doctor acme/rocket",
    ]


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ([], "which app?"),
        (["--yes"], "which app?"),
        (["--app-id", "1", "--signer", "file:/k"], "give --owners or --all, and --identity or --no-identity"),
        (["--create", "--all"], "give --identity or --no-identity"),
    ],
)
def test_without_a_terminal_what_is_not_told_is_wrong_usage(ghapp: Ghapp, options: list[str], missing: str) -> None:
    done = ghapp("setup", *options)

    assert done.code == 2
    assert missing in done.err
    assert "ghapp: hint: ghapp setup --yes" in done.err
    assert written() == {}


@pytest.mark.parametrize(
    "options",
    [
        ["--create", "--app-id", "1"],
        ["--org", "acme", "--client-id", "Iv1"],
        ["--permission", "issues=read", "--key", "k"],
        ["--app-id", "1", "--client-id", "Iv1"],
        ["--no-git", "--all", "--create"],
        ["--no-git", "--identity", "--create"],
        ["--key", "k", "--create"],
        ["--yes", "--app-id", "1"],
        ["--yes", "--app-id", "1", "--signer", "tpm:1"],
        ["--wait", "0s"],
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(ghapp: Ghapp, options: list[str]) -> None:
    done = ghapp("setup", "--no-network", *options)

    assert (done.code, done.out) == (2, "")
    assert not config.config_file().exists()


@pytest.mark.usefixtures("served")
async def test_an_app_is_imported_by_answers_and_wrong_ones_are_asked_again(
    person: Person_, github: StandIn, app: App, key: Path, tmp_path: Path
) -> None:
    other = github.add_app("other-bot", PERMISSIONS)
    wrong = tmp_path / "wrong.pem"
    wrong.touch(mode=0o600)
    wrong.write_bytes(other.private_key_pem)

    done = await person.answers(
        "what?",
        "imp",
        "?!",
        str(app.id),
        str(tmp_path / "nothing"),
        str(wrong),
        str(home() / "first.pem"),
        str(app.id),
        f"'{key}'",
        str(home() / "kept.pem"),
        "",
        "n",
    )

    assert done.code == 0, done.err
    assert "the answer is one of create, import" in done.err
    assert "'?!' is neither a number nor a client ID" in done.err
    assert "there is no file" in done.err
    assert "(E22)" in done.err
    assert not (home() / "first.pem").exists()
    assert (home() / "kept.pem").read_bytes() == app.private_key_pem
    assert f"{key} can go" in done.err
    assert 'credential "https://github.com/acme"' in (config.config_dir() / "gitconfig").read_text()


@pytest.mark.usefixtures("served")
async def test_enter_takes_the_key_that_was_downloaded_last(person: Person_, app: App, key: Path) -> None:
    downloads = home() / "Downloads"
    downloads.mkdir()
    for age, name in enumerate(("new", "old")):
        copy = downloads / f"acme-bot.{name}.private-key.pem"
        shutil.copyfile(key, copy)
        os.utime(copy, (10 - age, 10 - age))

    done = await person.answers(
        "", "all", "yes", options=("--client-id", app.client_id, "--signer", f"file:{home()}/kept.pem")
    )

    assert done.code == 0, done.err
    assert f"[{downloads}/acme-bot.new.private-key.pem]" in done.err
    assert 'credential "https://github.com"' in (config.config_dir() / "gitconfig").read_text()
    assert "commits are by acme-bot[bot]" in done.err


@pytest.mark.usefixtures("served")
async def test_without_a_keyring_the_key_goes_where_a_person_says_and_unattended_nowhere(
    person: Person_, ghapp: Ghapp, app: App, key: Path
) -> None:
    given = ("--app-id", str(app.id), "--key", str(key))

    refused = await ghapp.asked("setup", "--yes", *given)
    done = await person.answers("", "skip", options=given)

    place = config.config_dir() / "keys" / f"{app.id}.pem"
    assert refused.code == 1
    assert "no keyring service" in refused.err
    assert f"ghapp: hint: ghapp setup --signer file:{place}" in refused.err
    assert "ghapp: hint: then ghapp setup" not in refused.err
    assert "The key cannot go into the keyring: no keyring service" in done.err
    assert f"[{place}]" in done.err
    assert place.read_bytes() == app.private_key_pem
    assert place.stat().st_mode & 0o777 == 0o600
    assert done.code == 1  # doctor: git was left alone
    assert "not ghapp" in done.out


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("answered", range(5))
async def test_an_interrupted_run_keeps_what_it_did_and_the_next_goes_on(
    person: Person_, app: App, key: Path, answered: int
) -> None:
    answers = ["import", str(app.id), str(key), "", ""]  # and the keyring's stead
    answers.insert(3, str(home() / "kept.pem"))

    stopped = await person.answers(*answers[:answered], INTERRUPT)
    rest = answers if answered < 4 else answers[4:]
    done = await person.answers(*rest)

    assert stopped.code == 130
    assert stopped.err.endswith(
        "\nghapp: error: interrupted; what is done stays\nghapp: hint: ghapp setup goes on from here\n"
    )
    assert (home() / "kept.pem").exists()
    assert done.code == 0, done.err
    assert ("acme-bot is registered" in done.err) == (answered >= 4)


@pytest.mark.usefixtures("served")
async def test_it_waits_for_the_installation_and_says_how_to_go_on(
    ghapp: Ghapp, github: StandIn, tmp_path: Path
) -> None:
    app = github.add_app("lonely", PERMISSIONS)
    register(app, tmp_path)

    without = await ghapp.asked("setup", "--yes", "--no-install-wait")
    ended = await ghapp.asked("setup", "--yes", "--wait", "1s")
    host = await ghapp.asked("setup", "--yes", "--wait", "1s", "--all", "--no-doctor")
    left = await ghapp.asked("setup", "--yes", "--no-install-wait", "--no-git")
    github.install(app, "acme")
    done = await ghapp.asked("setup", "--yes")

    link = "https://github.com/apps/lonely/installations/new"
    for refused in (without, ended):
        assert refused.code == 1
        assert "lonely is not installed yet (E24)" in refused.err
        assert f"ghapp: hint: install it: {link}, then: ghapp setup" in refused.err
    assert "the app is not installed yet" in ended.err
    assert host.code == 0, host.err
    assert "https://github.com is answered by ghapp" in host.err
    assert left.code == 1
    assert "the app is installed nowhere" in left.out
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1] == "ghapp: hint: git clone https://github.com/acme/REPOSITORY"


@pytest.mark.usefixtures("served")
async def test_an_installation_that_comes_while_it_waits_is_seen(
    ghapp: Ghapp, github: StandIn, tmp_path: Path
) -> None:
    app = github.add_app("lonely", PERMISSIONS)
    register(app, tmp_path)
    done: list[Result] = []

    def run() -> None:
        done.append(ghapp("setup", "--yes", "--no-doctor"))

    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.to_thread(eventually, lambda: sum("installations" in entry.path for entry in github.requests) > 3)
    github.install(app, "acme")
    await asyncio.to_thread(thread.join, 20)

    (result,) = done
    assert result.code == 0, result.err
    assert "   on acme (all repositories)\n" in result.err
