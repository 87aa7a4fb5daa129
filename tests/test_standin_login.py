"""How the stand-in answers an app's JWT: the statuses and texts that were seen at GitHub."""

from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from standin import StandIn
from standin.client import Client, app_jwt, as_app
from standin.model import App


@pytest.fixture
def github(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn.start(tmp_path) as github:
        yield github


@pytest.fixture
def app(github: StandIn) -> App:
    return github.add_app("acme-bot", {"contents": "write"})


MUST_BE_INTEGER = "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
MUST_BE_FUTURE = (
    "'Expiration time' claim ('exp') must be a numeric value representing the future time at which "
    "the assertion expires"
)
TOO_FAR = "'Expiration time' claim ('exp') is too far in the future"
ISSUER = "'Issuer' claim ('iss') must be an Integer"


@pytest.mark.parametrize(
    ("claims", "status", "message"),
    [
        ({"iat": 60}, 401, MUST_BE_INTEGER),
        ({"iat": -60.5}, 401, MUST_BE_INTEGER),
        ({"iat": None}, 401, MUST_BE_INTEGER),
        ({"exp": 700}, 401, TOO_FAR),
        ({"iat": 60, "exp": 700}, 401, TOO_FAR),
        ({"exp": -1}, 401, MUST_BE_FUTURE),
        ({"exp": "soon"}, 401, MUST_BE_FUTURE),
        ({"exp": None}, 401, MUST_BE_FUTURE),
        ({"iss": None}, 401, "Missing 'issuer' claim ('iss') in assertion"),
        ({"iss": "Iv1.nobody"}, 401, ISSUER),
        ({"iss": "41001 "}, 401, ISSUER),
        ({"iss": ["41001"]}, 401, ISSUER),
        ({"iss": 99999}, 404, "Integration not found"),
        ({"iss": "99999"}, 404, "Integration not found"),
    ],
)
def test_a_wrong_claim_gets_githubs_text(
    github: StandIn, app: App, claims: dict[str, object], status: int, message: str
) -> None:
    now = int(github.clock.now())
    moved = {
        name: now + value if name in ("iat", "exp") and isinstance(value, int | float) else value
        for name, value in claims.items()
    }
    complete: dict[str, object] = {"iss": app.client_id, "iat": now - 60, "exp": now + 540} | moved

    with Client(github, f"Bearer {app_jwt(app, now, **complete)}") as client:
        answer = client.get("/app")

    assert (answer.status_code, answer.json()["message"]) == (status, message)
    assert answer.json()["status"] == str(status)


@pytest.mark.parametrize("kind", ["client id", "app id", "integer app id"])
def test_an_app_signs_in_with_each_of_its_identifiers(github: StandIn, app: App, kind: str) -> None:
    issuer = {"client id": app.client_id, "app id": str(app.id), "integer app id": app.id}[kind]

    with Client(github, f"Bearer {app_jwt(app, github.clock.now(), iss=issuer)}") as client:
        answer = client.get("/app")

    assert (answer.status_code, answer.json()["slug"]) == (200, "acme-bot")
    assert github.requests[-1].issuer == issuer


@pytest.mark.parametrize("authorization", [None, "Bearer nonsense", "Bearer a.b.c", "Basic eDp5"])
def test_anything_but_a_jwt_cannot_be_decoded(github: StandIn, authorization: str | None) -> None:
    with Client(github, authorization) as client:
        answer = client.get("/app")

    assert answer.status_code == 401
    assert answer.json()["message"] == "A JSON web token could not be decoded"


def test_a_jwt_must_come_as_bearer_and_as_rs256(github: StandIn, app: App) -> None:
    now = int(github.clock.now())
    weak = jwt.encode({"iss": app.client_id, "iat": now, "exp": now + 60}, "x" * 32, algorithm="HS256")

    for authorization in (f"token {app_jwt(app, now)}", f"Bearer {weak}"):
        with Client(github, authorization) as client:
            assert client.get("/app").status_code == 401


def test_every_key_of_an_app_works_until_it_is_removed(github: StandIn, app: App) -> None:
    first, second = app.private_key_pem, app.add_key()
    assert first.startswith(b"-----BEGIN RSA PRIVATE KEY-----")
    assert first != second
    old = f"Bearer {app_jwt(app, github.clock.now())}"

    app.remove_key(first)

    with Client(github, old) as client:
        assert client.get("/app").json()["message"] == "A JSON web token could not be decoded"
    with as_app(github, app) as client:
        assert client.get("/app").status_code == 200


def test_an_app_without_a_key_must_generate_one(github: StandIn, app: App) -> None:
    authorization = f"Bearer {app_jwt(app, github.clock.now())}"
    app.remove_key(app.private_key_pem)

    with Client(github, authorization) as client:
        assert client.get("/app").json()["message"] == "Integration must generate a public key"


def test_an_old_ghes_knows_no_client_ids(tmp_path: Path) -> None:
    with StandIn.start(tmp_path, hosts=["git.corp.example"]) as github:
        app = github.add_app("acme-bot")
        github.settings.hosts_without_client_ids.add("git.corp.example")
        base = "https://git.corp.example/api/v3"

        with Client(github, f"Bearer {app_jwt(app, github.clock.now())}", base) as client:
            assert client.get("/app").json()["message"] == ISSUER
        with Client(github, f"Bearer {app_jwt(app, github.clock.now(), iss=str(app.id))}", base) as client:
            assert client.get("/app").json()["html_url"] == "https://git.corp.example/apps/acme-bot"


def test_the_clock_moves_the_date_and_what_a_jwt_means(github: StandIn, app: App) -> None:
    with as_app(github, app) as client:
        assert client.get("/app").status_code == 200

        github.clock.set_offset(-3600)

        answer = client.get("/app")
        assert answer.json()["message"] == TOO_FAR
        assert answer.headers.get_list("date") == [github.clock.http_date()]


def test_too_many_bad_logins_lock_out_good_ones(github: StandIn, app: App) -> None:
    github.settings.login_attempts = 3
    with Client(github, "Bearer nonsense") as client:
        assert [client.get("/app").status_code for _ in range(4)] == [401, 401, 401, 403]

    with as_app(github, app) as client:
        answer = client.get("/app")
        assert answer.status_code == 403
        assert answer.json()["message"] == "Maximum number of login attempts exceeded. Please try again later."
        github.clock.advance(61)
        assert client.get("/app").status_code == 200
