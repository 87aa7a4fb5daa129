"""What exists on GitHub: accounts, apps, installations, repositories, tokens."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from standin import bare, keys


AccountType = Literal["User", "Organization", "Enterprise"]
Permissions = dict[str, str]
LEVELS = ("read", "write", "admin")


@dataclass(eq=False, slots=True)
class Account:
    """A user, a bot, an organization or an enterprise."""

    id: int
    login: str
    type: AccountType | Literal["Bot"]
    created_at: float


@dataclass(eq=False, slots=True)
class App:
    """A GitHub App and its private keys; GitHub keeps only the public halves, a test needs both."""

    id: int
    client_id: str
    slug: str
    owner: Account
    permissions: Permissions
    created_at: float
    new_key: Callable[[], RSAPrivateKey] = field(repr=False)
    private_keys: list[RSAPrivateKey] = field(default_factory=list, repr=False)
    name: str = ""
    description: str | None = None
    external_url: str = "https://example.com"

    @property
    def private_key_pem(self) -> bytes:
        """The app's oldest key, PKCS#1 PEM as GitHub's download."""
        return keys.pem(self.private_keys[0])

    def add_key(self) -> bytes:
        key = self.new_key()
        self.private_keys.append(key)
        return keys.pem(key)

    def remove_key(self, pem: bytes) -> None:
        kept = [key for key in self.private_keys if keys.pem(key) != pem]
        if len(kept) == len(self.private_keys):
            raise LookupError(f"{self.slug} has no such key")
        self.private_keys = kept


@dataclass(eq=False, slots=True)
class Repository:
    """A repository; its files are found by the id, so that a new name changes nothing on disk."""

    id: int
    account: Account
    name: str
    private: bool
    bare_path: Path
    created_at: float

    @property
    def full_name(self) -> str:
        return f"{self.account.login}/{self.name}"

    @property
    def wiki_path(self) -> Path:
        return self.bare_path.with_name(f"{self.id}.wiki.git")

    def revision(self, name: str = "main") -> str:
        """Tell which commit a branch is on."""
        command = ["git", "-C", str(self.bare_path), "rev-parse", "--verify", name]
        return subprocess.run(
            command, env=bare.environment(), check=True, capture_output=True, text=True
        ).stdout.strip()


@dataclass(eq=False, slots=True)
class Installation:
    """An app on an account."""

    id: int
    app: App
    account: Account
    permissions: Permissions
    created_at: float
    updated_at: float
    everything: bool
    selected: set[int] = field(default_factory=set)
    awaited: set[str] = field(default_factory=set)
    """Selected names (lower case) of repositories that do not exist yet."""
    suspended_at: float | None = None
    account_hidden: bool = False
    """Shows `account: null`, which the description allows."""

    def covers(self, repository: Repository) -> bool:
        if repository.account is not self.account:
            return False
        return self.everything or repository.id in self.selected


@dataclass(eq=False, slots=True)
class Token:
    """An installation token and what GitHub remembers of it."""

    value: str = field(repr=False)
    installation: Installation
    repository_ids: frozenset[int] | None
    """`None`: all that the installation covers, also later."""
    permissions: Permissions
    created_at: float
    expires_at: float
    revoked: bool = False
    rest_requests: int = 0
    git_requests: int = 0

    def reaches(self, repository: Repository) -> bool:
        if not self.installation.covers(repository):
            return False
        return self.repository_ids is None or repository.id in self.repository_ids

    def allows(self, permission: str, level: str) -> bool:
        return within(self.permissions, permission, level)


def within(granted: Permissions, permission: str, level: str) -> bool:
    """Tell whether `granted` contains `permission` at `level` or above."""
    has = granted.get(permission)
    return has is not None and level in LEVELS and LEVELS.index(level) <= LEVELS.index(has)
