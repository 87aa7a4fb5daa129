"""`ghapp setup`, in this process; `tests/e2e/test_setup.py` does it in a real terminal with a real keyring."""

import asyncio
import io
import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from command_line import Ghapp, Result, register
from fakes_process import eventually, running
from standin.model import App
from standin.server import StandIn
from test_app_create import Person

from ghapp import config, paths, routing
from ghapp.cli import app_create
from ghapp.cli.daemon_client import call
from ghapp.cli.setup import setup
from ghapp.manifest import Registered


PERMISSIONS = {"contents": "write", "workflows": "write", "metadata": "read"}
INTERRUPT = "^C"


class Terminal(io.StringIO):
    """A terminal at which somebody types these lines, and then leaves."""

    def __init__(self, *lines: str) -> None:
        super().__init__()
        self.lines = list(lines)

    def isatty(self) -> bool:
        return True

    def readline(self, _size: int | None = -1, /) -> str:  # type: ignore[override]  # as StringIO's own
        if not self.lines:
            return ""
        line = self.lines.pop(0)
        if line == INTERRUPT:
            raise KeyboardInterrupt
        return line + "\n"


class Shown(io.StringIO):
    def isatty(self) -> bool:
        return True


class Guided:
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
def guided(ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch) -> Guided:
    return Guided(ghapp, monkeypatch)


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
    """Return the files that setup makes or changes; the audit trail grows with every use."""
    found = (path for path in home().rglob("*") if path.is_file() and not path.name.startswith("audit"))
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
    assert re.search("^ghapp: hint: .*ghapp setup .*--yes", done.err, re.MULTILINE)
    assert written() == {}


@pytest.mark.usefixtures("served")
async def test_without_a_terminal_only_the_steps_that_are_left_need_answers(
    ghapp: Ghapp, github: StandIn, app: App, tmp_path: Path
) -> None:
    register(app, tmp_path)
    before = written()

    asked = await ghapp.asked("setup", "--no-network")
    half = await ghapp.asked("setup", "--no-network", "--owners")
    assert written() == before
    await ghapp.asked("setup", "--owners", "--no-identity", "--no-doctor")
    done = await ghapp.asked("setup")
    again = await ghapp.asked("setup", "--all")
    github.uninstall(next(iter(github.installations.values())))
    left = await ghapp.asked("setup", "--wait", "1s")

    for refused in (asked, half, again, left):
        assert refused.code == 2, refused.err
        assert "there is no terminal to ask on; give " in refused.err
    assert "give --identity or --no-identity (E01)" in half.err
    assert done.code == 0, done.err


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
        ["--yes", "--key", "k"],
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
    guided: Guided, github: StandIn, app: App, key: Path, tmp_path: Path
) -> None:
    other = github.add_app("other-bot", PERMISSIONS)
    wrong = tmp_path / "wrong.pem"
    wrong.touch(mode=0o600)
    wrong.write_bytes(other.private_key_pem)

    done = await guided.answers(
        "what?",
        "imp",
        "?!",
        str(app.id),
        str(tmp_path / "nothing"),
        str(tmp_path),
        str(wrong),
        str(home() / "first.pem"),
        "",
        f"'{key}'",
        str(home() / "kept.pem"),
        "",
        "n",
    )

    assert done.code == 0, done.err
    assert "the answer is one of create, import" in done.err
    assert "'?!' is neither a number nor a client ID" in done.err
    assert "there is no file" in done.err
    assert f"{tmp_path} is a directory" in done.err
    assert f"from its page on GitHub [{app.id}]: " in done.err
    assert "(E22)" in done.err
    assert not (home() / "first.pem").exists()
    assert (home() / "kept.pem").read_bytes() == app.private_key_pem
    assert f"{key} can go" in done.err
    assert 'credential "https://github.com/acme"' in (config.config_dir() / "gitconfig").read_text()


@pytest.mark.usefixtures("served")
async def test_enter_takes_the_key_that_was_downloaded_last(guided: Guided, app: App, key: Path) -> None:
    downloads = home() / "Downloads"
    downloads.mkdir()
    for age, name in enumerate(("new", "old")):
        copy = downloads / f"acme-bot.{name}.private-key.pem"
        shutil.copyfile(key, copy)
        os.utime(copy, (10 - age, 10 - age))

    done = await guided.answers(
        "", "all", "yes", options=("--client-id", app.client_id, "--signer", f"file:{home()}/kept.pem")
    )

    assert done.code == 0, done.err
    assert f"[{downloads}/acme-bot.new.private-key.pem]" in done.err
    assert 'credential "https://github.com"' in (config.config_dir() / "gitconfig").read_text()
    assert "commits are by acme-bot[bot]" in done.err


@pytest.mark.usefixtures("served")
async def test_without_a_keyring_the_key_goes_where_a_person_says_and_unattended_nowhere(
    guided: Guided, ghapp: Ghapp, app: App, key: Path
) -> None:
    given = ("--app-id", str(app.id), "--key", str(key))

    refused = await ghapp.asked("setup", "--yes", *given)
    done = await guided.answers("y", "", "skip", options=given)

    place = config.config_dir() / "keys" / f"{app.id}.pem"
    assert "error: 'y' is no path with a slash in it\n" in done.err
    assert done.err.count("A file for it") == 2
    assert not Path("y").exists()
    assert refused.code == 1
    assert "no keyring service" in refused.err
    assert refused.err.endswith(
        f"\nghapp: hint: ghapp {shlex.join(('setup', '--yes', *given))} --signer file:{place}\n"
    )
    assert "The key cannot go into the keyring: no keyring service" in done.err
    assert f"[{place}]" in done.err
    assert place.read_bytes() == app.private_key_pem
    assert place.stat().st_mode & 0o777 == 0o600
    assert done.code == 0, done.out
    assert "skip  helpers: git's configuration was left alone\n" in done.out
    assert "git clone" not in done.err


@pytest.mark.usefixtures("served")
async def test_the_hint_is_the_whole_command_line_and_works_as_it_stands(
    ghapp: Ghapp, app: App, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = key.rename(tmp_path / "my key.pem")
    given = ("--app-id", str(app.id), "--key", spaced, "--all", "--no-identity", "--wait", "90s", "--no-doctor")

    refused = await ghapp.asked("setup", "--yes", *given)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(app.private_key_pem)))
    from_stdin = await ghapp.asked("setup", "--yes", "--app-id", str(app.id), "--key", "-")
    (mend,) = re.findall("^ghapp: hint: ghapp (.*)", refused.err, re.MULTILINE)
    done = await ghapp.asked(*shlex.split(mend))

    assert "(E33)" in refused.err
    assert re.search(r"hint: ghapp setup --yes --app-id \d+ --key - --signer file:\S+ < FILE\n", from_stdin.err)
    assert (done.code, done.err.count("hint: git clone")) == (0, 1), done.err
    assert "--all --no-identity --wait 90s --no-doctor" in mend
    assert (config.config_dir() / "keys" / f"{app.id}.pem").read_bytes() == app.private_key_pem


def test_what_is_missing_is_added_to_what_was_typed(ghapp: Ghapp) -> None:
    where = ghapp("setup", "--host", "ghe.example.com")
    wanted = ghapp("setup", "--create", "--permission", "issues=read", "--permission", "checks=write")
    taken = ghapp("setup", "--yes", "--create", "--signer", f"file:{__file__}")

    assert where.err.endswith(
        "hint: one that is: ghapp setup --host ghe.example.com --yes --app-id N --key FILE; "
        "a new one: ghapp setup --host ghe.example.com --yes --create\n"
    )
    assert wanted.err.endswith(
        "hint: with the defaults: ghapp setup --create --permission issues=read --permission checks=write --yes\n"
    )
    assert "hint: give another path: ghapp setup --yes --create --signer file:PATH\n" in taken.err


@pytest.mark.usefixtures("served")
async def test_where_git_is_to_be_left_alone_its_absence_is_no_failure(ghapp: Ghapp, app: App, key: Path) -> None:
    given = ("setup", "--yes", "--app-id", str(app.id), "--signer", f"file:{key}")

    left_alone = await ghapp.asked(*given, "--no-git")
    found_broken = await ghapp.asked("doctor")
    await ghapp.asked(*given, "--owners")
    asked_before = await ghapp.asked(*given, "--no-git")

    assert left_alone.code == 0, left_alone.out
    assert "helpers: git's configuration was left alone" in left_alone.out
    assert "git clone" not in left_alone.err
    assert found_broken.code == 1
    assert asked_before.code == 0
    assert "ok    helpers acme" in asked_before.out
    assert "git clone https://github.com/acme/rocket" in asked_before.err


@pytest.mark.usefixtures("served")
async def test_owners_that_leave_no_installation_are_no_reason_to_wait_for_another(
    ghapp: Ghapp, app: App, tmp_path: Path
) -> None:
    register(app, tmp_path, owners=["amce"])
    await asyncio.to_thread(call, "reload")

    done = await ghapp.asked("setup", "--yes", "--wait", "1s")

    assert done.code == 1
    assert f"acme-bot is installed on acme, but its owners in {config.config_file()} are amce (E51)\n" in done.err
    assert f"ghapp: hint: ${{EDITOR:-vi}} {config.config_file()} && ghapp daemon restart\n" in done.err
    assert "/installations/new" not in done.err


def test_who_lets_the_browser_wait_is_told_the_whole_command(ghapp: Ghapp, tmp_path: Path) -> None:
    given = ["setup", "--yes", "--create", "--org", "acme", "--no-browser", "--wait", "1s"]
    given += ["--signer", f"file:{tmp_path}/k.pem"]

    done = ghapp(*given)

    assert "within 1 s" in done.err
    (mend,) = re.findall("^ghapp: hint: (.*)", done.err, re.MULTILINE)
    assert shlex.split(mend) == ["ghapp", *given]
    assert setup.make_context("setup", shlex.split(mend)[2:]).params["org"] == "acme"


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("answered", range(5))
async def test_an_interrupted_run_keeps_what_it_did_and_the_next_goes_on(
    guided: Guided, app: App, key: Path, answered: int
) -> None:
    answers = ["import", str(app.id), str(key), "", ""]  # and the keyring's stead
    answers.insert(3, str(home() / "kept.pem"))

    stopped = await guided.answers(*answers[:answered], INTERRUPT)
    rest = answers if answered < 4 else answers[4:]
    done = await guided.answers(*rest)

    assert stopped.code == 130
    assert stopped.err.endswith(
        "\nghapp: error: interrupted; what is done stays\nghapp: hint: to go on from here: ghapp setup\n"
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
        assert f"ghapp: hint: install it: {link}, then: ghapp setup --yes" in refused.err
    assert "the app is not installed yet" in ended.err
    assert host.code == 0, host.err
    assert "https://github.com is answered by ghapp" in host.err
    assert left.code == 1
    assert "the app is installed nowhere" in left.out
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1] == "ghapp: hint: git clone https://github.com/acme/REPOSITORY"


@pytest.mark.usefixtures("served")
async def test_an_installation_that_comes_while_it_waits_is_seen(ghapp: Ghapp, github: StandIn, tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("options", [("--yes",), ("--yes", "--all"), ("--yes", "--no-git")])
async def test_ctrl_c_while_it_waits_ends_it_there_and_the_next_run_goes_on(
    ghapp: Ghapp, github: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    app = github.add_app("lonely", PERMISSIONS)
    register(app, tmp_path)
    with monkeypatch.context() as patched:

        def interrupt(*_arguments: object, **_named: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(app_create, "call", interrupt)
        stopped = await ghapp.asked("setup", *options)
    untouched = not (config.config_dir() / "gitconfig").exists()
    github.install(app, "acme")
    done = await ghapp.asked("setup", *options, "--no-doctor")

    assert stopped.code == 130
    assert stopped.err.endswith(
        "   choose them there: https://github.com/apps/lonely/installations/new\n\n"
        "ghapp: error: interrupted; what is done stays\n"
        f"ghapp: hint: to go on from here: ghapp setup {' '.join(options)}\n"
    )
    assert untouched
    assert done.code == 0, done.err


@pytest.mark.usefixtures("served")
async def test_a_new_app_is_created_in_the_browser_without_a_question_left(
    ghapp: Ghapp, github: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {told}\n')
    browser.chmod(0o700)
    monkeypatch.setenv("BROWSER", str(browser))
    visitor = Person(github)

    def urls() -> list[str]:
        return told.read_text().splitlines() if told.exists() else []

    def visit() -> None:
        eventually(lambda: len(urls()) == 1)
        visitor.go(urls()[0])
        eventually(lambda: len(urls()) == 2)
        visitor.install(urls()[1])

    options = ("--org", "acme", "--name", "acme-bot", "--permission", "workflows=write")
    github.add_repository("acme/rocket")
    _, done = await asyncio.gather(
        asyncio.to_thread(visit),
        ghapp.asked("setup", "--yes", *options, "--signer", f"file:{home()}/kept.pem", "--no-service"),
    )
    again = await ghapp.asked("setup", "--yes", *options)

    assert done.code == 0, done.err
    (created,) = github.apps.values()
    assert (created.owner.login, created.slug) == ("acme", "acme-bot")
    assert created.permissions.items() >= {"contents": "write", "workflows": "write"}.items()
    assert (home() / "kept.pem").read_bytes() == created.private_key_pem
    assert again.code == 0, again.err
    assert "ghapp: hint: for another one: ghapp app create --org acme\n" in again.err
    assert len(github.apps) == 1


@pytest.mark.usefixtures("served")
async def test_an_interruption_while_github_answers_keeps_the_key_and_is_told(
    guided: Guided, github: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = github.add_app("acme-bot", PERMISSIONS)
    registered = Registered(
        *(app.id, "", "acme-bot", "acme-bot", "acme", "github.com"), is_organization=True, pem=app.private_key_pem
    )

    def created(*_arguments: object, **_options: object) -> app_create.Created:
        known = routing.App("acme-bot", "github.com", "https://api.github.com", "7", ("file:/k",), app_id=7)
        return app_create.Created(registered, known, interrupted=True)

    monkeypatch.setattr(app_create, "create_app", created)

    done = await guided.answers("c", "n o", "acme", options=("--signer", f"file:{home()}/kept.pem"))

    assert "'n o' is not an organisation's name" in done.err
    assert done.code == 130
    assert f"to go on from here: ghapp setup --signer file:{home()}/kept.pem\n" in done.err


@pytest.mark.usefixtures("served")
async def test_a_dead_key_is_told_and_another_that_is_given_takes_its_place(
    ghapp: Ghapp, app: App, key: Path, tmp_path: Path
) -> None:
    old = register(app, tmp_path)
    fresh = app.add_key()
    app.remove_key(key.read_bytes())
    key.write_bytes(fresh)

    told = await ghapp.asked("setup", "--yes")
    done = await ghapp.asked(*unattended(app, key))

    assert told.code == 1
    assert "(E22)" in told.err
    assert told.err.endswith("ghapp: hint: then, to go on from here: ghapp setup --yes\n")
    assert done.code == 0, done.err
    assert old.read_bytes() != (home() / "kept.pem").read_bytes() == fresh


@pytest.mark.usefixtures("served")
async def test_a_key_for_an_app_that_has_one_is_not_used_without_a_word(
    ghapp: Ghapp, app: App, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = register(app, tmp_path)
    given = ("setup", "--yes", "--app-id", str(app.id), "--no-doctor", "--no-git", "--no-network")
    fresh = tmp_path / "fresh one.pem"
    fresh.touch(mode=0o600)
    fresh.write_bytes(app.add_key())

    same = await ghapp.asked(*given, "--key", key, "--delete-key-file")
    gone = await ghapp.asked(*given, "--key", key, "--delete-key-file")
    itself = await ghapp.asked(*given, "--key", registered, "--delete-key-file")
    other = await ghapp.asked(*given, "--key", fresh, "--signer", f"file:{tmp_path}/kept.pem")
    place = await ghapp.asked(*given, "--signer", f"file:{fresh}")
    elsewhere = await ghapp.asked(*given, "--signer", f"file:{registered}")
    keyring = await ghapp.asked(*given, "--signer", "keyring:SHA256:other")
    wrong = await ghapp.asked(*given, "--key", tmp_path / "nothing.pem")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(fresh.read_bytes())))
    piped = await ghapp.asked(*given, "--key", "-")
    monkeypatch.setattr(sys, "stdin", Terminal())
    typed = await ghapp.asked(*given, "--key", "-")

    for done in (same, gone, itself, other, place, elsewhere, keyring, wrong, piped, typed):
        assert done.code == 0, done.err
        assert len(config.load(config.config_file()).apps[0].keys) == 1
    assert "   acme-bot has the key SHA256:" in same.err
    assert not key.exists()
    assert "was not used" not in same.err + gone.err + itself.err + elsewhere.err
    assert registered.exists()
    assert f"warning: {fresh} was not used: acme-bot has a key that works\n" in other.err
    add = f"hint: to add it: ghapp key add '{fresh}' --app acme-bot --signer file:{tmp_path}/kept.pem\n"
    assert add in other.err
    assert f"hint: to add it: ghapp key add --app acme-bot --signer 'file:{fresh}'\n" in place.err
    assert "keyring:SHA256:other was not used" in keyring.err
    assert "was not used: acme-bot has a key that works; cannot read" in wrong.err
    assert "hint: to add it: ghapp key add FILE --app acme-bot\n" in wrong.err
    for done in (piped, typed):
        assert "hint: to add it: ghapp key add - --app acme-bot < FILE\n" in done.err
    (command,) = re.findall("to add it: ghapp (.*)", other.err)
    added = await ghapp.asked(*shlex.split(command))
    assert added.code == 0, added.err


@pytest.mark.usefixtures("served")
async def test_several_apps_are_named_in_a_sentence(ghapp: Ghapp, app: App, github: StandIn, tmp_path: Path) -> None:
    register(app, tmp_path)
    register(github.add_app("other-bot", PERMISSIONS), tmp_path)

    done = await ghapp.asked("setup", "--yes", "--no-doctor", "--signer", f"file:{tmp_path}/none.pem")

    assert "1. The app: acme-bot and other-bot are registered, and GitHub accepts a key of each\n" in done.err
    assert "none.pem was not used: acme-bot and other-bot have keys that work; cannot open" in done.err
    assert "hint: to add it: ghapp key add --app NAME --signer" in done.err


@pytest.mark.usefixtures("served", "app")
async def test_of_several_apps_one_that_works_is_enough(
    ghapp: Ghapp, github: StandIn, app: App, tmp_path: Path
) -> None:
    register(app, tmp_path)
    github.install(app, "globex", repositories=[])
    await ghapp.asked("setup", "--yes", "--no-doctor")
    dead = github.add_app("dead-bot", PERMISSIONS)
    register(dead, tmp_path).write_bytes(app.private_key_pem)
    github.suspend(next(iter(github.installations.values())))

    done = await ghapp.asked("setup", "--yes", "--no-doctor")

    assert done.code == 0, done.err
    assert "ghapp: warning: dead-bot: " in done.err
    assert "1. The app: acme-bot is registered" in done.err
    assert "3. git: it asks ghapp for acme and globex" in done.err


@pytest.mark.usefixtures("served")
async def test_proxy_and_ca_of_the_shell_are_kept_but_never_a_password(
    ghapp: Ghapp, github: StandIn, app: App, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = github.proxy_url
    monkeypatch.setenv("NO_PROXY", "example.org")
    without = await ghapp.asked(*unattended(app, key), "--no-network", "--no-doctor")
    before = config.load(config.config_file()).network
    monkeypatch.setenv("HTTPS_PROXY", url.replace("//", "//somebody:secret@"))
    secret = await ghapp.asked("setup", "--yes", "--no-doctor")
    after = config.load(config.config_file()).network
    monkeypatch.setenv("HTTPS_PROXY", url)
    await ghapp.asked("setup", "--yes", "--no-doctor")

    assert without.code == 0, without.err
    assert not any(before.values())
    assert "has a password, which setup does not write down" in secret.err
    assert "secret" not in secret.err
    assert (after["proxy"], after["ca_file"]) == ("", str(github.ca_file))
    kept = config.load(config.config_file()).network
    assert {key: value for key, value in kept.items() if value} == {
        "proxy": url,
        "no_proxy": "example.org",
        "ca_file": str(github.ca_file),
    }
    config.edit(config.config_file(), lambda document: document.pop("network"))
    anew = await ghapp.asked("setup", "--yes", "--no-doctor")
    assert "0. The way to GitHub: proxy, no_proxy and ca_file of this shell, kept in " in anew.err


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("options", "answer", "kept"), [((), "shell", "new"), ((), "", "old"), (("--yes",), None, "old")]
)
async def test_another_proxy_or_ca_than_the_configured_one_is_offered_and_never_taken_silently(
    guided: Guided,
    github: StandIn,
    app: App,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    options: tuple[str, ...],
    answer: str | None,
    kept: str,
) -> None:
    register(app, tmp_path)
    old = {
        "proxy": github.proxy_url.replace("127.0.0.1", "localhost"),
        "no_proxy": "old.example",
        "ca_file": str(tmp_path / "old.crt"),
    }
    shutil.copyfile(github.ca_file, old["ca_file"])
    config.edit(config.config_file(), lambda document: document.setdefault("network", {}).update(old))
    monkeypatch.setenv("NO_PROXY", "new.example")
    answers = () if answer is None else (answer, answer)

    done = await guided.answers(*answers, options=("--no-doctor", "--no-git", *options))

    new = {"proxy": github.proxy_url, "no_proxy": "new.example", "ca_file": str(github.ca_file)}
    assert done.code == 0, done.err
    found = config.load(config.config_file()).network
    assert {key: found[key] for key in new} == (new if kept == "new" else old)
    names = [urlsplit(one["proxy"]).netloc for one in (old, new)]
    assert f"network.proxy in {config.config_file()} is {names[0]}, HTTPS_PROXY of this shell {names[1]}" in done.err
    assert ("; the configured one is used" in done.err) == (answer is None)
    assert (f"hint: if that is the old one: edit {config.config_file()}, then: ghapp daemon restart" in done.err) == (
        answer is None
    )


@pytest.mark.usefixtures("served")
async def test_a_proxy_with_a_password_is_neither_shown_nor_offered(
    guided: Guided, github: StandIn, app: App, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register(app, tmp_path)
    config.edit(
        config.config_file(), lambda document: document.setdefault("network", {}).update(proxy=github.proxy_url)
    )
    monkeypatch.setenv("HTTPS_PROXY", "http://somebody:secret@proxy.example:3128")

    done = await guided.answers(options=("--no-doctor", "--no-git"))

    assert done.code == 0, done.err
    assert "HTTPS_PROXY of this shell proxy.example:3128; the configured one is used" in done.err
    assert "secret" not in done.err


def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let there be a user manager whose systemctl writes down what it is told, and fails once `fails` is there."""
    base = tmp_path / "user"
    (base / "systemd").mkdir(parents=True)
    (base / "ghapp").symlink_to(os.environ["GHAPP_RUNTIME_DIR"])
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    monkeypatch.setenv("GHAPP_RUNTIME_DIR", str(base / "ghapp"))
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n! test -e {tmp_path}/fails\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "fails"


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
async def test_where_systemd_can_it_starts_the_daemon_and_a_failure_of_its_is_no_end(
    ghapp: Ghapp, app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(app, tmp_path)
    fails = systemctl(tmp_path, monkeypatch)
    base = tmp_path / "user" / "ghapp"
    base.unlink()
    options = ("setup", "--yes", "--no-doctor")
    async with running(base):
        fails.touch()
        failed = await ghapp.asked(*options)
        wanted = await ghapp.asked(*options, "--service")
        for unit in (home() / ".config/systemd/user").glob("ghapp*"):
            unit.unlink()
        fails.unlink()
        monkeypatch.setattr("ghapp.cli.daemon.stop_daemon", lambda revoke: revoke)  # the one in this loop has to stay
        done = await ghapp.asked(*options)
        again = await ghapp.asked(*options)

    assert failed.code == 0, failed.err
    assert "ghapp: warning: systemctl --user" in failed.err
    assert wanted.code == 1
    assert done.code == 0, done.err
    assert "systemd listens for git" in done.err
    assert "4. The daemon: systemd starts it\n" in again.err


def test_what_would_stop_a_later_step_is_found_out_first(
    ghapp: Ghapp, app: App, key: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path / "nothing"))
        without_git = ghapp(*unattended(app, key))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "prefix", str(home() / ".cache/uv/archive-v0/abc"))
        thrown_away = ghapp(*unattended(app, key))

    assert without_git.code == thrown_away.code == 1
    assert "git cannot be run" in without_git.err
    assert "ghapp: hint: uv tool install ghapp" in thrown_away.err
    assert written() == {}


@pytest.mark.usefixtures("served")
async def test_a_service_that_was_asked_for_and_cannot_be_is_an_error(ghapp: Ghapp, app: App, tmp_path: Path) -> None:
    register(app, tmp_path)

    done = await ghapp.asked("setup", "--yes", "--no-doctor", "--service")
    without = await ghapp.asked("setup", "--yes", "--no-doctor", "--no-service")

    assert done.code == 1
    assert "(E41)" in done.err
    assert without.code == 0
    assert "4. The daemon: git starts it when it needs it\n" in without.err


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(("knows", "proposed"), [("nothing", "yes"), ("EMAIL", "no"), ("user.email", "no")])
async def test_commits_stay_those_of_a_person_whom_git_knows(
    guided: Guided, app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, knows: str, proposed: str
) -> None:
    register(app, tmp_path)
    if knows == "EMAIL":
        monkeypatch.setenv("EMAIL", "somebody@example.org")
    if knows == "user.email":
        (home() / ".gitconfig").write_text("[user]\n\temail = somebody@example.org\n")

    done = await guided.answers("", "", options=("--no-doctor",))

    assert done.code == 0, done.err
    assert f"(yes/no) [{proposed}]" in done.err
    assert ("commits are by acme-bot[bot]" in done.err) == (proposed == "yes")
