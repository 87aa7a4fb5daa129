"""Asking GitHub no more often than is good: once for all who wait, not again right after a refusal, never in a loop.

Part of the application layer, beside the broker, which decides what to ask.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ghapp.errors import AppRejected, ClockRejected, Declined, Failed, Forbidden, GhappError, NetworkFailed, RateLimited


MINTS_OF_A_SCOPE = 6  # a minute; an erase loop must not get the app throttled
MINTS_OF_AN_APP = 150  # a minute; GitHub allows about 180
REVOCATIONS = 150  # a minute and API; GitHub counts five points each, and refuses beyond 900
MINTS_OF_A_GRANT = 30  # a minute; whoever borrows must not use up the app's
MINUTE = 60.0
LEEWAY = 1.0  # seconds: what we sent a minute ago may have arrived a little later
MAX_FAILURES = 1_000  # remembered errors of requests; their names come from URLs that strangers write

Result = TypeVar("Result")
OF_THE_APP = (AppRejected, ClockRejected, RateLimited)
"""What GitHub says of whoever asks, whatever was asked for: nothing is sent for that app until it is over."""


@dataclass(slots=True)
class Pace:
    """When tokens were minted lately."""

    times: deque[float] = field(default_factory=deque)
    error: GhappError | None = None
    """Why the last mint failed, if it did."""

    def recent(self, now: float) -> int:
        """Return how many there were within a minute, forgetting the older ones."""
        while self.times and self.times[0] <= now - MINUTE:
            self.times.popleft()
        return len(self.times)


class Flights:
    """Work under way, by what it is for: whoever wants the same joins."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        """Seconds for each."""
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}

    def __len__(self) -> int:
        """Return how many things are under way."""
        return len(self._flights)

    async def once(self, key: Hashable, start: Callable[[], Awaitable[Result]]) -> Result:
        """Join the work under way for `key`, or start it; a caller who is cancelled cancels nobody else."""
        return await asyncio.shield(self.begin(key, start))

    def begin(self, key: Hashable, start: Callable[[], Awaitable[Result]]) -> "asyncio.Task[Result]":
        """Return the work under way for `key`, started now if there is none; nobody has to wait for it."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.ensure_future(self._work(start))

            def land(task: "asyncio.Task[Result]") -> None:
                self._flights.pop(key, None)
                error = None if task.cancelled() else task.exception()  # whoever waited has it; nobody may have waited
                if isinstance(error, GhappError):
                    error.__traceback__ = error.__context__ = None  # its frames hold tokens; errors are remembered

            flight.add_done_callback(land)
        return flight

    def under_way(self, fits: Callable[[Hashable], bool]) -> "list[asyncio.Task[Any]]":
        """Return the work under way for keys that fit."""
        return [flight for key, flight in self._flights.items() if fits(key)]

    async def _work(self, start: Callable[[], Awaitable[Result]]) -> Result:
        """Run with an end of its own: nobody may be left to wait for it, and it must not hold its key for ever."""
        async with within(self.limit):
            return await start()


class Restraint:
    """What GitHub told us lately, and how often we asked; a class because every question passes through it."""

    def __init__(self) -> None:
        self._failures: dict[Hashable, tuple[GhappError, float]] = {}
        self._refusals: dict[Hashable, tuple[GhappError, float]] = {}
        """Those that concern a whole app; apart, so that many failed requests do not push them out."""
        self._proven: set[Hashable] = set()
        self._gates: dict[Hashable, asyncio.Lock] = {}
        self._paces: dict[Hashable, Pace] = {}
        self._revocations: dict[Hashable, Pace] = {}

    def forget(self) -> None:
        """Ask again whatever was refused.

        Not forgotten is how often tokens were minted, and until when GitHub wants us to stay away: whoever goes on
        asking may be banned.
        """
        self._failures.clear()
        self._refusals = {key: held for key, held in self._refusals.items() if isinstance(held[0], RateLimited)}
        self._proven.clear()
        self._gates.clear()

    async def asking(self, app: Hashable, now: Callable[[], float], call: Callable[[], Awaitable[Result]]) -> Result:
        """Ask GitHub as `app`, unless it told the app to stay away.

        Until GitHub has accepted the app's key once, one call at a time: a hundred wrong log-ins at the same moment
        would lock everyone out.
        """
        if app in self._proven:
            return await self._ask(app, now, call)
        async with self._gates.setdefault(app, asyncio.Lock()):
            return await self._ask(app, now, call)

    async def _ask(self, app: Hashable, now: Callable[[], float], call: Callable[[], Awaitable[Result]]) -> Result:
        self.raise_remembered(app, now())
        try:
            answer = await call()
        except OF_THE_APP as error:
            self._proven.discard(app)
            self.remember(app, error, now())
            raise
        except (Declined, Forbidden):
            self._proven.add(app)
            raise
        except Failed as error:
            if app not in self._proven:
                self.remember(app, error, now())  # those who wait at the gate would only fail alike
            raise
        self._proven.add(app)
        return answer

    def remember(self, key: Hashable, error: GhappError, now: float) -> None:
        """Answer whoever asks for `key` with `error`, for as long as the error says.

        One that is told because it is remembered is not remembered for longer by being told.
        """
        if isinstance(error, OF_THE_APP):
            self._refusals[key] = (error, now + error.remember)
            return
        told = [until for known, until in self._failures.values() if known is error and until > now]
        self._keep(key, error, min([now + error.remember, *told]))

    def _keep(self, key: Hashable, error: GhappError, until: float) -> None:
        while len(self._failures) >= MAX_FAILURES:
            del self._failures[next(iter(self._failures))]
        self._failures[key] = (error, until)

    def remember_request(self, key: Hashable, error: GhappError, now: float) -> None:
        """As `remember`; of what is known of an app, for a moment, and never beyond the first end of any app's refusal.

        Another app may be free sooner, and to ask that each time would have no limit.
        """
        if not isinstance(error, OF_THE_APP):
            self.remember(key, error, now)
            return
        ends = [until for known, until in self._refusals.values() if known is error or until > now]
        self._keep(key, error, min([now + min(error.remember, Failed.remember), *ends]))

    def raise_remembered(self, key: Hashable, now: float) -> None:
        """Raise what is remembered for `key`."""
        for book in (self._refusals, self._failures):
            error, until = book.get(key, (None, 0.0))
            if error is not None and now < until:
                raise error.with_traceback(None)
        self._failures.pop(key, None)  # not of an app: who is told of a refusal after its end has to know that end

    def holds_off(self, key: Hashable, now: float) -> bool:
        """Tell whether whoever asks for `key` would be told what is remembered."""
        return any(now < book[key][1] for book in (self._refusals, self._failures) if key in book)

    def __len__(self) -> int:
        return len(self._failures) + len(self._refusals)

    def count_mint(self, scope: Hashable, app: Hashable, now: float, grant: str = "") -> Pace:
        """Count one more mint, or raise the last error if that would be too many within a minute."""
        self._paces = {key: pace for key, pace in self._paces.items() if pace.recent(now) or pace.error}
        limits = [(scope, MINTS_OF_A_SCOPE), (app, MINTS_OF_AN_APP)]
        if grant:
            limits.append((("grant", grant), MINTS_OF_A_GRANT))
        paces = [(self._paces.setdefault(key, Pace()), most) for key, most in limits]
        for pace, most in paces:
            if pace.recent(now) >= most:
                wait = pace.times[0] + MINUTE - now
                raise pace.error or RateLimited(
                    f"{most} tokens were minted within a minute", wait=wait, hint="ghapp leases"
                )
        for pace, _ in paces:
            pace.times.append(now)
        return paces[0][0]

    def count_miss(self, grant: str, now: float) -> None:
        """Count a question of a grant that cost calls and came to nothing."""
        self._paces.setdefault(("misses", grant), Pace()).times.append(now)

    def check_grant(self, grant: str, now: float) -> None:
        """Raise if the grant asked too often for what it cannot have: then nothing is looked up for a while."""
        pace = self._paces.get(("misses", grant))
        if pace is not None and pace.recent(now) >= MINTS_OF_A_GRANT:
            raise RateLimited(
                f"the grant asked {MINTS_OF_A_GRANT} times within a minute for what it cannot have",
                wait=pace.times[0] + MINUTE - now,
            )

    def wait_to_revoke(self, api: Hashable, now: float) -> float:
        """Return the seconds until one more token may be revoked; 0 is now."""
        pace = self._revocations.setdefault(api, Pace())
        _, until = self._refusals.get(("revocations", api), (None, 0.0))
        wait = pace.times[0] + MINUTE + LEEWAY - now if pace.recent(now - LEEWAY) >= REVOCATIONS else 0.0
        return max(wait, until - now, 0.0)

    def count_revocation(self, api: Hashable, now: float) -> None:
        """Count one that is sent now."""
        self._revocations.setdefault(api, Pace()).times.append(now)

    def hold_revocations(self, api: Hashable, error: RateLimited, now: float) -> None:
        """Send no more for as long as GitHub said."""
        self.remember(("revocations", api), error, now)

    def last_mint_failed(self, scope: Hashable, now: float) -> bool:
        """Tell whether the last mint for `scope` failed within a minute: later it may as well succeed."""
        pace = self._paces.get(scope)
        return pace is not None and pace.error is not None and pace.recent(now) > 0


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Turn running out of time into an error of ours."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise NetworkFailed(
            f"no token within {seconds:.0f} s", hint="check the network and https://www.githubstatus.com"
        ) from None
