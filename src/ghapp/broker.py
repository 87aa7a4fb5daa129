"""The broker: turns a request into a credential.

It orders the pure core and sees the world through three protocols, so that every rule here runs in tests with a
clock that is set and an issuer that is scripted. One event loop; state is touched only on it, never half-updated
across an await.
"""

import asyncio
import contextvars
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from ghapp.credential import Credential, Query, Repository
from ghapp.errors import (
    AppRejected,
    BadAnswer,
    ConfigError,
    Declined,
    Failed,
    ForeignUser,
    GhappError,
    GrantEnded,
    KeyUnavailable,
    Locked,
    NetworkFailed,
    NotInstalled,
    NotSelected,
    PathMissing,
    PermissionMissing,
    RateLimited,
    Suspended,
    UsageError,
)
from ghapp.grant import ANY, Grant, name_of
from ghapp.installation import (
    ALL,
    Installation,
    Permissions,
    Repositories,
    Scope,
    check_granted,
    git_permissions,
    highest,
    read_only_of,
    wider_than,
)
from ghapp.lease import HAND_OUT, LAST_RESORT, MAX_LIFE, RECENTLY, RENEW_AHEAD, Lease, LeaseBook
from ghapp.restraint import OF_THE_APP, Flights, Restraint, within
from ghapp.routing import ASK_AGAIN, LATELY, App, Place, Routes, Unreachable


BUDGET = 25.0  # seconds for one get; our client gives up at 30, git's own never does
WORK_BUDGET = 23.0  # seconds for one look-up or mint: some are left to hand out a lease that still lives
REVOKE_BUDGET = 5.0  # seconds for all of them: `daemon stop` waits for it
REVOKE_AT_ONCE = 10
PROBE_PAUSES = (0.25, 0.5, 1.0, 2.0, 3.0, 3.0)  # seconds between looks; GitHub's lag is mostly under 4
PROBE_BUDGET = 10.0  # seconds for pauses and looks: a server that is slow to answer must not cost us the token
SPARE = 1.0  # seconds of a mint's time that no probe may use: a token that was minted has to be kept
UNPROBED = 600.0  # seconds for which a scope whose probe ran out is not probed again
RENEW_AGAIN = 30.0  # seconds

OK = "ok"

LOOK_AROUND: Permissions = (("metadata", "read"),)  # the least that a token can have

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
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """What came of an attempt to end tokens; those in neither list were not tried."""

    revoked: list[Lease]
    failed: list[tuple[Lease, GhappError]]
    wait: float
    """Seconds until it makes sense to try those that were not tried."""


Attempt = Callable[[TokenIssuer, Sequence[Place]], Awaitable[Result]]


class _NothingHeld(Exception):  # no failure: a look-up comes first
    """What is believed is too old for a mint, and there is no lease to hand out by it."""


class Broker:
    """Answers for all configured apps."""

    def __init__(
        self,
        clock: Clock,
        *,
        budget: float = BUDGET,
        work_budget: float = WORK_BUDGET,
        revoke_budget: float = REVOKE_BUDGET,
        probe_pauses: Sequence[float] = PROBE_PAUSES,
        probe_budget: float = PROBE_BUDGET,
        recorder: Recorder | None = None,
    ) -> None:
        self._clock = clock
        self._recorder: Recorder = recorder or NoRecord()
        self._locked = asyncio.Event()
        self._budget = budget
        self._revoke_budget = revoke_budget
        self._issuers: tuple[TokenIssuer, ...] = ()
        self._routes = Routes()
        self._book = LeaseBook()
        self._flights = Flights(work_budget)
        self._restraint = Restraint()
        self._probe = True
        self._probe_pauses = probe_pauses
        self._probe_budget = probe_budget
        self._unprobed_until: dict[Scope, float] = {}
        self._renewals: dict[Scope, asyncio.TimerHandle] = {}
        self._grants: set[str] = set()
        self._revoked: Counter[str] = Counter()
        self.mints = 0
        self.hits = 0

    def configure(self, issuers: Sequence[TokenIssuer], *, probe: bool = True) -> None:
        """Answer for these apps from now on. Leases stay: their scope says whether they still fit.

        Without `probe` a new token is handed out before the git servers were seen to know it.
        """
        self._issuers = tuple(issuers)
        self._probe = probe
        self._routes = Routes()
        self._restraint.forget()

    @property
    def flights(self) -> int:
        """How many calls to GitHub are under way; whoever wants the same shares one."""
        return len(self._flights)

    def trouble(self, app: App) -> str | None:
        """Return the code of what keeps every request of `app` from GitHub at the moment, if anything does."""
        try:
            self._restraint.raise_remembered((app.api, app.issuer), self._clock.boot())
        except GhappError as error:
            return error.code
        return None

    @property
    def apps(self) -> list[App]:
        """The configured apps, in the order they are asked."""
        return [issuer.app for issuer in self._issuers]

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts that are ours, in normal form."""
        return frozenset(issuer.app.host for issuer in self._issuers)

    # -- answers to git ------------------------------------------------------------------------------------------

    async def fill(self, query: Query, grant: Grant | None = None) -> Credential | None:
        """Return the credential for `query`, or None if no app of ours is responsible.

        Raises `Declined` if we are but no token can exist, `Failed` if it could not be had within the budget. What a
        grant does not include is declined, whoever else might have it.
        """
        lent = "" if grant is None else grant.key
        named = query.repository if grant is None else grant.repository_of(query)
        key = (lent, query.host, named.key if named else None, query.our_username)
        began = self._clock.boot()
        self._raise_if_locked()
        self._restraint.raise_remembered(key, began)
        try:
            async with within(self._budget):
                lease = await (self._fill(query) if grant is None or named is None else self._lend(query, grant, named))
                if lease is None:
                    return None
                credential = self._credential(lease)
                self._note_answer(lease, named, began)
                return credential
        except GhappError as error:
            if not isinstance(error, OF_THE_APP):  # that is known of the app; another may be free sooner
                self._restraint.remember(key, error, self._clock.boot())
            raise

    def _note_answer(self, lease: Lease, repository: Repository | None, began: float) -> None:
        name, seconds = str(repository or ""), self._clock.boot() - began
        self._recorder.record("answer", OK, repository=name, lease=lease, seconds=seconds)

    async def _fill(self, query: Query) -> Lease | None:
        repository = query.repository
        if repository is None:
            return await self._fill_without_path(query)

        async def at(issuer: TokenIssuer, places: Sequence[Place]) -> Lease:
            if not query.our_username:
                raise _foreign_user(query)
            return await self._lease_for_git(issuer, places[0], query)

        return await self._first_that_can(query.host, [repository], at)

    async def _lend(self, query: Query, grant: Grant, repository: Repository) -> Lease:
        """Return a lease of the grant's own: no token is for git.sock and a grant, or for two grants."""

        async def at(issuer: TokenIssuer, places: Sequence[Place]) -> Lease:
            installation = places[0].installation
            if not query.our_username:
                raise _foreign_user(query)
            if installation.suspended:
                raise suspended(installation.account, installation.html_url)
            grant.check_place(repository, installation.account)
            if grant.together:
                scope = await self._scope_together(issuer, places, grant.permissions, repository.owner, grant.key)
            else:
                wanted = grant.allowed(git_permissions(installation, issuer.app.permissions))
                check_granted(installation, wanted)
                scope = await _scope(issuer, installation, (places[0].repository,), wanted, grant.key)
            self._drop_rejected(query, grant.key)
            return await self.lease(Order(issuer, scope, installation.account, repository, old=places[0].old))

        self._restraint.check_grant(grant.key, self._clock.boot())
        together = grant.repositories if grant.together else (repository,)
        try:
            lease = await self._first_that_can(query.host, together, at)
            if lease is None:
                raise _not_installed(repository)
        except Declined:
            self._restraint.count_miss(grant.key, self._clock.boot())
            raise
        return lease

    def _drop_rejected(self, query: Query, grant: str) -> None:
        """Forget the lease that git saw rejected, if it is of the same grant: no other is its business."""
        if query.rejected and (lease := self._book.get(query.rejected)) is not None and lease.scope.grant == grant:
            self._book.drop(lease.id)

    async def _lease_for_git(self, issuer: TokenIssuer, place: Place, query: Query) -> Lease:
        installation = place.installation
        if installation.suspended:
            raise suspended(installation.account, installation.html_url)
        repositories = ALL if issuer.app.whole_installation else (place.repository,)
        permissions = git_permissions(installation, issuer.app.permissions)
        scope = await _scope(issuer, installation, repositories, permissions)
        self._drop_rejected(query, "")
        return await self.lease(Order(issuer, scope, installation.account, query.repository, old=place.old))

    async def _fill_without_path(self, query: Query) -> Lease:
        """Answer a request that names no repository: possible only when there is nothing to choose.

        A list that is too old serves the lease that lives at once, while it is asked for anew behind that.
        """
        whole = [issuer for issuer in self._issuers if issuer.app.host == query.host and issuer.app.whole_installation]
        if old := self._old_lists(whole):
            with suppress(_NothingHeld, Declined):
                issuer, installation = _only_one(query, old)
                return await self._lease_for_git(issuer, Place(installation, "", old=True), query)
        for last in (False, True):
            lists = [(issuer, await self._installations(issuer)) for issuer in whole]
            issuer, installation = _only_one(query, lists)
            try:
                return await self._lease_for_git(issuer, Place(installation, ""), query)
            except (NotInstalled, PermissionMissing, Suspended):
                if last:
                    raise
                self._routes.forget_all(issuer.app)
        raise AssertionError("unreachable")

    def _old_lists(self, issuers: Sequence[TokenIssuer]) -> "list[tuple[TokenIssuer, Sequence[Installation]]]":
        """Return the installations of each, if they are known and some for too long; those are asked for behind."""
        now = self._clock.boot()
        lists = [(issuer, self._routes.find_all_old(issuer.app)) for issuer in issuers]
        expired = [issuer for issuer in issuers if self._routes.find_all(issuer.app, now) is None]
        if not expired or any(found is None for _, found in lists):
            return []
        for issuer in expired:
            self._begin_list(issuer)
        return [(issuer, found) for issuer, found in lists if found is not None]

    def _credential(self, lease: Lease) -> Credential:
        self._raise_if_locked()  # since the lease was found
        self._book.count_use(lease, self._clock.boot())
        remaining = lease.remaining(self._clock.boot())
        return Credential(lease.id, lease.token, int(self._clock.wall() + remaining))

    def erase(self, password: str, grant: str = "") -> bool:
        """Forget the lease whose token git saw rejected; tell whether there was one, of that grant."""
        lease = self._book.find_token(password)
        if lease is None or lease.scope.grant != grant:
            return False
        self._book.drop(lease.id)
        self._recorder.record("erase", OK, lease=lease)
        return True

    # -- answers to people and tools -----------------------------------------------------------------------------

    async def token(
        self,
        host: str,
        repositories: Sequence[Repository],
        permissions: Permissions | None,
        *,
        read_only: bool = False,
        grant: str = "",
    ) -> Lease:
        """Return a lease for other tools than git: all that the installation grants on `repositories`, or less."""
        if len({repository.owner.lower() for repository in repositories}) != 1:
            raise UsageError("a token is for repositories of one owner")

        async def at(issuer: TokenIssuer, places: Sequence[Place]) -> Lease:
            installation = places[0].installation
            if installation.suspended:
                raise suspended(installation.account, installation.html_url)
            wanted = installation.permissions if permissions is None else permissions
            wanted = read_only_of(wanted) if read_only else wanted
            scope = await self._scope_together(issuer, places, wanted, repositories[0].owner, grant)
            order = Order(issuer, scope, installation.account, repositories[0], old=places[0].old)
            return await self.lease(order)

        began = self._clock.boot()
        try:
            async with within(self._budget):
                lease = await self._first_that_can(host, repositories, at)
            self._raise_if_locked()
            if lease is None:
                raise _not_installed(repositories[0])
        except GhappError as error:
            seconds = self._clock.boot() - began
            self._recorder.record("refusal", error.code, repository=str(repositories[0]), seconds=seconds)
            raise
        self._book.count_use(lease, self._clock.boot())
        self._note_answer(lease, repositories[0], began)
        return lease

    async def _scope_together(
        self, issuer: TokenIssuer, places: Sequence[Place], wanted: Permissions, owner: str, grant: str
    ) -> Scope:
        """Return the scope of one token for several repositories, which have to be in one installation."""
        installation = places[0].installation
        if {place.installation.id for place in places} != {installation.id}:
            raise UsageError(f"one of the repositories has left {owner}")
        if not wanted:
            raise UsageError("a token needs at least one permission")
        check_granted(installation, wanted)
        named = tuple(sorted({place.repository for place in places}, key=str))
        return await _scope(issuer, installation, named, wanted, grant)

    async def lendable(
        self, host: str, patterns: Sequence[Repository], permissions: Permissions | None, *, read_only: bool
    ) -> Permissions:
        """Return the most that tokens of a grant for `patterns` can do now, after asking GitHub about each of them.

        Raises `Declined` if one of them cannot be reached.
        """
        found: dict[str, list[str]] = {}

        async def at(issuer: TokenIssuer, places: Sequence[Place]) -> Permissions:
            return _lendable_on(issuer.app, places[0].installation, permissions, read_only=read_only)

        for pattern in patterns:
            async with within(self._budget):
                if pattern.name == ANY:
                    on_one = await self._lendable_of_owner(host, pattern, permissions, read_only=read_only)
                else:
                    on_one = await self._first_that_can(host, [pattern], at, afresh=True)
            if on_one is None:
                raise _not_installed(pattern)
            for name, level in on_one:
                found.setdefault(name, []).append(level)
        return tuple(sorted((name, highest(levels)) for name, levels in found.items()))

    async def _lendable_of_owner(
        self, host: str, pattern: Repository, permissions: Permissions | None, *, read_only: bool
    ) -> Permissions | None:
        for issuer in self._issuers:
            if issuer.app.serves(host, pattern.owner):
                found = await self._asking(issuer, lambda issuer=issuer: issuer.find_by_owner(pattern.owner))  # type: ignore[misc]  # mypy cannot infer it
                if found is not None and issuer.app.serves(host, found.account):
                    return _lendable_on(issuer.app, found, permissions, read_only=read_only)
        return None

    def open_grant(self, grant: str) -> None:
        """Mint for that grant from now on, until it is closed."""
        self._grants.add(grant)

    async def close_grant(self, grant: str) -> tuple[int, int]:
        """Mint for that grant no more, and end its tokens; return as `revoke_all`."""
        self._grants.discard(grant)
        return await self._end_all(grant)

    async def lease_to_look_around(self, name: str, owner: str) -> Lease:
        """Return a lease that sees what the app `name` reaches on `owner`, and may do nothing with it."""
        absent = NotInstalled(f"no app {name} is installed on {owner}", hint="ghapp installations")
        issuer = next((issuer for issuer in self._issuers if issuer.app.name == name), None)
        if issuer is None or not issuer.app.serves(issuer.app.host, owner):
            raise absent
        for last in (False, True):
            all_of_them = await self._installations(issuer)
            found = next((each for each in all_of_them if each.account.lower() == owner.lower()), None)
            try:
                if found is None:
                    raise absent
                if found.suspended:
                    raise suspended(found.account, found.html_url)
                scope = await _scope(issuer, found, ALL, LOOK_AROUND)
                return await self.lease(Order(issuer, scope, found.account, None))
            except (NotInstalled, PermissionMissing, Suspended):
                if last:
                    raise
                self._routes.forget_all(issuer.app)  # what we believed may be a minute old
        raise AssertionError("unreachable")

    def leases(self) -> list[tuple[Lease, int]]:
        """Return the living leases and how often each was handed out."""
        return [(lease, self._book.uses(lease)) for lease in self._book.live(self._clock.boot())]

    # -- taking back ---------------------------------------------------------------------------------------------

    async def retire(self, fits: Callable[[Lease], bool] = lambda _: True) -> list[Lease]:
        """Return the leases that fit, those being minted just now included, and hand them out no more.

        They are held until `revoke` has ended them, or GitHub has.
        """
        await self._mints_under_way(None)
        found = [lease for lease, _ in self.leases() if fits(lease)]
        for lease in found:
            self._book.retire(lease.id)
        return found

    async def _mints_under_way(self, grant: str | None) -> bool:
        """Wait for the mints under way for that grant, or for all, and tell whether there were any."""
        if mints := self._mints(grant):
            await asyncio.wait(mints)
        return bool(mints)

    def _mints(self, grant: str | None) -> "list[asyncio.Task[Any]]":
        return self._flights.under_way(lambda key: isinstance(key, Scope) and grant in {None, key.grant})

    async def revoke(self, leases: Iterable[Lease]) -> Revocation:
        """End tokens at GitHub, a few at a time and no more a minute than GitHub takes.

        What could not be ended stays in the book, so that the next attempt finds it.
        """
        gate = asyncio.Semaphore(REVOKE_AT_ONCE)
        result = Revocation([], [], 0.0)
        waits: list[float] = []

        async def end(lease: Lease) -> None:
            async with gate:
                waits.append(self._restraint.wait_to_revoke(lease.scope.api, self._clock.boot()))
                if waits[-1] > 0:
                    return
                self._restraint.count_revocation(lease.scope.api, self._clock.boot())
                try:
                    await self._end(lease)
                except RateLimited as error:
                    waits.append(error.remember)
                    self._restraint.hold_revocations(lease.scope.api, error, self._clock.boot())
                except GhappError as error:
                    result.failed.append((lease, error))
                else:
                    result.revoked.append(lease)

        tasks = [asyncio.create_task(end(lease)) for lease in leases]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return Revocation(result.revoked, result.failed, max(waits, default=0.0))

    async def _end(self, lease: Lease) -> None:
        began = self._clock.boot()
        outcome = NetworkFailed.code  # also of a call that is given up because time is out
        try:
            await self._issuer_of(lease).revoke_token(lease.token)
            self._book.drop(lease.id)
            self._revoked[lease.scope.grant] += 1
            outcome = OK
        except GhappError as error:
            outcome = error.code
            raise
        finally:
            self._recorder.record("revocation", outcome, lease=lease, seconds=self._clock.boot() - began)

    def _issuer_of(self, lease: Lease) -> TokenIssuer:
        """Return GitHub for the API that the token is of; a token needs no key to be ended."""
        for issuer in self._issuers:
            if issuer.app.api == lease.scope.api:
                return issuer
        raise ConfigError(f"no app on {lease.scope.api} is configured any more", hint="ghapp setup")

    async def revoke_all(self) -> tuple[int, int]:
        """End every token at GitHub, in the time there is; return how many are dead, and how many may not be."""
        return await self._end_all(None)

    async def _end_all(self, grant: str | None) -> tuple[int, int]:
        before = self._count_revoked(grant)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._revoke_budget):
                again = True
                while again:  # those that were being minted meanwhile
                    leases = self._revocable(grant)
                    for lease in leases:
                        self._book.retire(lease.id)
                    again, _ = await asyncio.gather(self._mints_under_way(grant), self.revoke(leases))
        alive = len(self._revocable(grant)) + len(self._mints(grant))
        return self._count_revoked(grant) - before, alive

    def _count_revoked(self, grant: str | None) -> int:
        return self._revoked.total() if grant is None else self._revoked[grant]

    def _revocable(self, grant: str | None) -> list[Lease]:
        apis = {issuer.app.api for issuer in self._issuers}
        leases = (lease for lease, _ in self.leases() if lease.scope.api in apis)
        return [lease for lease in leases if grant in {None, lease.scope.grant}]

    # -- the lock ------------------------------------------------------------------------------------------------

    @property
    def locked(self) -> bool:
        """Whether nothing is answered."""
        return self._locked.is_set()

    async def lock(self, *, revoke: bool = False) -> tuple[int, int]:
        """Answer nothing from now on, and hold no token; return how many were revoked, and how many could not be.

        A token that is being minted is revoked, for nobody will get it. What was to be revoked and could not be is
        the only thing that stays, so that it can be tried again.
        """
        self._locked.set()
        for timer in self._renewals.values():
            timer.cancel()
        self._renewals.clear()
        if revoke:
            return await self.revoke_all()
        self._book.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._revoke_budget):
                await self._mints_under_way(None)
        self._book.clear()
        return 0, 0

    def unlock(self) -> None:
        """Answer again."""
        self._locked.clear()
        self._restraint.forget()

    def forget_absences(self) -> None:
        """Ask GitHub again about who was not installed or selected: somebody looks there, and may have mended it."""
        self._routes.forget_absences()

    def _raise_if_locked(self) -> None:
        if self.locked:
            raise Locked

    # -- which app, and where ------------------------------------------------------------------------------------

    async def _first_that_can(
        self, host: str, repositories: Sequence[Repository], attempt: Attempt[Result], *, afresh: bool = False
    ) -> Result | None:
        """Return what `attempt` comes to with the first app that can, or None if no app is installed on the owner.

        An app whose own key or limit is the trouble does not stand in the way of the next; what would fail for
        each of them, such as the network, ends it.
        """
        refusals: list[GhappError] = []
        for issuer in self._issuers:
            if not issuer.app.serves(host, repositories[0].owner):
                continue
            try:
                found = await self._at_places(issuer, repositories, attempt, afresh=afresh)
            except NotInstalled:
                continue
            except (Declined, AppRejected, KeyUnavailable, RateLimited) as error:
                refusals.append(error)
                continue
            if found is not None:
                return found
        # What is known of an app is over when that app is free. To remember another's for the request could outlast it.
        for kinds in (OF_THE_APP, Failed, GhappError):
            for refusal in refusals:
                if isinstance(refusal, kinds):
                    raise refusal
        return None

    async def _at_places(
        self, issuer: TokenIssuer, repositories: Sequence[Repository], attempt: Attempt[Result], *, afresh: bool
    ) -> Result | None:
        """Return what `attempt` comes to for where `repositories` are, or None where the app is not installed.

        What we believed may be old: a refusal makes us look at each repository once more, unless we just did. What
        is too old for a mint serves the leases that live at once, while it is looked up behind them.
        """
        if not afresh and (old := self._old_places(issuer, repositories)):
            with suppress(_NothingHeld, Declined, UsageError):
                return await attempt(issuer, old)
        for last in (True,) if afresh else (False, True):
            places, fresh = [], True
            for repository in repositories:
                try:
                    place, asked = await self._locate(issuer, repository, afresh=last)
                except Failed:
                    if afresh or not (old := self._old_places(issuer, repositories)):
                        raise
                    with suppress(_NothingHeld, Declined, UsageError):  # there may be a lease in its last minutes
                        return await attempt(issuer, old)
                    raise
                if place is Unreachable.ABSENT:
                    return None
                if place is Unreachable.UNSELECTED:
                    raise self._not_selected(issuer.app, repository)
                places.append(place)
                fresh = fresh and asked
            self._check_owners(issuer.app, repositories, places)
            try:
                return await attempt(issuer, places)
            except (NotInstalled, NotSelected, PermissionMissing, Suspended, UsageError):
                if fresh or last:
                    raise
        raise AssertionError("unreachable")

    def _old_places(self, issuer: TokenIssuer, repositories: Sequence[Repository]) -> list[Place]:
        """Return where `repositories` are, if that is known of all and too old for a mint; it is looked up behind."""
        app, now = issuer.app, self._clock.boot()
        places: list[Place] = []
        expired: list[Repository] = []
        for repository in repositories:
            place = self._routes.find(app, repository, now)
            if place is None:
                expired.append(repository)
                place = self._routes.find_old(app, repository)
            if not isinstance(place, Place) or not app.serves(app.host, place.installation.account):
                return []
            places.append(replace(place, old=True))
        for repository in expired:
            if not self._routes.failed_within(ASK_AGAIN, app, repository.owner, now):
                self._begin_look_up(issuer, repository)
        return places if expired else []

    def _check_owners(self, app: App, repositories: Sequence[Repository], places: Sequence[Place]) -> None:
        """Raise `NotSelected` if one of them has moved to an owner whom the configuration keeps from `app`."""
        for repository, place in zip(repositories, places, strict=True):
            account = place.installation.account
            if not app.serves(app.host, account):
                raise NotSelected(
                    f"{repository} has moved to {account}, and the app {app.name} is only for {', '.join(app.owners)}",
                    hint=f"if that is right, add it to owners of {app.name} in config.toml; then: ghapp daemon restart",
                )

    async def _locate(
        self, issuer: TokenIssuer, repository: Repository, *, afresh: bool
    ) -> tuple[Place | Unreachable, bool]:
        """Return where `repository` is, and whether GitHub was asked about just that now.

        One look-up serves all who ask for the same owner at the same time.
        """
        app, asked = issuer.app, False
        if afresh:
            await self._flights.once((app, repository.key), lambda: self._look_up(issuer, repository))
            asked = True
        while (place := self._routes.find(app, repository, self._clock.boot())) is None:
            asked = await asyncio.shield(self._begin_look_up(issuer, repository)) == repository.key
        return place, asked

    def _begin_look_up(self, issuer: TokenIssuer, repository: Repository) -> "asyncio.Task[tuple[str, str]]":
        return self._flights.begin((issuer.app, repository.key[0]), lambda: self._look_up(issuer, repository))

    async def _look_up(self, issuer: TokenIssuer, repository: Repository) -> tuple[str, str]:
        app = issuer.app
        installation: Installation | None = None
        try:
            place = await self._asking(issuer, lambda: issuer.find_by_repository(repository))
            if place is None:
                # 404 says "not installed", "not selected", "does not exist" alike: the owner tells them apart.
                installation = await self._asking(issuer, lambda: issuer.find_by_owner(repository.owner))
        except (Failed, asyncio.CancelledError):  # time may be out
            self._routes.learn_failure(app, repository.owner, self._clock.boot())
            raise
        if place is not None:
            self._routes.forget(app, repository)
            self._routes.learn(app, repository, place, self._clock.boot())
            return repository.key
        self._routes.forget(app, repository)
        self._routes.learn_owner(app, repository.owner, installation, self._clock.boot())
        if installation is not None:
            self._routes.learn_unselected(app, repository, self._clock.boot())
        return repository.key

    async def _installations(self, issuer: TokenIssuer) -> Sequence[Installation]:
        """Return all installations: one call a minute, shared by all who ask."""
        while (known := self._routes.find_all(issuer.app, self._clock.boot())) is None:
            await asyncio.shield(self._begin_list(issuer))
        return known

    def _begin_list(self, issuer: TokenIssuer) -> "asyncio.Task[None]":
        async def ask() -> None:
            try:
                found = await self._asking(issuer, issuer.list_installations)
            except (Failed, asyncio.CancelledError):  # time may be out
                if not self._routes.prolong_all(issuer.app, self._clock.boot()):
                    raise
            else:
                self._routes.learn_all(issuer.app, found, self._clock.boot())

        return self._flights.begin(issuer.app, ask)

    def _not_selected(self, app: App, repository: Repository) -> NotSelected:
        installation = self._routes.installation_on(app, repository.owner)
        page = installation.html_url if installation is not None else ""
        return not_selected(app, repository, page)

    # -- how a lease comes about ---------------------------------------------------------------------------------

    async def lease(self, order: "Order") -> Lease:
        """Return a lease for exactly the order's scope: a held one, or one minted once for all who ask just then.

        Near its end a lease is served while its successor is minted behind it; while minting fails, down to its last
        minute and without waiting for the next failure.
        """
        self._raise_if_locked()
        self._check_open(order.scope)
        held = self._book.find(order.scope, self._clock.boot(), at_least=LAST_RESORT)
        left = 0.0 if held is None else held.remaining(self._clock.boot())
        if order.old:
            if held is None or (left < HAND_OUT and not self._is_last_resort(order)):
                raise _NothingHeld
            self.hits += 1
            return held
        if held is not None and left >= RENEW_AHEAD:
            self.hits += 1
            return held
        flight = self._flights.begin(order.scope, lambda: self._mint(order))
        if held is not None and (left >= HAND_OUT or self._restraint.last_mint_failed(order.scope, self._clock.boot())):
            self.hits += 1
            return held
        try:
            fresh = await asyncio.shield(flight)
        except Failed:
            held = self._book.find(order.scope, self._clock.boot(), at_least=LAST_RESORT)
            if held is None:
                raise
            return held
        if fresh.remaining(self._clock.boot()) < LAST_RESORT:  # the lid was closed before we had our turn
            return await self.lease(order)
        return fresh

    def _is_last_resort(self, order: "Order") -> bool:
        app, now = order.issuer.app, self._clock.boot()
        return self._routes.failed_within(LATELY, app, order.asked_of, now) or self._restraint.last_mint_failed(
            order.scope, now
        )

    def _renew_ahead(self, order: "Order") -> None:
        """Replace the lease in the background if its end is near and somebody used it lately; else look later.

        The timer's clock stands still in suspend, so the lease's own clock decides.
        """
        self._renewals.pop(order.scope, None)
        now = self._clock.boot()
        held = self._book.find(order.scope, now, at_least=LAST_RESORT)
        issuer = next((each for each in self._issuers if _is_same(each.app, order.issuer.app)), None)
        if held is None or issuer is None:
            return
        order = replace(order, issuer=issuer)  # a new configuration has new ones
        left = held.remaining(now) - RENEW_AHEAD
        if left > 0:
            self._renew_in(left, order)
        elif self._book.used_within(order.scope, RECENTLY, now):
            self._flights.begin(order.scope, lambda: self._mint_again(order))
            # If that fails, the next use tries again, and so do we until the lease is dead.
            self._renew_in(RENEW_AGAIN, order)

    async def _mint_again(self, order: "Order") -> Lease:
        if await order.issuer.fingerprint() != order.scope.key:
            raise KeyUnavailable("the app has another key by now")
        return await self._mint(order)

    def _renew_in(self, seconds: float, order: "Order") -> None:
        """Set the one timer of the scope; one for each mint would live as long as the use goes on."""
        if earlier := self._renewals.pop(order.scope, None):
            earlier.cancel()
        self._renewals[order.scope] = asyncio.get_running_loop().call_later(
            seconds,
            self._renew_ahead,
            order,
            context=contextvars.Context(),  # of nobody: who asked for the first one does not ask for this
        )

    async def _mint(self, order: "Order") -> Lease:
        action = "mint" if self._book.find(order.scope, self._clock.boot(), at_least=0.0) is None else "renewal"
        name, began = str(order.repository or f"{order.owner}/*"), self._clock.boot()
        try:
            lease = await self._mint_unnoted(order)
        except GhappError as error:
            seconds = self._clock.boot() - began
            self._recorder.record(action, error.code, repository=name, scope=order.scope, seconds=seconds)
            raise
        self._recorder.record(action, OK, repository=name, lease=lease, seconds=self._clock.boot() - began)
        return lease

    async def _mint_unnoted(self, order: "Order") -> Lease:
        issuer, scope = order.issuer, order.scope
        now, awake = self._clock.boot, asyncio.get_running_loop().time
        end = awake() + self._flights.limit - SPARE
        self._restraint.raise_remembered((scope.api, scope.issuer), now())  # what is not sent is not counted
        pace = self._restraint.count_mint(scope, (scope.api, scope.issuer), now(), scope.grant)
        will_probe = self._will_probe(order)
        if will_probe:
            self._flights.begin((issuer.app.host, "approach"), issuer.approach)
        try:
            issued = await self._asking(issuer, lambda: issuer.create_token(scope))
        except GhappError as error:
            pace.error = error
            raise
        pace.error = None
        self.mints += 1
        ends = min(issued.ends, now() + MAX_LIFE)
        wrong = wider_than(scope, issued.permissions, issued.repository_selection, issued.repositories)
        if not wrong and will_probe:
            await self._prove(order, issued.token, min(self._probe_budget, end - awake()))
        if not wrong and ends - now() < LAST_RESORT:  # after the probe: the lid may have been closed meanwhile
            wrong = f"it ends in {ends - now():.0f} s"
        if wrong:
            pace.error = BadAnswer(
                f"GitHub issued another token than was asked for: {wrong}; it {await _revoked(issuer, issued.token)}"
            )
            raise pace.error
        lease = self._lease_of(order, issued, ends)
        try:
            self._raise_if_locked()
            self._check_open(scope)
        except (Locked, GrantEnded):  # meanwhile: nobody gets it
            with suppress(GhappError):
                await self._end(lease)
            raise
        self._book.put(lease)
        self._renew_in(max(0.0, lease.remaining(now()) - RENEW_AHEAD), order)
        return lease

    def _lease_of(self, order: "Order", issued: IssuedToken, ends: float) -> Lease:
        issuer, scope = order.issuer, order.scope
        return Lease(
            id=secrets.token_hex(6),
            scope=scope,
            app=issuer.app.name,
            owner=order.owner,
            repositories=None if scope.repositories is ALL else tuple(name for _, name in issued.repositories),
            permissions=issued.permissions,
            token=issued.token,
            ends=ends,
        )

    def _check_open(self, scope: Scope) -> None:
        """Raise `GrantEnded` for a scope of a grant that was closed."""
        if scope.grant and scope.grant not in self._grants:
            raise GrantEnded(f"grant {name_of(scope.grant)} has ended")

    def _will_probe(self, order: "Order") -> bool:
        if not self._probe or order.repository is None or "contents" not in dict(order.scope.permissions):
            return False
        return self._clock.boot() >= self._unprobed_until.get(order.scope, 0.0)

    async def _prove(self, order: "Order", token: str, seconds: float) -> None:
        """Wait, at most so long, until the git servers know the token: they may answer 404, and git gives up then."""
        assert order.repository is not None  # noqa: S101  # _will_probe said so
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for pause in self._probe_pauses:
                    if self.locked or await order.issuer.sees(order.repository, token):
                        return
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._locked.wait()
        self._unprobed_until[order.scope] = self._clock.boot() + UNPROBED

    async def _asking(self, issuer: TokenIssuer, call: Callable[[], Awaitable[Result]]) -> Result:
        return await self._restraint.asking((issuer.app.api, issuer.app.issuer), self._clock.boot, call)


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """What a mint needs to know, kept for the renewal."""

    issuer: TokenIssuer
    scope: Scope
    owner: str
    repository: Repository | None
    """The one to prove a new token on; None where that cannot be done."""
    old: bool = False
    """Known by a place that is too old: nothing is to be minted."""

    @property
    def asked_of(self) -> str:
        """The owner in the request, who may have had the repository once."""
        return self.owner if self.repository is None else self.repository.owner


def _only_one(
    query: Query, lists: "Sequence[tuple[TokenIssuer, Sequence[Installation]]]"
) -> tuple[TokenIssuer, Installation]:
    """Return the one installation that `query` can mean. Raises `PathMissing` and `ForeignUser`."""
    fitting = [
        (issuer, installation)
        for issuer, installations in lists
        for installation in installations
        if not installation.suspended and issuer.app.serves(query.host, installation.account)
    ]
    if len(fitting) != 1:
        raise PathMissing("git did not say which repository it asks for", hint="ghapp setup-git")
    if not query.our_username:
        raise _foreign_user(query)
    return fitting[0]


async def _scope(
    issuer: TokenIssuer,
    installation: Installation,
    repositories: Repositories,
    permissions: Permissions,
    grant: str = "",
) -> Scope:
    return Scope(
        api=issuer.app.api,
        issuer=issuer.app.issuer,
        key=await issuer.fingerprint(),
        installation=installation.id,
        repositories=repositories,
        permissions=permissions,
        grant=grant,
    )


def _is_same(one: App, other: App) -> bool:
    """Tell whether the configuration says the same of both, whichever keys they have."""
    return replace(one, keys=()) == replace(other, keys=())


def _lendable_on(
    app: App, installation: Installation, permissions: Permissions | None, *, read_only: bool
) -> Permissions:
    if installation.suspended:
        raise suspended(installation.account, installation.html_url)
    if permissions is not None:
        check_granted(installation, permissions)
        return permissions
    wanted = git_permissions(installation, app.permissions)
    return read_only_of(wanted) if read_only else wanted


def _not_installed(repository: Repository) -> NotInstalled:
    return NotInstalled(f"no app of yours is installed on {repository.owner}", hint="ghapp app list shows the apps")


async def _revoked(issuer: TokenIssuer, token: str) -> str:
    try:
        await issuer.revoke_token(token)
    except Failed as error:
        return f"could not be revoked: {error.message}"
    return "was revoked"


def _foreign_user(query: Query) -> ForeignUser:
    what = query.repository or query.host
    return ForeignUser(
        f"{what} was asked for with another username",
        hint=f"remove the username from the URL: https://{query.host}/{query.repository or ''}",
    )


def not_selected(app: App, repository: Repository, page: str) -> NotSelected:
    """Say that `app` is installed on the owner, but not on `repository`; `page` is where that is mended."""
    return NotSelected(
        f"the app {app.name} is installed on {repository.owner}, but not on {repository.name}, or there is no such"
        " repository",
        hint=f"select the repository at {page or f'https://{app.host}/settings/installations'}",
    )


def suspended(account: str, page: str) -> Suspended:
    """Say that the installation on `account` is suspended."""
    return Suspended(f"the app's installation on {account} is suspended", hint=f"unsuspend it at {page}")
