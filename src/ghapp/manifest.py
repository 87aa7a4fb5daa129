"""GitHub's App Manifest flow as values: what is asked for, what comes back through the browser, what the code buys.

The browser posts the manifest to GitHub, a person presses the button there, and GitHub sends the browser back to us
with a code, which is worth the app's private key, once and for an hour.
"""

import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, urlsplit

from ghapp.errors import BadAnswer, NotCreated, StateMismatch, UsageError
from ghapp.wire import printable


MAX_NAME = 34  # GitHub's limit
DEFAULT_PERMISSIONS = {"contents": "write", "metadata": "read"}

_CODE = re.compile(r"[A-Za-z0-9_.~-]{1,255}")
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_ORGANIZATION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,98}[A-Za-z0-9])?")
_MAX_REDIRECT = 4096  # characters; GitHub's is 150
_MAX_FIELDS = 20

_WORDS = {
    ("contents", "read"): "read the code of its repositories",
    ("contents", "write"): "read and change the code of its repositories: clone, fetch, push",
    ("metadata", "read"): "see their names and settings (GitHub adds this to every app)",
    ("workflows", "write"): "change the workflows of GitHub Actions in them",
    ("pull_requests", "read"): "read pull requests",
    ("pull_requests", "write"): "open, edit and merge pull requests",
    ("issues", "read"): "read issues",
    ("issues", "write"): "open and edit issues",
    ("actions", "read"): "see runs of GitHub Actions",
    ("actions", "write"): "start and cancel runs of GitHub Actions",
    ("administration", "write"): "change their settings, and delete them",
}
_VERBS = {"read": "read", "write": "read and change", "admin": "administer"}


@dataclass(frozen=True, slots=True)
class Draft:
    """An app that does not exist yet."""

    name: str
    host: str
    organization: str = ""
    """Empty for the account of whoever is signed in."""
    permissions: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_PERMISSIONS))

    @property
    def homepage(self) -> str:
        """Where GitHub's page about the app links to; it demands one."""
        return f"https://{self.host}/{self.organization}".rstrip("/")

    @property
    def register_url(self) -> str:
        """The page that takes the manifest, without the state."""
        owner = f"organizations/{quote(self.organization, safe='')}/" if self.organization else ""
        return f"https://{self.host}/{owner}settings/apps/new"

    def action(self, state: str) -> str:
        """Return where the form is sent."""
        return f"{self.register_url}?state={quote(state, safe='')}"

    def text(self, redirect_url: str) -> str:
        """Return the manifest.

        Without ``hook_attributes``: GitHub refuses them without a URL, even when they say that there is no hook.
        """
        return json.dumps(
            {
                "name": self.name,
                "url": self.homepage,
                "description": "Lets git work as a bot; the key is held by ghapp.",
                "public": False,
                "redirect_url": redirect_url,
                "default_permissions": dict(self.permissions),
            }
        )


def check_name(name: str) -> str:
    """Return `name` if GitHub can take it for an app. Raises `UsageError`."""
    if not 0 < len(name.strip()) <= MAX_NAME or name != name.strip() or not name.isprintable():
        raise UsageError(f"an app's name is a line of up to {MAX_NAME} characters", hint="ghapp app create acme-bot")
    if not any(character.isalnum() for character in name):
        raise UsageError("an app's name needs a letter or a digit", hint="ghapp app create acme-bot")
    return name


def check_organization(name: str) -> str:
    """Return `name` if it can be an organisation's login. Raises `UsageError`."""
    if not _ORGANIZATION.fullmatch(name):
        raise UsageError(f"{printable(name)!r} is not an organisation's name", hint="ghapp app create --org acme")
    return name


def default_name(owner: str, suffix: str) -> str:
    """Return a name that nobody has yet: names are unique among all apps of a GitHub."""
    clean = re.sub(r"[^A-Za-z0-9-]+", "-", owner).strip("-") or "my"
    tail = f"-ghapp-{suffix}"
    return clean[: MAX_NAME - len(tail)].rstrip("-") + tail


def in_words(permissions: Mapping[str, str]) -> list[str]:
    """Return one line for a person for each permission, the strongest first."""
    order = sorted(permissions.items(), key=lambda item: (item[0] == "metadata", item[1] == "read", item[0]))
    return [_WORDS.get(item) or f"{_VERBS.get(item[1], item[1])} {item[0].replace('_', ' ')}" for item in order]


def read_redirect(target: str, state: str) -> str:
    """Return the code of the URL or path-and-query that GitHub sent the browser to.

    Raises `StateMismatch` and `NotCreated`. The state comes first: without it anybody could slip us a code of an app
    of theirs, whose key they have too.
    """
    try:
        fields = parse_qs(
            urlsplit(target.strip()[:_MAX_REDIRECT]).query, keep_blank_values=True, max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        fields = {}
    given = fields.get("state", [])
    if len(given) != 1 or not hmac.compare_digest(given[0].encode("utf-8", "replace"), state.encode()):
        raise StateMismatch("this is not the answer to our request: its state is another", hint=_AGAIN)
    codes = fields.get("code", [])
    if len(codes) != 1 or not _CODE.fullmatch(codes[0]):
        said = printable(" ".join(fields.get("error_description", fields.get("error", []))))
        raise NotCreated("GitHub created no app" + (f": {said}" if said else ""), hint=_AGAIN)
    return codes[0]


_AGAIN = "ghapp app create"


@dataclass(frozen=True, slots=True)
class Registered:
    """An app that GitHub has just created, with its first key; what else came, such as secrets, is not kept."""

    app_id: int
    client_id: str
    slug: str
    name: str
    owner: str
    host: str
    is_organization: bool
    pem: bytes = field(repr=False)

    @property
    def html_url(self) -> str:
        """The app's public page."""
        return f"https://{self.host}/apps/{self.slug}"

    @property
    def install_url(self) -> str:
        """Where it is installed."""
        return f"{self.html_url}/installations/new"

    @property
    def settings_url(self) -> str:
        """Where its owner makes further keys, and deletes it."""
        owner = f"organizations/{quote(self.owner, safe='')}/" if self.is_organization else ""
        return f"https://{self.host}/{owner}settings/apps/{self.slug}"


def read_registered(body: object, draft: Draft) -> Registered:
    """Read the body of the 201. Raises `BadAnswer`, whose text holds nothing of it."""
    if not isinstance(body, dict):
        raise BadAnswer("GitHub's answer is not a JSON object")
    owner = body.get("owner")
    owner = owner if isinstance(owner, dict) else {}
    texts = {key: body.get(key) for key in ("slug", "name", "pem")} | {"owner": owner.get("login") or owner.get("slug")}
    missing = [key for key, value in texts.items() if not isinstance(value, str) or not value]
    if type(body.get("id")) is not int:  # JSON's true is an int in Python
        missing.append("id")
    if missing:
        raise BadAnswer(f"GitHub created the app, and did not tell its {missing[0]}", hint=_by_hand(draft))
    slug, login = str(texts["slug"]), str(texts["owner"])
    if not _SLUG.fullmatch(slug):  # it becomes a part of links
        raise BadAnswer("GitHub created the app, and its slug cannot be used", hint=_by_hand(draft))
    if draft.organization and login.lower() != draft.organization.lower():
        # Whoever slipped us a code can only own the app themselves.
        raise BadAnswer(f"the app belongs to {printable(login)}, not to {draft.organization}", hint=_AGAIN)
    client_id = body.get("client_id")
    return Registered(
        app_id=int(body["id"]),
        client_id=client_id if isinstance(client_id, str) and client_id.isascii() and client_id.isprintable() else "",
        slug=slug,
        name=printable(str(texts["name"])),
        owner=printable(login),
        host=draft.host,
        is_organization=bool(draft.organization),
        pem=str(texts["pem"]).encode("utf-8", "replace"),
    )


def _by_hand(draft: Draft) -> str:
    page = draft.register_url.removesuffix("/new")
    return f"generate a key at {page}, then: ghapp app add --app-id N --key FILE"
