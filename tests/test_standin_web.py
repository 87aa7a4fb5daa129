"""The pages that make and install an app."""

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from standin import StandIn
from standin.client import Client, as_app


GOOD: dict[str, Any] = {
    "url": "https://example.com",
    "name": "Acme Bot",
    "redirect_url": "http://127.0.0.1:4711/done",
    "public": False,
    "default_permissions": {"contents": "write", "metadata": "read"},
}
PAGE = "https://github.com/organizations/acme/settings/apps/new?state=S1"


@pytest.fixture
def github(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn.start(tmp_path) as github:
        yield github


@pytest.fixture
def browser(github: StandIn) -> Iterator[Client]:
    with Client(github) as browser:
        yield browser


def create(browser: Client, manifest: dict[str, Any]) -> str:
    """Walk through the pages and return where they end."""
    page = browser.post(PAGE, data={"manifest": json.dumps(manifest)})
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page.text))
    answer = browser.post(PAGE, data={name: unescape(value) for name, value in fields.items()})
    assert answer.status_code == 302
    return answer.headers["location"]


def test_a_manifest_becomes_an_app_by_a_code_that_works_once(github: StandIn, browser: Client) -> None:
    target = urlsplit(create(browser, GOOD))
    answer = parse_qs(target.query)
    assert (target.netloc, answer["state"]) == ("127.0.0.1:4711", ["S1"])
    url = f"/app-manifests/{answer['code'][0]}/conversions"

    converted = browser.post(url)

    body = converted.json()
    assert converted.status_code == 201
    assert (body["slug"], body["owner"]["login"]) == ("acme-bot", "acme")
    assert body["pem"].startswith("-----BEGIN RSA PRIVATE KEY-----")
    assert {"client_id", "client_secret", "webhook_secret"} <= set(body)
    assert browser.post(url).status_code == 404
    with as_app(github, github.apps[body["id"]]) as app:
        assert app.get("/app").json()["installations_count"] == 0


def test_a_code_ends_after_an_hour(github: StandIn, browser: Client) -> None:
    code = parse_qs(urlsplit(create(browser, GOOD)).query)["code"][0]
    github.clock.advance(3601)

    assert browser.post(f"/app-manifests/{code}/conversions").status_code == 404


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"url": ""}, 'Error "url" wasn\'t supplied'),
        ({"hook_attributes": {"active": False}}, 'Error "url" wasn\'t supplied'),
        ({"name": "n" * 35}, "Name is too long"),
        ({"callback_urls": ["http://localhost"] * 11}, "at most 10"),
        ({"default_permissions": ["contents"]}, "permissions are invalid"),
    ],
)
def test_a_wrong_manifest_is_explained(browser: Client, change: dict[str, Any], text: str) -> None:
    page = browser.post(PAGE, data={"manifest": json.dumps(GOOD | change)})

    assert page.status_code == 422
    assert "Invalid GitHub App configuration" in page.text
    assert text in unescape(page.text)


def test_a_button_installs_the_app(github: StandIn, browser: Client) -> None:
    github.add_app("acme-bot", {"contents": "write"})
    github.add_repository("acme/rocket", files={})
    url = "https://github.com/apps/acme-bot/installations/new"

    assert "Install" in browser.get(url).text
    browser.post(url, data={"repositories": "rocket"})

    [installation] = github.installations.values()
    assert (installation.account.login, installation.everything) == ("acme", False)
    assert browser.get("https://github.com/apps/nobody/installations/new").status_code == 404
