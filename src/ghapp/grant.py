"""A grant: what a socket that we lend may reach, for how long, and for whom; a value and its rules, no I/O.

A grant is narrower than its app in every respect: one token for each repository, never one for all that an
installation reaches, and never more than what was shown when the grant was made, whatever the app is granted later.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ghapp.credential import Query, Repository, parse_repository
from ghapp.errors import OutsideGrant, UsageError
from ghapp.installation import LEVELS, Permissions, lesser
from ghapp.lease import is_token


DEFAULT_LIFE = 8 * 3600.0  # a working day
MAX_LIFE = 366 * 86400.0  # whoever wants it for ever has forgotten it by then
FOREVER = 253402300800  # Unix time of the year 10000, which no date names
MAX_REPOSITORIES = 1000
MAX_UIDS = 32
MAX_FORMER = 50  # daemons that an `exec` outlives in the hour that a token has
ANY = "*"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWNER = re.compile(r"[A-Za-z0-9._-]{1,100}")
_KEYS = frozenset({"name", "id", "host", "repositories", "permissions", "exact", "read_only", "ends", "uids"})


@dataclass(frozen=True, slots=True)
class Grant:
    """What is lent, as it was made; nothing here is secret."""

    name: str
    id: str
    """Another for each grant that was ever made: one of the same name is another grant, and shares no token with it."""
    host: str
    repositories: tuple[Repository, ...]
    """As they were named; a name of ``*`` stands for all that the app reaches on that owner."""
    permissions: Permissions
    """The most that a token of this grant can do."""
    exact: bool = False
    """Whether the permissions were named: then a token has them all, or there is none."""
    together: bool = False
    """Whether a token is for all of its repositories at once, as the one that `exec` hands to other tools."""
    read_only: bool = False
    ends: float | None = None
    """Unix time; None for one that somebody holds and lets go."""
    uids: tuple[int, ...] = ()
    """Who may connect, beside us and root."""

    @property
    def key(self) -> str:
        """What stands in the scope of its tokens, so that nobody else is ever handed one."""
        return f"{self.name}#{self.id}"

    def repository_of(self, query: Query) -> Repository:
        """Return the repository that `query` asks for. Raises `OutsideGrant` for any that is not in the grant.

        Where git says none, a grant of a single repository leaves nothing to choose.
        """
        asked = query.repository
        if query.host != self.host:
            raise OutsideGrant(f"{query.host} is not in grant {self.name}")
        if asked is None and len(self.repositories) == 1 and self.repositories[0].name != ANY:
            return self.repositories[0]
        if asked is None:
            raise OutsideGrant(f"git did not say which repository of grant {self.name} it asks for")
        if not self.names(asked) and not self.includes_all_of(asked.owner):
            raise OutsideGrant(f"{asked} is not in grant {self.name}")
        return asked

    def names(self, repository: Repository) -> bool:
        """Tell whether `repository` was named itself."""
        return repository.key in {named.key for named in self.repositories}

    def includes_all_of(self, owner: str) -> bool:
        """Tell whether all repositories of `owner` are in the grant."""
        return any(named.name == ANY and named.owner.lower() == owner.lower() for named in self.repositories)

    def check_place(self, repository: Repository, account: str) -> None:
        """Raise `OutsideGrant` for one that left its owner: all of an owner's does not include it any more."""
        if not self.names(repository) and account.lower() != repository.owner.lower():
            raise OutsideGrant(f"{repository} belongs to {account} now, which is not in grant {self.name}")

    def allowed(self, wanted: Permissions) -> Permissions:
        """Return what a token has where git wants `wanted`. Raises `OutsideGrant` if that would serve no git."""
        found = self.permissions if self.exact else lesser(wanted, self.permissions)
        if "contents" not in dict(found):
            raise OutsideGrant(f"grant {self.name} does not include contents, which git needs")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the definition, for a file."""
        return {
            "name": self.name,
            "id": self.id,
            "host": self.host,
            "repositories": [str(repository) for repository in self.repositories],
            "permissions": dict(self.permissions),
            "exact": self.exact,
            "read_only": self.read_only,
            "ends": self.ends,
            "uids": list(self.uids),
        }


def name_of(key: str) -> str:
    """Return the name of the grant that has that key; "" for git.sock."""
    return key.partition("#")[0]


def grant_from_json(entry: object) -> Grant:
    """Return the grant that `to_json` described. Raises `ValueError` for anything else: the file is a person's too."""
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise ValueError("a grant's definition has other keys")
    ends, permissions = entry["ends"], entry["permissions"]
    try:
        well_formed = (
            isinstance(entry["id"], str)
            and isinstance(entry["host"], str)
            and type(ends) in {int, float}
            and 0 <= ends < FOREVER  # nor NaN, nor Infinity, which JSON in Python has
            and type(entry["exact"]) is type(entry["read_only"]) is bool
            and permissions.items()
            and all(isinstance(name, str) and level in LEVELS for name, level in permissions.items())
        )
        if not well_formed:
            raise ValueError("a grant's definition has other values")
        return Grant(
            name=checked_name(entry["name"]),
            id=entry["id"],
            host=entry["host"],
            repositories=patterns_of(entry["repositories"]),
            permissions=tuple(sorted(permissions.items())),
            exact=entry["exact"],
            read_only=entry["read_only"],
            ends=float(ends),
            uids=checked_uids(entry["uids"]),
        )
    except (TypeError, AttributeError, UsageError):
        raise ValueError("a grant's definition has other values") from None


def patterns_of(names: object) -> tuple[Repository, ...]:
    """Return ``OWNER/REPO`` and ``OWNER/*`` as values, each once. Raises `UsageError`."""
    if not isinstance(names, list) or not names or len(names) > MAX_REPOSITORIES:
        raise UsageError(f"a grant names between one and {MAX_REPOSITORIES} repositories")
    found: dict[tuple[str, str], Repository] = {}
    for name in names:
        pattern = _pattern(name) if isinstance(name, str) else None
        if pattern is None:
            raise UsageError(f"{name!r} is neither OWNER/REPO nor OWNER/*")
        found.setdefault(pattern.key, pattern)
    return tuple(found.values())


def _pattern(name: str) -> Repository | None:
    owner, _, rest = name.partition("/")
    if rest == ANY and _OWNER.fullmatch(owner) and owner not in {".", ".."}:
        return Repository(owner, ANY)
    return parse_repository(name)


def checked_name(name: object) -> str:
    """Return `name`, which becomes a directory's. Raises `UsageError`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a grant's name: letters, digits, '.', '_' and '-', at most 64")
    return name


def checked_uids(uids: object) -> tuple[int, ...]:
    """Return `uids`, each once. Raises `UsageError`."""
    if not isinstance(uids, list) or len(uids) > MAX_UIDS or not all(type(uid) is int and uid >= 0 for uid in uids):
        raise UsageError(f"a grant is for at most {MAX_UIDS} uids, which are numbers")
    return tuple(dict.fromkeys(uids))


def checked_former(tokens: object) -> list[str]:
    """Return the tokens of daemons before us. Raises `UsageError`, which repeats none of it."""
    if tokens is None:
        return []
    if not isinstance(tokens, list) or len(tokens) > MAX_FORMER or not all(is_token(token) for token in tokens):
        raise UsageError(f"former are at most {MAX_FORMER} tokens")
    return tokens


def checked_permissions(permissions: Mapping[str, str] | None, *, for_git: bool) -> Permissions | None:
    """Return what was named as a value, None for what was not. Raises `UsageError`."""
    if not permissions:
        return None
    if for_git and "contents" not in permissions:
        raise UsageError("git needs contents", hint="add --permission contents=read, or contents=write")
    return tuple(sorted(permissions.items()))


def checked_life(seconds: float) -> float:
    """Return how long a grant lasts. Raises `UsageError`."""
    if not 0 < seconds <= MAX_LIFE:
        raise UsageError(f"a grant lasts for some time, and for at most {MAX_LIFE / 86400:.0f} days")
    return seconds
