"""The stand-in's API, row by row; every answer is held against GitHub's own description too."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from standin import Lag, StandIn
from standin.client import Client, as_app
from standin.clock import iso
from standin.model import App, Installation


DESCRIPTION = Path(__file__).parents[2] / "shared/reference/github-apps-openapi.json"
TOKENS = "/app/installations/{}/access_tokens"
NOT_GRANTED = "The permissions requested are not granted to this installation."
NOT_ACCESSIBLE = "There is at least one repository that does not exist or is not accessible to the parent installation."


@pytest.fixture
def github(tmp_path: Path) -> Iterator[StandIn]:
    description = DESCRIPTION if DESCRIPTION.exists() else None
    with StandIn.start(tmp_path, description=description) as github:
        github.add_repository("acme/rocket", files={})
        github.add_repository("acme/fuel", files={})
        yield github


@pytest.fixture
def app(github: StandIn) -> App:
    return github.add_app("acme-bot", {"contents": "write", "workflows": "write"})


@pytest.fixture
def installation(github: StandIn, app: App) -> Installation:
    return github.install(app, "acme", ["rocket"])


@pytest.fixture
def client(github: StandIn, app: App) -> Iterator[Client]:
    with as_app(github, app) as client:
        yield client


def mint(client: httpx.Client, installation: Installation, asked: object = None) -> httpx.Response:
    return client.post(TOKENS.format(installation.id), json=asked)


# Finding an installation.


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/repos/acme/rocket/installation", 200),
        ("/repos/ACME/Rocket/installation", 200),
        ("/repos/acme/fuel/installation", 404),
        ("/repos/acme/none/installation", 404),
        ("/repos/other/rocket/installation", 404),
        ("/orgs/Acme/installation", 200),
        ("/users/acme/installation", 200),
        ("/users/other/installation", 404),
        ("/enterprises/acme/installation", 404),
        ("/app/installations/1", 404),
        ("/users/acme-bot%5Bbot%5D", 200),
        ("/users/nobody", 404),
        ("/app/", 404),
        ("/nonsense", 404),
        ("/versions", 200),
        ("/rate_limit", 200),
    ],
)
@pytest.mark.usefixtures("installation")
def test_a_path_has_its_status(client: Client, path: str, status: int) -> None:
    answer = client.get(path)

    assert answer.status_code == status
    if status == 404:
        assert answer.json()["message"] == "Not Found"


@pytest.mark.usefixtures("installation")
def test_a_renamed_repository_is_found_by_a_redirect_to_its_id(github: StandIn, client: Client) -> None:
    repository = github.find_repository("acme", "rocket")
    assert repository is not None
    github.rename(repository, "acme/starship")

    answer = client.get("/repos/acme/rocket/installation")

    assert answer.status_code == 301
    assert answer.headers["location"] == f"https://api.github.com/repositories/{repository.id}/installation"
    assert answer.json()["message"] == "Moved Permanently"
    assert client.get(answer.headers["location"]).json()["account"]["login"] == "acme"
    assert client.get("/repos/acme/starship/installation").status_code == 200
    assert github.violations == []


def test_installations_come_in_pages(github: StandIn, app: App, client: Client) -> None:
    for number in range(5):
        github.install(app, f"org-{number}")
    github.install(app, "corp", account_type="Enterprise")
    github.install(app, "ghost").account_hidden = True

    seen, url = [], "/app/installations?per_page=3"
    while url:
        page = client.get(url)
        seen += page.json()
        url = page.links.get("next", {}).get("url", "")

    assert len(seen) == 7
    assert [item["account"] and item["target_type"] for item in seen[-2:]] == ["Enterprise", None]
    assert 'rel="last"' in client.get("/app/installations?per_page=3&page=2").headers["link"]
    assert github.violations == []


def test_since_leaves_out_what_did_not_change(github: StandIn, app: App, client: Client) -> None:
    github.install(app, "old")
    github.clock.advance(100)
    start = github.clock.now()
    github.install(app, "new")
    since = client.get("/app/installations", params={"since": "2026-01-01T00:00:00Z"}).json()
    recent = client.get("/app/installations", params={"since": iso(start)}).json()

    assert [len(since), [item["account"]["login"] for item in recent]] == [2, ["new"]]


# Minting.


@pytest.mark.parametrize(
    ("asked", "repositories", "permissions"),
    [
        (None, None, {"contents": "write", "workflows": "write", "metadata": "read"}),
        ({"repositories": [], "permissions": {}}, None, None),
        ({"repository_ids": []}, None, None),
        ({"repositories": ["ROCKET"]}, ["acme/rocket"], None),
        ({"permissions": {"contents": "read"}}, None, {"contents": "read", "metadata": "read"}),
    ],
)
def test_a_token_has_what_was_asked_and_nothing_asked_is_everything(  # noqa: PLR0917  # pytest names them
    github: StandIn,
    client: Client,
    installation: Installation,
    asked: object,
    repositories: list[str] | None,
    permissions: dict[str, str] | None,
) -> None:
    answer = mint(client, installation, asked)
    body = answer.json()

    assert answer.status_code == 201
    assert body["permissions"] == (permissions or installation.permissions)
    assert body["repository_selection"] == "selected"
    assert [r["full_name"] for r in body["repositories"]] == repositories if repositories else True
    assert ("repositories" in body) is (repositories is not None)
    assert github.mints[-1].token == body["token"]
    assert github.mints[-1].repositories == (None if repositories is None else tuple(repositories))
    assert github.violations == []


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        (b"{", 400, "Problems parsing JSON"),
        (b"[]", 400, "Body should be a JSON object"),
        ({"permissions": "invalid_data"}, 400, "Problems parsing JSON"),
        ({"repositories": "rocket"}, 422, "Invalid request"),
        ({"repository_ids": ["1"]}, 422, "Invalid request"),
        ({"permissions": {"contents": "all"}}, 422, "Invalid request"),
        ({"permissions": {"issues": "read"}}, 422, NOT_GRANTED),
        ({"permissions": {"contents": "admin"}}, 422, NOT_GRANTED),
        ({"repositories": ["fuel"]}, 422, NOT_ACCESSIBLE),
        ({"repositories": ["rocket.wiki"]}, 422, NOT_ACCESSIBLE),
        ({"repositories": ["acme/rocket"]}, 422, NOT_ACCESSIBLE),
        ({"repository_ids": [1]}, 422, NOT_ACCESSIBLE),
        ({"repositories": ["rocket"] * 501}, 422, "You can list at most 500 repositories."),
    ],
)
def test_a_mint_is_refused_with_githubs_text(
    client: Client, installation: Installation, asked: Any, status: int, message: str
) -> None:
    content = asked if isinstance(asked, bytes) else json.dumps(asked).encode()

    answer = client.post(TOKENS.format(installation.id), content=content)

    assert (answer.status_code, answer.json()["message"]) == (status, message)


def test_the_old_name_of_a_repository_cannot_be_minted_for(
    github: StandIn, client: Client, installation: Installation
) -> None:
    repository = github.find_repository("acme", "rocket")
    assert repository is not None
    github.rename(repository, "acme/starship")

    assert mint(client, installation, {"repositories": ["rocket"]}).status_code == 422
    assert mint(client, installation, {"repository_ids": [repository.id]}).status_code == 201
    assert mint(client, installation, {"repositories": ["starship"]}).status_code == 201


def test_a_stateless_token_has_todays_shape(client: Client, installation: Installation, app: App) -> None:
    tokens = [mint(client, installation).json()["token"] for _ in range(3)]

    for token in tokens:
        assert re.fullmatch(rf"ghs_{app.id}_[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", token)
        assert 510 <= len(token) <= 530
        assert "-" in token
    assert len({token[:46] for token in tokens}) == 1
    assert len(set(tokens)) == 3


def test_token_and_expiry_follow_the_switches(github: StandIn, client: Client, installation: Installation) -> None:
    github.settings.token_format = "legacy"  # noqa: S105  # a format
    github.settings.expires_at_suffix = "+00:00"
    legacy = mint(client, installation).json()
    github.settings.token_format = "stateless"  # noqa: S105  # a format
    github.settings.extra_token_length = 1500
    long = mint(client, installation).json()
    github.settings.literal_tokens.append("ghs_a\r\nb\0" + "c" * 5000)
    literal = mint(client, installation).json()

    assert re.fullmatch(r"ghs_[A-Za-z0-9]{36}", legacy["token"])
    assert legacy["expires_at"].endswith("+00:00")
    assert 2000 <= len(long["token"]) <= 2040
    assert literal["token"].startswith("ghs_a\r\nb\0")
    assert len(literal["token"]) == 5009


def test_an_answer_can_be_wider_than_what_was_asked(
    github: StandIn, client: Client, installation: Installation
) -> None:
    github.settings.edit_mint = lambda body: body | {"repository_selection": "all"}

    assert mint(client, installation, {"repositories": ["rocket"]}).json()["repository_selection"] == "all"


def test_new_permissions_wait_for_the_owner(
    github: StandIn, app: App, client: Client, installation: Installation
) -> None:
    github.request_permissions(app, {"issues": "write"})
    asked = {"permissions": {"issues": "write"}}
    assert mint(client, installation, asked).json()["message"] == NOT_GRANTED

    github.accept_permissions(installation)

    assert mint(client, installation, asked).status_code == 201


def test_a_suspended_installation_is_shown_but_mints_nothing(
    github: StandIn, client: Client, installation: Installation
) -> None:
    token = mint(client, installation).json()["token"]
    assert client.put(f"/app/installations/{installation.id}/suspended").status_code == 204

    refused = mint(client, installation)

    assert client.get("/repos/acme/rocket/installation").json()["suspended_at"] is not None
    assert (refused.status_code, refused.json()["message"]) == (403, "This installation has been suspended")
    with Client(github, f"token {token}") as holder:
        assert holder.get("/installation/repositories").status_code == 403
    assert client.delete(f"/app/installations/{installation.id}/suspended").status_code == 204
    assert mint(client, installation).status_code == 201
    assert github.violations == []


def test_a_new_installation_has_a_new_id_and_the_old_one_is_gone(
    github: StandIn, client: Client, installation: Installation
) -> None:
    again = github.reinstall(installation)

    assert again.id != installation.id
    assert mint(client, installation).status_code == 404
    assert mint(client, again, {"repositories": ["rocket"]}).status_code == 201


def test_the_allow_list_refuses_lookups_and_mints(github: StandIn, client: Client, installation: Installation) -> None:
    github.settings.ip_allow_list.add("acme")

    for answer in (client.get("/repos/acme/rocket/installation"), mint(client, installation)):
        assert answer.status_code == 403
        assert "the `acme` organization has an IP allow list enabled" in answer.json()["message"]


# What a token does.


def test_a_token_lists_its_own_repositories_until_it_is_revoked(
    github: StandIn, client: Client, installation: Installation
) -> None:
    fuel = github.find_repository("acme", "fuel")
    assert fuel is not None
    github.select(installation, fuel)
    wide = mint(client, installation).json()["token"]
    narrow = mint(client, installation, {"repositories": ["fuel"]}).json()["token"]

    with Client(github, f"Bearer {wide}") as holder:
        page = holder.get("/installation/repositories?per_page=1")
        assert page.json()["total_count"] == 2
        assert 'rel="next"' in page.headers["link"]
    with Client(github, f"token {narrow}") as holder:
        listed = holder.get("/installation/repositories").json()["repositories"]
        assert [repository["name"] for repository in listed] == ["fuel"]
        assert holder.delete("/installation/token").status_code == 204
        gone = holder.delete("/installation/token")
    assert (gone.status_code, gone.json()["message"]) == (401, "Bad credentials")
    assert github.requests[-1].token_sha256 == base64.b64encode(hashlib.sha256(narrow.encode()).digest()).decode()
    assert github.violations == []


def test_a_token_ends_after_an_hour(github: StandIn, client: Client, installation: Installation) -> None:
    token = mint(client, installation).json()["token"]

    with Client(github, f"token {token}") as holder:
        github.clock.advance(3599)
        assert holder.get("/installation/repositories").status_code == 200
        github.clock.advance(2)
        assert holder.get("/installation/repositories").json()["message"] == "Bad credentials"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_fresh_token_can_lag(github: StandIn, client: Client, installation: Installation, status: Any) -> None:
    github.settings.lag = Lag(seconds=3, requests=2, rest_status=status)
    token = mint(client, installation).json()["token"]

    with Client(github, f"token {token}") as holder:
        assert holder.get("/installation/repositories").status_code == status
        github.clock.advance(4)
        assert holder.get("/installation/repositories").status_code == status
        assert holder.get("/installation/repositories").status_code == 200


# Rules for every request.


def test_a_request_needs_a_user_agent(client: Client) -> None:
    answer = client.get("/app", headers={"user-agent": ""})

    assert answer.status_code == 403
    assert answer.headers["content-type"].startswith("text/plain")
    assert "make sure your request has a User-Agent header" in answer.text


@pytest.mark.parametrize(
    ("version", "status"), [("2022-11-28", 200), ("2026-03-10", 200), ("2021-01-01", 400), ("2020-01-01", 410)]
)
def test_a_version_of_the_api_is_known_unknown_or_retired(
    github: StandIn, client: Client, version: str, status: int
) -> None:
    github.settings.retired_versions = ("2020-01-01",)

    answer = client.get("/rate_limit", headers={"x-github-api-version": version})

    assert answer.status_code == status
    if status == 200:
        assert answer.headers["x-github-api-version-selected"] == version
        assert ("rate" in answer.json()) is (version == "2022-11-28")
    assert re.fullmatch(r"[0-9A-F:]+", answer.headers["x-github-request-id"])
    assert github.violations == []


def test_ghe_com_answers_nobody_without_a_token(tmp_path: Path) -> None:
    with (
        StandIn.start(tmp_path, hosts=["acme.ghe.com"]) as github,
        Client(github, base_url="https://api.acme.ghe.com") as client,
    ):
        assert client.get("/versions").status_code == 401


def test_the_primary_limit_is_kept_and_shown(github: StandIn, client: Client, installation: Installation) -> None:
    github.settings.primary_limit = 2
    token = mint(client, installation).json()["token"]

    with Client(github, f"token {token}") as holder:
        left = [holder.get("/installation/repositories").headers["x-ratelimit-remaining"] for _ in range(2)]
        refused = holder.get("/installation/repositories")
        assert left == ["1", "0"]
        assert refused.status_code == 403
        assert refused.json()["message"] == f"API rate limit exceeded for installation ID {installation.id}."
        assert refused.headers["x-ratelimit-remaining"] == "0"
        assert int(refused.headers["x-ratelimit-reset"]) > github.clock.now()
        assert holder.get("/rate_limit").json()["resources"]["core"]["remaining"] == 0


def test_the_secondary_limit_counts_a_mint_five_times(
    github: StandIn, client: Client, installation: Installation
) -> None:
    github.settings.secondary_limit = 900
    github.settings.secondary_status = 429

    statuses = [mint(client, installation).status_code for _ in range(181)]

    assert statuses == [201] * 180 + [429]
    refused = mint(client, installation)
    assert refused.headers["retry-after"] == "60"
    assert refused.json()["message"].startswith("You have exceeded a secondary rate limit")
    github.clock.advance(61)
    assert mint(client, installation).status_code == 201
