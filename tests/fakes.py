"""A clock that a test sets, and a GitHub that a test scripts: what the broker sees of the world."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from ghapp.credential import Repository
from ghapp.errors import GhappError, NotInstalled, NotSelected
from ghapp.installation import ALL, Installation, InstallationId, Scope
from ghapp.protocols import IssuedToken
from ghapp.routing import App, Place


GRANTED = (("contents", "write"), ("issues", "write"), ("metadata", "read"), ("workflows", "write"))


@dataclass(slots=True)
class FakeClock:
    """Two clocks that stand still until told otherwise."""

    wall_time: float = 1_800_000_000.0
    boot_time: float = 5_000.0

    def wall(self) -> float:
        return self.wall_time

    def boot(self) -> float:
        return self.boot_time

    def advance(self, seconds: float) -> None:
        self.wall_time += seconds
        self.boot_time += seconds


def make_app(name: str = "acme-bot", **changes: object) -> App:
    fields: dict[str, object] = {
        "host": "github.com",
        "api": "https://api.github.com",
        "issuer": f"Iv23li-{name}",
        "keys": ("file:/key.pem",),
    }
    return App(name=name, **(fields | changes))  # type: ignore[arg-type]  # a test's shorthand


def make_installation(number: int = 7, account: str = "acme", **changes: object) -> Installation:
    fields: dict[str, object] = {
        "permissions": GRANTED,
        "repository_selection": "selected",
        "suspended": False,
        "html_url": f"https://github.com/organizations/{account}/settings/installations/{number}",
    }
    return Installation(id=InstallationId(number), account=account, **(fields | changes))  # type: ignore[arg-type]  # as above


@dataclass(eq=False)
class ScriptedIssuer:
    """GitHub for one app: answers from a little world, after the errors that were scripted."""

    app: App
    clock: FakeClock
    installations: dict[str, Installation] = field(default_factory=dict)
    """By owner, in lower case."""
    repositories: dict[str, int] = field(default_factory=dict)
    """The selected ones, "owner/name" in lower case, and their ids."""
    moved: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Old names: the owner whose installation it is now, and the id."""
    errors: dict[str, list[GhappError]] = field(default_factory=lambda: defaultdict(list))
    """By method: raised one after the other before anything else happens."""
    hold: asyncio.Event | None = None
    """While it is not set, every call waits."""
    life: float = 3600.0
    edit: Callable[[IssuedToken], IssuedToken] | None = None
    key: str = "SHA256:one"
    minted: int = 0
    calls: list[tuple[str, object]] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first call."""
    lag: int = 0
    """How often a look for a token fails before the git server knows it."""
    looks: int = 0
    approached: int = 0
    revoked: list[str] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    def count(self, method: str) -> int:
        return [name for name, _ in self.calls].count(method)

    def install(self, *repositories: str, number: int = 7, owner: str = "acme", **changes: object) -> Installation:
        installation = make_installation(number, owner, **changes)
        self.installations[owner.lower()] = installation
        for name in repositories:
            self.repositories[f"{owner}/{name}".lower()] = 700 + len(self.repositories)
        return installation

    async def fingerprint(self) -> str:
        return self.key

    async def find_by_repository(self, repository: Repository) -> Place | None:
        await self._called("find_by_repository", str(repository))
        name = str(repository).lower()
        if name in self.moved:
            owner, number = self.moved[name]
            return Place(self.installations[owner], number)
        installation = self.installations.get(repository.owner.lower())
        if installation is None or name not in self.repositories:
            return None
        return Place(installation, repository.name.lower())

    async def find_by_owner(self, owner: str) -> Installation | None:
        await self._called("find_by_owner", owner)
        return self.installations.get(owner.lower())

    async def list_installations(self) -> list[Installation]:
        await self._called("list_installations", None)
        return list(self.installations.values())

    async def create_token(self, scope: Scope) -> IssuedToken:
        await self._called("create_token", scope)
        owner = next((name for name, item in self.installations.items() if item.id == scope.installation), None)
        if owner is None:
            raise NotInstalled("the installation is gone")
        selected: tuple[tuple[int, str], ...] = ()
        if scope.repositories is not ALL:
            known = {name.partition("/")[2]: number for name, number in self.repositories.items()}
            by_id = {number: name for name, number in known.items()} | {n: "new-name" for _, n in self.moved.values()}
            found = [
                (known.get(item), item) if isinstance(item, str) else (item, by_id.get(item))
                for item in scope.repositories
            ]
            selected = tuple((number, name) for number, name in found if number is not None and name is not None)
            if len(selected) != len(scope.repositories):
                raise NotSelected("there is at least one repository that does not exist")
        self.minted += 1
        issued = IssuedToken(
            token=f"ghs_{self.minted}_{'x' * 40}",
            ends=self.clock.boot() + self.life,
            permissions=tuple(sorted({*scope.permissions, ("metadata", "read")})),
            repository_selection="all" if scope.repositories is ALL else "selected",
            repositories=selected,
        )
        return issued if self.edit is None else self.edit(issued)

    async def revoke_token(self, token: str) -> None:
        await self._called("revoke_token", token)
        self.revoked.append(token)

    async def approach(self) -> None:
        self.approached += 1

    async def sees(self, repository: Repository, token: str) -> bool:  # noqa: ARG002  # the protocol's
        self.looks += 1
        return self.looks > self.lag

    async def _called(self, method: str, what: object) -> None:
        self.calls.append((method, what))
        self.called.set()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await (asyncio.sleep(0) if self.hold is None else self.hold.wait())
            if self.errors[method]:
                raise self.errors[method].pop(0)
        finally:
            self.under_way -= 1
