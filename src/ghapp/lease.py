"""Leases: the tokens we hold until GitHub expires them; pure, time is passed in.

Times are seconds of the boot clock, which counts suspend and is never set: a lease's end does not move when
somebody corrects the wall clock or closes the lid.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

from ghapp.credential import Repository
from ghapp.installation import Permissions, Scope


HAND_OUT = 5 * 60  # a git command may run for minutes, and each of its requests is checked
LAST_RESORT = 60  # handed out when minting fails; less than this dies under the first request
RENEW_AHEAD = 10 * 60  # replaced in the background from here on, so that no git command waits for a mint
RECENTLY = 30 * 60  # a lease that nobody used for this long is not worth a renewal
MAX_LIFE = 65 * 60  # GitHub issues one hour; a clock that says more is wrong

_TOKEN = re.compile(r"[!-~]{1,4096}")  # opaque; nothing that git's protocol could read as something else


def is_token(value: object) -> TypeGuard[str]:
    """Tell whether that may be a token."""
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


def token_sha256(token: str) -> str:
    """Return the form in which GitHub's audit log names a token (``hashed_token``)."""
    return base64.b64encode(hashlib.sha256(token.encode()).digest()).decode()


@dataclass(frozen=True, slots=True)
class Lease:
    """One installation token."""

    id: str
    scope: Scope
    app: str
    owner: str
    repositories: tuple[str, ...] | None
    """Names as GitHub spells them; None for all of the installation."""
    permissions: Permissions
    """What GitHub granted, `metadata` included."""
    token: str = field(repr=False)
    ends: float

    def remaining(self, now: float) -> float:
        """Return the seconds until GitHub refuses the token."""
        return self.ends - now

    def reaches(self, repository: Repository) -> bool:
        """Tell whether GitHub named that repository when it issued the token."""
        owner, name = repository.key
        if self.owner.lower() != owner:
            return False
        return self.repositories is None or name in {each.lower() for each in self.repositories}


class LeaseBook:
    """The leases we hold, one of them current for each scope; a class because it is the only owner of tokens.

    A lease that was replaced ahead of its end lives on until GitHub ends it: git commands may be using it.
    """

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._current: dict[Scope, Lease] = {}
        self._uses: dict[str, int] = {}
        self._used_at: dict[Scope, float] = {}
        self._old_names: dict[Scope, set[Repository]] = {}

    def find(self, scope: Scope, now: float, *, at_least: float = HAND_OUT) -> Lease | None:
        """Return the current lease for exactly `scope` if it lives for another `at_least` seconds."""
        lease = self._current.get(scope)
        return lease if lease and lease.remaining(now) >= at_least else None

    def put(self, lease: Lease) -> None:
        """Keep `lease`, from now on the current one of its scope."""
        self._leases[lease.id] = lease
        self._current[lease.scope] = lease

    def keep(self, lease: Lease) -> None:
        """Hold `lease` until GitHub has ended it, and never hand it out."""
        self._leases[lease.id] = lease

    def count_use(self, lease: Lease, now: float) -> None:
        """Note that `lease` was handed out."""
        self._uses[lease.id] = self._uses.get(lease.id, 0) + 1
        self._used_at[lease.scope] = now

    def note_name(self, lease: Lease, repository: Repository) -> None:
        """Remember by which name `lease` was asked for: one of before a renaming, which git goes on with."""
        if not lease.reaches(repository):
            self._old_names.setdefault(lease.scope, set()).add(repository)

    def old_names(self, lease: Lease) -> Collection[Repository]:
        """Return the names that `lease` was asked for by, and that GitHub did not tell."""
        return self._old_names.get(lease.scope, frozenset())

    def uses(self, lease: Lease) -> int:
        """Return how often `lease` was handed out."""
        return self._uses.get(lease.id, 0)

    def used_within(self, scope: Scope, seconds: float, now: float) -> bool:
        """Tell whether a lease for `scope` was handed out in the last `seconds`."""
        return now - self._used_at.get(scope, float("-inf")) <= seconds

    def drop(self, lease_id: str) -> Lease | None:
        """Forget the lease with that id; None if it is not held (any more)."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return None
        self._uses.pop(lease_id, None)
        if self._current.get(lease.scope) is lease:
            del self._current[lease.scope]
        if lease.scope in self._old_names and all(each.scope != lease.scope for each in self._leases.values()):
            del self._old_names[lease.scope]
        return lease

    def retire(self, lease_id: str) -> Lease | None:
        """Hand the lease with that id out no more; it is held until GitHub has ended it. None if it is not held."""
        lease = self._leases.get(lease_id)
        if lease is not None and self._current.get(lease.scope) is lease:
            del self._current[lease.scope]
        return lease

    def clear(self, *, but_retired: bool = False) -> None:
        """Forget every lease, or every one that could still be handed out."""
        current = {lease.id for lease in self._current.values()}
        for lease_id in list(self._leases):
            if not but_retired or lease_id in current:
                self.drop(lease_id)
        self._used_at.clear()

    def get(self, lease_id: str) -> Lease | None:
        """Return the lease with that id, if it is held."""
        return self._leases.get(lease_id)

    def find_token(self, token: str) -> Lease | None:
        """Return the lease whose token is exactly `token`, if it is held."""
        for lease in self._leases.values():
            if hmac.compare_digest(lease.token.encode(), token.encode("utf-8", "surrogateescape")):
                return lease
        return None

    def drop_token(self, token: str) -> Lease | None:
        """Forget the lease whose token is exactly `token`.

        An older token of the same scope drops nothing: a late 401 must not evict the fresh lease.
        """
        lease = self.find_token(token)
        return None if lease is None else self.drop(lease.id)

    def live(self, now: float) -> Iterator[Lease]:
        """Yield the leases GitHub still honours, forgetting the others."""
        for lease in list(self._leases.values()):
            if lease.remaining(now) > 0:
                yield lease
            else:
                self.drop(lease.id)
                if lease.scope not in self._current:
                    self._used_at.pop(lease.scope, None)
