"""What the application sees of the world: a clock, GitHub for one app, a key that signs, a record of what was done.

The rim implements them; tests do so with a clock that is set and an issuer that is scripted.
"""

from dataclasses import dataclass, field
from typing import Protocol

from ghapp.credential import Repository
from ghapp.grant import Grant
from ghapp.installation import Installation, Permissions, Scope
from ghapp.lease import Lease
from ghapp.routing import App, Place


OK = "ok"


class Clock(Protocol):
    """The clocks of this machine, in seconds."""

    def wall(self) -> float:
        """Return Unix time as this machine believes it to be."""
        ...

    def boot(self) -> float:
        """Return a time that counts suspend and is never set."""
        ...


class Signer(Protocol):
    """Makes the app's RS256 signatures; the key may live elsewhere."""

    def fingerprint(self) -> str:
        """Return ``SHA256:…`` of the public key, as GitHub shows it. Blocks; raises `KeyUnavailable`."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the raw RSASSA-PKCS1-v1_5 SHA-256 signature. Blocks; raises `KeyUnavailable`."""
        ...

    def forget(self) -> None:
        """Drop the key from memory until it is needed again."""
        ...


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """What GitHub answered to a mint."""

    token: str = field(repr=False)
    ends: float
    """When GitHub will refuse it, in the boot clock."""
    permissions: Permissions
    repository_selection: str
    repositories: tuple[tuple[int, str], ...]
    """Id and name of each, when repositories were asked for."""


class TokenIssuer(Protocol):
    """GitHub, for one app. Every method raises from `ghapp.errors`."""

    @property
    def app(self) -> App:
        """The app this speaks for."""
        ...

    async def fingerprint(self) -> str:
        """Return the signing key's fingerprint."""
        ...

    async def find_by_repository(self, repository: Repository) -> Place | None:
        """Return the installation that includes `repository`, by id if it was renamed."""
        ...

    async def find_by_owner(self, owner: str) -> Installation | None:
        """Return the installation on the user or organisation `owner`."""
        ...

    async def list_installations(self) -> list[Installation]:
        """Return all installations."""
        ...

    async def create_token(self, scope: Scope) -> IssuedToken:
        """Mint. Raises `NotInstalled` if the installation is gone, `NotSelected` if a repository is not in it."""
        ...

    async def revoke_token(self, token: str) -> None:
        """End `token`; a dead one counts as done."""
        ...

    async def approach(self) -> None:
        """Open the connection that `sees` will use. Raises nothing."""
        ...

    async def sees(self, repository: Repository, token: str) -> bool:
        """Tell whether the git server knows `token`, or whether there is no telling. Raises nothing."""
        ...


class Recorder(Protocol):
    """Keeps the audit trail; it blocks nobody and raises nothing."""

    def record(
        self,
        action: str,
        outcome: str,
        *,
        repository: str = "",
        scope: Scope | None = None,
        lease: Lease | None = None,
        grant: Grant | None = None,
        seconds: float | None = None,
    ) -> None:
        """Note that something was done, and for whom; `outcome` is ``ok`` or an error's code."""
        ...


class NoRecord:
    """Keeps nothing."""

    def record(self, *_: object, **__: object) -> None:
        """Do nothing."""
