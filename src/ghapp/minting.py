"""How a lease comes about: held, minted once for all who want it, proven, renewed while it is in use."""

import asyncio
import contextvars
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from ghapp.credential import Repository
from ghapp.errors import BadAnswer, Failed, GhappError, GrantEnded, KeyUnavailable, Locked
from ghapp.grant import name_of
from ghapp.installation import ALL, Scope, wider_than
from ghapp.lease import HAND_OUT, LAST_RESORT, MAX_LIFE, RECENTLY, RENEW_AHEAD, Lease, LeaseBook
from ghapp.lookup import Lookups
from ghapp.protocols import OK, Clock, IssuedToken, Recorder, TokenIssuer
from ghapp.restraint import Flights, Restraint
from ghapp.revocation import Revocations
from ghapp.routing import App


PROBE_PAUSES = (0.25, 0.5, 1.0, 2.0, 3.0, 3.0)  # seconds between looks; GitHub's lag is mostly under 4
PROBE_BUDGET = 10.0  # seconds for pauses and looks: a server that is slow to answer must not cost us the token
SPARE = 1.0  # seconds of a mint's time that no probe may use: a token that was minted has to be kept
UNPROBED = 600.0  # seconds for which a scope whose probe ran out is not probed again
RENEW_AGAIN = 30.0  # seconds

Result = TypeVar("Result")


class NothingHeld(Exception):  # no failure: a look-up comes first
    """What is believed is too old for a mint, and there is no lease to hand out by it."""


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


class Minting:
    """Holds, mints and renews leases; nothing while the daemon is locked, nor for a grant that was closed."""

    def __init__(
        self,
        clock: Clock,
        book: LeaseBook,
        flights: Flights,
        restraint: Restraint,
        *,
        lookups: Lookups,
        revocations: Revocations,
        recorder: Recorder,
        probe_pauses: Sequence[float],
        probe_budget: float,
    ) -> None:
        self._clock = clock
        self._book = book
        self._flights = flights
        self._restraint = restraint
        self._lookups = lookups
        self._revocations = revocations
        self._recorder = recorder
        self._issuers: tuple[TokenIssuer, ...] = ()
        self._locked = asyncio.Event()
        self._grants: set[str] = set()
        self._renewals: dict[Scope, asyncio.TimerHandle] = {}
        self._probe = True
        self._probe_pauses = probe_pauses
        self._probe_budget = probe_budget
        self._unprobed_until: dict[Scope, float] = {}
        self.mints = 0
        self.hits = 0

    def configure(self, issuers: Sequence[TokenIssuer], *, probe: bool) -> None:
        """Renew by these from now on, and `probe` new tokens on the git server."""
        self._issuers = tuple(issuers)
        self._probe = probe

    def open_grant(self, grant: str) -> None:
        """Mint for that grant from now on, until it is closed."""
        self._grants.add(grant)

    def close_grant(self, grant: str) -> None:
        """Mint for that grant no more."""
        self._grants.discard(grant)

    @property
    def locked(self) -> bool:
        """Whether nothing is handed out."""
        return self._locked.is_set()

    def lock(self) -> None:
        """Hand out nothing, and renew nothing."""
        self._locked.set()
        for timer in self._renewals.values():
            timer.cancel()
        self._renewals.clear()

    def unlock(self) -> None:
        """Hand out again."""
        self._locked.clear()

    def raise_if_locked(self) -> None:
        """Raise `Locked` if nothing is handed out."""
        if self.locked:
            raise Locked

    async def lease(self, order: "Order") -> Lease:
        """Return a lease for exactly the order's scope: a held one, or one minted once for all who ask just then.

        Near its end a lease is served while its successor is minted behind it; while minting fails, down to its last
        minute and without waiting for the next failure.
        """
        self.raise_if_locked()
        self._check_open(order.scope)
        held = self._book.find(order.scope, self._clock.boot(), at_least=LAST_RESORT)
        left = 0.0 if held is None else held.remaining(self._clock.boot())
        if order.old:
            if held is None or (left < HAND_OUT and not self._is_last_resort(order)):
                raise NothingHeld
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
        app, asked = order.issuer.app, order.repository
        if asked is not None and self._lookups.failed_lately(app, asked):
            return True
        return self._restraint.last_mint_failed(order.scope, self._clock.boot())

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

    async def _mint_unnoted(self, order: "Order", *, until: float | None = None) -> Lease:
        """Mint, and once more if the token's life went by while the machine slept: then `until` is when to give up."""
        issuer, scope = order.issuer, order.scope
        now, awake = self._clock.boot, asyncio.get_running_loop().time
        began = now() - awake()
        end = awake() + self._flights.limit - SPARE if until is None else until
        self._restraint.raise_remembered(issuer.app.login, now())  # what is not sent is not counted
        pace = self._restraint.count_mint(scope, issuer.app.login, now(), scope.grant)
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
            if until is None and now() - awake() - began >= LAST_RESORT:
                return await self._mint_unnoted(order, until=end)
            wrong = f"it ends in {ends - now():.0f} s"
        if wrong:
            pace.error = BadAnswer(
                f"GitHub issued another token than was asked for: {wrong}; it {await _revoked(issuer, issued.token)}"
            )
            raise pace.error
        lease = self._lease_of(order, issued, ends)
        try:
            self.raise_if_locked()
            self._check_open(scope)
        except (Locked, GrantEnded):  # meanwhile: nobody gets it
            self._book.put(lease)  # until it is ended: whoever tries again finds it
            self._book.retire(lease.id)
            with suppress(GhappError):
                await self._revocations.end(lease)
            raise
        self._book.put(lease)
        if order.repository is not None:
            self._book.note_name(lease, order.repository)
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
        return await self._restraint.asking(issuer.app.login, self._clock.boot, call)


def _is_same(one: App, other: App) -> bool:
    """Tell whether the configuration says the same of both, whichever keys they have."""
    return replace(one, keys=()) == replace(other, keys=())


async def _revoked(issuer: TokenIssuer, token: str) -> str:
    try:
        await issuer.revoke_token(token)
    except Failed as error:
        return f"could not be revoked: {error.message}"
    return "was revoked"
