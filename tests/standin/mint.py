"""`POST /app/installations/{id}/access_tokens`: from what was asked to a token."""

import json
from collections.abc import Iterable
from typing import Any

from standin import shape, token_text
from standin.clock import iso
from standin.errors import ApiError
from standin.journal import Mint, token_sha256
from standin.model import LEVELS, Installation, Permissions, Repository, Token, within
from standin.site import Site
from standin.world import World


MOST_REPOSITORIES = 500
DOCS = "https://docs.github.com/rest/reference/apps#create-an-installation-access-token-for-an-app"
SUSPENDED = "This installation has been suspended"
NOT_GRANTED = "The permissions requested are not granted to this installation."
NOT_ACCESSIBLE = "There is at least one repository that does not exist or is not accessible to the parent installation."
TOO_MANY = "You can list at most 500 repositories."  # the real text is not known


def parse(raw: bytes) -> dict[str, Any]:
    """Read the request's body; GitHub takes none at all for `{}`."""
    try:
        asked = json.loads(raw or b"{}")
    except ValueError:
        raise ApiError(400, "Problems parsing JSON") from None
    if not isinstance(asked, dict):
        raise ApiError(400, "Body should be a JSON object")
    if not isinstance(asked.get("permissions", {}), dict):
        raise ApiError(400, "Problems parsing JSON")  # recorded for a string
    for field, kind in (("repositories", str), ("repository_ids", int)):
        values = asked.get(field, [])
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise ApiError(422, "Invalid request")
    return asked


def mint(world: World, installation: Installation, asked: dict[str, Any], site: Site, version: str) -> Any:
    """Make a token, remember it, and return the body of the 201."""
    with world.lock:
        if installation.suspended_at is not None:
            raise ApiError(403, SUSPENDED, documentation_url=DOCS)
        permissions = _permissions(installation, asked.get("permissions"))
        repositories = _repositories(world, installation, asked)
        token = _token(world, installation, repositories, permissions)
        world.tokens[token.value] = token
    world.journal.add_mint(_record(token, repositories, asked))
    body = _body(token, repositories, site, version, world.settings.expires_at_suffix)
    edit = world.settings.edit_mint
    return body if edit is None else edit(body)


def _permissions(installation: Installation, asked: Permissions | None) -> Permissions:
    if not asked:  # absent and empty both mean everything
        return dict(installation.permissions)
    for name, level in asked.items():
        if level not in LEVELS:
            raise ApiError(422, "Invalid request", documentation_url=DOCS)
        if not within(installation.permissions, name, level):
            raise ApiError(422, NOT_GRANTED, documentation_url=DOCS)
    return {**asked, "metadata": "read"}


def _repositories(world: World, installation: Installation, asked: dict[str, Any]) -> list[Repository] | None:
    names, ids = asked.get("repositories") or [], asked.get("repository_ids") or []
    if not (names or ids):  # absent and empty both mean everything
        return None
    if len(names) + len(ids) > MOST_REPOSITORIES:
        raise ApiError(422, TOO_MANY, documentation_url=DOCS)
    found = [world.named(installation.account.login, name) for name in names]
    found += [world.repositories.get(number) for number in ids]
    return list({repository.id: repository for repository in _all_covered(installation, found)}.values())


def _all_covered(installation: Installation, found: Iterable[Repository | None]) -> Iterable[Repository]:
    for repository in found:
        if repository is None or not installation.covers(repository):
            raise ApiError(422, NOT_ACCESSIBLE, documentation_url=DOCS)
        yield repository


def _token(
    world: World, installation: Installation, repositories: list[Repository] | None, permissions: Permissions
) -> Token:
    settings, now = world.settings, world.clock.now()
    value = (
        settings.literal_tokens.pop(0)
        if settings.literal_tokens
        else token_text.make(
            installation.app.id,
            now,
            settings.token_lifetime,
            settings.token_format,
            settings.extra_token_length,
        )
    )
    return Token(
        value=value,
        installation=installation,
        repository_ids=None if repositories is None else frozenset(r.id for r in repositories),
        permissions=permissions,
        created_at=now,
        expires_at=now + settings.token_lifetime,
    )


def _record(token: Token, repositories: list[Repository] | None, asked: dict[str, Any]) -> Mint:
    names = None if repositories is None else tuple(sorted(r.full_name for r in repositories))
    return Mint(
        app=token.installation.app.id,
        installation=token.installation.id,
        repositories=names,
        permissions=token.permissions,
        asked=asked,
        token=token.value,
        token_sha256=token_sha256(token.value),
        time=token.created_at,
        expires_at=token.expires_at,
    )


def _body(token: Token, repositories: list[Repository] | None, site: Site, version: str, suffix: str) -> dict[str, Any]:
    selected = repositories is not None or not token.installation.everything
    body: dict[str, Any] = {
        "token": token.value,
        "expires_at": iso(token.expires_at, suffix),
        "permissions": token.permissions,
        "repository_selection": "selected" if selected else "all",
    }
    if repositories is not None:  # listed only when they were named
        body["repositories"] = [shape.repository(r, site, version) for r in repositories]
    return body
