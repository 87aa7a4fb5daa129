"""GitHub's words as values: permissions, installation, and the scope of a token; pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NewType

from ghapp.errors import PermissionMissing


InstallationId = NewType("InstallationId", int)
Permissions = tuple[tuple[str, str], ...]
"""Name and level, sorted by name: a value that can be compared and hashed."""

_LEVELS = {"read": 1, "write": 2, "admin": 3}
LEVELS = frozenset(_LEVELS)
_WITHOUT_READ = frozenset({"workflows", "profile"})
"""Permissions that GitHub knows at `write` only; asked for at `read`, the whole request is refused."""
_ALWAYS = ("metadata", "read")
"""What GitHub adds to every token."""


class Everything(Enum):
    """All repositories of an installation: a value of its own, because GitHub reads an empty list as everything."""

    ALL = "all"


ALL = Everything.ALL
Repositories = tuple[str | int, ...] | Everything
"""Names without the owner in lower case, or ids; never empty."""


def permissions_of(mapping: Mapping[str, str]) -> Permissions:
    """Return `mapping` as a value."""
    return tuple(sorted(mapping.items()))


def read_only_of(permissions: Permissions) -> Permissions:
    """Return what `permissions` allow to see, without those that have no such level."""
    return tuple((name, "read") for name, _ in permissions if name not in _WITHOUT_READ)


def lesser(permissions: Permissions, limit: Permissions) -> Permissions:
    """Return what `permissions` and `limit` have in common, each at the lower level."""
    limits = dict(limit)
    return tuple(
        (name, min(level, limits[name], key=lambda each: _LEVELS.get(each, 0)))
        for name, level in permissions
        if name in limits
    )


def highest(levels: Iterable[str]) -> str:
    """Return the level among `levels` that contains the others."""
    return max(levels, key=lambda each: _LEVELS.get(each, 0))


def exceeds(permissions: Permissions, limit: Permissions) -> list[str]:
    """Return those of `permissions`, as ``name: level``, that `limit` does not contain; unknown levels never fit.

    ``metadata: read`` always fits: GitHub adds it to every token.
    """
    limits = dict((_ALWAYS, *limit))
    return [
        f"{name}: {level}"
        for name, level in permissions
        if _LEVELS.get(level, 99) > _LEVELS.get(limits.get(name, ""), 0)
    ]


@dataclass(frozen=True, slots=True)
class Installation:
    """An app on one account."""

    id: InstallationId
    account: str
    """The login as GitHub spells it; an enterprise, which has none, appears with its slug."""
    permissions: Permissions
    repository_selection: str
    suspended: bool
    html_url: str
    """The page where the account's owner selects repositories and accepts permissions."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token may do and who stands behind it: the key under which a lease is kept.

    Two requests share a token if and only if their scopes are equal.
    """

    api: str
    issuer: str
    key: str
    """The signing key's fingerprint: a token made with another key is another token."""
    installation: InstallationId
    repositories: Repositories
    permissions: Permissions
    grant: str = ""
    """Which grant it is lent by, if any: what one was handed, nobody else is."""

    def __post_init__(self) -> None:
        # GitHub reads an empty list or map as "everything". Do not turn None or () into a wider scope anywhere.
        if not self.repositories or not self.permissions:
            raise ValueError("a scope names its repositories and its permissions")


def git_permissions(installation: Installation, configured: Permissions | None) -> Permissions:
    """Return the least that git needs: `contents`, and `workflows` for pushes under .github/workflows.

    Raises `PermissionMissing` if the installation was not granted `contents`, or less than was configured.
    """
    if configured is not None:
        check_granted(installation, configured)
        return configured
    granted = tuple(pair for pair in installation.permissions if pair[0] in {"contents", "workflows"})
    if "contents" not in dict(granted):
        check_granted(installation, (("contents", "read"),))
    return granted


def check_granted(installation: Installation, wanted: Permissions) -> None:
    """Raise `PermissionMissing` if `installation` was granted less than `wanted`."""
    missing = exceeds(wanted, installation.permissions)
    if missing:
        raise PermissionMissing(
            f"{installation.account} has not granted the app {', '.join(missing)}",
            hint=f"accept the app's permissions at {installation.html_url}",
        )


def wider_than(scope: Scope, permissions: Permissions, selection: str, repositories: Iterable[tuple[int, str]]) -> str:
    """Say in which way an issued token is another than `scope`, or return "" if it is that.

    `repositories` are the issued ones, id and name; a scope may name some by id and others by name.
    """
    extra = exceeds(permissions, scope.permissions)
    if extra:
        return f"it allows {', '.join(extra)}"
    if scope.repositories is ALL:
        return ""
    if selection != "selected":
        return "it reaches every repository"
    missing = set(scope.repositories)
    others = []
    for id_, name in repositories:
        asked = missing & {id_, name.lower()}
        if not asked:
            others.append(name)
        missing -= asked
    others += [str(repository) for repository in missing]
    return f"its repositories differ in {', '.join(sorted(others))}" if others else ""
