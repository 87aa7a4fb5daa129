"""The API client against the stand-in: real HTTP, real TLS, through the stand-in's proxy."""

import asyncio
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from fakes import FakeClock
from fakes_process import closed_port
from standin import keys, model
from standin.server import StandIn

from ghapp import config
from ghapp.clock import SystemClock
from ghapp.config import api_url
from ghapp.credential import Repository
from ghapp.errors import (
    AppRejected,
    BadAnswer,
    ClockRejected,
    Failed,
    Forbidden,
    GhappError,
    GitHubFailing,
    NetworkFailed,
    NotInstalled,
    NotSelected,
    NotTheApi,
    PermissionMissing,
    ProxyFailed,
    RateLimited,
    Suspended,
    TlsFailed,
)
from ghapp.github import MAX_BODY, MAX_YOUNG, REVOKE_PAUSES, AppClient, GitHub
from ghapp.installation import ALL, Installation, InstallationId, Permissions, Repositories, Scope
from ghapp.key_choice import pages
from ghapp.network import Network, mend
from ghapp.private_key import fingerprint, load_key
from ghapp.protocols import IssuedToken, Signer
from ghapp.revocation import REVOKE_BUDGET
from ghapp.routing import App, Place
from ghapp.signers.file import FileSigner


ONE = Repository("acme", "one")
CONTENTS: Permissions = (("contents", "write"),)
JSON = {"content-type": "application/json; charset=utf-8"}


class MemorySigner:
    """Signs with a key that is loaded already: checking one takes 40 ms."""

    def __init__(self, key: RSAPrivateKey) -> None:
        self._key = key

    def fingerprint(self) -> str:
        return fingerprint(self._key)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())

    def forget(self) -> None:
        pass


class World:
    """An app on acme, with the repositories one and two selected, and what reaches it."""

    def __init__(self, github: StandIn, directory: Path) -> None:
        self.github = github
        self.app = github.add_app("acme-bot", {"contents": "write", "issues": "write"})
        self.installation = github.install(self.app, "acme", ["one", "two"])
        self.one = self.add_repository("acme/one")
        self.key = directory / "key.pem"
        self.write_key(self.app.private_key_pem)
        self.clock = FakeClock(wall_time=time.time())
        self.network = Network(github.proxy_url, "HTTPS_PROXY", ca_file=str(github.ca_file), ca_origin="SSL_CERT_FILE")

    def add_repository(self, name: str) -> model.Repository:
        """Add a repository without the git behind it, which nobody asks for here."""
        login, _, plain = name.partition("/")
        github = self.github
        repository = model.Repository(
            id=next(github._repository_ids),
            account=github.add_account(login),
            name=plain,
            private=True,
            bare_path=Path("/nonexistent"),
            created_at=time.time(),
        )
        github.repositories[repository.id] = repository
        for installation in github.installations.values():
            github._select_awaited(installation, repository)
        return repository

    def write_key(self, pem: bytes) -> None:
        self.key.write_bytes(pem)
        self.key.chmod(0o600)

    def configured(self, host: str = "github.com", issuer: str = "") -> App:
        return App("bot", host, api_url(host), issuer or self.app.client_id, (f"file:{self.key}",))

    @asynccontextmanager
    async def client(
        self,
        *,
        network: Network | None = None,
        app: App | None = None,
        clock: FakeClock | SystemClock | None = None,
        signer: Signer | None = None,
        call_budget: float = 12.0,
        pauses: Sequence[float] = (),
        revoke_pauses: Sequence[float] = (),
        **options: Any,
    ) -> AsyncIterator[AppClient]:
        app = app or self.configured()
        github = GitHub(
            app.api,
            network or self.network,
            clock or self.clock,
            call_budget=call_budget,
            pauses=pauses,
            revoke_pauses=revoke_pauses,
        )
        with ThreadPoolExecutor(2) as threads:
            try:
                yield AppClient(app, [signer or MemorySigner(self.app.private_keys[0])], github, threads, **options)
            finally:
                await github.aclose()

    def scope(
        self, repositories: Repositories = ("one",), permissions: Permissions = CONTENTS, installation: int = 0
    ) -> Scope:
        number = InstallationId(installation or self.installation.id)
        return Scope("https://api.github.com", self.app.client_id, "k", number, repositories, permissions)

    def seen(self, suffix: str = "") -> list[str]:
        return [f"{request.method} {request.path}" for request in self.github.requests if request.path.endswith(suffix)]


@pytest.fixture
def world(github: StandIn, tmp_path: Path) -> World:
    return World(github, tmp_path)


def assert_nothing_secret(error: BaseException, world: World) -> None:
    """Look at all that anybody could print of an error, its causes included."""
    texts = []
    seen: BaseException | None = error
    while seen is not None:
        texts += [str(seen), repr(seen), getattr(seen, "hint", ""), repr(seen.args)]
        assert seen.__suppress_context__ or seen.__context__ is None
        seen = seen.__cause__
    text = "\n".join(texts)
    assert not re.search(r"ghs_|eyJ[\w-]+\.|PRIVATE KEY|Bearer", text)
    for line in world.key.read_text().splitlines()[1:-1] if world.key.exists() else []:
        assert line not in text


async def failure(world: World, call: Callable[[AppClient], Any], **options: Any) -> GhappError:
    async with world.client(**options) as client:
        with pytest.raises(GhappError) as caught:
            await call(client)
    assert_nothing_secret(caught.value, world)
    return caught.value


def mint(world: World) -> Callable[[AppClient], Any]:
    return lambda client: client.create_token(world.scope())


def look_up(client: AppClient) -> Any:
    return client.find_by_repository(ONE)


# -- what GitHub says ----------------------------------------------------------------------------------------------


async def test_a_repository_leads_to_its_installation(world: World) -> None:
    async with world.client() as client:
        place = await client.find_by_repository(Repository("ACME", "One"))
        installation = await client.find_by_owner("Acme")

    expected = Installation(
        id=InstallationId(world.installation.id),
        account="acme",
        permissions=(("contents", "write"), ("issues", "write"), ("metadata", "read")),
        repository_selection="selected",
        suspended=False,
        html_url=f"https://github.com/organizations/acme/settings/installations/{world.installation.id}",
    )
    assert place == Place(expected, "one")
    assert installation == expected


async def test_what_is_not_there_is_none(world: World) -> None:
    async with world.client() as client:
        assert await client.find_by_repository(Repository("acme", "three")) is None
        assert await client.find_by_repository(Repository("torvalds", "linux")) is None
        assert await client.find_by_owner("torvalds") is None


async def test_a_renamed_repository_is_found_by_id_and_minted_by_id(world: World) -> None:
    world.github.rename(world.one, "acme/uno")

    async with world.client() as client:
        place = await client.find_by_repository(ONE)
        assert place is not None
        issued = await client.create_token(world.scope((place.repository,)))

    assert place.repository == world.one.id
    assert issued.repositories == ((world.one.id, "uno"),)
    assert world.github.mints[-1].asked == {"permissions": {"contents": "write"}, "repository_ids": [world.one.id]}


async def test_a_suspended_installation_says_so_when_it_is_looked_up(world: World) -> None:
    world.github.suspend(world.installation)

    async with world.client() as client:
        place = await client.find_by_repository(ONE)

    assert place is not None
    assert place.installation.suspended


async def test_names_go_to_the_api_as_one_part_of_the_path(world: World) -> None:
    async with world.client() as client:
        assert await client.find_by_owner("a/../app?x#y") is None
        assert await client.find_by_repository(Repository("a b", "c%2f..")) is None

    world.github.violations.clear()  # no name of the description looks like these
    assert world.github.requests[0].query == ""
    assert world.seen()[0] == "GET /users/a/../app?x#y/installation"  # decoded by the server, once


@pytest.mark.parametrize(
    ("repositories", "asked"),
    [
        (("one",), {"repositories": ["one"]}),
        (("one", "two"), {"repositories": ["one", "two"]}),
        (ALL, {}),
    ],
)
async def test_a_mint_asks_for_exactly_the_scope(
    world: World, repositories: Repositories, asked: dict[str, Any]
) -> None:
    world.add_repository("acme/two")

    async with world.client() as client:
        issued = await client.create_token(world.scope(repositories))

    assert world.github.mints[-1].asked == {"permissions": {"contents": "write"}} | asked
    assert issued == IssuedToken(
        token=world.github.mints[-1].token,
        ends=issued.ends,
        permissions=(("contents", "write"), ("metadata", "read")),
        repository_selection="selected",
        repositories=tuple(
            (item.id, item.name)
            for item in world.github.repositories.values()
            if repositories is not ALL and item.name in repositories
        ),
    )
    assert world.clock.boot_time + 3597 <= issued.ends <= world.clock.boot_time + 3600


async def test_names_and_ids_are_asked_for_side_by_side(world: World) -> None:
    two = world.add_repository("acme/two")

    async with world.client() as client:
        issued = await client.create_token(world.scope((two.id, "one")))

    assert world.github.mints[-1].asked["repositories"] == ["one"]
    assert world.github.mints[-1].asked["repository_ids"] == [two.id]
    assert sorted(issued.repositories) == [(world.one.id, "one"), (two.id, "two")]


async def test_a_token_is_revoked_and_a_dead_one_counts_as_revoked(world: World) -> None:
    async with world.client() as client:
        issued = await client.create_token(world.scope())
        await client.revoke_token(issued.token)
        await client.revoke_token(issued.token)

    assert world.github.tokens[issued.token].revoked
    assert [r.status for r in world.github.requests if r.method == "DELETE"] == [204, 401]


LAGGING = [(401, "Bad credentials"), (403, "Resource not accessible by integration"), (404, "Not Found")]


@pytest.mark.parametrize(("status", "message"), LAGGING)
async def test_a_token_that_github_does_not_know_yet_is_ended_all_the_same(
    world: World, status: int, message: str
) -> None:
    async with world.client(revoke_pauses=(0.0, 0.0, 0.0)) as client:
        issued = await client.create_token(world.scope())
        lag = world.github.faults.add("/installation/token", times=3, **refusal(message, status))
        await client.revoke_token(issued.token)

    assert lag.hits == 3
    assert world.github.tokens[issued.token].revoked


@pytest.mark.parametrize(("age", "calls"), [(9.9, 4), (10.0, 1)])
async def test_only_a_new_token_may_be_unknown(world: World, *, age: float, calls: int) -> None:
    async with world.client(revoke_pauses=(0.0, 0.0, 0.0)) as client:
        issued = await client.create_token(world.scope())
        world.github.tokens[issued.token].revoked = True
        world.clock.advance(age)
        await client.revoke_token(issued.token)
        await client.revoke_token(issued.token)  # what GitHub says of it now is believed
        await client.revoke_token("ghs_that_was_minted_elsewhere")

    assert len(world.seen("/installation/token")) == calls + 2


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"status": 403, "headers": JSON | {"retry-after": "60"}, "body": '{"message": "slow down"}'}, RateLimited),
        ({"status": 403, "headers": JSON, "body": '{"message": "This installation has been suspended"}'}, Suspended),
        ({"status": 404, "headers": JSON, "body": '{"message": "Not Found"}'}, NotInstalled),
    ],
)
async def test_a_new_token_whose_end_is_refused_counts_as_alive(
    world: World, fault: dict[str, Any], kind: type[GhappError]
) -> None:
    async with world.client(revoke_pauses=(0.0,)) as client:
        issued = await client.create_token(world.scope())
        world.github.faults.add("/installation/token", times=None, **fault)
        with pytest.raises(kind):
            await client.revoke_token(issued.token)

    assert len(world.seen("/installation/token")) == (2 if kind is NotInstalled else 1)


async def test_the_tokens_that_may_be_unknown_are_bounded_and_kept_as_hashes(world: World) -> None:
    async with world.client() as client:
        for number in range(MAX_YOUNG + 10):
            client._github.note_mint(f"ghs_{number}", world.clock.boot())

        assert len(client._github._minted) == MAX_YOUNG
        assert not client._github._is_young("ghs_0")
        assert client._github._is_young(f"ghs_{MAX_YOUNG}")
        assert "ghs_" not in repr(client._github._minted)


def test_the_tries_to_end_a_new_token_fit_into_the_time_there_is() -> None:
    assert sum(REVOKE_PAUSES) <= REVOKE_BUDGET - 1


async def test_a_revocation_that_fails_says_so(world: World) -> None:
    async with world.client() as client:
        issued = await client.create_token(world.scope())
        world.github.faults.add("/installation/token", status=502, body="<html>")
        with pytest.raises(GitHubFailing) as caught:
            await client.revoke_token(issued.token)

    assert_nothing_secret(caught.value, world)


async def test_the_app_describes_itself(world: World) -> None:
    async with world.client() as client:
        body = await client.get_app()

    assert (body["id"], body["slug"]) == (world.app.id, "acme-bot")
    assert client.app == world.configured()


@pytest.mark.parametrize("wrong", [{"id": "7"}, {"id": True}, {"name": None}])
async def test_an_app_without_id_or_name_is_a_bad_answer(world: World, wrong: dict[str, Any]) -> None:
    world.github.faults.add("/app$", edit=lambda body: body | wrong)

    error = await failure(world, lambda client: client.get_app())

    assert (type(error), error.message) == (BadAnswer, f"GET /app came without {next(iter(wrong))}")


async def test_more_than_a_hundred_installations_are_listed_page_by_page(world: World) -> None:
    for number in range(204):
        world.github.install(world.app, f"org{number}")

    async with world.client() as client:
        found = await client.list_installations()

    assert len({installation.id for installation in found}) == 205
    assert [r.query for r in world.github.requests] == ["per_page=100", "per_page=100&page=2", "per_page=100&page=3"]


async def test_accounts_without_a_login_are_listed_too(world: World) -> None:
    world.github.install(world.app, "big-corp", account_type="Enterprise")
    world.github.install(world.app, "hidden").account_hidden = True

    async with world.client() as client:
        found = await client.list_installations()
        hidden = await client.find_by_owner("hidden")

    assert [installation.account for installation in found] == ["acme", "big-corp", ""]
    assert hidden is not None
    assert hidden.account == "hidden"


@pytest.mark.parametrize(
    ("link", "kind"),
    [
        ('<https://evil.example/app/installations?page=2>; rel="next"', NotTheApi),
        ('<https://api.github.com.evil.example/x>; rel="next"', NotTheApi),
        ('<https://api.github.com@evil.example/x>; rel="next"', NotTheApi),
        ('<http://api.github.com/x>; rel="next"', NotTheApi),
        ('<https://api.github.com:8443/x>; rel="next"', NotTheApi),
        ('<https://[>; rel="next"', NotTheApi),
        ('<https://api.github.com/app/installations?page=1>; rel="next"', BadAnswer),
    ],
)
async def test_a_list_that_leads_elsewhere_or_nowhere_ends(world: World, link: str, kind: type[GhappError]) -> None:
    world.github.faults.add("/app/installations", times=None, status=200, headers=JSON | {"link": link}, body="[]")

    error = await failure(world, lambda client: client.list_installations(), max_pages=5)

    assert isinstance(error, kind)
    assert len(world.seen()) == (5 if kind is BadAnswer else 1)
    assert set(world.github.proxy.targets) | set(world.github.proxy.refused) == {"api.github.com:443"}


@pytest.mark.parametrize(
    ("link", "path"),
    [
        ('</app/installations?page=2>; rel="next"', "/app/installations"),
        (
            '<https://api.github.com/app/installations?page=2>; rel="next", <https://evil.example/>; rel="last"',
            "/app/installations",
        ),
    ],
)
async def test_a_list_is_followed_as_github_says(world: World, link: str, path: str) -> None:
    world.github.faults.add("/app/installations", status=200, headers=JSON | {"link": link}, body="[]")

    async with world.client() as client:
        assert await client.list_installations() == []

    assert [(r.path, r.query) for r in world.github.requests][1:] == [(path, "page=2")]


# -- how a request looks -------------------------------------------------------------------------------------------


class Recorder(FileSigner):
    """Keeps what it signed."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.messages: list[bytes] = []
        self.forgotten = asyncio.Event()

    def sign(self, message: bytes) -> bytes:
        self.messages.append(message)
        return super().sign(message)

    def forget(self) -> None:  # on the loop
        super().forget()
        self.forgotten.set()


@pytest.mark.parametrize("issuer", ["", "app id"])
async def test_a_jwt_has_integers_and_an_issuer_of_text(world: World, issuer: str) -> None:
    app = world.configured(issuer=str(world.app.id) if issuer else "")
    signer = Recorder(str(world.key))
    world.clock.wall_time += 0.75
    github = GitHub(app.api, world.network, world.clock)

    with ThreadPoolExecutor(1) as threads:
        await AppClient(app, [signer], github, threads).get_app()
    await github.aclose()

    claims = jwt.decode(signer.messages[0].decode() + ".", options={"verify_signature": False})
    now = int(world.clock.wall_time)
    assert claims == {"iat": now - 60, "exp": now + 540, "iss": app.issuer}
    assert {name: type(value) for name, value in claims.items()} == {"iat": int, "exp": int, "iss": str}
    assert jwt.get_unverified_header(signer.messages[0].decode() + ".") == {"alg": "RS256", "typ": "JWT"}


async def test_a_request_says_who_asks_and_how(world: World) -> None:
    async with world.client() as client:
        await client.get_app()

    headers = world.github.requests[0].headers
    assert {name: headers[name] for name in ("user-agent", "accept", "accept-encoding", "x-github-api-version")} == {
        "user-agent": f"ghapp/{version('ghapp')}",
        "accept": "application/vnd.github+json",
        "accept-encoding": "identity",
        "x-github-api-version": "2022-11-28",
    }
    assert world.github.requests[0].scheme == "bearer"
    assert "cookie" not in headers


async def test_every_request_has_a_jwt_of_its_own_and_one_connection_serves_all(world: World) -> None:
    async with world.client() as client:
        await client.get_app()
        world.clock.advance(1)
        await client.get_app()

    first, second = world.github.requests
    assert first.token_sha256 != second.token_sha256
    assert world.github.proxy.targets == {"api.github.com:443": 1}


@pytest.mark.parametrize(
    ("host", "api"), [("ghe.example", "ghe.example:443"), ("acme.ghe.com", "api.acme.ghe.com:443")]
)
async def test_other_hosts_have_their_own_api(tmp_path: Path, host: str, api: str) -> None:
    with StandIn.start(tmp_path / "github", hosts=[host]) as github:
        world = World(github, tmp_path)
        async with world.client(app=world.configured(host)) as client:
            place = await client.find_by_repository(ONE)

    assert place is not None
    assert github.proxy.targets == {api: 1}


async def test_the_key_leaves_memory_after_its_time(world: World) -> None:
    signer = Recorder(str(world.key))
    github = GitHub("https://api.github.com", world.network, world.clock)

    with ThreadPoolExecutor(1) as threads:
        client = AppClient(world.configured(), [signer], github, threads, key_ttl=0.01)
        for _ in range(2):
            await client.get_app()
            await signer.forgotten.wait()
            assert signer._key is None
            signer.forgotten.clear()
        assert await client.fingerprint() == fingerprint(load_key(world.app.private_key_pem, source="x"))
        world.key.unlink()
        assert (await client.fingerprint()).startswith("SHA256:")
    await github.aclose()


async def test_reading_the_fingerprint_alone_lets_the_key_go_too(world: World) -> None:
    signer = Recorder(str(world.key))
    github = GitHub("https://api.github.com", world.network, world.clock)

    with ThreadPoolExecutor(1) as threads:
        await AppClient(world.configured(), [signer], github, threads, key_ttl=0.01).fingerprint()
        await signer.forgotten.wait()


PAGES = "https://github.com/settings/apps, an organisation's: https://github.com/organizations/ORG/settings/apps"


# -- what GitHub refuses -------------------------------------------------------------------------------------------


async def test_a_key_of_another_app_is_told_with_the_page_to_compare(world: World) -> None:
    other = world.github.add_app("other")

    error = await failure(world, look_up, signer=MemorySigner(other.private_keys[0]))

    name = fingerprint(other.private_keys[0])
    assert (type(error), error.message, error.remember) == (
        AppRejected,
        f"GitHub does not accept the key {name} for app {world.app.client_id}: A JSON web token could not be decoded",
        60.0,
    )
    assert error.hint == f"compare the fingerprint with the app's page: {PAGES}"
    assert len(world.github.requests) == 1


@pytest.mark.parametrize(
    "call", ["get_app", "find_by_repository", "find_by_owner", "list_installations", "create_token"]
)
async def test_an_app_that_github_does_not_know_is_rejected_and_not_merely_absent(world: World, call: str) -> None:
    app = world.configured(issuer="99999")
    arguments = {"find_by_repository": (ONE,), "find_by_owner": ("acme",), "create_token": (world.scope(),)}

    error = await failure(world, lambda client: getattr(client, call)(*arguments.get(call, ())), app=app)

    assert isinstance(error, AppRejected)
    assert error.message == "GitHub knows no app 99999"
    assert error.hint == f"compare the id with the app's page: {PAGES}"


@pytest.mark.parametrize(
    "message",
    [
        "A JSON web token could not be decoded",
        "Integration must generate a public key",
        "Requires authentication",
        "Bad credentials",
    ],
)
async def test_every_401_about_the_app_is_its_rejection_without_a_second_try(world: World, message: str) -> None:
    world.github.faults.add(times=None, status=401, headers=JSON, body=json.dumps({"message": message}))

    error = await failure(world, look_up)

    assert isinstance(error, AppRejected)
    assert error.message.endswith(message)
    assert len(world.seen()) == 1


@pytest.mark.parametrize(
    "message", ["Missing 'issuer' claim ('iss') in assertion", "'Issuer' claim ('iss') must be an Integer"]
)
async def test_a_401_about_the_id_blames_the_id_and_not_the_key(world: World, message: str) -> None:
    """A client ID of no app; or of one on an Enterprise Server before 3.14, which knows numbers only."""
    world.github.faults.add(times=None, status=401, headers=JSON, body=json.dumps({"message": message}))

    error = await failure(world, look_up)

    assert isinstance(error, AppRejected)
    assert error.message == f"GitHub knows no app {world.app.client_id}: {message}"
    assert error.hint == f"compare the id with the app's page: {pages('github.com')}"


def refusal(message: str, status: int, **headers: str) -> dict[str, Any]:
    return {
        "status": status,
        "headers": JSON | {k.replace("_", "-"): v for k, v in headers.items()},
        "body": json.dumps({"message": message}),
    }


SUSPENDED = "This installation has been suspended"
LIMITED = "API rate limit exceeded for app ID 1."
SECONDARY = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
ALLOW_LIST = "Although you appear to have the correct credentials, the `acme` organization has an IP allow list enabled"


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (refusal(SUSPENDED, 403), Suspended, "an installation of bot is suspended"),
        (refusal("Not Found", 404), NotInstalled, "the installation of bot is gone"),
        (
            refusal("The permissions requested are not granted to this installation.", 422),
            PermissionMissing,
            "GitHub: The permissions requested are not granted to this installation.",
        ),
        (
            refusal("There is at least one repository that does not exist or is not accessible.", 422),
            NotSelected,
            "GitHub: There is at least one repository that does not exist or is not accessible.",
        ),
        (refusal("Invalid request", 422), Forbidden, "GitHub refused (HTTP 422): Invalid request"),
        (refusal("Problems parsing JSON", 400), Forbidden, "GitHub refused (HTTP 400): Problems parsing JSON"),
        (refusal("The API version is gone.", 410), Forbidden, "GitHub refused (HTTP 410): The API version is gone."),
        (refusal(ALLOW_LIST, 403), Forbidden, f"GitHub refused (HTTP 403): {ALLOW_LIST}"),
        (refusal("two\nlines\x1b[2J é", 403), Forbidden, "GitHub refused (HTTP 403): two?lines?[2J ?"),
        (refusal("Server Error", 500), GitHubFailing, "api.github.com is failing (HTTP 500)"),
        (refusal(SUSPENDED, 503), GitHubFailing, "api.github.com is failing (HTTP 503)"),
        ({"status": 502, "body": "<html>Unicorn!"}, GitHubFailing, "api.github.com is failing (HTTP 502)"),
        ({"status": 504}, GitHubFailing, "api.github.com is failing (HTTP 504)"),
        (
            {"status": 200, "body": "<html>Sign in to the hotel"},
            NotTheApi,
            "api.github.com answered 200 without usable JSON",
        ),
        ({"status": 401, "body": "<html>"}, NotTheApi, "api.github.com answered 401 without usable JSON"),
        ({"status": 403, "body": "<html>"}, NotTheApi, "api.github.com answered 403 without usable JSON"),
        ({"status": 404, "body": "<html>"}, NotTheApi, "api.github.com answered 404 without usable JSON"),
        ({"status": 204}, NotTheApi, "api.github.com answered 204 without usable JSON"),
        (
            {"status": 302, "headers": {"location": "https://login.example/"}},
            NotTheApi,
            "api.github.com answered 302 without usable JSON",
        ),
    ],
)
async def test_every_refusal_of_a_mint_is_told_apart(
    world: World, fault: dict[str, Any], kind: type[GhappError], message: str
) -> None:
    world.github.faults.add("/access_tokens", times=None, **fault)

    error = await failure(world, mint(world))

    assert (type(error), error.message) == (kind, message)
    assert error.hint
    assert len(world.seen()) == 1
    assert set(world.github.proxy.targets) == {"api.github.com:443"}


@pytest.mark.parametrize(
    ("prepare", "kind"),
    [
        (lambda world: world.github.suspend(world.installation), Suspended),
        (lambda world: world.github.uninstall(world.installation), NotInstalled),
        (lambda world: world.github.unselect(world.installation, world.one), NotSelected),
        (lambda world: world.installation.permissions.pop("contents"), PermissionMissing),
        (lambda world: world.github.settings.ip_allow_list.add("acme"), Forbidden),
    ],
)
async def test_what_the_account_did_is_told_apart(
    world: World, prepare: Callable[[World], None], kind: type[GhappError]
) -> None:
    prepare(world)

    error = await failure(world, mint(world))

    assert type(error) is kind
    assert error.hint
    if kind is Forbidden:
        assert "https://github.com/organizations/acme/settings/security" in error.hint


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 502, "body": "<html>Unicorn!"},
        {"status": 503},
        {"cut": True},
        {"status": 201, "headers": {"content-type": "application/json"}, "body": '{"token": "gh'},
    ],
)
@pytest.mark.parametrize(("times", "calls"), [(1, 2), (2, 3)])
async def test_what_passes_by_itself_is_tried_again(
    world: World, fault: dict[str, Any], *, times: int, calls: int
) -> None:
    world.github.faults.add("/access_tokens", times=times, **fault)

    async with world.client(pauses=(0.0, 0.0)) as client:
        issued = await client.create_token(world.scope())

    assert issued.token
    assert len(world.seen()) == calls


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        ({"status": 502}, 3),
        ({"cut": True}, 3),
        ({"status": 501}, 1),
        (refusal("Not Found", 404), 1),
        ({"status": 401}, 1),
    ],
)
async def test_trying_again_ends_and_refusals_are_final(world: World, fault: dict[str, Any], *, calls: int) -> None:
    world.github.faults.add("/access_tokens", times=None, **fault)

    async with world.client(pauses=(0.0, 0.0)) as client:
        with pytest.raises(GhappError):
            await client.create_token(world.scope())

    assert len(world.seen()) == calls


@pytest.mark.parametrize("status", [404, 200, 301])
async def test_a_look_up_that_somebody_else_answers_says_nothing_about_the_app(world: World, status: int) -> None:
    world.github.faults.add(times=None, status=status, body="<html>")

    assert isinstance(await failure(world, look_up), NotTheApi)


@pytest.mark.parametrize(
    ("fault", "wait"),
    [
        (refusal(LIMITED, 403, x_ratelimit_remaining="0", x_ratelimit_reset="+90"), 90),
        (refusal(LIMITED, 429, x_ratelimit_remaining="0", x_ratelimit_reset="+90"), 90),
        (refusal(LIMITED, 403, x_ratelimit_remaining="0", x_ratelimit_reset="-90"), 1),
        (refusal(LIMITED, 403, x_ratelimit_remaining="0", x_ratelimit_reset="+99999"), 3600),
        (refusal(LIMITED, 403, x_ratelimit_remaining="0", x_ratelimit_reset="soon"), 60),
        (refusal(LIMITED, 403), 60),
        (refusal(SECONDARY, 403, retry_after="17"), 17),
        (refusal(SECONDARY, 429, retry_after="17", x_ratelimit_remaining="0", x_ratelimit_reset="+90"), 17),
        (refusal(SECONDARY, 403, retry_after="0"), 1),
        (refusal(SECONDARY, 403, retry_after="999999"), 3600),
        (refusal(SECONDARY, 403, retry_after="-5"), 60),
        (refusal(SECONDARY, 403, retry_after="Wed, 21 Oct 2026 07:28:00 GMT"), 60),
        (refusal(SECONDARY, 403), 60),
        (refusal("whatever", 429), 60),
        ({"status": 429, "body": "<html>slow down", "headers": {"retry-after": "5"}}, 5),
        (refusal("Maximum number of login attempts exceeded. Please try again later.", 403), 60),
        ({"status": 503, "body": "<html>Unicorn!", "headers": {"retry-after": "600"}}, 600),
    ],
)
async def test_a_limit_says_how_long_to_stay_away(world: World, fault: dict[str, Any], wait: float) -> None:
    reset = fault["headers"].get("x-ratelimit-reset", "")
    if reset[:1] in {"+", "-"}:
        fault = fault | {
            "headers": fault["headers"] | {"x-ratelimit-reset": str(int(world.clock.wall_time) + int(reset))}
        }
    world.github.faults.add(times=None, **fault)

    error = await failure(world, look_up)

    assert isinstance(error, RateLimited)
    assert error.remember == pytest.approx(wait, abs=2 if reset else 0)
    what = "is failing (HTTP 503)" if fault["status"] == 503 else "limits this app's requests"
    assert re.fullmatch(rf"GitHub {re.escape(what)} until \d\d:\d\d:\d\d", error.message)
    assert "ghapp leases" in error.hint
    assert len(world.seen()) == 1


async def test_the_stand_ins_own_limits_are_understood(world: World) -> None:
    world.github.settings.primary_limit = 1

    async with world.client() as client:
        await client.get_app()
        with pytest.raises(RateLimited) as caught:
            await client.get_app()

    assert 3590 <= caught.value.remember <= 3600


# -- clocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [2, -2])
async def test_a_wrong_clock_costs_exactly_one_call_and_is_remembered(world: World, hours: int) -> None:
    world.github.clock.set_offset(hours * 3600)

    async with world.client() as client:
        issued = await client.create_token(world.scope())
        assert [request.status for request in world.github.requests] == [401, 201]
        await client.get_app()

    assert [request.status for request in world.github.requests] == [401, 201, 200]
    assert issued.ends - world.clock.boot_time == pytest.approx(3600, abs=2)


async def test_the_offset_survives_a_step_of_the_local_clock(world: World) -> None:
    github = GitHub("https://api.github.com", world.network, world.clock)
    assert (github.clock_offset, github.server_now()) == (None, world.clock.wall_time)
    world.github.clock.set_offset(100)

    await github.request("GET", "/versions", "ghs_nobody")
    assert github.clock_offset == pytest.approx(100, abs=2)
    world.clock.wall_time += 5000
    world.clock.boot_time += 10

    assert github.clock_offset == pytest.approx(100 - 4990, abs=2)
    await github.aclose()


@pytest.mark.parametrize(
    "message",
    [
        "'Expiration time' claim ('exp') is too far in the future",
        "'Expiration time' claim ('exp') must be a numeric value representing the future time",
        "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
    ],
)
async def test_times_rejected_twice_are_told_after_one_correction(world: World, message: str) -> None:
    world.github.faults.add(times=None, **refusal(message, 401))

    error = await failure(world, look_up)

    assert (type(error), len(world.seen())) == (ClockRejected, 2)
    assert "timedatectl" in error.hint


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Jan 2026 00:00:00 GMT"])
async def test_times_rejected_without_a_date_cannot_be_corrected(world: World, date: str) -> None:
    world.github.faults.add(times=None, **refusal("'Issued at' claim ('iat') must be", 401, date=date))

    error = await failure(world, look_up)

    assert (type(error), len(world.seen())) == (ClockRejected, 1)


async def test_a_date_is_always_greenwich_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    github = GitHub("https://api.github.com", world.network, world.clock)

    assert github._read_clock("Thu, 01 Jan 2026 00:00:00 -0000") == 1767225600.0
    assert github._read_clock("Thu, 01 Jan 2026 00:00:00 GMT") == 1767225600.0
    assert github._read_clock("") is None
    monkeypatch.undo()
    time.tzset()


# -- answers that cannot be used -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [40, 520, 2048])
@pytest.mark.parametrize("text_format", ["stateless", "legacy"])
async def test_a_token_passes_unchanged_whatever_its_length(world: World, length: int, text_format: Any) -> None:
    world.github.settings.token_format = text_format
    world.github.settings.extra_token_length = max(0, length - (520 if text_format == "stateless" else 40))

    async with world.client() as client:
        issued = await client.create_token(world.scope())

    assert issued.token == world.github.mints[-1].token
    assert issued.token not in repr(issued)


@pytest.mark.parametrize(
    "token",
    ["", "ghs_\nx", "ghs_x\r", "ghs_\0x", "ghs_\x1b[2J", "ghs_ x", "ghs_é", "ghs_" + "x" * 5120, None, 7, ["ghs_x"]],
)
async def test_a_malformed_token_is_refused_and_not_repeated(world: World, token: object) -> None:
    world.github.faults.add("/access_tokens", edit=lambda body: body | {"token": token})

    error = await failure(world, mint(world))

    assert (type(error), error.message) == (BadAnswer, "GitHub returned a malformed token; it was not used")
    assert len(world.github.requests) == 1


@pytest.mark.parametrize("expires_at", ["{}Z", "{}+00:00", "{}.000Z", "{}.123456+00:00"])
async def test_every_form_of_the_end_is_read(world: World, expires_at: str) -> None:
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(world.clock.wall_time + 1800))
    world.github.faults.add("/access_tokens", edit=lambda body: body | {"expires_at": expires_at.format(end)})

    async with world.client() as client:
        issued = await client.create_token(world.scope())

    assert issued.ends - world.clock.boot_time == pytest.approx(1800, abs=3)


@pytest.mark.parametrize(
    ("expires_at", "message"),
    [
        *(
            (text, "GitHub returned a token without a usable expires_at")
            for text in (
                None,
                "",
                1_900_000_000,
                "2036-01-01",
                "2036-01-01T00:00:00",
                "2036-01-01 00:00:00Z",
                "2036-02-30T00:00:00Z",
                "2036-01-01T25:00:00Z",
                "2036-01-01T00:00:00+99:99",
                "0000-01-01T00:00:00Z",
                "20360101T000000Z",
                "2036-01-01T00:00:00Z\n",
            )
        ),
        ("2001-01-01T00:00:00Z", "GitHub returned a token that has expired already"),
        ("0001-01-01T00:00:00+14:00", "GitHub returned a token that has expired already"),
    ],
)
async def test_a_token_without_a_usable_end_is_refused_and_revoked(
    world: World, expires_at: object, message: str
) -> None:
    world.github.faults.add("/access_tokens", edit=lambda body: body | {"expires_at": expires_at})

    error = await failure(world, mint(world))

    assert (type(error), error.message) == (BadAnswer, message)
    assert world.seen()[-1] == "DELETE /installation/token"
    assert world.github.tokens[world.github.mints[-1].token].revoked


MALFORMED: tuple[object, ...] = (
    "one",
    {},
    0,
    False,
    [1],
    [{}],
    [{"id": 1}],
    [{"id": "1", "name": "x"}],
    [{"id": True, "name": "x"}],
    [{"id": 1, "name": None}],
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"permissions": None}, "GitHub's permissions are not a map of strings"),
        ({"permissions": []}, "GitHub's permissions are not a map of strings"),
        ({"permissions": {"contents": 1}}, "GitHub's permissions are not a map of strings"),
        *(({"repositories": value}, "GitHub's list of the token's repositories is malformed") for value in MALFORMED),
    ],
)
async def test_a_malformed_201_is_refused_and_its_token_revoked(
    world: World, changes: dict[str, Any], message: str
) -> None:
    world.github.faults.add("/access_tokens", edit=lambda body: body | changes)

    error = await failure(world, mint(world))

    assert (type(error), error.message) == (BadAnswer, message)
    assert world.github.tokens[world.github.mints[-1].token].revoked


async def test_a_malformed_201_is_told_even_if_its_token_cannot_be_revoked(world: World) -> None:
    world.github.faults.add("/access_tokens", edit=lambda body: body | {"permissions": None})
    world.github.faults.add("/installation/token", status=502)

    assert isinstance(await failure(world, mint(world)), BadAnswer)


async def test_a_201_that_names_no_repositories_has_none(world: World) -> None:
    world.github.faults.add(
        "/access_tokens",
        edit=lambda body: {k: v for k, v in body.items() if k not in {"repositories", "repository_selection"}},
    )

    async with world.client() as client:
        issued = await client.create_token(world.scope())

    assert (issued.repositories, issued.repository_selection) == ((), "")


@pytest.mark.parametrize(
    "body",
    [
        '{"token": "ghs_secret", "expires_at":',
        '{"token": "ghs_a", "token": "ghs_b"}',
        '{"id": NaN}',
        '{"id": -Infinity}',
        '{"id": ' + "9" * 5000 + "}",
        '{"name": "\\ud800"}',
        "[" * 100_000,
        b"\xff\xfe{}",
        '{"id": 1}'.encode("utf-16"),
        b'{"name": "\xff"}',
        b"",
    ],
)
async def test_what_is_not_sound_json_is_not_the_api(world: World, body: str | bytes) -> None:
    world.github.faults.add(times=None, status=201, headers=JSON, body=body)

    error = await failure(world, mint(world))

    assert (type(error), error.message) == (NotTheApi, "api.github.com answered 201 without usable JSON")


@pytest.mark.parametrize("body", ["[]", '"text"', "7", "[1]"])
async def test_json_of_another_shape_is_a_bad_answer(world: World, body: str) -> None:
    world.github.faults.add(times=None, status=201, headers=JSON, body=body)
    assert isinstance(await failure(world, mint(world)), BadAnswer)

    world.github.faults.clear()
    world.github.faults.add(times=None, status=200, headers=JSON, body=body)
    assert isinstance(await failure(world, look_up), BadAnswer)
    assert isinstance(await failure(world, lambda client: client.get_app()), BadAnswer)


async def test_a_list_that_is_none_is_a_bad_answer(world: World) -> None:
    world.github.faults.add(times=None, status=200, headers=JSON, body="{}")

    assert isinstance(await failure(world, lambda client: client.list_installations()), BadAnswer)


async def test_text_in_unicode_is_read(world: World) -> None:
    world.github.faults.add("/app$", edit=lambda body: body | {"name": "Zoë \U0001f600"})

    async with world.client() as client:
        assert (await client.get_app())["name"] == "Zoë \U0001f600"


@pytest.mark.parametrize(
    "wrong",
    [{"id": None}, {"id": "7"}, {"id": True}, {"id": 7.5}, {"permissions": None}, {"permissions": {"contents": None}}],
)
async def test_a_malformed_installation_is_a_bad_answer(world: World, wrong: dict[str, Any]) -> None:
    world.github.faults.add("/installation$", edit=lambda body: body | wrong)

    assert isinstance(await failure(world, look_up), BadAnswer)


@pytest.mark.parametrize("account", [None, "acme", 7, [], {}, {"login": None}])
async def test_an_account_in_another_form_takes_the_name_that_was_asked_for(world: World, account: object) -> None:
    world.github.faults.add("/installation$", edit=lambda body: body | {"account": account, "html_url": None})

    async with world.client() as client:
        place = await client.find_by_repository(ONE)

    assert place is not None
    assert (place.installation.account, place.installation.html_url) == ("acme", "")


async def test_a_body_without_an_end_is_cut_off(world: World) -> None:
    world.github.faults.add(times=None, status=200, headers=JSON, body=b"[" + b" " * MAX_BODY)

    error = await failure(world, look_up)

    assert (type(error), error.message) == (BadAnswer, f"api.github.com sent more than {MAX_BODY} bytes")


async def test_a_compressed_answer_is_refused(world: World) -> None:
    world.github.faults.add(times=None, status=200, headers=JSON | {"content-encoding": "gzip"}, body=b"\x1f\x8b")

    error = await failure(world, look_up)

    assert (type(error), error.message) == (BadAnswer, "api.github.com compressed its answer, unasked")


# -- redirects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "https://evil.example/repositories/1/installation",
        "https://api.github.com.evil.example/x",
        "https://api.github.com@evil.example/x",
        "http://api.github.com/x",
        "//evil.example/x",
        "https://[/x",
        "",
    ],
)
async def test_a_redirect_to_another_host_is_refused(world: World, status: int, location: str) -> None:
    world.github.faults.add(times=None, status=status, headers=JSON | {"location": location}, body="{}")

    error = await failure(world, look_up)

    assert (type(error), error.message) == (NotTheApi, "api.github.com points to another host")
    assert len(world.seen()) == 1
    assert set(world.github.proxy.targets) | set(world.github.proxy.refused) == {"api.github.com:443"}


@pytest.mark.parametrize(
    "location", ["/repositories/{}/installation", "https://api.github.com/repositories/{}/installation"]
)
async def test_a_redirect_within_the_api_is_followed(world: World, location: str) -> None:
    target = location.format(world.one.id)
    world.github.faults.add("/repos/", status=307, headers={"location": target})

    async with world.client() as client:
        place = await client.find_by_repository(ONE)

    assert place is not None
    assert place.repository == world.one.id


async def test_a_redirect_in_a_circle_ends(world: World) -> None:
    world.github.faults.add(
        times=None, status=301, headers=JSON | {"location": "/repos/acme/one/installation"}, body="{}"
    )

    error = await failure(world, look_up)

    assert (type(error), len(world.seen())) == (NotTheApi, 4)


# -- no way to GitHub ----------------------------------------------------------------------------------------------


@contextmanager
def listener(answer: bytes | None = None, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Listen, and answer the first bytes of every connection with `answer`, or with nothing for None."""
    server = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            held.append(connection)
            if answer is not None:
                connection.recv(65536)
                connection.sendall(answer)
                if context is None:
                    connection.close()
                else:
                    try:
                        held.append(context.wrap_socket(connection, server_side=True))
                    except OSError:
                        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
        for connection in held:
            connection.close()


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def through(world: World, port: int, host: str = "127.0.0.1") -> Network:
    return Network(
        f"http://user:hush-hush@{host}:{port}",
        "HTTPS_PROXY",
        ca_file=str(world.github.ca_file),
        ca_origin="SSL_CERT_FILE",
    )


async def test_a_proxy_that_is_not_there_is_named(world: World) -> None:
    port = closed_port()

    error = await failure(world, look_up, network=through(world, port))

    assert (type(error), error.message, error.hint) == (
        ProxyFailed,
        f"cannot connect to the proxy 127.0.0.1:{port}, on the way to api.github.com",
        mend("HTTPS_PROXY"),
    )


async def test_a_proxy_whose_name_means_nothing_is_named(world: World) -> None:
    error = await failure(world, look_up, network=through(world, 3128, "proxy.invalid"))

    assert type(error) is ProxyFailed
    assert error.message == "cannot connect to the proxy proxy.invalid:3128, on the way to api.github.com"


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_a_proxy_that_refuses_is_told_with_its_status(world: World, status: int) -> None:
    answer = f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()

    with listener(answer) as port:
        error = await failure(world, look_up, network=through(world, port))

    assert type(error) is ProxyFailed
    assert error.message == f"the proxy 127.0.0.1:{port} refused to connect to api.github.com (HTTP {status})"
    assert error.inherited is (status == 407)  # a daemon started now may know the password; the rest is the proxy's
    assert "hush-hush" not in repr(error) + str(error) + error.hint


async def test_a_proxy_that_wants_a_password_gets_it(tmp_path: Path) -> None:
    with StandIn.start(tmp_path / "github", proxy_credentials=("user", "hush-hush")) as github:
        world = World(github, tmp_path)
        async with world.client() as client:
            await client.get_app()
        world.network = through(world, github.proxy_port)
        async with world.client() as client:
            await client.get_app()
        bare = Network(f"http://127.0.0.1:{github.proxy_port}", "HTTPS_PROXY", ca_file=str(github.ca_file))
        error = await failure(world, look_up, network=bare)

    assert error.message.endswith("refused to connect to api.github.com (HTTP 407)")


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b""])
async def test_a_proxy_that_speaks_something_else_is_a_broken_connection(world: World, answer: bytes) -> None:
    with listener(answer) as port:
        error = await failure(world, look_up, network=through(world, port))

    assert type(error) in {NetworkFailed, ProxyFailed}


async def test_a_name_that_does_not_resolve_is_told(world: World) -> None:
    app = App("bot", "ghe.invalid", api_url("ghe.invalid"), world.app.client_id, ("file:/k",))

    error = await failure(world, look_up, app=app, network=Network(ca_file=str(world.github.ca_file)))

    assert (type(error), error.message) == (NetworkFailed, "cannot resolve ghe.invalid")
    where = f"proxy below [network] in {config.config_file()}; then: ghapp daemon restart"
    assert error.hint == f"check the network; where a proxy is needed: set HTTPS_PROXY in this shell, or {where}"


async def test_a_host_that_refuses_connections_is_told(world: World) -> None:
    host = f"127.0.0.1:{closed_port()}"
    app = App("bot", host, api_url(host), world.app.client_id, ("file:/k",))

    error = await failure(world, look_up, app=app, network=Network(ca_file=str(world.github.ca_file)))

    assert (type(error), error.message) == (NetworkFailed, "cannot connect to 127.0.0.1")


async def test_a_host_reached_directly_needs_no_proxy(world: World) -> None:
    app = world.configured(f"localhost:{world.github.port}")
    network = Network("http://127.0.0.1:1", "HTTPS_PROXY", no_proxy="localhost", ca_file=str(world.github.ca_file))

    async with world.client(app=app, network=network) as client:
        place = await client.find_by_repository(ONE)

    assert place is not None
    assert not world.github.proxy.targets


async def test_a_call_ends_in_time_with_the_body_still_coming(world: World) -> None:
    held = threading.Event()
    world.github.faults.add("/repos/", hold=held)

    error = await failure(world, look_up, call_budget=0.1)
    held.set()

    assert (type(error), error.message) == (NetworkFailed, "api.github.com did not answer within 0 s")


async def test_a_proxy_that_says_nothing_ends_in_time(world: World) -> None:
    with listener() as port:
        error = await failure(world, look_up, network=through(world, port), call_budget=0.1)

    assert isinstance(error, NetworkFailed)


async def test_a_library_time_out_names_who_was_slow(world: World) -> None:
    github = GitHub("https://api.github.com", world.network, world.clock)
    import httpx  # noqa: PLC0415

    with pytest.raises(NetworkFailed, match=r"127\.0\.0\.1:\d+ did not answer in time"), github._explained():
        raise httpx.ReadTimeout("slow")


@pytest.mark.parametrize(
    "fault", [{"cut": True}, {"status": 200, "headers": JSON, "body": b'{"id"', "content_length": 500}]
)
async def test_a_connection_that_breaks_is_told(world: World, fault: dict[str, Any]) -> None:
    world.github.faults.add("/repos/", times=None, **fault)

    error = await failure(world, look_up)

    assert isinstance(error, NetworkFailed)
    assert re.fullmatch(r"the connection to api\.github\.com broke \(\w+\)", error.message)


async def test_a_ca_that_is_gone_is_told_to_whoever_asks_and_mends_itself(world: World, tmp_path: Path) -> None:
    gone = tmp_path / "gone.pem"
    network = Network(world.github.proxy_url, "HTTPS_PROXY", ca_file=str(gone), ca_origin="SSL_CERT_FILE")

    async with world.client(network=network) as client:
        with pytest.raises(TlsFailed, match="does not exist, which SSL_CERT_FILE names"):
            await client.get_app()
        gone.write_bytes(world.github.ca_file.read_bytes())
        assert (await client.get_app())["id"] == world.app.id


async def test_a_ca_that_did_not_sign_is_not_enough(world: World, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    network = Network(world.github.proxy_url, "HTTPS_PROXY", ca_file=str(tmp_path / "other.pem"))

    error = await failure(world, look_up, network=network)

    assert isinstance(error, TlsFailed)
    assert error.message.startswith("the TLS certificate of api.github.com does not verify: ")
    assert f"set SSL_CERT_FILE in this shell, or ca_file below [network] in {config.config_file()}" in error.hint
    assert error.hint.endswith("; then: ghapp daemon restart")
    assert world.github.requests == []


async def test_a_certificate_of_another_host_is_not_enough(world: World, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("evil.example").configure_cert(context)

    with listener(ESTABLISHED, context) as port:
        network = Network(f"http://127.0.0.1:{port}", "HTTPS_PROXY", ca_file=str(tmp_path / "ca.pem"))
        error = await failure(world, look_up, network=network)

    assert isinstance(error, TlsFailed)
    assert "api.github.com" in error.message


async def test_a_host_that_speaks_no_tls_is_told(world: World) -> None:
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        host = f"localhost:{port}"
        app = App("bot", host, api_url(host), world.app.client_id, ("file:/k",))
        error = await failure(world, look_up, app=app, network=Network(ca_file=str(world.github.ca_file)))

    assert isinstance(error, TlsFailed)
    assert error.message.startswith("no TLS connection to localhost (")


async def test_a_key_that_is_gone_is_told_before_anybody_is_asked(world: World) -> None:
    world.key.unlink()

    error = await failure(world, look_up, signer=FileSigner(str(world.key)))

    assert isinstance(error, Failed)
    assert error.message.startswith(f"cannot open {world.key}: ")
    assert world.github.requests == []


async def test_several_keys_of_an_app_work_side_by_side(world: World) -> None:
    world.write_key(world.app.add_key())

    async with world.client(signer=FileSigner(str(world.key))) as client:
        assert (await client.get_app())["id"] == world.app.id
        assert await client.fingerprint() == fingerprint(load_key(keys.pem(world.app.private_keys[1]), source="x"))


async def test_the_real_clock_serves_as_well(world: World) -> None:
    async with world.client(clock=SystemClock()) as client:
        issued = await client.create_token(world.scope())

    assert issued.ends - SystemClock().boot() == pytest.approx(3600, abs=5)
    assert SystemClock().wall() == pytest.approx(time.time(), abs=5)
