"""Where repositories are: asked of GitHub once for all who want to know, and believed for a while.

What is too old to mint by may still lead to a lease that lives: then it is asked behind whoever gets that.
"""

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ghapp.credential import Repository
from ghapp.errors import BadAnswer, Failed, Forbidden, NotSelected
from ghapp.installation import Installation
from ghapp.protocols import Clock, TokenIssuer
from ghapp.restraint import Flights, Restraint
from ghapp.routing import ASK_AGAIN, LATELY, App, Place, Routes, Unreachable


Result = TypeVar("Result")
OF_A_REPOSITORY = (BadAnswer, Forbidden)
"""What a look-up may fail with for one repository alone, such as one that GitHub has blocked."""


class Lookups:
    """Answers the broker's questions from memory, or by asking GitHub."""

    def __init__(self, clock: Clock, flights: Flights, restraint: Restraint) -> None:
        self._clock = clock
        self._flights = flights
        self._restraint = restraint
        self._routes = Routes()
        self._subjects: weakref.WeakKeyDictionary[asyncio.Task[tuple[str, str]], tuple[str, str]]
        self._subjects = weakref.WeakKeyDictionary()
        """Of the look-ups under way: which repository each is about."""

    def forget(self) -> None:
        """Ask about everything anew."""
        self._routes = Routes()

    def forget_absences(self) -> None:
        """Ask again about who was not installed or selected."""
        self._routes.forget_absences()

    def forget_all(self, app: App) -> None:
        """Ask again for the installations of `app`."""
        self._routes.forget_all(app)

    def learn_failure(self, issuer: TokenIssuer, repositories: Sequence[Repository]) -> None:
        """Remember that GitHub could not be asked about one of `repositories`: a request for them fails as a whole."""
        for repository in repositories:
            self._routes.learn_failure(issuer.app, repository, self._clock.boot())

    def failed_lately(self, app: App, repository: Repository) -> bool:
        """Tell whether GitHub could not be asked about `repository` within the last minute, nor has been since.

        Or that it must not be asked now, which is over when it is over.
        """
        now = self._clock.boot()
        return self._restraint.holds_off(app.login, now) or self._routes.failed_within(LATELY, app, repository, now)

    def could_not(self, issuer: TokenIssuer, repositories: Sequence[Repository]) -> bool:
        """Tell whether the app had no tokens for `repositories` when GitHub was last asked, however long ago."""
        return any(isinstance(self._routes.find_last(issuer.app, each), Unreachable) for each in repositories)

    def last_known(
        self, issuers: Sequence[TokenIssuer], repositories: Sequence[Repository]
    ) -> tuple[TokenIssuer, list[Place]] | None:
        """Return who had tokens for `repositories` last, and where, if that is known, and a part of it too old.

        That part is asked anew, behind whoever gets a lease that lives by the rest.
        """
        now, expired = self._clock.boot(), []
        for issuer in issuers:
            app, last = issuer.app, [self._routes.find_last(issuer.app, repository) for repository in repositories]
            for repository, place in zip(repositories, last, strict=True):
                found = self._routes.find(app, repository, now)
                if found is None or (isinstance(place, Unreachable) and isinstance(found, Place)):
                    expired.append((issuer, repository))
            if any(isinstance(place, Unreachable) for place in last):
                continue
            places = [place for place in last if isinstance(place, Place)]
            if not expired or len(places) < len(last):
                return None
            if not all(app.serves(app.host, place.installation.account) for place in places):
                return None
            for each, repository in expired:
                if not self._routes.failed_within(ASK_AGAIN, each.app, repository, now):
                    self._begin_look_up(each, repository)
            return issuer, places
        return None

    def old_lists(self, issuers: Sequence[TokenIssuer]) -> "list[tuple[TokenIssuer, Sequence[Installation]]]":
        """Return the installations of each, if they are known and some for too long; those are asked for behind."""
        now = self._clock.boot()
        lists = [(issuer, self._routes.find_all_old(issuer.app)) for issuer in issuers]
        expired = [issuer for issuer in issuers if self._routes.find_all(issuer.app, now) is None]
        if not expired or any(found is None for _, found in lists):
            return []
        for issuer in expired:
            self._begin_list(issuer)
        return [(issuer, found) for issuer, found in lists if found is not None]

    async def locate(
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
            flight = self._begin_look_up(issuer, repository)
            try:
                asked = await asyncio.shield(flight) == repository.key
            except OF_A_REPOSITORY:
                if self._subjects[flight] == repository.key:
                    raise
                await self._flights.once((app, repository.key), lambda: self._look_up(issuer, repository))
                asked = True
        return place, asked

    def _begin_look_up(self, issuer: TokenIssuer, repository: Repository) -> "asyncio.Task[tuple[str, str]]":
        """Return the look-up under way for the owner, which may be of another repository of theirs."""
        flight = self._flights.begin((issuer.app, repository.key[0]), lambda: self._look_up(issuer, repository))
        self._subjects.setdefault(flight, repository.key)
        return flight

    async def _look_up(self, issuer: TokenIssuer, repository: Repository) -> tuple[str, str]:
        app = issuer.app
        installation: Installation | None = None
        self._restraint.raise_remembered(app.login, self._clock.boot())  # what is not asked is no failure
        try:
            place = await self._asking(issuer, lambda: issuer.find_by_repository(repository))
            if place is None:
                # 404 says "not installed", "not selected", "does not exist" alike: the owner tells them apart.
                installation = await self._asking(issuer, lambda: issuer.find_by_owner(repository.owner))
        except (Failed, asyncio.CancelledError):  # time may be out
            self._routes.learn_failure(app, repository, self._clock.boot())
            raise
        if place is not None:
            self._routes.learn(app, repository, place, self._clock.boot())
            return repository.key
        self._routes.forget(app, repository)
        self._routes.learn_owner(app, repository.owner, installation, self._clock.boot())
        if installation is not None:
            self._routes.learn_unselected(app, repository, self._clock.boot())
        return repository.key

    async def installations(self, issuer: TokenIssuer) -> Sequence[Installation]:
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

    def not_selected(self, app: App, repository: Repository) -> NotSelected:
        """Say that `app` does not reach `repository`, and where that is mended, as far as that is known."""
        installation = self._routes.installation_on(app, repository.owner)
        page = (installation and installation.html_url) or f"https://{app.host}/settings/installations"
        return NotSelected(
            f"the app {app.name} is installed on {repository.owner}, but not on {repository.name}, or there is no such"
            " repository",
            hint=f"select the repository at {page}",
        )

    async def find_by_owner(self, issuer: TokenIssuer, owner: str) -> Installation | None:
        """Ask GitHub for the installation on `owner`, whatever is remembered."""
        return await self._asking(issuer, lambda: issuer.find_by_owner(owner))

    async def _asking(self, issuer: TokenIssuer, call: Callable[[], Awaitable[Result]]) -> Result:
        return await self._restraint.asking(issuer.app.login, self._clock.boot, call)
