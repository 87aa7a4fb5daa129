"""Which of an app's keys signs: the one that GitHub accepted last, else the first that works.

Part of the application layer, beside `restraint`, which knows apps where this knows keys.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from ghapp.errors import AppRejected, GhappError, KeyUnavailable
from ghapp.protocols import Signer


MAX_REJECTED = 1_000  # remembered keys; a loop of wrong imports must not fill the memory


@dataclass(slots=True, eq=False)
class Key:
    """One of an app's keys."""

    reference: str
    """As the configuration names it, such as ``file:/etc/ghapp.pem``."""
    signer: Signer = field(repr=False)
    fingerprint: str = ""
    """Once it is known."""

    @property
    def name(self) -> str:
        """The fingerprint; where the key lies, as long as nothing else is known of it."""
        return self.fingerprint or self.reference.removeprefix("keyring:").removeprefix("file:")


@dataclass(frozen=True, slots=True)
class Identity:
    """What GitHub judges: a key, and the app that it is said to belong to."""

    issuer: str
    fingerprint: str


class Verdicts:
    """What GitHub said of the keys of all apps of one API; it outlives a new configuration.

    A rejected key is not shown again within a minute: GitHub locks everyone out after a few wrong log-ins.
    """

    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        self._accepted: set[Identity] = set()
        self._rejected: dict[Identity, tuple[str, str, float]] = {}
        self._gates: dict[Identity, asyncio.Lock] = {}

    def in_order(self, issuer: str, keys: Sequence[Key]) -> list[Key]:
        """Return `keys` in the order to try them: the one that worked last, then as configured."""
        last = self._last.get(issuer)
        return sorted(keys, key=lambda key: key.reference != last)

    @contextlib.asynccontextmanager
    async def one_at_a_time(self, key: Identity) -> AsyncIterator[None]:
        """Let one in until GitHub has accepted `key` once: a hundred who try a dead one are a hundred wrong log-ins."""
        gate = contextlib.nullcontext() if key in self._accepted else self._gates.setdefault(key, asyncio.Lock())
        async with gate:
            yield

    def raise_rejected(self, key: Identity, now: float) -> None:
        """Raise what GitHub said of `key`, if it rejected it within a minute."""
        message, hint, until = self._rejected.get(key, ("", "", now))
        if now < until:
            raise AppRejected(message, hint=hint)
        self._rejected.pop(key, None)

    def reject(self, key: Identity, error: AppRejected, now: float) -> None:
        """Remember that GitHub does not accept `key`; its words, not the exception, whose frames hold a JWT."""
        self._accepted.discard(key)
        while len(self._rejected) >= MAX_REJECTED:
            del self._rejected[next(iter(self._rejected))]
        self._rejected[key] = (error.message, error.hint, now + error.remember)

    def accept(self, key: Identity, reference: str) -> None:
        """Remember that GitHub accepted `key`."""
        self._last[key.issuer] = reference
        self._accepted.add(key)
        self._rejected.pop(key, None)
        self._gates.pop(key, None)


def pages(host: str) -> str:
    """Return where the apps of a person and of an organisation are; whose one is, GitHub tells nobody it rejects."""
    return f"https://{host}/settings/apps, an organisation's: https://{host}/organizations/ORG/settings/apps"


def none_works(app: str, issuer: str, failures: Iterable[tuple[Key, GhappError]], *, host: str) -> GhappError:
    """Return the error that says why none of the app's keys works; a single key speaks for itself.

    Where one of them may come back by itself (a locked keyring), that decides code, hint, and how soon to try again.
    """
    failures = list(failures)
    if len(failures) == 1:
        return failures[0][1]
    missing = next((error for _, error in failures if isinstance(error, KeyUnavailable)), None)
    parts = "; ".join(
        f"{key.name}: {'GitHub does not accept it' if isinstance(error, AppRejected) else error.message}"
        for key, error in failures
    )
    message = f"no key of app {issuer} works: {parts}"
    if missing is not None:
        return type(missing)(message, hint=missing.hint)
    return AppRejected(message, hint=f"make a key at {pages(host)}; then: ghapp key add FILE --app {app}")
