"""What others say of the stand-in: a client that is not ours, and GitHub's own description."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from standin import StandIn
from standin.openapi import NEWEST, Description


if TYPE_CHECKING:
    import githubkit


PATH = Path(__file__).parents[2] / "shared/reference/github-apps-openapi.json"
described = pytest.mark.skipif(not PATH.exists(), reason="GitHub's description is not beside the checkout")


@pytest.fixture
def github(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn.start(tmp_path, description=PATH if PATH.exists() else None) as github:
        yield github


@pytest.fixture
def client(github: StandIn, monkeypatch: pytest.MonkeyPatch) -> "Iterator[githubkit.GitHub[githubkit.AppAuthStrategy]]":
    try:
        import githubkit  # noqa: PLC0415  # below
    except ImportError as error:  # 0.16.1 allows hishel 2.0.0, and fails to import with it
        pytest.skip(f"githubkit cannot be imported here: {error}")
    for name, value in github.environment.items():
        monkeypatch.setenv(name, value)
    app = github.add_app("acme-bot", {"contents": "write", "workflows": "write"})
    auth = githubkit.AppAuthStrategy(app.id, app.private_key_pem.decode(), client_id=app.client_id)
    with githubkit.GitHub(auth, http_cache=False, auto_retry=False) as client:
        yield client


def test_githubkit_lists_looks_up_mints_and_revokes(
    github: StandIn, client: "githubkit.GitHub[githubkit.AppAuthStrategy]"
) -> None:
    [app] = github.apps.values()
    github.add_repository("acme/rocket", files={})
    installation = github.install(app, "acme", ["rocket"])

    own = client.rest.apps.get_authenticated().parsed_data
    assert own is not None
    assert own.id == app.id
    listed = client.rest.apps.list_installations().parsed_data
    assert [item.id for item in listed] == [installation.id]
    found = client.rest.apps.get_repo_installation("acme", "rocket").parsed_data
    assert found.id == installation.id
    minted = client.rest.apps.create_installation_access_token(
        installation.id, repositories=["rocket"], permissions={"contents": "read"}
    ).parsed_data
    assert minted.token == github.mints[-1].token
    assert [repository.full_name for repository in minted.repositories or []] == ["acme/rocket"]
    with client.with_auth(client.auth.as_installation(installation.id)) as holder:
        assert holder.rest.apps.list_repos_accessible_to_installation().parsed_data.total_count == 1
        assert holder.rest.apps.revoke_installation_access_token().status_code == 204
    assert {request.status for request in github.requests} <= {200, 201, 204}
    assert github.violations == []


@described
@pytest.mark.parametrize(
    ("method", "path", "query", "body", "expected"),
    [
        ("GET", "/app", {}, None, None),
        ("GET", "/app/installations", {"per_page": "5"}, None, None),
        ("GET", "/app/installations", {"per_page": "many"}, None, "'many' is not of type 'integer'"),
        ("GET", "/app/installations", {"colour": "red"}, None, "'colour' is not described"),
        ("GET", "/app/installation", {}, None, "no such operation"),
        ("GET", "/app/installations/x", {}, None, "'x' is not of type 'integer'"),
        ("POST", "/app/installations/1/access_tokens", {}, {"permissions": {"contents": "read"}}, None),
        ("POST", "/app/installations/1/access_tokens", {}, {"repositories": "r"}, "is not of type 'array'"),
        ("POST", "/app/installations/1/access_tokens", {}, {"permissions": {"contents": "all"}}, "is not one of"),
        ("GET", "/app", {}, {"a": 1}, "no body is described"),
    ],
)
def test_a_request_is_held_against_the_description(
    method: str, path: str, query: dict[str, str], body: object, expected: str | None
) -> None:
    problems = Description.load(PATH).check_request(method, path, query, body)

    if expected is None:
        assert problems == []
    else:
        assert expected in problems[0]


@described
@pytest.mark.parametrize(
    ("path", "status", "kind", "body", "expected"),
    [
        ("/versions", 200, "application/json; charset=utf-8", b'["2022-11-28"]', None),
        ("/versions", 200, "application/json", b"[1]", "is not of type 'string'"),
        ("/versions", 200, "application/json", b"[", "not JSON"),
        ("/versions", 200, "text/html", b"[]", "content type 'text/html'"),
        ("/versions", 418, "text/html", b"", "no such status"),
        ("/versions", 502, "text/html", b"<html>", None),
        ("/app", 401, "application/json", b"{}", None),
        ("/app", 200, "application/json", b"{}", "'id' is a required property"),
    ],
)
def test_an_answer_is_held_against_the_description(
    path: str, status: int, kind: str, body: bytes, expected: str | None
) -> None:
    problems = Description.load(PATH).check_response("GET", path, status, {"content-type": kind}, body)

    if expected is None:
        assert problems == []
    else:
        assert any(expected in problem for problem in problems)


@described
def test_the_newer_version_is_the_older_one_with_its_changes() -> None:
    numbers = b'{"limit": 1, "used": 0, "remaining": 1, "reset": 1}'
    body = b'{"resources": {"core": %s, "search": %s}}' % (numbers, numbers)

    def problems(description: Description) -> list[str]:
        headers = {"content-type": "application/json"}
        return description.check_response("GET", "/rate_limit", 200, headers, body)

    assert problems(Description.load(PATH)) != []
    assert problems(Description.load(PATH, NEWEST)) == []
