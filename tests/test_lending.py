"""What the daemon lends: sockets that come, stay over a restart, end, and say so; and the commands for it."""

import asyncio
import csv
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any
from unittest.mock import Mock

import pytest
from click.shell_completion import BashComplete
from command_line import Ghapp, app_on_acme
from fakes_process import running, soon, talk
from standin.model import App
from standin.server import StandIn

from ghapp import cli, config, lending
from ghapp.cli import grant, lent
from ghapp.daemon import Daemon
from ghapp.errors import DaemonFailed, GrantRefused
from ghapp.lease import token_sha256
from ghapp.lending import Lending


PERMISSIONS = {"contents": "write", "workflows": "write", "issues": "write"}


@pytest.fixture
def app(github: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> App:
    return app_on_acme(github, PERMISSIONS, monkeypatch, tmp_path)


async def ask(socket: str | Path, repository: str = "acme/rocket", *, more: str = "", action: str = "get") -> str:
    """Ask as git's own client does, or with `more` as ours."""
    request = f"action={action}\ntimeout=0\n{more}protocol=https\nhost=github.com\npath={repository}.git\n"
    return (await asyncio.to_thread(talk, socket, request.encode())).decode()


async def password(socket: str | Path, repository: str = "acme/rocket") -> str:
    answer = await ask(socket, repository)
    found = dict(line.split("=", 1) for line in answer.splitlines())
    return found["password"]


async def lend(ghapp: Ghapp, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = (await ghapp.asked("grant", "create", *arguments, "--json")).json()
    return found


# -- what git is answered ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
async def test_a_grant_has_a_token_of_its_own_for_what_it_names_alone(ghapp: Ghapp, directory: Path) -> None:
    first, second = await lend(ghapp, "acme/rocket"), await lend(ghapp, "acme/*", "--name", "all")
    tokens = {
        await password(first["socket"]),
        await password(second["socket"]),
        await password(second["socket"], "acme/probe"),
        await password(directory / "git.sock"),
    }

    assert len(tokens) == 4
    assert set(first) >= {"name", "socket", "repositories", "permissions", "expires_at"}
    assert first["permissions"] == {"contents": "write", "workflows": "write"}
    assert first["repositories"] == ["acme/rocket"]
    assert second["socket"] == str(directory / "grants" / "all" / "git.sock")
    assert await ask(first["socket"], "acme/probe") == (
        f"quit=1\nghapp: error: acme/probe is not in grant {first['name']} (E71)\n"
    )
    leases = (await ghapp.asked("leases", "--json")).json()
    assert sorted(lease.get("grant", "") for lease in leases) == sorted(["", "all", "all", first["name"]])


@pytest.mark.usefixtures("served")
async def test_a_client_of_ours_is_told_by_attributes_and_foreign_hosts_are_not_answered(ghapp: Ghapp) -> None:
    socket = (await lend(ghapp, "acme/rocket"))["socket"]

    told = await ask(socket, "acme/probe", more="ghapp=1\n")
    foreign = b"action=get\ntimeout=0\nprotocol=https\nhost=gitlab.com\npath=acme/rocket.git\n"

    assert told.splitlines()[0].startswith("error=acme/probe is not in grant")
    assert told.splitlines()[-2:] == ["quit=1", "ghapp=1"]
    assert await asyncio.to_thread(talk, socket, foreign) == b""


async def test_a_grant_ends_by_command_and_its_token_is_dead_and_its_socket_says_so(
    ghapp: Ghapp, served: Daemon, github: StandIn
) -> None:
    found, other = await lend(ghapp, "acme/rocket", "--name", "rocket"), await lend(ghapp, "acme/rocket")
    mine, theirs = await password(found["socket"]), await password(other["socket"])

    done = await ghapp.asked("grant", "revoke", "rocket")

    assert (done.code, done.err) == (0, "ghapp: grant rocket has ended; revoked 1 token\n".removeprefix("ghapp: "))
    assert github.live_token(mine) is None
    assert github.live_token(theirs) is not None
    assert (await ask(found["socket"])).startswith("quit=1\nghapp: error: grant rocket ended at ")
    assert len(served._lending) == 1
    again = await ghapp.asked("grant", "revoke", "rocket")
    assert again.code == 1
    assert "grant rocket ended at " in again.err
    assert (await ghapp.asked("grant", "revoke", "nobody")).code == 1


async def test_a_grant_ends_by_its_time(ghapp: Ghapp, served: Daemon, github: StandIn) -> None:
    found = await lend(ghapp, "acme/rocket", "--for", "3s")
    token = await password(found["socket"])

    await soon(lambda: not len(served._lending))
    await soon(lambda: github.live_token(token) is None)

    assert "ended at" in await ask(found["socket"])
    (end,) = [line for line in recorded(served) if line["action"] == "grant-end"]
    assert end["peer"].get("command") == "ghapp daemon"  # not whoever made it, long ago


async def test_an_end_that_the_timer_missed_is_noticed_by_whoever_asks(ghapp: Ghapp, served: Daemon) -> None:
    first, second = await lend(ghapp, "acme/rocket"), await lend(ghapp, "acme/probe")
    for loan in served._lending._loans.values():
        assert loan.timer is not None
        loan.timer.cancel()  # as the lid does
        loan.ends = 0.0

    assert "ended at" in await ask(first["socket"])
    assert (await ghapp.asked("grant", "list", "--json")).json() == []
    assert "ended at" in await ask(second["socket"], "acme/probe")
    ends = [line for line in recorded(served) if line["action"] == "grant-end"]
    assert [(line["grant"], line["peer"].get("command")) for line in ends] == [
        (first["name"], "ghapp daemon"),  # in the trail that the sandbox cannot write over, and of nobody's doing
        (second["name"], "ghapp daemon"),
    ]


async def test_a_token_that_could_not_be_revoked_is_tried_again(
    ghapp: Ghapp, served: Daemon, github: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "REVOKE_AGAIN", 0.05)
    found = await lend(ghapp, "acme/rocket", "--name", "rocket")
    token = await password(found["socket"])
    github.faults.add("installation/token", status=500, times=3)

    done = await ghapp.asked("grant", "revoke", "rocket")

    assert done.code == 1
    assert "1 token could not be revoked yet" in done.err
    await soon(lambda: github.live_token(token) is None)
    await soon(lambda: not served._lending._tasks)


async def test_a_token_that_is_owed_holds_the_daemon_and_is_ended_with_it(
    ghapp: Ghapp, app: App, directory: Path, github: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    del app
    async with running(directory) as daemon:
        found = await lend(ghapp, "acme/rocket", "--name", "rocket")
        token = await password(found["socket"])
        down = github.faults.add("installation/token", status=500, times=None)
        assert (await ghapp.asked("grant", "revoke", "rocket")).code == 1
        await soon(lambda: not any(listener.connections for listener in daemon._all_listeners))

        monkeypatch.setattr(daemon._package, "successor", lambda: "9.9")
        daemon._last_activity -= 1e6
        daemon._watch_idleness()
        daemon._note_activity()
        assert not daemon._ending.is_set()
        down.over = True
        await asyncio.to_thread(
            talk,
            directory / "control.sock",
            b'{"jsonrpc": "2.0", "id": 1, "method": "stop", "params": {"revoke": false}}\n',
        )

    assert github.live_token(token) is None


async def test_a_token_that_was_being_minted_and_could_not_be_revoked_is_tried_again(
    ghapp: Ghapp, served: Daemon, github: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "REVOKE_AGAIN", 0.05)
    found, let_go = await lend(ghapp, "acme/rocket", "--name", "rocket"), threading.Event()
    probe = github.faults.add("info/refs", hold=let_go)
    down = github.faults.add("installation/token", status=500, times=None)
    asking = asyncio.create_task(ask(found["socket"]))
    await asyncio.to_thread(probe.reached.wait)
    revoking = asyncio.create_task(ghapp.asked("grant", "revoke", "rocket"))
    await soon(lambda: not len(served._lending))
    let_go.set()

    assert "1 token could not be revoked yet" in (await revoking).err
    assert "grant rocket ended at" in await asking
    down.over = True

    await soon(lambda: github.live_token(github.mints[-1].token) is None)


async def test_an_outage_of_the_proxy_that_a_container_sees_takes_nothing_away(
    ghapp: Ghapp, served: Daemon, github: StandIn
) -> None:
    """Who asks on git.sock starts a daemon with a newer environment; in a container nobody does."""
    found = await lend(ghapp, "acme/rocket")
    await asyncio.to_thread(github.proxy.end)

    assert "cannot connect to the proxy" in await ask(found["socket"])

    assert not served._ending.is_set()
    assert len(served._lending) == 1


@pytest.mark.usefixtures("served")
async def test_erase_ends_a_token_of_the_grant_and_no_other(ghapp: Ghapp, directory: Path) -> None:
    socket = (await lend(ghapp, "acme/rocket"))["socket"]
    mine, plain = await password(socket), await password(directory / "git.sock")

    await ask(socket, more=f"password={plain}\n", action="erase")
    await ask(directory / "git.sock", more=f"password={mine}\n", action="erase")
    assert (await password(directory / "git.sock"), await password(socket)) == (plain, mine)

    await ask(socket, more=f"password={mine}\n", action="erase")
    assert await password(socket) != mine


@pytest.mark.usefixtures("served")
async def test_what_is_read_only_carries_no_more(ghapp: Ghapp, github: StandIn) -> None:
    socket = (await lend(ghapp, "acme/rocket", "--read-only"))["socket"]
    await password(socket)

    assert dict(github.mints[-1].asked["permissions"]) == {"contents": "read"}


@pytest.mark.usefixtures("served")
async def test_permissions_that_are_named_are_what_a_token_has(ghapp: Ghapp, github: StandIn) -> None:
    found = await lend(ghapp, "acme/rocket", "--permission", "contents=read", "--permission", "issues=write")
    await password(found["socket"])

    assert found["permissions"] == github.mints[-1].asked["permissions"] == {"contents": "read", "issues": "write"}


# -- directories and sockets -------------------------------------------------------------------------------------


def mode(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


@pytest.mark.usefixtures("served")
async def test_only_a_grant_for_other_users_can_be_reached_by_them(ghapp: Ghapp, directory: Path) -> None:
    ours = await lend(ghapp, "acme/rocket")
    theirs = await lend(ghapp, "acme/rocket", "--uid", "1000", "--uid", "1001", "--uid", "root")

    assert (mode(Path(ours["socket"]).parent), mode(ours["socket"])) == (0o700, 0o600)
    assert (mode(Path(theirs["socket"]).parent), mode(theirs["socket"])) == (0o711, 0o666)
    assert mode(directory / "grants") == 0o700
    assert theirs["uids"] == [1000, 1001, 0]


async def test_named_grants_come_back_with_the_next_daemon_in_the_same_directory(
    ghapp: Ghapp, app: App, directory: Path, github: StandIn
) -> None:
    del app
    async with running(directory):
        kept = await lend(ghapp, "acme/rocket", "--name", "kept", "--for", "1h", "--uid", "7")
        lost = await lend(ghapp, "acme/rocket")
        ended = await lend(ghapp, "acme/rocket", "--name", "ended")
        first = await password(kept["socket"])
        await ghapp.asked("grant", "revoke", "ended")
        inode = Path(kept["socket"]).parent.stat().st_ino
    files = list((config.state_dir() / "grants").rglob("*.json"))

    assert [path.stem for path in files] == ["kept"]
    assert mode(files[0]) == 0o600
    assert "ghs_" not in files[0].read_text()
    assert [path.name for path in (directory / "grants").iterdir()] == ["kept"]
    assert not Path(kept["socket"]).exists()

    async with running(directory):
        (listed,) = (await ghapp.asked("grant", "list", "--json")).json()
        assert {key: listed[key] for key in kept if key != "expires_at"} == {
            key: value for key, value in kept.items() if key != "expires_at"
        }
        assert Path(kept["socket"]).parent.stat().st_ino == inode
        again, before = (datetime.fromisoformat(each["expires_at"]) for each in (listed, kept))
        assert abs(again - before) <= timedelta(seconds=2)  # and does not begin anew
        assert await password(kept["socket"]) not in {"", first}
        assert not Path(lost["socket"]).exists()
        assert not Path(ended["socket"]).exists()
    assert len(github.mints) == 2


async def test_what_ended_or_is_no_definition_does_not_come_back(
    ghapp: Ghapp, app: App, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    del app
    async with running(directory):
        for name in ("over", "broken", "large", "renamed", "good"):
            await lend(ghapp, "acme/rocket", "--name", name)
    (definitions,) = {path.parent for path in (config.state_dir() / "grants").rglob("*.json")}
    over = json.loads((definitions / "over.json").read_text())
    (definitions / "over.json").write_text(json.dumps(over | {"ends": 1.0}))
    (definitions / "broken.json").write_text("{")
    (definitions / "large.json").write_bytes(b" " * (lending.MAX_DEFINITION + 1))
    (definitions / "renamed.json").rename(definitions / "other.json")
    good = json.loads((definitions / "good.json").read_text())
    (definitions / "GOOD.json").write_text(json.dumps(good | {"name": "GOOD"}))  # the two could not be told apart
    (directory / "grants" / "stranger").mkdir()
    (directory / "grants" / "stranger" / "precious").touch()

    async with running(directory):
        found = (await ghapp.asked("grant", "list", "--json")).json()

    assert [each["name"] for each in found] == ["GOOD"]
    assert not (definitions / "over.json").exists()
    assert caplog.text.count("cannot lend what") == 4
    assert (directory / "grants" / "stranger" / "precious").exists()


@pytest.mark.parametrize("ends", ["1" + "0" * 400, "Infinity", "NaN", "1e15", "-1", "null", "true"])
async def test_a_definition_whose_end_is_no_time_does_not_come_back_and_harms_no_other(
    ghapp: Ghapp, app: App, directory: Path, ends: str
) -> None:
    del app
    async with running(directory):
        for name in ("bad", "good"):
            await lend(ghapp, "acme/rocket", "--name", name)
    (definition,) = (config.state_dir() / "grants").rglob("bad.json")
    definition.write_text(re.sub(r'"ends": [^,]*', f'"ends": {ends}', definition.read_text()))

    async with running(directory):
        (found,) = (await ghapp.asked("grant", "list", "--json")).json()

    assert found["name"] == "good"


async def test_what_is_no_file_is_no_definition_and_harms_no_other(ghapp: Ghapp, app: App, directory: Path) -> None:
    del app
    async with running(directory):
        await lend(ghapp, "acme/rocket", "--name", "good")
    (definitions,) = {path.parent for path in (config.state_dir() / "grants").rglob("*.json")}
    (definitions / ".good.json.x1").touch()  # as a daemon leaves that is killed while it writes
    (definitions / "deep.json").write_text("[" * 60_000)
    (definitions / "endless.json").symlink_to("/dev/zero")
    (definitions / "directory.json").mkdir()
    os.mkfifo(definitions / "pipe.json")
    os.mkfifo(definitions / "silent.json")

    with (definitions / "silent.json").open("r+b", buffering=0):  # somebody may write yet
        async with running(directory):
            (found,) = (await ghapp.asked("grant", "list", "--json")).json()
            assert await password(found["socket"])
    assert not (definitions / ".good.json.x1").exists()


async def test_a_clock_that_was_ahead_lengthens_no_grant(ghapp: Ghapp, app: App, directory: Path) -> None:
    del app
    async with running(directory):
        await lend(ghapp, "acme/rocket", "--name", "rocket")
    (definition,) = (config.state_dir() / "grants").rglob("*.json")
    definition.write_text(json.dumps(json.loads(definition.read_text()) | {"ends": 9e9}))

    async with running(directory):
        (found,) = (await ghapp.asked("grant", "list", "--json")).json()

    assert datetime.fromisoformat(found["expires_at"]) - datetime.now(UTC) <= timedelta(days=366)


@pytest.mark.usefixtures("served")
async def test_an_end_that_will_not_last_is_no_success(ghapp: Ghapp) -> None:
    await lend(ghapp, "acme/rocket", "--name", "rocket")
    (definition,) = (config.state_dir() / "grants").rglob("*.json")
    definition.unlink()
    definition.mkdir()

    done = await ghapp.asked("grant", "revoke", "rocket")

    assert done.code == 1
    assert f"{definition} cannot be removed: " in done.err
    assert "; the next daemon lends it again\n" in done.err


@pytest.mark.usefixtures("served")
async def test_a_name_is_taken_once_and_free_again_after_the_end(ghapp: Ghapp) -> None:
    found = await lend(ghapp, "acme/rocket", "--name", "Rocket")
    taken = await ghapp.asked("grant", "create", "acme/probe", "acme/*", "--name", "rocket", "--uid", "7", "--uid", "8")
    assert taken.code == 1
    instead = "ghapp grant create --name rocket --uid 7 --uid 8 acme/probe 'acme/*' --replace"
    assert f"there is a grant rocket already (E73)\nghapp: hint: {instead}\n" in taken.err
    inode = Path(found["socket"]).parent.stat().st_ino

    await ghapp.asked("grant", "revoke", "rocket")
    anew = await lend(ghapp, "acme/probe", "--name", "Rocket")

    assert Path(anew["socket"]).parent.stat().st_ino == inode
    assert anew["id"] != found["id"]
    assert await password(anew["socket"], "acme/probe")
    assert "is not in grant Rocket" in await ask(anew["socket"])


async def test_sockets_that_are_gone_are_made_anew(ghapp: Ghapp, served: Daemon) -> None:
    found = await lend(ghapp, "acme/rocket")
    shutil.rmtree(Path(found["socket"]).parent)

    served._note_activity()

    assert await password(found["socket"])


async def test_a_path_that_is_taken_is_told_and_logged(
    ghapp: Ghapp, served: Daemon, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = await lend(ghapp, "acme/rocket")
    shutil.rmtree(Path(found["socket"]).parent)
    Path(found["socket"]).parent.touch()
    served._note_activity()
    assert "cannot listen in" in caplog.text

    (directory / "grants" / "taken").touch()
    (directory / "elsewhere").mkdir()
    (directory / "grants" / "linked").symlink_to(directory / "elsewhere")
    for name in ("taken", "linked"):
        refused = await ghapp.asked("grant", "create", "acme/rocket", "--name", name)
        assert refused.code == 1
        assert "cannot listen in" in refused.err
    assert not list((directory / "elsewhere").iterdir())
    assert not list((config.state_dir() / "grants").rglob("*.json"))


async def test_only_so_many_that_have_ended_go_on_saying_so(
    ghapp: Ghapp, served: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "MAX_ENDED", 1)
    first, second = await lend(ghapp, "acme/rocket"), await lend(ghapp, "acme/rocket")

    await ghapp.asked("grant", "revoke", first["name"])
    await ghapp.asked("grant", "revoke", second["name"])

    assert not Path(first["socket"]).exists()
    assert "ended at" in await ask(second["socket"])
    assert len(served._lending.listeners) == 1


@pytest.mark.usefixtures("served")
async def test_what_was_named_goes_on_saying_so_longer_than_what_was_not(
    ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop of `exec` makes no container ask for a password."""
    monkeypatch.setattr(lending, "MAX_ENDED", 1)
    named, other = await lend(ghapp, "acme/rocket", "--name", "box"), await lend(ghapp, "acme/rocket")

    await ghapp.asked("grant", "revoke", "box")
    await ghapp.asked("grant", "revoke", other["name"])

    assert "grant box ended at" in await ask(named["socket"])


async def test_after_a_while_nobody_says_so_any_more(
    ghapp: Ghapp, served: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "SAYS_SO", 0.01)
    found = await lend(ghapp, "acme/rocket")

    await ghapp.asked("grant", "revoke", found["name"])

    await soon(lambda: not Path(found["socket"]).parent.exists())
    assert served._lending.listeners == []


@pytest.mark.usefixtures("served")
async def test_there_are_only_so_many(ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "MAX_GRANTS", 1)
    await lend(ghapp, "acme/rocket")

    assert "1 grants are as many as there can be" in (await ghapp.asked("grant", "create", "acme/rocket")).err


@pytest.mark.usefixtures("served")
async def test_a_definition_that_cannot_be_written_is_no_grant(ghapp: Ghapp) -> None:
    (config.state_dir()).mkdir(parents=True, exist_ok=True)
    (config.state_dir() / "grants").touch()

    refused = await ghapp.asked("grant", "create", "acme/rocket", "--name", "rocket")

    assert refused.code == 1
    assert "cannot write" in refused.err
    assert (await ghapp.asked("grant", "list", "--json")).json() == []


async def test_while_something_is_lent_the_daemon_does_not_leave(ghapp: Ghapp, served: Daemon) -> None:
    found = await lend(ghapp, "acme/rocket")
    served._last_activity -= 1e6
    served._watch_idleness()
    assert not served._ending.is_set()

    await ghapp.asked("grant", "revoke", found["name"])
    await soon(lambda: not any(listener.connections for listener in served._all_listeners))
    served._last_activity -= 1e6
    served._watch_idleness()
    assert served._ending.is_set()


@pytest.mark.usefixtures("served")
async def test_a_daemon_that_is_stopped_revokes_what_grants_have(
    ghapp: Ghapp, directory: Path, github: StandIn
) -> None:
    token = await password((await lend(ghapp, "acme/rocket", "--name", "rocket"))["socket"])

    await asyncio.to_thread(talk, directory / "control.sock", b'{"jsonrpc": "2.0", "id": 1, "method": "stop"}\n')

    assert github.live_token(token) is None


# -- commands ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
async def test_what_is_lent_is_said_and_listed(ghapp: Ghapp, directory: Path) -> None:
    done = await ghapp.asked("grant", "create", "acme/rocket", "acme/*", "--name", "rocket", "--for", "1h30m")

    assert done.out == f"{directory}/grants/rocket/git.sock\n"
    assert "grant rocket: contents: write, workflows: write on acme/rocket, acme/*\n" in done.err
    assert "\nfor 1h30m, until 20" in done.err
    assert "ghapp: hint: ghapp grant run-args rocket docker  # or podman, ssh, " in done.err  # a shell takes it whole
    assert "or until the daemon ends\n" not in done.err
    assert "or until the daemon ends\n" in (await ghapp.asked("grant", "create", "acme/probe")).err
    table = (await ghapp.asked("grant", "list")).out
    assert f"{directory}/grants/rocket/git.sock" in table
    assert "\ngrants   2 lent; ghapp grant list\n" in (await ghapp.asked("status")).out
    await ghapp.asked("grant", "revoke", "--all")
    assert (await ghapp.asked("grant", "list")).err == "nothing is lent\n"
    assert (await ghapp.asked("status", "--json")).json()["grants"] == 0


@pytest.mark.usefixtures("served")
async def test_on_a_terminal_the_list_fits_and_says_how_long_it_lasts(
    ghapp: Ghapp, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    await lend(ghapp, "acme/rocket", "--name", "rocket", "--for", "2h")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    done = await ghapp.asked("grant", "list")

    assert re.search(r"^rocket +acme/rocket +.* (?:in 2h|in 1h59m) *$", done.out, re.MULTILINE)
    assert max(map(len, done.out.splitlines())) <= 80
    assert "SOCKET" not in done.out
    assert done.err == f"sockets: {directory}/grants/NAME/git.sock\n"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0s"), (59, "59s"), (60, "1m"), (5400, "1h30m"), (86400 + 61, "1d"), (90061, "1d1h")]
)
def test_a_duration_is_said_as_it_is_given(seconds: int, said: str) -> None:
    assert grant.duration(seconds) == said
    assert 0 <= seconds - config.parse_duration(said) < 3600


@pytest.mark.usefixtures("served")
async def test_a_grant_is_replaced_in_its_directory_and_the_tokens_of_the_first_are_dead(
    ghapp: Ghapp, github: StandIn
) -> None:
    first = await lend(ghapp, "acme/rocket", "--name", "rocket")
    token = await password(first["socket"])
    mounted = os.open(Path(first["socket"]).parent, os.O_RDONLY)  # a number alone is given to the next one, too

    anew = await lend(ghapp, "acme/probe", "--name", "rocket", "--replace")
    await lend(ghapp, "acme/probe", "--name", "other", "--replace")

    assert github.live_token(token) is None
    assert anew["repositories"] == ["acme/probe"]
    assert Path(f"/proc/self/fd/{mounted}/git.sock").is_socket()
    os.close(mounted)
    assert await password(anew["socket"], "acme/probe")
    assert [each["name"] for each in (await ghapp.asked("grant", "list", "--json")).json()] == ["rocket", "other"]
    await lend(ghapp, "acme/rocket", "--name", "Other", "--replace")
    assert [each["name"] for each in (await ghapp.asked("grant", "list", "--json")).json()] == ["rocket", "Other"]


@pytest.mark.usefixtures("served")
async def test_a_grant_is_replaced_only_where_there_can_be_another(ghapp: Ghapp, github: StandIn) -> None:
    first = await lend(ghapp, "acme/rocket", "--name", "rocket")
    token = await password(first["socket"])

    refused = await ghapp.asked("grant", "create", "acme/nothing", "--name", "rocket", "--replace")
    assert refused.code == 1
    assert await password(first["socket"]) == token

    github.faults.add("installation/token", status=500, times=None)
    done = await ghapp.asked("grant", "create", "acme/probe", "--name", "rocket", "--replace")
    assert (done.code, "1 token of the grant before could not be revoked yet" in done.err) == (0, True)
    assert github.live_token(token) is not None


@pytest.fixture
def full() -> Iterator[IO[str]]:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w", encoding="utf-8") as file:
        yield file


@pytest.mark.parametrize("form", ["--json", "--read-only"])
async def test_a_grant_that_nobody_hears_of_is_not_lent(
    served: Daemon, full: IO[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        code = await asyncio.to_thread(cli.run, ["grant", "create", "acme/rocket", "--name", "rocket", form])

    assert code == 1
    assert capsys.readouterr().err == (
        "grant rocket has ended; revoked 0 tokens\nghapp: error: No space left on device\n"
    )
    assert len(served._lending) == 0


@pytest.mark.usefixtures("served")
async def test_several_are_revoked_at_once_and_one_that_is_missing_holds_up_no_other(ghapp: Ghapp) -> None:
    for name in ("a", "b", "c"):
        await lend(ghapp, "acme/rocket", "--name", name)

    some = await ghapp.asked("grant", "revoke", "a", "nobody", "b")
    everything = await ghapp.asked("grant", "revoke", "--all")

    assert some.code == 1
    assert "there is no grant nobody" in some.err
    assert [line.partition(" has")[0] for line in some.err.splitlines() if "has ended" in line] == [
        "grant a",
        "grant b",
    ]
    assert (everything.code, everything.err) == (0, "grant c has ended; revoked 0 tokens\n")
    assert (await ghapp.asked("grant", "revoke", "--all")).err == "nothing is lent\n"
    assert (await ghapp.asked("grant", "revoke")).code == 2
    assert (await ghapp.asked("grant", "revoke", "c", "--all")).code == 2


@pytest.mark.usefixtures("served")
async def test_names_of_grants_are_completed(ghapp: Ghapp) -> None:
    def complete(*words: str) -> list[str]:
        completer = BashComplete(cli.cli, {}, "ghapp", "_GHAPP_COMPLETE")
        return [item.value for item in completer.get_completions(list(words[:-1]), words[-1])]

    for name in ("rocket", "other"):
        await lend(ghapp, "acme/rocket", "--name", name)

    assert await asyncio.to_thread(complete, "grant", "revoke", "") == ["rocket", "other"]
    assert await asyncio.to_thread(complete, "grant", "run-args", "r") == ["rocket"]
    assert await asyncio.to_thread(complete, "log", "--grant", "o") == ["other"]


def test_without_a_daemon_that_can_be_asked_nothing_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grant, "call_if_running", Mock(side_effect=DaemonFailed("it hangs")))

    assert grant.complete_names(Mock(), Mock(), "") == []


@pytest.mark.usefixtures("served")
async def test_the_trail_and_the_leases_tell_what_went_through_a_grant(ghapp: Ghapp, directory: Path) -> None:
    await password(directory / "git.sock", "acme/probe")
    assert "GRANT" not in (await ghapp.asked("leases")).out
    await password((await lend(ghapp, "acme/rocket", "--name", "rocket"))["socket"])

    assert re.search(r" acme +rocket .* rocket *$", (await ghapp.asked("leases")).out, re.MULTILINE)
    assert re.search(r" acme +probe .* - *$", (await ghapp.asked("leases")).out, re.MULTILINE)
    lines = (await ghapp.asked("log", "--grant", "Rocket", "--json")).out.splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["grant", "mint", "answer"]
    assert (await ghapp.asked("log", "--grant", "other")).err == "nothing was recorded that fits\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("acme",), "neither OWNER/REPO nor OWNER/*"),
        (("https://github.com/acme/rocket.git",), "nor OWNER/*; did you mean 'acme/rocket'?"),
        (("git@github.com:acme/rocket.git",), "nor OWNER/*; did you mean 'acme/rocket'?"),
        (("acme/rocket", "--replace"), "--replace needs --name"),
        (("acme/rocket", "--name", "../x"), "cannot be a grant's name"),
        (("acme/rocket", "--for", "soon"), "is not a duration"),
        (("acme/rocket", "--for", "0s"), "is not between 1s and 366d"),
        (("acme/rocket", "--uid", "-1"), "'-1' is neither a uid nor a user of this machine"),
        (("acme/rocket", "--uid", "no-such-user"), "'no-such-user' is neither a uid nor a user of this machine"),
        (("acme/rocket", "--read-only", "--permission", "contents=write"), "contradicts"),
        (("acme/rocket", "--host", "-"), "is not a host's name"),
        ((), "missing argument"),
    ],
)
def test_wrong_usage_is_told_without_a_daemon(ghapp: Ghapp, arguments: tuple[str, ...], says: str) -> None:
    done = ghapp("grant", "create", *arguments)

    assert done.code == 2
    assert says in done.err


def test_without_an_app_nothing_can_be_lent(ghapp: Ghapp) -> None:
    assert "no app is registered" in ghapp("grant", "create", "acme/rocket").err


@pytest.mark.usefixtures("served")
async def test_an_owner_without_the_app_is_told_with_where_to_install_it(ghapp: Ghapp, github: StandIn) -> None:
    absent = "no app of yours is installed on other (E24)\nghapp: hint:"

    done = await ghapp.asked("grant", "create", "other/*")
    github.faults.add("app", status=501)
    unknown = await ghapp.asked("grant", "create", "other/*")

    assert done.code == unknown.code == 1
    assert f"{absent} install it: https://github.com/apps/acme-bot/installations/new\n" in done.err
    assert f"{absent} ghapp app list\n" in unknown.err


@pytest.mark.usefixtures("served")
async def test_permissions_without_contents_serve_no_git(ghapp: Ghapp) -> None:
    done = await ghapp.asked("grant", "create", "acme/rocket", "--permission", "issues=write")

    assert done.code == 2
    assert "git needs contents (E01)\nghapp: hint: add --permission contents=read" in done.err


@pytest.mark.parametrize("directory", ["/run/a,b", '/run/"a"', '/run/it\'s, "so"'])
def test_a_directory_with_a_comma_is_one_field_of_what_docker_reads(directory: str) -> None:
    for_shell = lent.shell(lent.for_container([], directory))
    for_dev = json.loads(lent.for_dev_container([], directory))["mounts"][0]

    for given in (shlex.split(for_shell)[1], for_dev):
        assert '"source=' in given  # Python's reader is laxer than Go's
        (fields,) = csv.reader([given])
        assert sorted(fields) == ["readonly", f"source={directory}", "target=/run/ghapp", "type=bind"]


def settings_of_git(given: dict[str, str], *arguments: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "GIT_CONFIG_NOSYSTEM": "1"} | given
    return subprocess.run(
        ["git", "config", *arguments], env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.usefixtures("served")
async def test_run_args_are_what_to_paste(
    ghapp: Ghapp, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grant, "LONGEST_FOR_SSH", 1000)
    await lend(ghapp, "acme/rocket", "--name", "rocket")
    place = directory / "grants" / "rocket"
    never_stores = (
        "!f() { [ $1 = store ] || exec git credential-cache --timeout=0 --socket=/run/ghapp/git.sock $1; }; f"
    )

    for engine in ("docker", "podman"):
        line = (await ghapp.asked("grant", "run-args", "rocket", engine)).out
        assert line.startswith(f"--mount type=bind,source={place},target=/run/ghapp,readonly --env ")
        assert f"'GIT_CONFIG_VALUE_1={never_stores}'" in line
        assert line.count("\n") == 1

    words = shlex.split((await ghapp.asked("grant", "run-args", "rocket", "docker")).out)
    variables = dict(word.split("=", 1) for word in words[3::2])
    found = json.loads((await ghapp.asked("grant", "run-args", "rocket", "devcontainer")).out)
    assert found == {
        "mounts": [f"source={place},target=/run/ghapp,type=bind,readonly"],
        "containerEnv": variables,
    }
    for old in (False, True):  # git before 2.31 does not read the variables that are counted
        given = {name: value for name, value in variables.items() if name.startswith("GIT_CONFIG_P") or not old}
        assert never_stores in settings_of_git(given, "--list")

    ssh = await ghapp.asked("grant", "run-args", "rocket", "ssh")
    assert ssh.out.startswith("-o ExitOnForwardFailure=yes -R /tmp/ghapp-rocket-")
    assert ssh.out.endswith(f".sock:{place}/git.sock\n")
    assert "git config --global --add credential.https://github.com.helper ''" in ssh.err

    monkeypatch.setattr(grant, "LONGEST_FOR_SSH", 10)
    long = await ghapp.asked("grant", "run-args", "rocket", "ssh")
    assert (long.code, long.out) == (1, "")
    assert "ssh takes no path as long as" in long.err

    lines = (await ghapp.asked("grant", "run-args", "rocket", "env")).out.splitlines()
    assert all(line.startswith("export GIT_CONFIG_") for line in lines)
    file = tmp_path / "gitconfig"
    file.write_text((await ghapp.asked("grant", "run-args", "rocket", "gitconfig")).out)
    assert settings_of_git({}, "--file", str(file), "--list").splitlines() == [
        "credential.https://github.com.helper=",
        f"credential.https://github.com.helper={never_stores}",
        "credential.https://github.com.usehttppath=true",
        "credential.https://github.com.username=x-access-token",
    ]
    assert (await ghapp.asked("grant", "run-args", "nobody", "env")).code == 1
    assert (await ghapp.asked("grant", "run-args", "rocket", "vmware")).code == 2


async def test_what_somebody_holds_cannot_be_all_of_an_owner(served: Daemon) -> None:
    with pytest.raises(Exception, match="name the repositories"):
        await served._lending.hold(["acme/*"], "github.com", permissions=None, read_only=False)


async def test_what_cannot_be_had_is_not_held(served: Daemon) -> None:
    await served._outside.wait_until_ready()
    with pytest.raises(Exception, match="not on nowhere"):
        await served._lending.hold(["acme/nowhere"], "github.com", permissions=None, read_only=False)
    assert len(served._lending) == 0
    await soon(lambda: not served._broker._minting._grants)


def test_nothing_is_there_before_anything_was_lent() -> None:
    with pytest.raises(GrantRefused, match="there is no grant x"):
        Lending("/nonexistent", None, None, None, None).revoke("x")  # type: ignore[arg-type]  # none of it is needed


# -- the audit trail -------------------------------------------------------------------------------------------------


def recorded(served: Daemon, name: str = "audit.jsonl") -> list[dict[str, Any]]:
    """Return the lines of one file, once those that wait are written."""
    served._audit.close()
    return [json.loads(line) for line in (config.state_dir() / name).read_text().splitlines()]


async def test_what_is_lent_and_its_end_stand_in_the_trail_and_what_is_done_with_it_in_a_file_of_its_own(
    ghapp: Ghapp, served: Daemon
) -> None:
    found = await lend(ghapp, "acme/rocket", "acme/probe", "--name", "box")
    token = await password(found["socket"])
    await ask(found["socket"], "acme/other")
    refused = await ghapp.asked("grant", "create", "acme/nowhere")
    await ghapp.asked("grant", "revoke", "box")

    of_box, trail = recorded(served, "audit-grant-box.jsonl"), recorded(served)
    assert [(line["action"], line["repository"], line["outcome"]) for line in of_box] == [
        ("mint", "acme/rocket", "ok"),
        ("answer", "acme/rocket", "ok"),
        ("refusal", "acme/other", "E71"),
    ]
    assert {line["grant"] for line in of_box} == {"box"}
    assert of_box[1]["token_sha256"] == token_sha256(token)
    assert [(line["action"], line["repository"], line["outcome"], line["grant"]) for line in trail] == [
        ("grant", None, "ok", "box"),
        ("grant", "acme/nowhere", "E20", None),
        ("grant-end", None, "ok", "box"),
        ("revocation", "acme/rocket", "ok", "box"),
    ]
    assert trail[0]["scope"]["repositories"] == ["acme/rocket", "acme/probe"]
    assert all(line["peer"]["pid"] == os.getpid() for line in trail)
    assert refused.code == 1
    about = (await ghapp.asked("log", "--repo", "acme/probe")).out
    assert [line.split()[2] for line in about.splitlines()] == ["grant", "grant-end"]
    assert "acme/rocket, acme/probe" in about


async def test_a_revocation_by_repository_takes_the_tokens_of_grants_too(
    ghapp: Ghapp, served: Daemon, github: StandIn
) -> None:
    found = await lend(ghapp, "acme/rocket")
    token = await password(found["socket"])

    done = await ghapp.asked("revoke", "acme/rocket")

    assert done.code == 0
    assert github.live_token(token) is None
    assert len(served._lending) == 1  # what was lent stays lent: the next command gets a new token
    assert await password(found["socket"]) != token


async def test_a_locked_daemon_lends_nothing_and_git_is_told_why(ghapp: Ghapp, served: Daemon) -> None:
    found = await lend(ghapp, "acme/rocket")
    await password(found["socket"])
    await ghapp.asked("lock")

    assert "(E42)" in await ask(found["socket"])
    served._broker.unlock()
    await password(found["socket"])


async def test_a_locked_daemon_still_ends_what_it_has_lent(ghapp: Ghapp, served: Daemon) -> None:
    found = await lend(ghapp, "acme/rocket", "--name", "box")
    await ghapp.asked("lock")

    done = await ghapp.asked("grant", "revoke", "box")
    served._broker.unlock()

    assert (done.code, done.err) == (0, "grant box has ended; revoked 0 tokens\n")  # locking has forgotten them
    assert "grant box ended at" in await ask(found["socket"])


async def test_every_end_has_a_line_also_where_no_daemon_saw_it(ghapp: Ghapp, directory: Path, app: App) -> None:  # noqa: ARG001  # configured
    async with running(directory) as daemon:
        unnamed = await lend(ghapp, "acme/rocket")
        await lend(ghapp, "acme/rocket", "--name", "stays")
        await lend(ghapp, "acme/rocket", "--name", "over")
        assert not [line for line in recorded(daemon) if line["action"] == "grant-end"]
        await daemon._stop(revoke=False)  # lets nobody in, and then ends, which lets nobody in
    (path,) = (config.state_dir() / "grants").rglob("over.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ends": 1.0}))

    async with running(directory) as daemon:
        ends = [line["grant"] for line in recorded(daemon) if line["action"] == "grant-end"]

    assert ends == [unnamed["name"], "over"]


async def test_a_restart_ends_the_tokens_of_what_does_not_come_back_and_no_others(
    ghapp: Ghapp, served: Daemon, directory: Path, github: StandIn
) -> None:
    named, unnamed = await lend(ghapp, "acme/rocket", "--name", "box"), await lend(ghapp, "acme/rocket")
    held, _ = await served._lending.hold(["acme/rocket"], "github.com", permissions=None, read_only=False)
    sockets = (named["socket"], str(held["socket"]), directory / "git.sock")
    kept = [await password(socket) for socket in sockets]
    gone = await password(unnamed["socket"])

    await served._stop(revoke=False)

    assert github.live_token(gone) is None
    assert all(github.live_token(token) is not None for token in kept)
