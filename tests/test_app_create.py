"""`ghapp app create`, in this process; `tests/e2e/test_browser.py` does it with a real browser."""

import asyncio
import io
import json
import os
import re
import resource
import secrets
import shlex
import socket
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import fakes_keyring
import httpx
import pytest
from fakes_keyring import Keyring
from fakes_process import eventually, running, soon
from standin.client import PATIENCE, Client
from standin.server import StandIn

from ghapp import cli, config, paths
from ghapp.cli import app_create
from ghapp.errors import GhappError, KeyUnavailable
from ghapp.keystore import KeyStore
from ghapp.manifest import Draft, read_registered
from ghapp.private_key import fingerprint, load_key
from ghapp.routing import App


CONVERSION = "/app-manifests/.*/conversions"
JSON = {"content-type": "application/json"}


class Run:
    """`ghapp app create`, running in a thread of this process."""

    def __init__(self, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], told: Path) -> None:
        self._capsys = capsys
        self._told = told
        self.out = self.err = ""
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, args=(["app", "create", *arguments],))
        self._thread.start()

    def _run(self, arguments: list[str]) -> None:
        self.code = cli.run(arguments)

    def read(self) -> None:
        out, err = self._capsys.readouterr()
        self.out += out
        self.err += err

    def opened(self, number: int = 1) -> str:
        """Return the URL that the browser was started with the `number`th time."""
        eventually(lambda: self.code is not None or len(self._urls()) >= number)
        self.read()
        assert len(self._urls()) >= number, self.err
        return self._urls()[number - 1]

    def _urls(self) -> list[str]:
        return self._told.read_text().splitlines() if self._told.exists() else []

    def printed(self) -> str:
        """Return the page's URL, as it is printed where no browser can be opened."""
        found: list[str] = []

        def look() -> bool:
            self.read()
            found[:] = re.findall(r"on this machine: (http://\S+)", self.err)
            return bool(found) and "press Enter\n" in self.err

        eventually(look)
        return found[0]

    def done(self) -> int:
        self._thread.join(20)
        assert self.code is not None, "it did not end"
        self.read()
        return self.code

    def json(self) -> Any:
        assert self.done() == 0, self.err
        return json.loads(self.out)


class Person:
    """Somebody in front of a browser: sees the page, presses its button, presses GitHub's, and is sent back."""

    def __init__(self, github: StandIn) -> None:
        self._github = github
        self.reply = httpx.Response(0)

    def see(self, url: str, host: str | None = None) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=PATIENCE) as browser:
            self.reply = browser.get(url, headers={} if host is None else {"Host": host})
        return self.reply

    def press(self, url: str, name: str | None = None) -> str:
        """Go from the page to where GitHub sends the browser, without following that."""
        page = self.see(url).text
        (action,) = re.findall(r'<form method="post" action="([^"]*)"', page)
        (manifest,) = re.findall(r'name="manifest" value="([^"]*)"', page)
        with Client(self._github) as browser:
            asked = browser.post(unescape(action), data={"manifest": unescape(manifest)})
            (proposed,) = re.findall(r'name="name" value="([^"]*)"', asked.text)
            fields = {"manifest": unescape(manifest), "name": name or unescape(proposed)}
            answer = browser.post(unescape(action), data=fields)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def go(self, url: str, name: str | None = None) -> httpx.Response:
        return self.see(self.press(url, name))

    def install(self, url: str) -> None:
        with Client(self._github) as browser:
            assert browser.post(url, data={"repositories": "rocket"}).status_code == 200


class Terminal(io.StringIO):
    """A terminal, as far as who asks it can tell."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _way_to_github(github: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(app_create, "PAUSE", 0.01)


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return tmp_path / "told"


@pytest.fixture
def browser(tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A browser that notes its URL; the test goes there."""
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" >> {shlex.quote(str(told))}\n')
    script.chmod(0o700)
    monkeypatch.setenv("BROWSER", str(script))
    return script


@pytest.fixture
def start(capsys: pytest.CaptureFixture[str], told: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(*arguments: str) -> Run:
        runs.append(Run(arguments, capsys, told))
        return runs[-1]

    yield begin
    for run in runs:
        run.done()


@pytest.fixture
def person(github: StandIn) -> Person:
    return Person(github)


@pytest.fixture
async def served() -> AsyncIterator[None]:
    async with running(Path(paths.runtime_dir())):
        yield


def configured() -> list[str]:
    return [app.name for app in config.load(config.config_file()).apps]


def port_of(url: str) -> int:
    return httpx.URL(url).port or 0


def is_closed(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port_of(url))) != 0


# -- all goes well -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served", "browser")
async def test_an_app_is_created_its_key_stored_in_the_named_file_and_its_installation_seen(
    start: Callable[..., Run], person: Person, github: StandIn
) -> None:
    def go() -> Any:
        key = config.config_dir() / "keys" / "acme.pem"
        run = start("acme-bot", "--org", "acme", "--signer", f"file:{key}", "--json")
        verdict = person.go(run.opened())
        assert "acme-bot is created" in verdict.text
        assert is_closed(run.opened())
        person.install(run.opened(2))
        found = run.json()
        assert run.err.splitlines()[-2:] == [
            "install it: https://github.com/apps/acme-bot/installations/new",
            "ghapp: hint: ghapp setup-git",
        ]
        return key, found, run.out + run.err

    github.add_repository("acme/rocket")
    key, found, said = await asyncio.to_thread(go)
    (app,) = github.apps.values()
    assert app.owner.login == "acme"
    assert app.permissions == {"contents": "write", "metadata": "read"}
    assert key.read_bytes() == app.private_key_pem
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert found.keys() >= {"app_id", "client_id", "slug", "name", "html_url", "fingerprint", "installations", "signer"}
    assert (found["name"], found["signer"], found["app_id"]) == ("acme-bot", f"file:{key}", app.id)
    assert found["fingerprint"] == fingerprint(load_key(app.private_key_pem, source="it"))
    assert [entry["account"] for entry in found["installations"]] == ["acme"]
    assert configured() == ["acme-bot"]
    assert "PRIVATE KEY" not in said
    assert "secret" not in said


@pytest.mark.usefixtures("browser")
def test_the_key_goes_into_the_keyring_by_default_and_nowhere_else(
    start: Callable[..., Run], person: Person, keyring: Keyring, github: StandIn, tmp_path: Path
) -> None:
    run = start("--no-install-wait", "--permission", "workflows=write", "--permission", "contents=read")
    page = person.see(run.opened()).text
    assert "into the keyring of your desktop session" in page
    assert "the account you are signed in to" in page
    person.go(run.opened(), name="Acme Bot")

    assert run.done() == 0
    (app,) = github.apps.values()
    assert app.permissions == {"contents": "read", "metadata": "read", "workflows": "write"}
    name = fingerprint(load_key(app.private_key_pem, source="it"))
    assert set(keyring.keys) == {f"github.com/{app.id}/{name}"}
    assert keyring.written[0] == "github.com/probe"  # and it is gone
    assert run.out.splitlines() == [
        "app          acme-bot",
        f"owner        {app.owner.login}",
        f"signer       keyring:{name}",
        f"fingerprint  {name}",
    ]
    assert "ghapp: hint: once it is installed: ghapp setup-git" in run.err
    assert not [path for path in tmp_path.rglob("*.pem") if path.parent.name != "github"]


@pytest.fixture
def writable() -> Iterator[list[str]]:
    """Whatever this process opens meanwhile so that it could write to it, files that are gone afterwards too."""
    opened: list[str] = []
    ended = False

    def note(event: str, arguments: Sequence[Any]) -> None:
        if event != "open" or ended or isinstance(arguments[0], int):  # a descriptor, of what was opened before
            return
        if arguments[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append(os.fsdecode(arguments[0]))

    sys.addaudithook(note)  # it stays until the interpreter ends
    yield opened
    ended = True


@pytest.mark.usefixtures("browser", "keyring")
def test_the_key_is_written_to_no_file_for_a_moment_either_nor_to_a_core(
    start: Callable[..., Run], person: Person, writable: list[str], github: StandIn
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    run = start("acme-bot", "--no-install-wait")
    person.go(run.opened())
    assert run.done() == 0

    theirs = [place for place in writable if not Path(place).is_relative_to(github.ca_file.parent)]
    assert {Path(place).parent for place in theirs} <= {config.config_dir(), Path(os.devnull).parent}
    assert any("config.toml" in place for place in theirs)
    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, hard)


@pytest.mark.usefixtures("browser")
def test_in_the_main_thread_where_ctrl_c_is_ours_all_goes_the_same_way(
    person: Person, keyring: Keyring, told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def look_and_go() -> None:
        eventually(lambda: told.exists() and told.read_text().endswith("\n"))
        person.go(told.read_text().strip())

    keyring.refuse("locked", "set", spare="/probe", times=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", Terminal("\n"))
        patch.setattr(sys, "stderr", Terminal())
        somebody = threading.Thread(target=look_and_go)
        somebody.start()
        code = cli.run(["app", "create", "acme-bot", "--no-install-wait"])
        somebody.join()

    assert code == 0
    assert "app          acme-bot\n" in capsys.readouterr().out
    assert len(keyring.written) == 3  # the probe, the failure, and the second try
    assert configured() == ["acme-bot"]


@pytest.mark.usefixtures("browser", "keyring")
def test_an_app_of_a_name_that_is_configured_already_gets_another_there(
    start: Callable[..., Run], person: Person
) -> None:
    table = config.app_table(name="acme-bot", host="ghes.example", url="", client_id="", app_id=7, key="file:/k")
    config.put_app(config.config_file(), table)
    run = start("acme-bot", "--no-install-wait", "--json")
    person.go(run.opened())

    assert run.json()["name"] == "acme-bot-2"
    assert configured() == ["acme-bot", "acme-bot-2"]


@pytest.mark.usefixtures("browser", "keyring")
def test_a_daemon_that_cannot_be_told_is_a_warning(
    start: Callable[..., Run], person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_method: str) -> None:
        raise GhappError("it does not answer")

    monkeypatch.setattr(app_create, "call_if_running", refuse)
    run = start("--no-install-wait")
    person.go(run.opened())

    assert run.done() == 0
    assert "warning: the running daemon does not know the app yet: it does not answer" in run.err


# -- without a browser ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("keyring")
def test_without_a_display_the_address_is_printed_and_over_ssh_how_to_reach_it(
    start: Callable[..., Run], person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 2222")
    run = start("--no-install-wait")
    url = run.printed()
    port = port_of(url)
    assert f"run there first: ssh -p 2222 -L {port}:127.0.0.1:{port} " in run.err
    assert "@192.0.2.2\n" in run.err
    person.go(url)

    assert run.done() == 0


@pytest.mark.usefixtures("keyring")
def test_no_browser_is_obeyed_and_one_that_fails_is_replaced_by_the_address(
    start: Callable[..., Run], person: Person, browser: Path, told: Path
) -> None:
    run = start("a", "--no-install-wait", "--no-browser")
    person.go(run.printed())
    assert run.done() == 0
    assert not told.exists()

    browser.write_text("#!/bin/sh\nexit 1\n")
    run = start("b", "--no-install-wait")
    person.go(run.printed())
    assert run.done() == 0
    assert "no browser could be opened" in run.err


@pytest.mark.usefixtures("keyring")
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_the_address_where_the_browser_stopped_can_be_handed_in(
    start: Callable[..., Run], person: Person, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        # A file cannot be written after it was read to its end: so the state has to be known before.
        monkeypatch.setattr(secrets, "token_urlsafe", lambda _size: "drawn")
        (tmp_path / "answer").write_text("\n\nhttp://127.0.0.1:1/x?code=c0de&state=drawn\n")
        reader, writer = os.open(tmp_path / "answer", os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    with os.fdopen(reader, encoding="utf-8") as stdin, os.fdopen(writer, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        run = start("--no-install-wait", "--no-browser")
        if kind == "pipe":
            address = person.press(run.printed())
            pipe.write(b"\n " + address[:20].encode())
            pipe.write(address[20:].encode() + b" \n")
            assert run.done() == 0, run.err
            assert configured()
        else:
            assert run.done() == 1
            assert "GitHub does not take the code: it was used already, or is over an hour old (E62)" in run.err


@pytest.mark.usefixtures("keyring")
def test_a_wrong_address_from_a_pipe_ends_it_and_from_a_terminal_is_asked_for_again(
    start: Callable[..., Run], person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_terminal in (False, True):
        reader, writer = os.pipe()
        with os.fdopen(reader, encoding="utf-8") as stdin, os.fdopen(writer, "wb", buffering=0) as pipe:
            monkeypatch.setattr(sys, "stdin", _Typed(stdin, is_terminal=is_terminal))
            run = start("--no-install-wait", "--no-browser")
            address = person.press(run.printed())
            pipe.write(b"http://127.0.0.1/x?code=c0de&state=other\n")
            if is_terminal:
                pipe.write(address.encode() + b"\n")
            assert run.done() == (0 if is_terminal else 1)
            assert "this is not the answer to our request: its state is another (E61)" in run.err


class _Typed:
    """A pipe that says of itself what the test wants."""

    def __init__(self, pipe: io.TextIOWrapper, *, is_terminal: bool) -> None:
        self._pipe = pipe
        self._is_terminal = is_terminal

    def fileno(self) -> int:
        return self._pipe.fileno()

    def isatty(self) -> bool:
        return self._is_terminal


# -- who else asks -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("browser", "keyring")
def test_a_foreign_host_is_refused_and_named_and_the_flow_goes_on(start: Callable[..., Run], person: Person) -> None:
    run = start("--no-install-wait")
    url = run.opened()
    assert person.see(f"http://127.0.0.1:{port_of(url)}/", host="evil.example").status_code == 403
    assert person.see(f"http://127.0.0.1:{port_of(url)}/", host="evil.example").status_code == 403
    person.go(url)

    assert run.done() == 0
    assert "warning: refused for the local page: 2 requests of evil.example (E63)\n" in run.err


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda url: (re.sub("state=[^&]*", "state=x", url), None), 1, "its state is another (E61)"),
        (lambda url: (re.sub("code=[^&]*", "error=denied", url), None), 1, "GitHub created no app: denied (E67)"),
        (lambda url: (url, "evil.example"), 1, "a page of evil.example knows the path"),
    ],
    ids=["state", "code", "rebinding"],
)
def test_a_wrong_answer_ends_it_with_its_code_nothing_stored_and_no_listener(
    start: Callable[..., Run], person: Person, keyring: Keyring, *, spoil: Any, code: int, said: str
) -> None:
    run = start()
    target, host = spoil(person.press(run.opened()))
    reply = person.see(target, host=host)

    assert run.done() == code
    assert said in run.err
    assert said.partition(" (")[0][1:] in reply.text  # there it begins with a capital
    assert "ghapp: hint: ghapp app create" in run.err
    assert is_closed(run.opened())
    assert keyring.keys == {}
    assert configured() == []


@pytest.mark.usefixtures("browser", "keyring")
@pytest.mark.parametrize(("opened", "code"), [(False, "(E66)"), (True, "(E65)")])
def test_silence_ends_it_and_leaves_no_listener(
    start: Callable[..., Run], person: Person, *, opened: bool, code: str
) -> None:
    run = start("--wait", "1s")
    url = run.opened()
    if opened:
        assert person.see(url).status_code == 200

    assert run.done() == 1
    assert code in run.err
    assert "within 1 s" in run.err
    assert is_closed(url)


@pytest.mark.usefixtures("keyring")
@pytest.mark.parametrize("way", ["--no-browser", "a browser that fails", "a browser that nobody looks at"])
def test_the_hint_after_silence_is_the_whole_command(start: Callable[..., Run], browser: Path, way: str) -> None:
    given = ("--org", "acme", "--wait", "1s", *(["--no-browser"] if way == "--no-browser" else []))
    if way == "a browser that fails":
        browser.write_text("#!/bin/sh\nexit 1\n")
    run = start(*given)

    assert run.done() == 1
    (mend,) = re.findall("^ghapp: hint: (.*)", run.err, re.MULTILINE)
    words = shlex.split(mend)
    assert words[:3] == ["ghapp", "app", "create"]
    params = app_create.create.make_context("create", words[3:]).params
    assert (params["org"], params["wait"], params["no_browser"]) == ("acme", 1.0, True)


# -- GitHub does not play along ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 422, "headers": JSON, "body": '{"message": "Nope"}'}, "refused the code (HTTP 422): Nope (E18)"),
        ({"status": 401, "headers": JSON, "body": '{"message": "No"}'}, "refused the code (HTTP 401): No (E18)"),
        ({"status": 404, "headers": JSON, "body": '{"message": "Not Found"}'}, "used already, or is over an hour"),
        ({"status": 404, "body": "<html>"}, "answered 404 without usable JSON (E15)"),
        ({"status": 201, "body": "<html>"}, "answered 201 without usable JSON (E15)"),
        ({"status": 200, "headers": JSON, "body": '{"message": "x"}'}, "answered 200 without usable JSON (E15)"),
        ({"status": 501, "headers": JSON, "body": "{}"}, "is failing (HTTP 501) (E27)"),
        ({"status": 429, "headers": {"retry-after": "7"}}, "wants us to wait for 7 s (E26)"),
        ({"edit": lambda body: body | {"pem": ""}}, "did not tell its pem (E28)"),
        ({"edit": lambda body: body | {"owner": {"login": "mallory"}}}, "belongs to mallory, not to acme (E28)"),
    ],
    ids=["422", "401", "404", "html", "html 201", "200", "501", "429", "no key", "another owner"],
)
def test_a_code_that_buys_nothing_is_explained_in_the_terminal_and_in_the_browser(
    start: Callable[..., Run], person: Person, keyring: Keyring, github: StandIn, *, fault: dict[str, Any], said: str
) -> None:
    github.faults.add(CONVERSION, times=None, **fault)
    run = start("--org", "acme")
    reply = person.go(run.opened())

    assert run.done() == 1
    assert said in run.err
    assert reply.status_code == 400
    assert "The app was not set up" in reply.text
    assert is_closed(run.opened())
    assert keyring.keys == {}
    assert configured() == []


@pytest.mark.usefixtures("browser", "keyring")
def test_a_code_is_sent_again_after_a_failure_and_a_lost_answer_is_called_that(
    start: Callable[..., Run], person: Person, github: StandIn
) -> None:
    github.faults.add(CONVERSION, status=502)
    run = start("a", "--no-install-wait")
    person.go(run.opened())
    assert run.done() == 0, run.err

    run = start("b", "--no-install-wait")
    address = person.press(run.opened(2))
    with Client(github) as thief:  # as if the first request had been served, and its answer lost
        code = httpx.URL(address).params["code"]
        assert thief.post(f"/app-manifests/{code}/conversions").status_code == 201
    github.faults.add(CONVERSION, status=502)
    person.see(address)
    assert run.done() == 1
    assert "GitHub does not take the code: its first answer was lost on the way (E62)" in run.err


# -- the key's place -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("browser")
def test_a_keyring_that_cannot_store_is_found_out_before_the_browser_opens(
    start: Callable[..., Run], keyring: Keyring, told: Path
) -> None:
    keyring.refuse("locked")
    run = start()

    assert run.done() == 1
    assert "ghapp: error: the keyring is locked (E31)" in run.err
    assert "hint: unlock the keyring, or name a file for the key: ghapp app create --signer file:PATH" in run.err
    assert not told.exists()


@pytest.mark.usefixtures("browser")
def test_a_file_that_cannot_be_written_is_found_out_before_the_browser_opens(
    start: Callable[..., Run], told: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there.pem"
    there.write_text("something")
    run = start("--signer", f"file:{there}")
    assert run.done() == 2
    assert f"{there} exists (E01)" in run.err

    run = start("--signer", f"file:{there}/below/key.pem")
    assert run.done() == 1
    assert f"cannot write to {there}/below: Not a directory (E36)" in run.err
    assert there.read_text() == "something"
    assert not told.exists()


@pytest.mark.usefixtures("browser")
def test_a_key_that_cannot_be_stored_after_all_is_lost_with_the_way_to_another(
    start: Callable[..., Run], person: Person, keyring: Keyring, github: StandIn
) -> None:
    keyring.refuse("locked", "set", spare="/probe")
    run = start("acme-bot", "--org", "acme")
    reply = person.go(run.opened())

    assert run.done() == 1
    (app,) = github.apps.values()
    assert "the app acme-bot exists, and its key could not be stored: the keyring is locked (E68)" in run.err
    assert "generate another at https://github.com/organizations/acme/settings/apps/acme-bot, then: " in run.err
    assert f"ghapp app add --app-id {app.id} --key FILE" in run.err
    assert "The app is created, and its key is not stored" in reply.text
    assert configured() == []


@pytest.mark.usefixtures("browser")
def test_on_a_terminal_the_key_is_offered_another_place_until_it_has_one(
    start: Callable[..., Run],
    person: Person,
    *,
    keyring: Keyring,
    github: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    keyring.refuse("locked", "set", spare="/probe")
    monkeypatch.setattr(sys, "stdin", Terminal(f"\nnonsense\nfile:{tmp_path}/kept.pem\n"))
    monkeypatch.setattr(sys, "stderr", Terminal())
    run = start("acme-bot", "--no-install-wait")
    person.go(run.opened())

    assert run.done() == 0
    (app,) = github.apps.values()
    assert (tmp_path / "kept.pem").read_bytes() == app.private_key_pem
    assert len([account for account in keyring.written if not account.endswith("probe")]) == 3
    assert configured() == ["acme-bot"]


def test_who_gives_up_is_told_that_the_key_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    monkeypatch.setattr(sys, "stderr", Terminal())
    body = {"id": 7, "slug": "a", "name": "A", "owner": {"login": "me"}, "pem": "x"}
    created = app_create.Created(read_registered(body, Draft("a", "github.com")))
    created.problem = KeyUnavailable("no")

    with pytest.raises(GhappError, match="the app a exists, and its key could not be stored: no"):
        app_create._another_place(created, app_create.key_place(None, KeyStore("")))


@pytest.mark.usefixtures("browser")
def test_a_configuration_that_cannot_be_written_leaves_the_key_and_the_command_that_mends_it(
    start: Callable[..., Run], person: Person, github: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    key = tmp_path / "acme.pem"
    with monkeypatch.context() as patch:
        patch.setattr(config, "put_app", fail)
        run = start("acme-bot", "--signer", f"file:{key}")
        person.go(run.opened())
        assert run.done() == 1
    assert "cannot be written: No space left on device (E68)" in run.err
    assert key.read_bytes() == next(iter(github.apps.values())).private_key_pem
    (mend,) = re.findall(r"then: ghapp (.*)", run.err)

    assert cli.run([*shlex.split(mend), "--no-verify"]) == 0
    assert len(configured()) == 1


# -- waiting for the installation, and being interrupted -----------------------------------------------------------


def created_app() -> app_create.Created:
    body = {"id": 7, "slug": "a", "name": "A", "owner": {"login": "me"}, "pem": "x"}
    registered = read_registered(body, Draft("a", "github.com"))
    known = App("a", "github.com", "https://api.github.com", "7", ("file:/k",), app_id=7)
    return app_create.Created(registered, known)


class Remote(GhappError):
    def __init__(self, code: str) -> None:
        super().__init__("it failed")
        self.code = code


def answers(monkeypatch: pytest.MonkeyPatch, *given: object) -> list[dict[str, Any]]:
    """Let the daemon answer `given`, the last one for ever, and return what it was asked."""
    asked: list[dict[str, Any]] = []

    def call(_method: str, **params: Any) -> object:
        asked.append(params)
        answer = given[min(len(asked), len(given)) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return {"installations": answer}

    monkeypatch.setattr(app_create, "call", call)
    return asked


def test_the_wait_outlives_failures_and_ends_with_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, [], Remote("E22"), Remote("E11"), Remote("E22"), [], [{"account": "acme"}])

    assert app_create.wait_for_installation(created_app(), 20) == [{"account": "acme"}]
    assert len(asked) == 6
    assert asked[0]["signer"] == "file:/k"


def test_a_key_that_github_rejects_again_and_again_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answers(monkeypatch, Remote("E22"))

    assert app_create.wait_for_installation(created_app(), 20) == []
    assert len(asked) == 3
    assert "warning: GitHub could not be asked: it failed (E22)" in capsys.readouterr().err


def test_a_rate_limit_is_waited_for_by_the_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, Remote("E26"), [], [{"account": "acme"}])
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)

    assert app_create.wait_for_installation(created_app(), 100)
    assert len(asked) == 3
    assert slept == [60, 0.01]


def test_a_wait_that_is_over_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers(monkeypatch, [])

    assert app_create.wait_for_installation(created_app(), 0.05) == []
    assert "warning: the app is not installed yet" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ctrl_c_ends_the_wait_with_130_and_all_that_is_known_of_the_app(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], github: StandIn, options: list[str]
) -> None:
    created = created_app()
    created.registered = replace(created.registered, pem=github.add_app("a").private_key_pem)
    monkeypatch.setattr(app_create, "create_app", lambda *_arguments, **_named: created)
    asked = answers(monkeypatch, [], KeyboardInterrupt())

    assert cli.run(["app", "create", *options]) == 130

    assert len(asked) == 2
    out, err = capsys.readouterr()
    assert err.endswith(
        "install it: https://github.com/apps/a/installations/new\n"
        "ghapp: error: interrupted; the app is registered, and its key stored\n"
        "ghapp: hint: once it is installed: ghapp setup-git\n"
    )
    assert json.loads(out)["installations"] == [] if options else "app          a\n" in out


@pytest.mark.usefixtures("keyring")
async def test_ctrl_c_while_the_key_is_under_way_waits_for_it(
    github: StandIn, person: Person, keyring: Keyring, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = threading.Event()
    fault = github.faults.add(CONVERSION, hold=hold)
    place = app_create.key_place(None, KeyStore(fakes_keyring.NAME))
    flow = asyncio.create_task(app_create._Flow(Draft("a", "github.com"), place, browser=False).run(20))
    said: list[str] = []

    def asks() -> bool:
        said.append(capsys.readouterr().err)
        return "press Enter" in "".join(said)

    await soon(asks)
    (url,) = re.findall(r"on this machine: (\S+)", "".join(said))
    browser = asyncio.create_task(asyncio.to_thread(person.go, url))
    await asyncio.to_thread(fault.reached.wait)

    flow.cancel()
    await asyncio.sleep(0)
    assert not flow.done()
    hold.set()
    created = await flow

    assert created.interrupted
    assert "is created" in (await browser).text
    assert len(keyring.keys) == 1
    assert configured() == ["a"]


def test_after_ctrl_c_nobody_waits_for_the_installation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], github: StandIn
) -> None:
    created = created_app()
    created.interrupted = True
    pem = github.add_app("a").private_key_pem
    created.registered = replace(created.registered, pem=pem)
    monkeypatch.setattr(app_create, "create_app", lambda *_arguments, **_named: created)

    assert cli.run(["app", "create"]) == 130
    assert "once it is installed: ghapp setup-git" in capsys.readouterr().err


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["x" * 35],
        ["--org", "a/b"],
        ["--signer", "tpm:x"],
        ["--signer", "file:"],
        ["--signer", "keyring:SHA256:x"],
        ["--wait", "0"],
        ["--wait", "2h"],
        ["--wait", "soon"],
        ["--permission", "contents"],
        ["--host", "nonsense"],
    ],
)
def test_wrong_usage_is_2_and_opens_nothing(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.run(["app", "create", *arguments]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("ghapp: error: ")
    assert hint.startswith("ghapp: hint: ghapp app create")


def test_an_interpreter_that_is_gone_opens_no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/gone/python")

    assert asyncio.run(app_create._open_browser("http://127.0.0.1/")) is False


def test_a_user_without_a_name_gets_an_app_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise OSError("no such user")

    monkeypatch.setattr("getpass.getuser", fail)

    assert app_create.new_draft(None, "", "github.com", {}).name.startswith("my-ghapp-")
    assert app_create.new_draft(None, "acme", "github.com", {}).name.startswith("acme-ghapp-")


@pytest.mark.parametrize(
    ("environment", "can"),
    [({}, False), ({"DISPLAY": ""}, False), ({"DISPLAY": ":0"}, True), ({"WAYLAND_DISPLAY": "w"}, True)],
)
def test_a_browser_is_opened_only_where_it_can_have_a_window(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *, can: bool
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert app_create.can_open_browser(environment) is can
    monkeypatch.setattr(sys, "platform", "darwin")
    assert app_create.can_open_browser(environment)


def test_a_terminal_sees_that_we_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    with app_create._progress("waiting for somebody"):
        pass
    with app_create._progress("waiting in silence", quiet=True):
        pass

    assert "waiting for somebody" in terminal.getvalue()
    assert "silence" not in terminal.getvalue()
