"""Leases: the tokens we hold until GitHub expires them; pure, time is passed in.

Times are seconds of the boot clock, which counts suspend and is never set: a lease's end does not move when
somebody corrects the wall clock or closes the lid.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field

from ghapp.installation import Permissions, Scope


HAND_OUT = 5 * 60  # a git command may run for minutes, and each of its requests is checked
LAST_RESORT = 60  # handed out when minting fails; less than this dies under the first request
MAX_LIFE = 65 * 60  # GitHub issues one hour; a clock that says more is wrong


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


class LeaseBook:
    """The leases we hold, at most one for each scope; a class because it is the only mutable owner of tokens."""

    def __init__(self) -> None:
        self._leases: dict[Scope, Lease] = {}
        self._uses: dict[str, int] = {}

    def find(self, scope: Scope, now: float, *, at_least: float = HAND_OUT) -> Lease | None:
        """Return the lease for exactly `scope` if it lives for another `at_least` seconds."""
        lease = self._leases.get(scope)
        return lease if lease and lease.remaining(now) >= at_least else None

    def put(self, lease: Lease) -> None:
        """Keep `lease`, in place of the one for its scope."""
        replaced = self._leases.get(lease.scope)
        if replaced is not None:
            self._uses.pop(replaced.id, None)
        self._leases[lease.scope] = lease

    def count_use(self, lease: Lease) -> None:
        """Note that `lease` was handed out."""
        self._uses[lease.id] = self._uses.get(lease.id, 0) + 1

    def uses(self, lease: Lease) -> int:
        """Return how often `lease` was handed out."""
        return self._uses.get(lease.id, 0)

    def drop(self, lease_id: str) -> Lease | None:
        """Forget the lease with that id; None if it is not held (any more)."""
        for scope, lease in self._leases.items():
            if lease.id == lease_id:
                self._uses.pop(lease_id, None)
                return self._leases.pop(scope)
        return None

    def drop_token(self, token: str) -> Lease | None:
        """Forget the lease whose token is exactly `token`.

        An older token of the same scope drops nothing: a late 401 must not evict the fresh lease.
        """
        for lease in self._leases.values():
            if hmac.compare_digest(lease.token.encode(), token.encode("utf-8", "surrogateescape")):
                return self.drop(lease.id)
        return None

    def live(self, now: float) -> Iterator[Lease]:
        """Yield the leases GitHub still honours, forgetting the others."""
        for lease in list(self._leases.values()):
            if lease.remaining(now) > 0:
                yield lease
            else:
                self.drop(lease.id)
