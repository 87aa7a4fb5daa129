"""`ghapp revoke` and `lock`, in this process: a daemon in the test's loop, the stand-in behind it."""

import asyncio
import io
import json
import re
import sys
import time
from pathlib import Path

import pytest
from command_line import Ghapp, register
from fakes_process import soon, talk
from standin.model import App
from standin.server import StandIn

from ghapp.cli import revoke
from ghapp.daemon import Daemon


NAMES = [f"r{number}" for number in range(12)]


@pytest.fixture
def app(github: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> App:
    """An app on acme with twelve repositories and on beta with one."""
    app = github.add_app("acme-bot", {"contents": "write"})
    for name in NAMES:
        github.add_repository(f"acme/{name}")
    github.add_repository("beta/one")
    github.install(app, "acme", repositories=NAMES)
    github.install(app, "beta", repositories=["one"])
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    register(app, tmp_path)
    return app


async def mint(directory: Path, *repositories: str) -> list[str]:
    """Ask for a token for each, and return them."""

    async def one(name: str) -> str:
        request = f"action=get\ntimeout=0\nghapp=1\nprotocol=https\nhost=github.com\npath={name}.git\n"
        answer = await asyncio.to_thread(talk, directory / "git.sock", request.encode())
        return str(dict(line.split("=", 1) for line in answer.decode().splitlines())["password"])

    return list(await asyncio.gather(*map(one, repositories)))


def dead(github: StandIn, *tokens: str) -> list[bool]:
    return [github.live_token(token) is None for token in tokens]


@pytest.mark.usefixtures("served")
async def test_a_target_ends_every_token_that_reaches_it_and_no_other(
    directory: Path, github: StandIn, ghapp: Ghapp
) -> None:
    first, second, other = await mint(directory, "acme/r0", "acme/r1", "beta/one")
    several = (await ghapp.asked("token", "acme/r0", "acme/r2")).out.strip()

    done = await ghapp.asked("revoke", "ACME/R0")

    assert (done.code, done.out) == (0, "")
    assert re.fullmatch(r"revoked 2 tokens in \d+\.\d s\n", done.err)
    assert dead(github, first, several, second, other) == [True, True, False, False]

    lease = next(one for one in (await ghapp.asked("leases", "--json")).json() if one["owner"] == "beta")
    found = (await ghapp.asked("revoke", lease["id"], "--json")).json()
    assert [one["token_sha256"] for one in found["revoked"]] == [lease["token_sha256"]]
    assert found["failed"] == []
    assert dead(github, other, second) == [True, False]

    (kept,) = await mint(directory, "beta/one")
    assert (await ghapp.asked("revoke", "acme/*")).code == 0
    assert dead(github, second, kept) == [True, False]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("moved_to", ["acme/saturn", "beta/saturn"])
@pytest.mark.parametrize("target", ["Acme/R0", "moved", "acme/*"])
async def test_a_token_is_ended_by_any_name_that_its_repository_is_known_by(
    directory: Path, app: App, github: StandIn, ghapp: Ghapp, *, moved_to: str, target: str
) -> None:
    repository = github.find_repository("acme", "r0")
    assert repository is not None
    github.rename(repository, moved_to)
    if moved_to.startswith("beta/"):
        on_beta = github.installation_on(app, "beta")
        assert on_beta is not None
        github.select(on_beta, repository)
    (token,) = await mint(directory, "acme/r0")  # as git goes on to ask
    several = (await ghapp.asked("token", "acme/r0")).out.strip()
    (kept,) = await mint(directory, "beta/one")

    assert (await ghapp.asked("revoke", "acme/other")).err == "no such token lives\n"
    assert "revoked 2 tokens in" in (await ghapp.asked("revoke", moved_to if target == "moved" else target)).err

    assert dead(github, token, several, kept) == [True, True, False]


@pytest.mark.parametrize("how", [("revoke", "--all"), ("lock", "--revoke"), ("revoke", "acme/*")])
@pytest.mark.parametrize("gone", ["the app", "its last key"])
async def test_a_token_outlives_neither_its_app_nor_its_apps_last_key_once_it_is_to_end(
    directory: Path, github: StandIn, ghapp: Ghapp, served: Daemon, *, how: tuple[str, ...], gone: str
) -> None:
    """As whoever has lost a key does: takes it out first, and ends what was minted by it then."""
    tokens = await mint(directory, "acme/r0", "acme/r1")
    if gone == "the app":
        assert (await ghapp.asked("app", "remove", "acme-bot", "--yes")).code == 0
    else:
        (key,) = (await ghapp.asked("key", "list", "--json")).json()
        assert (await ghapp.asked("key", "remove", key["fingerprint"], "--force", "--yes")).code == 0
    assert dead(github, *tokens) == [False, False]
    assert not any(key.signer._key for issuer in served._outside._key_holders for key in issuer._keys)  # type: ignore[attr-defined]

    done = await ghapp.asked(*how)

    assert (done.code, dead(github, *tokens)) == (0, [True, True]), done.err


@pytest.mark.usefixtures("served")
async def test_what_is_not_there_is_told(directory: Path, ghapp: Ghapp) -> None:
    assert (await ghapp.asked("revoke", "acme/r0")).err == "no such token lives\n"
    assert (await ghapp.asked("revoke", "--all", "--json")).json() == {"revoked": [], "failed": []}
    unknown = await ghapp.asked("revoke", "0123456789ab")
    assert (unknown.code, unknown.err) == (
        2,
        "ghapp: error: no lease 0123456789ab lives (any more) (E01)\nghapp: hint: ghapp leases\n",
    )
    for wrong in ([], ["--all", "acme/r0"], ["acme"], ["a/b/c"]):
        assert (await ghapp.asked("revoke", *wrong)).code == 2
    assert directory.exists()


def test_without_a_daemon_there_is_nothing_to_revoke_and_none_is_started(ghapp: Ghapp, directory: Path) -> None:
    assert ghapp("revoke", "--all").code == 0
    assert not (directory / "control.sock").exists()


@pytest.mark.usefixtures("served")
async def test_a_token_that_is_dead_already_counts_as_revoked(directory: Path, github: StandIn, ghapp: Ghapp) -> None:
    (token,) = await mint(directory, "acme/r0")
    github.revoke(token)

    assert "revoked 1 token in" in (await ghapp.asked("revoke", "--all")).err


@pytest.mark.usefixtures("served")
async def test_a_mint_under_way_is_waited_for_and_its_token_ended(
    directory: Path, github: StandIn, ghapp: Ghapp
) -> None:
    held = github.faults.add("info/refs", surface="git", delay=0.5)
    client = asyncio.create_task(mint(directory, "acme/r0"))
    await soon(held.reached.is_set)

    done = await ghapp.asked("revoke", "--all")

    assert "revoked 1 token in" in done.err
    assert dead(github, *await client) == [True]


@pytest.mark.usefixtures("served")
async def test_with_github_down_what_lives_on_is_listed_and_the_next_try_ends_it(
    directory: Path, github: StandIn, ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revoke, "PAUSE", 0.0)
    tokens = await mint(directory, *(f"acme/{name}" for name in NAMES))
    down = github.faults.add("/installation/token", method="DELETE", status=501, times=None)  # is not tried again

    failed = await ghapp.asked("revoke", "--all", "--json")

    assert failed.code == 1
    listed = json.loads(failed.out)["failed"]
    assert (len(listed), {one["code"] for one in listed}) == (12, {"E27"})
    assert failed.err.count("could not be revoked: ") == 12
    assert "the same command tries again" in failed.err
    assert not any(dead(github, *tokens))
    assert len((await ghapp.asked("leases", "--json")).json()) == 12
    assert await mint(directory, "acme/r0") != tokens[:1]  # nobody gets one that is to end

    down.over = True
    again = await ghapp.asked("revoke", "--all")

    assert (again.code, "revoked 13 tokens in" in again.err) == (0, True)
    assert all(dead(github, *tokens))


@pytest.mark.usefixtures("served")
async def test_with_github_half_down_what_failed_is_tried_again(
    directory: Path, github: StandIn, ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revoke, "PAUSE", 0.0)
    tokens = await mint(directory, *(f"acme/{name}" for name in NAMES))
    github.faults.add("/installation/token", method="DELETE", status=501, times=5)  # is not tried again below

    done = await ghapp.asked("revoke", "--all")

    assert (done.code, "revoked 12 tokens in" in done.err) == (0, True)
    assert all(dead(github, *tokens))


@pytest.mark.usefixtures("served")
async def test_when_github_wants_us_to_wait_for_a_moment_we_do(directory: Path, github: StandIn, ghapp: Ghapp) -> None:
    tokens = await mint(directory, *(f"acme/{name}" for name in NAMES))
    fault = github.faults.add(
        "/installation/token", status=429, headers={"retry-after": "1"}, body='{"message": "slow"}'
    )

    done = await ghapp.asked("revoke", "--all")

    assert (done.code, "revoked 12 tokens in" in done.err, fault.hits) == (0, True, 1)
    assert all(dead(github, *tokens))


@pytest.mark.usefixtures("served")
async def test_when_github_wants_us_to_wait_for_long_the_rest_is_told(
    directory: Path, github: StandIn, ghapp: Ghapp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revoke, "PAUSE", 0.0)
    (token,) = await mint(directory, "acme/r0")
    headers = {"retry-after": "600"}
    fault = github.faults.add(
        "/installation/token", status=429, headers=headers, body='{"message": "slow"}', times=None
    )

    done = await ghapp.asked("revoke", "--all", "--json")

    assert done.code == 1
    assert json.loads(done.out)["failed"][0]["code"] == "E26"
    assert fault.hits == 1  # nothing more is sent
    assert dead(github, token) == [False]


def test_progress_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = []
    for stream, total in ((Terminal(), 200), (Terminal(), 5), (io.StringIO(), 200)):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", stream)
        with revoke._progress(total) as progress:
            progress(100, "GitHub takes no more for 42 s")
        shown.append(stream.getvalue())

    assert "takes no more for 42 s" in shown[0]
    assert "50%" in shown[0]
    assert shown[1:] == ["", ""]


async def test_a_locked_daemon_holds_no_key_and_no_token_until_it_is_unlocked(
    directory: Path, github: StandIn, ghapp: Ghapp, served: Daemon
) -> None:
    tokens = await mint(directory, "acme/r0", "acme/r1")
    assert any(key.signer._key for issuer in served._outside._key_holders for key in issuer._keys)  # type: ignore[attr-defined]

    assert (await ghapp.asked("lock")).err == "locked\n"

    assert not any(key.signer._key for issuer in served._outside._key_holders for key in issuer._keys)  # type: ignore[attr-defined]
    assert (await ghapp.asked("leases", "--json")).json() == []
    assert dead(github, *tokens) == [False, False]
    assert "E42" in (await ghapp.asked("token", "acme/r0")).err
    assert (await ghapp.asked("status", "--json")).json()["locked"] is True
    assert "answers nothing" in (await ghapp.asked("status")).out
    request = b"action=get\ntimeout=0\nghapp=1\nprotocol=https\nhost=github.com\npath=acme/r0.git\n"
    answer = await asyncio.to_thread(talk, directory / "git.sock", request)
    assert b"error=ghapp is locked (E42)\nhint=ghapp unlock\n" in answer
    assert b"quit=1\n" in answer
    minted = len(github.mints)

    assert "unlocked" in (await ghapp.asked("unlock")).err
    await mint(directory, "acme/r0")
    assert len(github.mints) == minted + 1


@pytest.mark.usefixtures("served")
async def test_locking_can_end_the_tokens_too(directory: Path, github: StandIn, ghapp: Ghapp) -> None:
    tokens = await mint(directory, "acme/r0", "acme/r1")
    assert (await ghapp.asked("lock", "--revoke", "--json")).json() == {
        "locked": True,
        "revoked": 2,
        "not_revoked": 0,
    }
    assert dead(github, *tokens) == [True, True]


@pytest.mark.usefixtures("served")
async def test_a_lock_that_could_not_end_a_token_says_so_and_revoke_still_can(
    directory: Path, github: StandIn, ghapp: Ghapp
) -> None:
    (token,) = await mint(directory, "acme/r0")
    down = github.faults.add("/installation/token", method="DELETE", status=501, times=None)
    failed = await ghapp.asked("lock", "--revoke")
    assert (failed.code, "1 token could not be revoked" in failed.err) == (1, True)

    down.over = True
    assert (await ghapp.asked("revoke", "--all")).code == 0
    assert dead(github, token) == [True]


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_two_hundred_tokens_are_revoked_at_githubs_pace(
    directory: Path, app: App, github: StandIn, ghapp: Ghapp, served: Daemon
) -> None:
    """GitHub takes 900 points a minute, five for each: 200 are more than that."""
    names = [f"more{number}" for number in range(200)]
    installation = github.installation_on(app, "acme")
    assert installation is not None

    def add_repositories() -> None:
        for name in names:
            github.select(installation, github.add_repository(f"acme/{name}"))

    await asyncio.to_thread(add_repositories)  # the watchdog of the daemon in this loop would not wait for that many
    tokens = []
    for start in range(0, 200, 20):
        tokens += await mint(directory, *(f"acme/{name}" for name in names[start : start + 20]))
        served._broker._restraint._paces.clear()  # our own limit on mints is another test's
    github.settings.secondary_limit = 900

    began = time.monotonic()
    done = await ghapp.asked("revoke", "--all")
    seconds = time.monotonic() - began

    deletes = [request for request in github.requests if request.method == "DELETE"]
    assert (done.code, "revoked 200 tokens in" in done.err) == (0, True)
    assert ({request.status for request in deletes}, len(deletes)) == ({204}, 200)
    assert all(dead(github, *tokens))
    assert 50 < seconds < 120  # about 61 s, and a busy machine
