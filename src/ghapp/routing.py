"""Which app and which installation stand behind a repository, as far as we know; pure, time is passed in.

What an entry may be trusted for: an installation's id changes when the app is installed anew, so it is dropped on
the first 404. An absent owner is forgotten within a minute, so that a fresh installation is found.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from ghapp.credential import Repository
from ghapp.installation import Installation, Permissions


PRESENT_AGE = 60 * 60.0
ABSENT_AGE = 60.0  # every git command on a foreign repository would otherwise cost a call
UNSELECTED_AGE = 30.0
ASK_AGAIN = 10.0  # after a look-up that failed, where leases are handed out by what was known before
LATELY = 60.0  # for so long after it, also those that are near their end
Key = TypeVar("Key")
Value = TypeVar("Value")
MAX_NEGATIVE = 10_000  # entries; names come from URLs that strangers write


@dataclass(frozen=True, slots=True)
class App:
    """One app as configured."""

    name: str
    host: str
    """As in a URL, in normal form."""
    api: str
    """The API's base URL, without a slash at the end."""
    issuer: str
    """The JWT's ``iss``: the client ID where there is one, else the app ID."""
    keys: tuple[str, ...]
    """Signers, such as ``file:/etc/ghapp.pem``; the first that works is used."""
    client_id: str = ""
    app_id: int | None = None
    owners: tuple[str, ...] = ()
    """Only these, in any case; empty for all that the app is installed on."""
    whole_installation: bool = False
    """``scope = "installation"``: tokens for all of an installation's repositories."""
    permissions: Permissions | None = None

    @property
    def login(self) -> tuple[str, str]:
        """As whom GitHub sees it, where: what GitHub limits and refuses as one."""
        return self.api, self.issuer

    def serves(self, host: str, owner: str) -> bool:
        """Tell whether the configuration lets this app answer for `owner`."""
        owners = {name.lower() for name in self.owners}
        return self.host == host and (not owners or owner.lower() in owners)


class Unreachable(Enum):
    """Why an app has no token for a repository."""

    ABSENT = auto()
    """The app is not installed on the owner."""
    UNSELECTED = auto()
    """It is, but the repository is not among those selected, or does not exist."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a repository is, for one app."""

    installation: Installation
    repository: str | int
    """The name in lower case, or the id when the name is an old one (git only ever asks for the old name)."""
    old: bool = False
    """Learnt too long ago for a mint: a lease that lives may be handed out by it, and that is all."""


class Routes:
    """What was learnt about owners and repositories, by app; a class because it is the one owner of that memory."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, str], tuple[Installation | None, float]] = {}
        self._moved: dict[tuple[str, tuple[str, str]], tuple[Place, float]] = {}
        self._unselected: dict[tuple[str, tuple[str, str]], float] = {}
        self._lists: dict[str, tuple[tuple[Installation, ...], float]] = {}
        self._failures: dict[tuple[str, tuple[str, str]], float] = {}

    def find(self, app: App, repository: Repository, now: float) -> Place | Unreachable | None:
        """Return where `repository` is, or None if that has to be asked."""
        moved = self._moved.get((app.name, repository.key))
        if moved and now - moved[1] < _age(moved[0].installation):
            return moved[0]
        if now - self._unselected.get((app.name, repository.key), float("-inf")) < UNSELECTED_AGE:
            return Unreachable.UNSELECTED
        owner = self._owners.get((app.name, repository.owner.lower()))
        if owner is None:
            return None
        installation, learnt = owner
        if now - learnt >= _age(installation):
            return None
        return Unreachable.ABSENT if installation is None else Place(installation, repository.name.lower())

    def installation_on(self, app: App, owner: str) -> Installation | None:
        """Return the installation last seen on `owner`, however old that is."""
        return self._owners.get((app.name, owner.lower()), (None, 0.0))[0]

    def find_last(self, app: App, repository: Repository) -> Place | Unreachable | None:
        """Return where `repository` was last, however long ago, or that there were no tokens to be had for it.

        The worst that an old place can do is to name an installation that is gone, whose tokens are dead.
        """
        moved = self._moved.get((app.name, repository.key))
        if moved is None and (app.name, repository.key) in self._unselected:
            return Unreachable.UNSELECTED
        owner = repository.owner.lower()
        if moved is None and (app.name, owner) not in self._owners:
            return None
        installation = moved[0].installation if moved else self._owners[(app.name, owner)][0]
        if installation is None or installation.suspended:
            return Unreachable.ABSENT
        return Place(installation, moved[0].repository if moved else repository.name.lower(), old=True)

    def learn_failure(self, app: App, repository: Repository, now: float) -> None:
        """Remember that GitHub could not be asked about `repository`."""
        key = (app.name, repository.key)
        self._failures.pop(key, None)
        _make_room(self._failures, MAX_NEGATIVE)
        self._failures[key] = now

    def failed_within(self, seconds: float, app: App, repository: Repository, now: float) -> bool:
        """Tell whether GitHub could not be asked about `repository` so lately, and has not been since."""
        return now - self._failures.get((app.name, repository.key), float("-inf")) < seconds

    def learn(self, app: App, repository: Repository, place: Place, now: float) -> None:
        """Remember what GitHub said of `repository`; of one that moved it says nothing about the former owner."""
        for book in (self._moved, self._unselected, self._failures):
            book.pop((app.name, repository.key), None)
        if isinstance(place.repository, int):
            self._moved[(app.name, repository.key)] = (place, now)
        else:
            self.learn_owner(app, repository.owner, place.installation, now)

    def learn_owner(self, app: App, owner: str, installation: Installation | None, now: float) -> None:
        """Remember the installation of `owner`, or that there is none."""
        if installation is None:
            _make_room(self._owners, MAX_NEGATIVE)
        self._owners[(app.name, owner.lower())] = (installation, now)

    def learn_unselected(self, app: App, repository: Repository, now: float) -> None:
        """Remember that `repository` is not among those selected."""
        _make_room(self._unselected, MAX_NEGATIVE)
        self._unselected[(app.name, repository.key)] = now

    def forget(self, app: App, repository: Repository) -> None:
        """Forget all that concerns `repository` and its owner: the next request asks GitHub."""
        self._failures.pop((app.name, repository.key), None)
        self._moved.pop((app.name, repository.key), None)
        self._unselected.pop((app.name, repository.key), None)
        self._owners.pop((app.name, repository.owner.lower()), None)

    def find_all(self, app: App, now: float) -> tuple[Installation, ...] | None:
        """Return all installations of `app`, or None if that has to be asked."""
        found, learnt = self._lists.get(app.name, ((), float("-inf")))
        return found if now - learnt < ABSENT_AGE else None

    def find_all_old(self, app: App) -> tuple[Installation, ...] | None:
        """Return all installations that `app` had, however long ago, or None if that was never asked."""
        return self._lists[app.name][0] if app.name in self._lists else None

    def learn_all(self, app: App, installations: Iterable[Installation], now: float) -> None:
        """Remember all installations of `app`."""
        self._lists[app.name] = (tuple(installations), now)

    def prolong_all(self, app: App, now: float) -> bool:
        """Believe the last list for another minute, as GitHub cannot be asked; tell if there is one."""
        if app.name in self._lists:
            self.learn_all(app, self._lists[app.name][0], now)
        return app.name in self._lists

    def forget_all(self, app: App) -> None:
        """Forget the list of `app`."""
        self._lists.pop(app.name, None)

    def forget_absences(self) -> None:
        """Forget who was not installed and not selected."""
        self._unselected.clear()
        self._owners = {key: entry for key, entry in self._owners.items() if entry[0] is not None}

    def installations(self) -> Iterable[tuple[str, Installation]]:
        """Yield app name and installation of every owner we know of."""
        return [(app, entry[0]) for (app, _), entry in self._owners.items() if entry[0] is not None]


def _age(installation: Installation | None) -> float:
    """Return for how long to believe it: what a person is about to mend, only for a moment."""
    return ABSENT_AGE if installation is None or installation.suspended else PRESENT_AGE


def _make_room(entries: dict[Key, Value], most: int) -> None:
    """Drop the oldest of `entries`, so that one more fits."""
    while len(entries) >= most:
        del entries[next(iter(entries))]
