"""How a lease ends before its time: at GitHub, at GitHub's pace, and never handed out meanwhile."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ghapp.errors import GhappError, NetworkFailed, RateLimited
from ghapp.installation import Scope
from ghapp.lease import Lease, LeaseBook
from ghapp.protocols import OK, Clock, Recorder, TokenIssuer
from ghapp.restraint import Flights, Restraint


REVOKE_BUDGET = 5.0  # seconds for all of them: `daemon stop` waits for it
REVOKE_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Revocation:
    """What came of an attempt to end tokens; those in neither list were not tried."""

    revoked: list[Lease]
    failed: list[tuple[Lease, GhappError]]
    wait: float
    """Seconds until it makes sense to try those that were not tried."""


class Revocations:
    """Ends leases; what could not be ended stays in the book, so that the next attempt finds it."""

    def __init__(
        self,
        clock: Clock,
        book: LeaseBook,
        flights: Flights,
        restraint: Restraint,
        *,
        recorder: Recorder,
        budget: float,
    ) -> None:
        self._clock = clock
        self._book = book
        self._flights = flights
        self._restraint = restraint
        self._recorder = recorder
        self._budget = budget
        self._issuers: dict[str, TokenIssuer] = {}
        """By API: a token needs no key to be ended, and no app that is still configured."""
        self._revoked: Counter[str] = Counter()

    def configure(self, issuers: Sequence[TokenIssuer]) -> None:
        """End tokens by these from now on; those of an API that none of them is for, by whoever was before."""
        self._issuers |= {issuer.app.api: issuer for issuer in issuers}

    def _living(self) -> list[Lease]:
        return list(self._book.live(self._clock.boot()))

    async def retire(self, fits: Callable[[Lease], bool]) -> list[Lease]:
        """Return the leases that fit, those being minted just now included, and hand them out no more.

        They are held until `revoke` has ended them, or GitHub has.
        """
        await self._mints_under_way(None)
        found = [lease for lease in self._living() if fits(lease)]
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
                    await self.end(lease)
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

    async def end(self, lease: Lease) -> None:
        """End one token. Raises `GhappError`, and then keeps the lease."""
        began = self._clock.boot()
        outcome = NetworkFailed.code  # also of a call that is given up because time is out
        try:
            await self._issuers[lease.scope.api].revoke_token(lease.token)
            self._book.drop(lease.id)
            self._revoked[lease.scope.grant] += 1
            outcome = OK
        except GhappError as error:
            outcome = error.code
            raise
        finally:
            self._recorder.record("revocation", outcome, lease=lease, seconds=self._clock.boot() - began)

    async def end_all(self, grant: str | None) -> tuple[int, int]:
        """End every token of that grant, or of all, in the time there is, those being minted just now included.

        Return how many are dead, and how many may not be.
        """
        before = self._count_revoked(grant)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._budget):
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
        return [lease for lease in self._living() if grant in {None, lease.scope.grant}]

    async def wait_for_mints(self) -> None:
        """Wait until nothing is being minted any more, within the budget."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._budget):
                await self._mints_under_way(None)
