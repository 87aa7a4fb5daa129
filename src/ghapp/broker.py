"""The broker: turns a request into a credential.

It orders the pure core and sees the world through three protocols, so that every rule here runs in tests with a
clock that is set and an issuer that is scripted. One event loop; state is touched only on it, never half-updated
across an await.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ghapp.credential import Credential, Query, Repository
from ghapp.errors import (
    AppRejected,
    BadAnswer,
    Declined,
    Failed,
    ForeignUser,
    GhappError,
    NetworkFailed,
    NotInstalled,
    NotSelected,
    PathMissing,
    RateLimited,
    Suspended,
    UsageError,
)
from ghapp.installation import (
    ALL,
    Installation,
    Permissions,
    Scope,
    exceeds,
    git_permissions,
    wider_than,
)
from ghapp.lease import LAST_RESORT, MAX_LIFE, Lease, LeaseBook
from ghapp.routing import App, Place, Routes, Unreachable


BUDGET = 25.0  # seconds for one get; our client gives up at 30, git's own never does
REVOKE_BUDGET = 5.0  # seconds for all of them: `daemon stop` waits for it
REVOKE_AT_ONCE = 10
MAX_FAILURES = 1_000  # remembered errors; names come from URLs that strangers write

Result = TypeVar("Result")


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


class Broker:
    """Answers for all configured apps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._issuers: tuple[TokenIssuer, ...] = ()
        self._routes = Routes()
        self._book = LeaseBook()
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}
        self._failures: dict[Hashable, tuple[GhappError, float]] = {}
        self.mints = 0
        self.hits = 0

    def configure(self, issuers: Sequence[TokenIssuer]) -> None:
        """Answer for these apps from now on. Leases stay: their scope says whether they still fit."""
        self._issuers = tuple(issuers)
        self._routes = Routes()
        self._failures.clear()

    @property
    def apps(self) -> list[App]:
        """The configured apps, in the order they are asked."""
        return [issuer.app for issuer in self._issuers]

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts that are ours, in normal form."""
        return frozenset(issuer.app.host for issuer in self._issuers)

    # -- answers to git ------------------------------------------------------------------------------------------

    async def fill(self, query: Query) -> Credential | None:
        """Return the credential for `query`, or None if no app of ours is responsible.

        Raises `Declined` if we are but no token can exist, `Failed` if it could not be had within the budget.
        """
        key = (query.host, query.repository.key if query.repository else None, query.our_username)
        self._raise_remembered(key)
        try:
            async with asyncio.timeout(BUDGET):
                return await self._fill(query)
        except TimeoutError:
            error: GhappError = NetworkFailed(
                f"no token within {BUDGET:.0f} s", hint="check the network and https://www.githubstatus.com"
            )
        except GhappError as caught:
            error = caught
        self._remember(key, error, error.remember)
        raise error

    async def _fill(self, query: Query) -> Credential | None:
        if query.repository is None:
            return await self._fill_without_path(query)
        declined: Declined | None = None
        for issuer in self._issuers:
            if not issuer.app.serves(query.host, query.repository.owner):
                continue
            try:
                lease = await self._lease_for_git(issuer, query, query.repository)
            except (NotSelected, Suspended) as error:
                declined = error
                continue
            if lease is not None:
                return self._credential(lease)
        if declined is not None:
            raise declined
        return None

    async def _lease_for_git(self, issuer: TokenIssuer, query: Query, repository: Repository) -> Lease | None:
        """Return a lease for `repository`, or None if the app is not installed on its owner.

        What we believed about the installation may be stale: one refusal makes us look again, once.
        """
        for last in (False, True):
            place = await self._locate(issuer, repository)
            if place is Unreachable.ABSENT:
                return None
            if place is Unreachable.UNSELECTED:
                raise not_selected(issuer.app, repository)
            if not query.our_username:
                raise ForeignUser(
                    f"{repository} was asked for with another username",
                    hint=f"remove the username from the URL: https://{query.host}/{repository}",
                )
            try:
                return await self._lease_at(issuer, place, query)
            except (NotInstalled, NotSelected, Suspended):
                self._routes.forget(issuer.app, repository)
                if last:
                    raise
        raise AssertionError("unreachable")

    async def _lease_at(self, issuer: TokenIssuer, place: Place, query: Query) -> Lease:
        installation = place.installation
        if installation.suspended:
            raise suspended(installation.account, installation.html_url)
        scope = Scope(
            api=issuer.app.api,
            issuer=issuer.app.issuer,
            key=await issuer.fingerprint(),
            installation=installation.id,
            repositories=ALL if issuer.app.whole_installation else (place.repository,),
            permissions=git_permissions(installation, issuer.app.permissions),
        )
        if query.rejected:
            self._book.drop(query.rejected)
        return await self.lease(issuer, scope, installation.account)

    async def _fill_without_path(self, query: Query) -> Credential | None:
        """Answer a request that names no repository: possible only when there is nothing to choose."""
        places = []
        for issuer in self._issuers:
            if issuer.app.host == query.host and issuer.app.whole_installation:
                installations = await self._asking(issuer, issuer.list_installations)
                places += [(issuer, Place(found, "")) for found in installations if not found.suspended]
        if len(places) != 1:
            raise PathMissing("git did not say which repository it asks for", hint="ghapp setup-git")
        return self._credential(await self._lease_at(*places[0], query))

    def _credential(self, lease: Lease) -> Credential:
        self._book.count_use(lease)
        remaining = lease.remaining(self._clock.boot())
        return Credential(lease.id, lease.token, int(self._clock.wall() + remaining))

    def erase(self, password: str) -> bool:
        """Forget the lease whose token git saw rejected; tell whether there was one."""
        return self._book.drop_token(password) is not None

    # -- answers to people and tools -----------------------------------------------------------------------------

    async def token(
        self,
        host: str,
        repositories: Sequence[Repository],
        permissions: Permissions | None,
        *,
        read_only: bool = False,
    ) -> Lease:
        """Return a lease for other tools than git: all that the installation grants on `repositories`, or less."""
        if len({repository.owner.lower() for repository in repositories}) != 1:
            raise UsageError("a token is for repositories of one owner")
        async with asyncio.timeout(BUDGET):
            for issuer in self._issuers:
                if not issuer.app.serves(host, repositories[0].owner):
                    continue
                places = [await self._locate(issuer, repository) for repository in repositories]
                if Unreachable.ABSENT in places:
                    continue
                for repository, place in zip(repositories, places, strict=True):
                    if place is Unreachable.UNSELECTED:
                        raise not_selected(issuer.app, repository)
                found = [place for place in places if isinstance(place, Place)]
                installation = found[0].installation
                wanted = installation.permissions if permissions is None else permissions
                if read_only:
                    wanted = tuple((name, "read") for name, _ in wanted)
                missing = exceeds(wanted, (*installation.permissions, ("metadata", "read")))
                if missing:
                    raise UsageError(
                        f"{installation.account} has not granted the app {', '.join(missing)}",
                        hint=f"see {installation.html_url}",
                    )
                scope = Scope(
                    api=issuer.app.api,
                    issuer=issuer.app.issuer,
                    key=await issuer.fingerprint(),
                    installation=installation.id,
                    repositories=tuple(sorted({place.repository for place in found}, key=str)),
                    permissions=wanted,
                )
                return await self.lease(issuer, scope, installation.account)
        raise NotInstalled(
            f"no app of yours is installed on {repositories[0].owner}", hint="ghapp app list shows the apps"
        )

    def leases(self) -> list[tuple[Lease, int]]:
        """Return the living leases and how often each was handed out."""
        return [(lease, self._book.uses(lease)) for lease in self._book.live(self._clock.boot())]

    async def revoke_all(self) -> tuple[int, int]:
        """End every token at GitHub; return how many are dead and how many could not be ended in time."""
        by_api = {issuer.app.api: issuer for issuer in self._issuers}
        gate = asyncio.Semaphore(REVOKE_AT_ONCE)

        async def end(lease: Lease) -> None:
            async with gate:
                await by_api[lease.scope.api].revoke_token(lease.token)
            self._book.drop(lease.id)

        leases = [lease for lease, _ in self.leases() if lease.scope.api in by_api]
        tasks = [asyncio.create_task(end(lease)) for lease in leases]
        done, late = await asyncio.wait(tasks, timeout=REVOKE_BUDGET) if tasks else (set(), set())
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        dead = sum(not task.cancelled() and task.exception() is None for task in done)
        return dead, len(leases) - dead

    # -- how a lease comes about ---------------------------------------------------------------------------------

    async def lease(self, issuer: TokenIssuer, scope: Scope, owner: str) -> Lease:
        """Return a lease for exactly `scope`: a held one, or one minted once for all who ask at the same time."""
        held = self._book.find(scope, self._clock.boot())
        if held is not None:
            self.hits += 1
            return held
        try:
            return await self._once(scope, lambda: self._mint(issuer, scope, owner))
        except Failed:
            held = self._book.find(scope, self._clock.boot(), at_least=LAST_RESORT)
            if held is None:
                raise
            return held

    async def _mint(self, issuer: TokenIssuer, scope: Scope, owner: str) -> Lease:
        issued = await self._asking(issuer, lambda: issuer.create_token(scope))
        self.mints += 1
        by_name = isinstance(scope.repositories, tuple) and isinstance(scope.repositories[0], str)
        named: list[str | int] = [name.lower() if by_name else id_ for id_, name in issued.repositories]
        wider = wider_than(scope, issued.permissions, issued.repository_selection, named)
        if wider:
            await issuer.revoke_token(issued.token)
            raise BadAnswer(f"GitHub issued another token than was asked for: {wider}; it was revoked")
        now = self._clock.boot()
        lease = Lease(
            id=secrets.token_hex(6),
            scope=scope,
            app=issuer.app.name,
            owner=owner,
            repositories=None if scope.repositories is ALL else tuple(name for _, name in issued.repositories),
            permissions=issued.permissions,
            token=issued.token,
            ends=min(issued.ends, now + MAX_LIFE),
        )
        self._book.put(lease)
        return lease

    async def _locate(self, issuer: TokenIssuer, repository: Repository) -> Place | Unreachable:
        """Return where `repository` is: one look-up for all who ask for the same owner at the same time."""
        while (place := self._routes.find(issuer.app, repository, self._clock.boot())) is None:
            key = (issuer.app, repository.owner.lower())
            await self._once(key, lambda: self._look_up(issuer, repository))
        return place

    async def _look_up(self, issuer: TokenIssuer, repository: Repository) -> None:
        app = issuer.app
        place = await self._asking(issuer, lambda: issuer.find_by_repository(repository))
        if place is not None:
            self._routes.learn(app, repository, place, self._clock.boot())
            return
        # 404 says "not installed", "not selected" and "does not exist" alike: the owner tells them apart.
        installation = await self._asking(issuer, lambda: issuer.find_by_owner(repository.owner))
        self._routes.learn_owner(app, repository.owner, installation, self._clock.boot())
        if installation is not None:
            self._routes.learn_unselected(app, repository, self._clock.boot())

    # -- asking GitHub no more often than is good ----------------------------------------------------------------

    async def _once(self, key: Hashable, start: Callable[[], Awaitable[Result]]) -> Result:
        """Join the work under way for `key`, or start it; a caller who is cancelled cancels nobody else."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.ensure_future(_run(start))

            def land(task: asyncio.Task[Result]) -> None:
                self._flights.pop(key, None)
                if not task.cancelled():
                    task.exception()  # whoever waited has it; nobody may have waited

            flight.add_done_callback(land)
        return await asyncio.shield(flight)

    async def _asking(self, issuer: TokenIssuer, call: Callable[[], Awaitable[Result]]) -> Result:
        """Ask GitHub as that app, unless it told the app to stay away."""
        key = (issuer.app.api, issuer.app.issuer)
        self._raise_remembered(key)
        try:
            return await call()
        except (AppRejected, RateLimited) as error:
            self._remember(key, error, error.remember)
            raise

    def _remember(self, key: Hashable, error: GhappError, seconds: float) -> None:
        while len(self._failures) >= MAX_FAILURES:
            del self._failures[next(iter(self._failures))]
        self._failures[key] = (error, self._clock.boot() + seconds)

    def _raise_remembered(self, key: Hashable) -> None:
        error, until = self._failures.get(key, (None, 0.0))
        if error is None:
            return
        if self._clock.boot() < until:
            raise error.with_traceback(None)
        del self._failures[key]


async def _run(start: Callable[[], Awaitable[Result]]) -> Result:
    return await start()


def not_selected(app: App, repository: Repository) -> NotSelected:
    """Say that `app` is installed on the owner, but not on `repository`."""
    return NotSelected(
        f"the app {app.name} is installed on {repository.owner}, but not on {repository.name}, or there is no such"
        " repository",
        hint=f"select the repository at https://{app.host}/organizations/{repository.owner}/settings/installations",
    )


def suspended(account: str, page: str) -> Suspended:
    """Say that the installation on `account` is suspended."""
    return Suspended(f"the app's installation on {account} is suspended", hint=f"unsuspend it at {page}")
