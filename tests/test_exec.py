"""`ghapp exec` up to the moment when the command would run; what comes then is in e2e, with processes of its own."""

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from command_line import Ghapp, app_on_acme
from fakes_process import running, soon, talk
from standin.model import App
from standin.server import StandIn

from ghapp import config
from ghapp.cli import exec as command
from ghapp.cli import lent
from ghapp.daemon import Daemon
from ghapp.errors import GhappError, GitConfigFailed
from ghapp.lease import token_sha256


PERMISSIONS = {"contents": "write", "issues": "write"}
FOUND = lent.settings(["https://github.com/acme"], "/run/a b/git.sock")


@pytest.fixture
def app(github: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> App:
    return app_on_acme(github, PERMISSIONS, monkeypatch, tmp_path)


async def begin(**changes: Any) -> command.Session:
    params = {"repositories": ["acme/rocket"], "host": "github.com", "permissions": None, "read_only": False}
    return await asyncio.to_thread(lambda: command.Session(**(params | changes)))


# -- the grant ---------------------------------------------------------------------------------------------------


async def test_a_session_lends_until_it_ends(served: Daemon, github: StandIn) -> None:
    session = await begin()
    session.watch()
    (lent_now,) = served._lending.describe()
    assert lent_now["name"] == session.lent["name"]
    assert lent_now["expires_at"] is None
    assert github.live_token(session.lent["token"]) is not None

    assert await asyncio.to_thread(session.end) == (1, 0)

    assert github.live_token(session.lent["token"]) is None
    assert len(served._lending) == 0


async def test_git_is_served_with_the_token_that_other_tools_have(served: Daemon, github: StandIn) -> None:
    session = await begin(repositories=["acme/rocket", "acme/probe"])
    request = b"action=get\ntimeout=0\nprotocol=https\nhost=github.com\npath=acme/rocket.git\n"

    answer = await asyncio.to_thread(talk, session.lent["socket"], request)

    assert f"password={session.lent['token']}\n" in answer.decode()
    assert len(github.mints) == 1
    assert (await asyncio.to_thread(session.end))[1] == 0
    assert len(served._lending) == 0


async def test_who_goes_away_before_the_answer_leaves_no_grant(
    served: Daemon, directory: Path, github: StandIn
) -> None:
    go = threading.Event()
    held = github.faults.add("access_tokens", hold=go)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(directory / "control.sock"))
    params = {"repositories": ["acme/rocket"]}
    client.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "exec", "params": params}).encode() + b"\n")
    await soon(held.reached.is_set)

    client.close()
    go.set()

    await soon(lambda: github.mints and github.live_token(github.mints[0].token) is None)
    assert len(served._lending) == 0


async def test_one_that_nobody_watched_ends_too(served: Daemon) -> None:
    session = await begin()

    assert await asyncio.to_thread(session.end) == (1, 0)
    assert len(served._lending) == 0


async def test_a_connection_that_breaks_ends_the_grant(served: Daemon, github: StandIn) -> None:
    session = await begin()

    session._connection.close()

    await soon(lambda: not len(served._lending))
    await soon(lambda: github.live_token(session.lent["token"]) is None)


async def test_what_was_revoked_by_hand_is_only_let_go(ghapp: Ghapp, served: Daemon) -> None:
    session = await begin()
    await ghapp.asked("grant", "revoke", session.lent["name"])

    assert await asyncio.to_thread(session.end) == (0, 0)
    assert len(served._lending) == 0


async def test_a_silent_session_is_kept_when_it_gets_crowded_and_holds_up_no_end(served: Daemon) -> None:
    session = await begin()
    (connection,) = [each for each in served._listeners[1]._tasks.values() if each.held]
    connection.since -= 1000

    assert not served._listeners[1]._drop_the_slowest()
    await soon(lambda: not served._is_busy())  # nothing that the watchdog has to watch
    assert served._listeners[1].connections == 1
    began = asyncio.get_running_loop().time()
    await served._listeners[1].drain(30)
    assert asyncio.get_running_loop().time() - began < 10
    session._connection.close()


async def test_a_daemon_that_is_restarted_lends_the_same_socket_again(directory: Path, app: App) -> None:
    del app
    async with running(directory):
        session = await begin()
        session.watch()
    async with running(directory) as follower:
        await soon(lambda: len(follower._lending))
        (again,) = follower._lending.describe()
        assert again["socket"] == session.lent["socket"]
        assert (await asyncio.to_thread(session.end))[1] == 0


async def test_the_tokens_of_daemons_before_end_with_the_command_too(
    directory: Path, app: App, github: StandIn, ghapp: Ghapp
) -> None:
    del app
    async with running(directory):
        session = await begin()
        session.watch()
        first = session.lent["token"]
    async with running(directory) as follower:
        await soon(lambda: len(follower._lending))
        former, fresh = (await ghapp.asked("leases", "--json")).json()
        assert {former["token_sha256"], fresh["token_sha256"]} == {token_sha256(mint.token) for mint in github.mints}
        request = b"action=get\ntimeout=0\nprotocol=https\nhost=github.com\npath=acme/rocket.git\n"
        answer = await asyncio.to_thread(talk, session.lent["socket"], request)
        assert f"password={github.mints[1].token}\n" in answer.decode()

        assert await asyncio.to_thread(session.end) == (2, 0)
        assert follower._broker.leases() == []
    assert github.live_token(first) is None
    assert github.live_token(github.mints[1].token) is None
    assert len(github.mints) == 2


async def test_no_more_tokens_are_handed_on_than_a_daemon_takes_and_those_the_last(
    directory: Path, app: App, github: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    del app
    monkeypatch.setattr(command, "MAX_FORMER", 2)
    async with running(directory):
        session = await begin()
        session.watch()
    for number in (2, 3):
        async with running(directory):
            await soon(lambda number=number: len(github.mints) == number)  # type: ignore[misc]  # bound now
            await soon(lambda: session._params["former"][-1] == github.mints[-1].token)
            assert session._params["former"] == [mint.token for mint in github.mints[-2:]]
            if number == 3:
                assert await asyncio.to_thread(session.end) == (3, 0)


SECRET = "ghs_" + "a1B2c3D4" * 5


@pytest.mark.parametrize(
    "former",
    [
        [f"{SECRET}\r\nX: y"],
        [f"{SECRET}\x00"],
        [f"{SECRET}\ud800"],
        [f"{SECRET} "],
        [""],
        ["x" * 5000],
        [SECRET, 5],
        [SECRET, None],
        [[SECRET]],
        {SECRET: SECRET},
        SECRET,
        7,
        True,
        [f"t{number}" for number in range(10_000)],
    ],
    ids=lambda value: repr(value)[:60].replace(SECRET, "TOKEN"),
)
async def test_what_is_no_token_is_refused_before_anything_is_lent_and_told_to_nobody(
    served: Daemon, directory: Path, github: StandIn, former: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    answer = await ask_exec(directory, repositories=["acme/rocket"], former=former)

    assert answer["error"] == {
        "code": -32000,
        "message": "former are at most 50 tokens",
        "data": {"code": "E01", "hint": ""},
    }
    assert github.mints == []
    assert len(served._lending) == 0
    served._audit.close()
    written = b"".join(path.read_bytes() for path in config.state_dir().rglob("*") if path.is_file())
    assert SECRET not in caplog.text + written.decode()


async def ask_exec(directory: Path, **params: object) -> Any:
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "exec", "params": params}).encode() + b"\n"
    return json.loads((await asyncio.to_thread(talk, directory / "control.sock", request)).partition(b"\n")[0])


async def test_a_token_of_before_is_named_by_its_sha256_alone(
    served: Daemon, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    answer = await ask_exec(directory, repositories=["acme/rocket"], former=[SECRET, SECRET])

    assert answer["result"]["token"] != SECRET
    await soon(lambda: not served._broker.leases())
    served._audit.close()
    written = b"".join(path.read_bytes() for path in config.state_dir().rglob("*") if path.is_file()).decode()
    assert SECRET not in caplog.text + written
    lines = [json.loads(line) for line in (config.state_dir() / "audit.jsonl").read_text().splitlines()]
    ended = [line for line in lines if line["action"] == "revocation"]
    assert {line["token_sha256"] for line in ended} == {token_sha256(SECRET), token_sha256(answer["result"]["token"])}
    assert len(ended) == 2


async def test_a_daemon_that_stays_away_is_told_and_none_is_started(
    directory: Path, app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del app
    monkeypatch.setattr(command, "COMES_BACK", 0.15)
    async with running(directory):
        session = await begin()
        session.watch()

    await asyncio.to_thread(session._watcher.join, 8)

    assert "the daemon has ended; git has no credentials here any more" in capsys.readouterr().err
    assert not (directory / "control.sock").exists()
    assert await asyncio.to_thread(session.end) == (0, 1)


@pytest.mark.usefixtures("app")
def test_a_runtime_directory_that_cannot_be_used_is_a_failure_of_ours(ghapp: Ghapp, directory: Path) -> None:
    directory.touch()

    assert ghapp("exec", "acme/rocket", "--", "true").code == 125
    directory.unlink()


# -- our own failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("acme/rocket", "true"), "the command stands behind --\nghapp: hint: ghapp exec OWNER/REPO -- CMD"),
        (("https://github.com/acme/rocket", "--", "true"), "is not OWNER/REPO; did you mean 'acme/rocket'?"),
        (("acme/rocket", "--"), "there is no command"),
        (("--nonsense", "--", "true"), "no such option"),
        (("acme/*", "--", "true"), "'acme/*' is not OWNER/REPO"),
        (("--read-only", "--permission", "contents=write", "--", "true"), "contradicts"),
        (("acme/rocket", "--", "true"), "no app is registered"),
        (("--", "true"), "no remote 'origin'"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_told_with_our_status(
    ghapp: Ghapp, arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    done = ghapp("exec", *arguments)

    assert done.code == 125
    assert says in done.err
    assert done.err.startswith("ghapp: error: ")


async def test_what_cannot_be_run_has_the_status_of_env_and_leaves_no_token(
    ghapp: Ghapp, served: Daemon, github: StandIn, tmp_path: Path
) -> None:
    (tmp_path / "data").touch()
    assert (await ghapp.asked("exec", "acme/rocket", "--", "/nonexistent")).code == 127
    assert (await ghapp.asked("exec", "acme/rocket", "--", str(tmp_path / "data"))).code == 126
    assert [github.live_token(mint.token) for mint in github.mints] == [None, None]
    assert len(served._lending) == 0


async def test_a_token_that_could_not_be_revoked_is_told(ghapp: Ghapp, served: Daemon, github: StandIn) -> None:
    del served
    github.faults.add("installation/token", status=501)  # which is not tried again

    done = await ghapp.asked("exec", "acme/rocket", "--", "/nonexistent")

    assert "1 token could not be revoked" in done.err


async def test_a_config_that_cannot_be_read_has_our_status(ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")

    assert (await ghapp.asked("exec", "acme/rocket", "--", "true")).code == 125


# -- git's settings ----------------------------------------------------------------------------------------------


def test_settings_are_added_behind_those_that_are_there() -> None:
    given = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "credential.helper",
        "GIT_CONFIG_VALUE_0": "wide",
        "GIT_CONFIG_PARAMETERS": "'credential.helper=wider'",
    }
    environment = os.environ | given | lent.counted_variables(FOUND, given) | lent.listed_variable(FOUND, given)

    assert environment["GIT_CONFIG_COUNT"] == str(1 + len(FOUND))
    assert environment["GIT_CONFIG_VALUE_0"] == "wide"
    assert environment["GIT_CONFIG_PARAMETERS"].startswith("'credential.helper=wider' 'credential.https://")
    command.check_last(FOUND, environment)


@pytest.mark.parametrize("form", [lent.counted_variables, lent.listed_variable])
def test_either_form_alone_is_read_by_git(form: Any) -> None:
    command.check_last(FOUND, os.environ | form(FOUND, {"GIT_CONFIG_COUNT": "nonsense"}))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "nothing comes last"),
        ({"GIT_CONFIG_PARAMETERS": "'credential.helper=wide'"}, "credential.helper comes last"),
        ({"GIT_CONFIG_PARAMETERS": "nonsense"}, "fatal: "),
    ],
)
def test_a_git_that_would_ask_somebody_else_last_is_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(GitConfigFailed, match=says):
        command.check_last(FOUND, os.environ | given)


def test_where_there_is_no_git_nobody_asks_anybody(tmp_path: Path) -> None:
    command.check_last(FOUND, {"PATH": str(tmp_path)})
    assert shutil.which("git") is not None


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("github.com", {"GH_TOKEN", "GITHUB_TOKEN"}),
        ("acme.ghe.com", {"GH_TOKEN", "GITHUB_TOKEN", "GH_HOST"}),
        ("github.acme.example", {"GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN", "GH_HOST"}),
    ],
)
def test_every_host_has_the_variables_that_other_tools_read(host: str, names: set[str]) -> None:
    found = command.tokens(host, "t")

    assert found.keys() == names
    assert {value for name, value in found.items() if name != "GH_HOST"} == {"t"}


def test_a_signal_that_is_sent_is_told_from_one_of_the_terminal() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*command.PASSED_ON, signal.SIGCHLD})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert command._next_signal() == (signal.SIGUSR1, False)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def test_who_asks_for_what_cannot_be_had_gets_no_session(served: Daemon) -> None:
    with pytest.raises(GhappError, match="not on nowhere"):
        await begin(repositories=["acme/nowhere"])
    with pytest.raises(GhappError, match="one owner"):
        await begin(repositories=["acme/rocket", "other/thing"])
    with pytest.raises(GhappError, match="no app of yours is installed on other") as caught:
        await begin(repositories=["other/thing"])
    assert caught.value.hint == "install it: https://github.com/apps/acme-bot/installations/new"
    assert len(served._lending) == 0
