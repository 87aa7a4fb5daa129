"""What is asked of GitHub, what may come back, and what of it is kept."""

import json
import string
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghapp.errors import BadAnswer, NotCreated, StateMismatch, UsageError
from ghapp.manifest import (
    MAX_NAME,
    Draft,
    check_name,
    check_organization,
    default_name,
    in_words,
    read_redirect,
    read_registered,
)


STATE = "S-1_a"
REDIRECT = "http://127.0.0.1:4711/x/created"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nsecret-of-the-key\n"
BODY: dict[str, Any] = {
    "id": 4242,
    "client_id": "Iv23li1",
    "slug": "acme-bot",
    "name": "Acme Bot",
    "owner": {"login": "Acme", "type": "Organization"},
    "client_secret": "secret-of-the-client",
    "webhook_secret": None,
    "pem": PEM,
}
DRAFT = Draft("acme-bot", "github.com", "acme")


def test_the_manifest_asks_for_no_more_than_git_needs_and_for_no_hook() -> None:
    manifest = json.loads(DRAFT.text(REDIRECT))

    assert manifest["default_permissions"] == {"contents": "write", "metadata": "read"}
    assert manifest["redirect_url"] == REDIRECT
    assert manifest["url"] == "https://github.com/acme"
    assert manifest["public"] is False
    assert not manifest.keys() & {"hook_attributes", "default_events", "callback_urls", "setup_url"}


@pytest.mark.parametrize(
    ("draft", "page"),
    [
        (DRAFT, "https://github.com/organizations/acme/settings/apps/new"),
        (Draft("x", "github.com"), "https://github.com/settings/apps/new"),
        (Draft("x", "acme.ghe.com", "acme"), "https://acme.ghe.com/organizations/acme/settings/apps/new"),
    ],
)
def test_the_form_goes_to_the_page_of_the_owner(draft: Draft, page: str) -> None:
    target = urlsplit(draft.action("a&b=c"))

    assert f"https://{target.netloc}{target.path}" == page
    assert parse_qs(target.query) == {"state": ["a&b=c"]}


@pytest.mark.parametrize("name", ["", " ", " x", "x ", "x" * (MAX_NAME + 1), "a\nb", "--", "a\x1b[0m"])
def test_a_name_that_github_cannot_take_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "Acme Bot", "x" * MAX_NAME])
def test_a_name_that_github_can_take_is_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a/b", "a b", "-a", "a-", "ä", "a?b", ".."])
def test_what_is_no_organisation_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_organization(name)


def test_an_organisation_of_managed_users_is_taken() -> None:
    assert check_organization("acme_corp") == "acme_corp"


@given(st.text(max_size=60))
def test_every_default_name_is_one_that_github_can_take(owner: str) -> None:
    name = default_name(owner, "3f9a")

    assert check_name(name).endswith("-ghapp-3f9a")
    assert set(name) <= set(string.ascii_letters + string.digits + "-")


def test_permissions_are_told_in_words() -> None:
    lines = in_words({"metadata": "read", "contents": "write", "issues": "read", "merge_queues": "write"})

    assert lines == [
        "read and change the code of its repositories: clone, fetch, push",
        "read and change merge queues",
        "read issues",
        "see their names and settings (GitHub adds this to every app)",
    ]


# -- what the browser brings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [REDIRECT, "/x/created", "  " + REDIRECT])
def test_the_code_is_read_where_the_state_is_ours(prefix: str) -> None:
    assert read_redirect(f"{prefix}?code=c0de&state={STATE}", STATE) == "c0de"


@pytest.mark.parametrize(
    "query",
    [
        "",
        "code=c",
        "code=c&state=",
        "code=c&state=S-1_b",
        "code=c&state=S-1_a%20",
        f"code=c&state={STATE}&state={STATE}",
        f"code=c&state=x&state={STATE}",
        f"code=c&State={STATE}",
        f"code=c#state={STATE}",
        "code=c&state=%F0%9F%92%A9",
        "code=c&state=%ED%A0%80",
        "&".join(["a=1"] * 40) + f"&code=c&state={STATE}",
        "a" * 5000 + f"&code=c&state={STATE}",
    ],
)
def test_without_our_state_no_code_is_read(query: str) -> None:
    with pytest.raises(StateMismatch):
        read_redirect(f"{REDIRECT}?{query}", STATE)


@pytest.mark.parametrize(
    "query",
    ["", "code=", "code=a&code=b", "code=a%2Fb", "code=..%2F..", "code=a%0Ab", "code=%00", "code=" + "a" * 256],
)
def test_what_is_no_code_is_not_sent_anywhere(query: str) -> None:
    with pytest.raises(NotCreated) as caught:
        read_redirect(f"{REDIRECT}?{query}&state={STATE}", STATE)

    assert str(caught.value) == "GitHub created no app (E67)"


def test_the_reason_that_github_gives_instead_of_a_code_is_told_on_one_line() -> None:
    query = urlencode({"state": STATE, "error": "access_denied", "error_description": "You said\n\x1b[31mno"})

    with pytest.raises(NotCreated, match=r"GitHub created no app: You said\?\?\[31mno"):
        read_redirect(f"{REDIRECT}?{query}", STATE)


@given(st.text(max_size=200))
def test_no_text_is_taken_for_an_answer(text: str) -> None:
    with pytest.raises(StateMismatch):
        read_redirect(text, "a-state-that-nobody-guesses")


# -- what the code buys --------------------------------------------------------------------------------------------


def test_of_githubs_answer_no_secret_is_kept_but_the_key_and_that_is_not_shown() -> None:
    app = read_registered(BODY, DRAFT)

    assert (app.app_id, app.client_id, app.slug, app.name, app.owner) == (
        4242,
        "Iv23li1",
        "acme-bot",
        "Acme Bot",
        "Acme",
    )
    assert app.pem == PEM.encode()
    assert app.install_url == "https://github.com/apps/acme-bot/installations/new"
    assert app.settings_url == "https://github.com/organizations/Acme/settings/apps/acme-bot"
    assert "secret" not in repr(app)


def test_a_personal_app_has_its_settings_elsewhere() -> None:
    app = read_registered(BODY, Draft("x", "github.com"))

    assert app.settings_url == "https://github.com/settings/apps/acme-bot"


@pytest.mark.parametrize(
    "change",
    [
        {"id": None},
        {"id": True},
        {"id": "4242"},
        {"slug": ""},
        {"slug": "../../evil"},
        {"slug": "a?b"},
        {"name": 1},
        {"pem": None},
        {"pem": ["x"]},
        {"owner": None},
        {"owner": {"login": 7}},
        {"owner": {"login": "mallory"}},
    ],
)
def test_an_answer_that_lacks_something_or_is_of_another_owner_is_refused_without_quoting_it(
    change: dict[str, Any],
) -> None:
    with pytest.raises(BadAnswer) as caught:
        read_registered(BODY | change, DRAFT)

    assert "secret" not in str(caught.value) + caught.value.hint
    assert "ghapp app" in caught.value.hint


@pytest.mark.parametrize("body", [None, [], "x", 7])
def test_an_answer_that_is_no_object_is_refused(body: object) -> None:
    with pytest.raises(BadAnswer):
        read_registered(body, DRAFT)


@pytest.mark.parametrize("client_id", [None, 7, "Iv\n23", "Ivä"])
def test_a_client_id_that_cannot_be_used_is_left_out(client_id: object) -> None:
    assert read_registered(BODY | {"client_id": client_id}, DRAFT).client_id == ""
