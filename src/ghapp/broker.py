"""The broker: turns a request into a credential.

It orders the pure core and sees the world through protocols, so that every rule here runs in tests with a clock that
is set and an issuer that is scripted. One event loop; state is touched only on it, never half-updated across an await.
"""

import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from ghapp.credential import Credential, Query, Repository
from ghapp.errors import (
    AppRejected,
    Declined,
    Failed,
    ForeignUser,
    GhappError,
    KeyUnavailable,
    NotInstalled,
    NotSelected,
    PathMissing,
    PermissionMissing,
    RateLimited,
    Suspended,
    UsageError,
)
from ghapp.grant import ANY, Grant
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
)
from ghapp.lease import MAX_LIFE, Lease, LeaseBook
from ghapp.lookup import Lookups
from ghapp.minting import PROBE_BUDGET, PROBE_PAUSES, Minting, NothingHeld, Order
from ghapp.protocols import OK, Clock, NoRecord, Recorder, TokenIssuer
from ghapp.restraint import OF_THE_APP, Flights, Restraint, within
from ghapp.revocation import REVOKE_BUDGET, Revocation, Revocations
from ghapp.routing import App, Place, Unreachable


BUDGET = 25.0  # seconds for one get; our client gives up at 30, git's own never does
WORK_BUDGET = 23.0  # seconds for one look-up or mint: some are left to hand out a lease that still lives

LOOK_AROUND: Permissions = (("metadata", "read"),)  # the least that a token can have

Result = TypeVar("Result")


Attempt = Callable[[TokenIssuer, Sequence[Place]], Awaitable[Result]]


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
        self._budget = budget
        self._issuers: tuple[TokenIssuer, ...] = ()
        self._book = LeaseBook()
        self._flights = Flights(work_budget)
        self._restraint = Restraint()
        shared = clock, self._book, self._flights, self._restraint
        self._lookups = Lookups(clock, self._flights, self._restraint)
        self._revocations = Revocations(*shared, recorder=self._recorder, budget=revoke_budget)
        self._minting = Minting(
            *shared,
            lookups=self._lookups,
            revocations=self._revocations,
            recorder=self._recorder,
            probe_pauses=probe_pauses,
            probe_budget=probe_budget,
        )

    def configure(self, issuers: Sequence[TokenIssuer], *, probe: bool = True) -> None:
        """Answer for these apps from now on. Leases stay: their scope says whether they still fit.

        Without `probe` a new token is handed out before the git servers were seen to know it.
        """
        self._issuers = tuple(issuers)
        self._minting.configure(issuers, probe=probe)
        self._revocations.configure(issuers)
        self._lookups.forget()
        self._restraint.forget()

    @property
    def mints(self) -> int:
        """How many tokens were minted."""
        return self._minting.mints

    @property
    def hits(self) -> int:
        """How often a lease that was held already was handed out."""
        return self._minting.hits

    @property
    def flights(self) -> int:
        """How many calls to GitHub are under way; whoever wants the same shares one."""
        return len(self._flights)

    def trouble(self, app: App) -> str | None:
        """Return the code of what keeps every request of `app` from GitHub at the moment, if anything does."""
        try:
            self._restraint.raise_remembered(app.login, self._clock.boot())
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
        self._minting.raise_if_locked()
        self._restraint.raise_remembered(key, began)
        try:
            async with within(self._budget):
                lease = await (self._fill(query) if grant is None or named is None else self._lend(query, grant, named))
                if lease is None:
                    return None
                credential = self._credential(lease, named)
                self._note_answer(lease, named, began)
                return credential
        except GhappError as error:
            self._restraint.remember_request(key, error, self._clock.boot())
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
            return await self._minting.lease(Order(issuer, scope, installation.account, repository, old=places[0].old))

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
        return await self._minting.lease(Order(issuer, scope, installation.account, query.repository, old=place.old))

    async def _fill_without_path(self, query: Query) -> Lease:
        """Answer a request that names no repository: possible only when there is nothing to choose.

        A list that is too old serves the lease that lives at once, while it is asked for anew behind that.
        """
        whole = [issuer for issuer in self._issuers if issuer.app.host == query.host and issuer.app.whole_installation]
        if old := self._lookups.old_lists(whole):
            with suppress(NothingHeld, Declined):
                issuer, installation = _only_one(query, old)
                return await self._lease_for_git(issuer, Place(installation, "", old=True), query)
        for last in (False, True):
            lists = [(issuer, await self._lookups.installations(issuer)) for issuer in whole]
            issuer, installation = _only_one(query, lists)
            try:
                return await self._lease_for_git(issuer, Place(installation, ""), query)
            except (NotInstalled, PermissionMissing, Suspended):
                if last:
                    raise
                self._lookups.forget_all(issuer.app)
        raise AssertionError("unreachable")

    def _credential(self, lease: Lease, repository: Repository | None) -> Credential:
        self._minting.raise_if_locked()  # since the lease was found
        self._book.count_use(lease, self._clock.boot())
        if repository is not None:
            self._book.note_name(lease, repository)
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
            return await self._minting.lease(order)

        began = self._clock.boot()
        try:
            async with within(self._budget):
                lease = await self._first_that_can(host, repositories, at)
            self._minting.raise_if_locked()
            if lease is None:
                raise _not_installed(repositories[0])
        except GhappError as error:
            seconds = self._clock.boot() - began
            self._recorder.record("refusal", error.code, repository=str(repositories[0]), seconds=seconds)
            raise
        self._book.count_use(lease, self._clock.boot())
        for repository in repositories:
            self._book.note_name(lease, repository)
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
                found = await self._lookups.find_by_owner(issuer, pattern.owner)
                if found is not None and issuer.app.serves(host, found.account):
                    return _lendable_on(issuer.app, found, permissions, read_only=read_only)
        return None

    def adopt(self, like: Lease, tokens: Iterable[str]) -> None:
        """Hold tokens of a daemon before us, of the same scope as `like`, until they are ended; hand none out."""
        ends = self._clock.boot() + MAX_LIFE
        for token in tokens:
            if self._book.find_token(token) is None:  # what we minted ourselves is held already, as what it is
                self._book.keep(replace(like, id=secrets.token_hex(6), token=token, ends=ends))

    def open_grant(self, grant: str) -> None:
        """Mint for that grant from now on, until it is closed."""
        self._minting.open_grant(grant)

    async def close_grant(self, grant: str) -> tuple[int, int]:
        """Mint for that grant no more, and end its tokens; return as `revoke_all`."""
        self._minting.close_grant(grant)
        return await self._revocations.end_all(grant)

    async def lease_to_look_around(self, name: str, owner: str) -> Lease:
        """Return a lease that sees what the app `name` reaches on `owner`, and may do nothing with it."""
        absent = NotInstalled(f"no app {name} is installed on {owner}", hint="ghapp installations")
        issuer = next((issuer for issuer in self._issuers if issuer.app.name == name), None)
        if issuer is None or not issuer.app.serves(issuer.app.host, owner):
            raise absent
        for last in (False, True):
            all_of_them = await self._lookups.installations(issuer)
            found = next((each for each in all_of_them if each.account.lower() == owner.lower()), None)
            try:
                if found is None:
                    raise absent
                if found.suspended:
                    raise suspended(found.account, found.html_url)
                scope = await _scope(issuer, found, ALL, LOOK_AROUND)
                return await self._minting.lease(Order(issuer, scope, found.account, None))
            except (NotInstalled, PermissionMissing, Suspended):
                if last:
                    raise
                self._lookups.forget_all(issuer.app)  # what we believed may be a minute old
        raise AssertionError("unreachable")

    def leases(self) -> list[tuple[Lease, int]]:
        """Return the living leases and how often each was handed out."""
        return [(lease, self._book.uses(lease)) for lease in self._book.live(self._clock.boot())]

    def old_names(self, lease: Lease) -> Collection[Repository]:
        """Return the names that `lease` was asked for by, and that GitHub did not tell."""
        return self._book.old_names(lease)

    # -- taking back ---------------------------------------------------------------------------------------------

    async def retire(self, fits: Callable[[Lease], bool] = lambda _: True) -> list[Lease]:
        """Return the leases that fit, those being minted just now included, and hand them out no more.

        They are held until `revoke` has ended them, or GitHub has.
        """
        return await self._revocations.retire(fits)

    async def revoke(self, leases: Iterable[Lease]) -> Revocation:
        """End tokens at GitHub, a few at a time and no more a minute than GitHub takes."""
        return await self._revocations.revoke(leases)

    async def revoke_all(self) -> tuple[int, int]:
        """End every token at GitHub, in the time there is; return how many are dead, and how many may not be."""
        return await self._revocations.end_all(None)

    @property
    def locked(self) -> bool:
        """Whether nothing is answered."""
        return self._minting.locked

    async def lock(self, *, revoke: bool = False) -> tuple[int, int]:
        """Answer nothing from now on, and hold no token; return how many were revoked, and how many could not be.

        A token that is being minted is revoked, for nobody will get it. What was to be revoked and could not be is
        the only thing that stays, so that it can be tried again.
        """
        self._minting.lock()
        if revoke:
            return await self.revoke_all()
        self._book.clear()
        await self._revocations.wait_for_mints()
        self._book.clear()
        return 0, 0

    def unlock(self) -> None:
        """Answer again."""
        self._minting.unlock()
        self._restraint.forget()

    def forget_absences(self) -> None:
        """Ask GitHub again about who was not installed or selected: somebody looks there, and may have mended it."""
        self._lookups.forget_absences()

    # -- which app, and where ------------------------------------------------------------------------------------

    async def _first_that_can(
        self, host: str, repositories: Sequence[Repository], attempt: Attempt[Result], *, afresh: bool = False
    ) -> Result | None:
        """Return what `attempt` comes to with the first app that can, or None if no app is installed on the owner.

        An app whose own key or limit is the trouble does not stand in the way of the next; what would fail for
        each of them, such as the network, ends it.
        """
        issuers = [issuer for issuer in self._issuers if issuer.app.serves(host, repositories[0].owner)]
        if not afresh and (last := self._lookups.last_known(issuers, repositories)):
            with suppress(NothingHeld, Declined, UsageError):
                return await attempt(*last)
        refusals: list[GhappError] = []
        for issuer in issuers:
            could_not = self._lookups.could_not(issuer, repositories)
            try:
                found = await self._at_places(issuer, repositories, attempt, afresh=afresh)
            except NotInstalled:
                continue
            except (Declined, AppRejected, KeyUnavailable, RateLimited) as error:
                refusals.append(error)
                continue
            except Failed as error:
                if afresh or not could_not:
                    raise
                refusals.append(error)  # the next may hold a lease that lives
                continue
            if found is not None:
                return found
        if refusals:
            raise _told_first(refusals)
        return None

    async def _at_places(
        self, issuer: TokenIssuer, repositories: Sequence[Repository], attempt: Attempt[Result], *, afresh: bool
    ) -> Result | None:
        """Return what `attempt` comes to for where `repositories` are, or None where the app is not installed.

        What we believed may be old: a refusal makes us look at each repository once more, unless we just did. What
        is too old for a mint serves the leases that live at once, while it is looked up behind them.
        """
        if not afresh and (last_known := self._lookups.last_known([issuer], repositories)):
            with suppress(NothingHeld, Declined, UsageError):
                return await attempt(*last_known)
        for last in (True,) if afresh else (False, True):
            places, fresh = [], True
            for repository in repositories:
                try:
                    place, asked = await self._lookups.locate(issuer, repository, afresh=last)
                except Failed:
                    self._lookups.learn_failure(issuer, repositories)
                    if not afresh and (last_known := self._lookups.last_known([issuer], repositories)):
                        with suppress(NothingHeld, Declined, UsageError):  # there may be a lease in its last minutes
                            return await attempt(*last_known)
                    raise
                if place is Unreachable.ABSENT:
                    return None
                if place is Unreachable.UNSELECTED:
                    raise self._lookups.not_selected(issuer.app, repository)
                places.append(place)
                fresh = fresh and asked
            self._check_owners(issuer.app, repositories, places)
            try:
                return await attempt(issuer, places)
            except (NotInstalled, NotSelected, PermissionMissing, Suspended, UsageError):
                if fresh or last:
                    raise
        raise AssertionError("unreachable")

    def _check_owners(self, app: App, repositories: Sequence[Repository], places: Sequence[Place]) -> None:
        """Raise `NotSelected` if one of them has moved to an owner whom the configuration keeps from `app`."""
        for repository, place in zip(repositories, places, strict=True):
            account = place.installation.account
            if not app.serves(app.host, account):
                raise NotSelected(
                    f"{repository} has moved to {account}, and the app {app.name} is only for {', '.join(app.owners)}",
                    hint=f"if that is right, add it to owners of {app.name} in config.toml; then: ghapp daemon restart",
                )


def _told_first(refusals: Sequence[GhappError]) -> GhappError:
    """Return which of the apps' refusals is told: what is over by itself, before what somebody has to mend."""
    for kinds in (OF_THE_APP, Failed, GhappError):
        for refusal in refusals:
            if isinstance(refusal, kinds):
                return refusal
    raise AssertionError("unreachable")


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
    return NotInstalled(f"no app of yours is installed on {repository.owner}", hint="ghapp app list")


def _foreign_user(query: Query) -> ForeignUser:
    what = query.repository or query.host
    return ForeignUser(
        f"{what} was asked for with another username",
        hint=f"remove the username from the URL: https://{query.host}/{query.repository or ''}",
    )


def suspended(account: str, page: str) -> Suspended:
    """Say that the installation on `account` is suspended."""
    return Suspended(f"the app's installation on {account} is suspended", hint=f"unsuspend it at {page}")
