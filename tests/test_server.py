"""git.sock's protocol: what is answered, and to whom."""

import asyncio
import os
from pathlib import Path

import pytest
from fakes import FakeClock, ScriptedIssuer, make_app
from fakes_process import soon, talk

from ghapp.broker import Broker
from ghapp.clock import SystemClock
from ghapp.credential import Credential, Query
from ghapp.errors import GhappError, NetworkFailed, NotSelected
from ghapp.grant import Grant
from ghapp.listener import Listener
from ghapp.server import VERSION, GitServer


GET = b"action=get\ntimeout=0\n"
OURS = GET + b"ghapp=1\n"
ROCKET = b"protocol=https\nhost=github.com\npath=acme/rocket.git\n"


class FakeBroker(Broker):
    """Answers what the test put in."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.answer: Credential | Exception | None = None
        self.erased: list[str] = []

    async def fill(self, query: Query, grant: Grant | None = None) -> Credential | None:
        assert (query.host, grant) == ("github.com", None)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def erase(self, password: str, grant: str = "") -> bool:
        assert not grant
        self.erased.append(password)
        return True


class Fixture:
    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.quits = True
        self.problem: GhappError | None = None
        self.noted: list[GhappError] = []
        self.server = GitServer(
            self.broker,
            hosts=lambda: {"github.com"},
            ready=self.ready,
            quit_on_error=lambda: self.quits,
            on_error=self.noted.append,
        )

    async def ready(self) -> None:
        if self.problem is not None:
            raise self.problem

    async def ask(self, data: bytes) -> bytes:
        return await self.server.respond(data)


@pytest.fixture
def git() -> Fixture:
    return Fixture()


async def test_a_credential_is_answered_whole_with_the_marker_last(git: Fixture) -> None:
    git.broker.answer = Credential("lease", "t0ken", 2_000_000_000)

    answer = await git.ask(OURS + ROCKET)

    lines = b"username=x-access-token\npassword=t0ken\npassword_expiry_utc=2000000000\n"
    assert answer == lines + b"ghapp=1\n"
    assert await git.ask(GET + ROCKET) == lines


async def test_a_foreign_request_is_answered_by_nothing(git: Fixture) -> None:
    git.broker.answer = Credential("lease", "t0ken", 2_000_000_000)

    assert await git.ask(GET + b"protocol=https\nhost=gitlab.com\npath=a/b\n") == b""
    assert await git.ask(OURS + b"protocol=https\nhost=gitlab.com\npath=a/b\n") == b"ghapp=1\n"


async def test_no_app_on_that_owner_is_answered_by_nothing(git: Fixture) -> None:
    assert await git.ask(OURS + ROCKET) == b"ghapp=1\n"


async def test_a_failure_is_explained_to_our_client_and_stops_git(git: Fixture) -> None:
    git.broker.answer = NetworkFailed("no\x1b[2Jnet", hint="wait")

    assert await git.ask(OURS + ROCKET) == b"error=no?[2Jnet (E11)\nhint=wait\nquit=1\nghapp=1\n"
    assert await git.ask(GET + ROCKET) == b""
    assert git.noted == [git.broker.answer] * 2
    git.quits = False
    assert await git.ask(OURS + ROCKET) == b"error=no?[2Jnet (E11)\nhint=wait\nghapp=1\n"


async def test_what_cannot_be_had_lets_git_go_on(git: Fixture) -> None:
    git.broker.answer = NotSelected("not there")

    assert await git.ask(OURS + ROCKET) == b"error=not there (E20)\nghapp=1\n"


@pytest.mark.parametrize("marker", [b"", b"ghapp=1\n"], ids=["git's own client", "ours"])
@pytest.mark.parametrize(
    "states", [["ghapp:LEASE"], ["ghapp:unknown"], ["ghapp:"], ["other:1", "ghapp:LEASE"], ["ghapp:LEASE", "other:1"]]
)
async def test_whatever_state_git_comes_back_with_ghapp_never_continues_twice(
    git: Fixture, states: list[str], marker: bytes
) -> None:
    git.broker.answer = Credential("LEASE", "t0ken", 2_000_000_000)
    request = GET + marker + b"capability[]=authtype\ncapability[]=state\n" + ROCKET

    first = await git.ask(request)
    again = await git.ask(request + b"".join(f"state[]={state}\n".encode() for state in states))

    assert b"capability[]=state\n" in first
    assert b"state[]=ghapp:LEASE\ncontinue=1\n" in first
    assert b"password=t0ken\n" in again
    for word in (b"continue", b"state"):
        assert word not in again


async def test_a_git_whose_every_request_is_rejected_asks_twice_for_ghapp_never_continues_twice() -> None:
    """What git 2.46 and later do with a 401: as long as it is told to continue, it asks again, and sends again."""
    clock = FakeClock()
    broker, issuer = Broker(clock), ScriptedIssuer(make_app(), clock)
    issuer.install("rocket")
    broker.configure([issuer])
    git = GitServer(broker, hosts=lambda: {"github.com"}, ready=Fixture().ready, quit_on_error=lambda: True)
    state = b""
    passwords: list[bytes] = []

    while len(passwords) < 10:
        answer = (await git.respond(GET + b"capability[]=state\n" + ROCKET + state)).splitlines()
        passwords += [line for line in answer if line.startswith(b"password=")]
        state = b"".join(line + b"\n" for line in answer if line.startswith(b"state[]="))
        if b"continue=1" not in answer:
            break

    assert len(passwords) == len(set(passwords)) == 2
    assert issuer.minted == 2


async def test_a_daemon_that_cannot_get_ready_says_so(git: Fixture) -> None:
    git.problem = NetworkFailed("not whole")

    assert b"error=not whole (E11)\n" in await git.ask(OURS + ROCKET)


async def test_a_bug_is_answered_by_its_kind_alone(git: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    git.broker.answer = KeyError("a secret")

    answer = await git.ask(OURS + ROCKET)

    assert b"error=the daemon failed unexpectedly: KeyError (E41)\n" in answer
    assert answer.endswith(b"quit=1\nghapp=1\n")
    assert "secret" not in caplog.text


async def test_erase_hands_on_the_password_and_answers_nothing(git: Fixture) -> None:
    assert await git.ask(b"action=erase\ntimeout=0\n" + ROCKET + b"password=old\n") == b""
    assert await git.ask(b"action=erase\ntimeout=0\nghapp=1\n" + ROCKET) == b"ghapp=1\n"
    assert git.broker.erased == ["old", ""]


async def test_hello_says_who_answers(git: Fixture) -> None:
    answer = await git.ask(b"action=hello\ntimeout=0\nghapp=1\n")

    assert answer == f"version={VERSION}\npid={os.getpid()}\nghapp=1\n".encode()


@pytest.mark.parametrize("action", [b"store", b"exit", b"unheard-of"])
async def test_other_operations_are_ignored(git: Fixture, action: bytes) -> None:
    assert await git.ask(b"action=" + action + b"\ntimeout=0\n") == b""


async def test_what_git_would_not_send_is_refused_with_a_reason_for_our_client(git: Fixture) -> None:
    twice = ROCKET + b"host=evil.example\n"

    assert await git.ask(GET + twice) == b""
    answer = await git.ask(OURS + twice)
    assert answer.startswith(b"error=the request says something twice")
    assert b"evil" not in answer
    assert b"quit" not in answer


async def test_one_connection_is_one_request(git: Fixture, tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "git.sock"), git.server.handle)
    listener.open()

    answer = await asyncio.to_thread(talk, tmp_path / "git.sock", b"action=hello\ntimeout=0\nghapp=1\n")

    assert answer.endswith(b"\nghapp=1\n")
    assert await asyncio.to_thread(talk, tmp_path / "git.sock", b"x" * 70_000) == b""
    await soon(lambda: listener.connections == 0)
    listener.stop_accepting()
    await listener.drain(0.1)
