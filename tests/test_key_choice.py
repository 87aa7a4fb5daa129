"""Which of an app's keys signs: a dead or missing one is passed over, and not shown to GitHub again and again."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from fakes import FakeClock, make_app
from standin import keys
from standin.server import StandIn

from ghapp import key_choice
from ghapp.errors import AppRejected, GhappError, KeyringLocked, KeyUnavailable, NetworkFailed
from ghapp.github import AppClient, GitHub
from ghapp.key_choice import Identity, Key, Verdicts, none_works
from ghapp.network import Network
from ghapp.private_key import fingerprint
from ghapp.routing import App


class OneKey:
    """A signer with a key in memory, which can be taken away; without a fingerprint then, as a file has none."""

    def __init__(self, key: RSAPrivateKey) -> None:
        self.key = key
        self.problem: GhappError | None = None
        self.forgotten = 0

    def fingerprint(self) -> str:
        if self.problem is not None:
            raise self.problem
        return fingerprint(self.key)

    def sign(self, message: bytes) -> bytes:
        if self.problem is not None:
            raise self.problem
        return self.key.sign(message, padding.PKCS1v15(), hashes.SHA256())

    def forget(self) -> None:
        self.forgotten += 1


class World:
    """One app on GitHub with two keys, both configured."""

    def __init__(self, github: StandIn) -> None:
        self.github = github
        self.app = github.add_app("acme-bot", {"contents": "write"})
        self.app.add_key()
        github.install(self.app, "acme")
        self.signers = [OneKey(key) for key in self.app.private_keys]
        self.names = [signer.fingerprint() for signer in self.signers]
        self.clock = FakeClock(wall_time=time.time())
        self.threads = ThreadPoolExecutor(4)
        network = Network(github.proxy_url, "HTTPS_PROXY", ca_file=str(github.ca_file), ca_origin="SSL_CERT_FILE")
        self.api = GitHub("https://api.github.com", network, self.clock, pauses=())

    def configured(self, issuer: str = "") -> App:
        references = tuple(f"file:/{number}.pem" for number in range(len(self.signers)))
        return make_app(issuer=issuer or self.app.client_id, keys=references)

    def client(self, *, issuer: str = "", afresh: bool = False) -> AppClient:
        return AppClient(self.configured(issuer), self.signers, self.api, self.threads, afresh=afresh)

    def advance(self, seconds: float) -> None:
        """Let time pass, here and at GitHub."""
        self.clock.advance(seconds)
        self.github.clock.advance(seconds)

    def remove(self, number: int) -> None:
        """Delete a key at GitHub."""
        self.app.remove_key(keys.pem(self.signers[number].key))

    @property
    def rejections(self) -> int:
        return sum(request.status == 401 for request in self.github.requests)


@asynccontextmanager
async def open_world(github: StandIn) -> AsyncIterator[World]:
    world = World(github)
    try:
        yield world
    finally:
        await world.api.aclose()
        world.threads.shutdown()


@pytest.fixture
async def world(github: StandIn) -> AsyncIterator[World]:
    async with open_world(github) as opened:
        yield opened


async def failure(client: AppClient) -> GhappError:
    with pytest.raises(GhappError) as caught:
        await client.get_app()
    return caught.value


async def test_the_first_key_is_used_where_it_works(world: World) -> None:
    client = world.client()

    await client.get_app()

    assert client.accepted == world.names[0]
    assert await client.fingerprint() == world.names[0]


async def test_a_key_that_is_gone_is_passed_over_without_asking_anybody(world: World) -> None:
    world.signers[0].problem = KeyUnavailable("cannot open /0.pem: gone")
    client = world.client()

    await client.get_app()

    assert client.accepted == world.names[1]
    assert await client.fingerprint() == world.names[1]
    assert [request.status for request in world.github.requests] == [200]


async def test_a_key_that_github_rejects_is_passed_over_and_the_one_that_worked_is_remembered(world: World) -> None:
    world.remove(0)
    client = world.client()

    for _ in range(3):
        await client.get_app()
        world.advance(61)

    assert client.accepted == world.names[1]
    assert [request.status for request in world.github.requests] == [401, 200, 200, 200]


async def test_a_key_that_dies_in_use_is_passed_over_in_the_same_call(world: World) -> None:
    client = world.client()
    await client.get_app()
    world.remove(0)

    assert (await client.get_app())["id"] == world.app.id

    assert [request.status for request in world.github.requests] == [200, 401, 200]


async def test_leases_go_by_the_same_name_whichever_key_signs(world: World) -> None:
    client = world.client()
    before = await client.fingerprint()
    world.signers[0].problem = KeyUnavailable("gone")

    await client.get_app()

    assert client.accepted == world.names[1]
    assert await client.fingerprint() == before == world.names[0]


async def test_when_the_one_in_use_dies_the_other_is_asked_again_but_no_more_than_once_a_minute(world: World) -> None:
    first = world.app.private_keys[0]
    world.remove(0)
    client = world.client()
    await client.get_app()
    world.remove(1)
    world.app.private_keys.append(first)  # it was only late at GitHub

    error = await failure(client)
    assert isinstance(error, AppRejected)
    assert world.rejections == 2
    assert isinstance(await failure(client), AppRejected)
    assert world.rejections == 2

    world.advance(60)
    await client.get_app()
    assert client.accepted == world.names[0]


async def test_with_all_keys_dead_the_error_names_each_and_github_is_asked_once_a_minute_with_each(
    world: World,
) -> None:
    other = world.github.add_app("other").private_keys[0]
    world.signers = [OneKey(other), OneKey(world.app.private_keys[1])]
    world.remove(1)
    names = [signer.fingerprint() for signer in world.signers]

    errors = [await failure(world.client()) for _ in range(5)]

    assert {type(error) for error in errors} == {AppRejected}
    assert errors[0].message == (
        f"no key of app {world.app.client_id} works: {names[0]}: GitHub does not accept it;"
        f" {names[1]}: GitHub does not accept it"
    )
    assert errors[-1].message == errors[0].message
    assert errors[0].hint == (
        "make a key at https://github.com/settings/apps, "
        "an organisation's: https://github.com/organizations/ORG/settings/apps; then: ghapp key add FILE --app acme-bot"
    )
    assert world.rejections == 2
    world.advance(60)
    await failure(world.client())
    assert world.rejections == 4


async def test_a_locked_keyring_beside_a_dead_key_is_what_can_be_mended(world: World) -> None:
    world.remove(0)
    world.signers[1].problem = KeyringLocked("the keyring is locked", hint="ghapp unlock")

    error = await failure(world.client())

    assert (type(error), error.hint) == (KeyringLocked, "ghapp unlock")
    assert error.message == (
        f"no key of app {world.app.client_id} works: {world.names[0]}: GitHub does not accept it;"
        " /1.pem: the keyring is locked"
    )


async def test_without_any_key_at_hand_the_name_for_leases_is_refused_with_the_reasons(world: World) -> None:
    for signer in world.signers:
        signer.problem = KeyUnavailable("gone", hint="look")

    with pytest.raises(KeyUnavailable) as caught:
        await world.client().fingerprint()

    assert caught.value.message == f"no key of app {world.app.client_id} works: /0.pem: gone; /1.pem: gone"
    assert world.github.requests == []


async def test_a_hundred_at_once_show_a_dead_key_once(world: World) -> None:
    world.remove(0)
    world.github.settings.login_attempts = 2  # one more, and everybody is locked out
    client = world.client()

    found = await asyncio.gather(*(client.get_app() for _ in range(100)))

    assert {body["id"] for body in found} == {world.app.id}
    assert world.rejections == 1


async def test_a_new_configuration_does_not_show_a_dead_key_again(world: World) -> None:
    world.remove(0)
    await world.client().get_app()

    await world.client().get_app()

    assert [request.status for request in world.github.requests] == [401, 200, 200]


async def test_who_wants_to_know_now_asks_with_each_key_and_what_comes_back_counts(world: World) -> None:
    only = world.app.private_keys[0]
    world.signers = [OneKey(only)]
    world.app.private_keys.remove(only)
    await failure(world.client())
    await failure(world.client(afresh=True))
    assert world.rejections == 2
    world.app.private_keys.append(only)

    await world.client(afresh=True).get_app()

    await world.client().get_app()
    assert world.rejections == 2


async def test_an_id_that_github_does_not_know_is_not_tried_with_each_key(world: World) -> None:
    error = await failure(world.client(issuer="99999"))

    assert error.message == "GitHub knows no app 99999"
    assert len(world.github.requests) == 1


async def test_an_id_that_is_none_is_not_tried_with_each_key(world: World) -> None:
    world.github.faults.add(
        "^/app",
        times=None,
        status=401,
        headers={"content-type": "application/json"},
        body="{\"message\": \"'Issuer' claim ('iss') must be an Integer\"}",
    )

    assert isinstance(await failure(world.client()), AppRejected)
    assert len(world.github.requests) == 1


async def test_a_network_that_fails_is_not_the_keys_fault(world: World) -> None:
    world.github.faults.add("^/app", cut=True)

    assert isinstance(await failure(world.client()), NetworkFailed)
    assert len(world.github.requests) == 1


async def test_all_keys_leave_memory_together(world: World) -> None:
    world.remove(0)
    client = world.client()
    await client.get_app()

    client.forget()

    assert [signer.forgotten for signer in world.signers] == [1, 1]


def test_rejected_keys_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_choice, "MAX_REJECTED", 3)
    verdicts = Verdicts()
    for number in range(10):
        verdicts.reject(Identity("app", f"SHA256:{number}"), AppRejected("no"), 0.0)

    verdicts.raise_rejected(Identity("app", "SHA256:6"), 1.0)
    with pytest.raises(AppRejected):
        verdicts.raise_rejected(Identity("app", "SHA256:7"), 1.0)


def test_what_is_said_of_a_key_is_said_of_it_in_one_app() -> None:
    verdicts = Verdicts()
    verdicts.reject(Identity("one", "SHA256:k"), AppRejected("no"), 0.0)

    verdicts.raise_rejected(Identity("two", "SHA256:k"), 1.0)


def test_a_single_key_speaks_for_itself(github: StandIn) -> None:
    error = AppRejected("no")

    failures = [(Key("file:/k", OneKey(github.add_app("x").private_keys[0])), error)]
    assert none_works("bot", "1", failures, host="github.com") is error


def test_a_key_is_not_shown_by_its_repr(github: StandIn, tmp_path: Path) -> None:
    key = Key(f"file:{tmp_path}", OneKey(github.add_app("x").private_keys[0]))

    assert "OneKey" not in repr(key)
