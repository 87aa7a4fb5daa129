"""What the daemon has lent: a socket for each grant, from its beginning until somebody has been told of its end.

A container has one of our directories mounted, and nothing of ours beside it. So a directory of a named grant is
made once and stays over restarts (a mount is of the directory, not of its name), and a grant that has ended goes on
listening for a while: a socket that is gone would make git ask for a password, and nobody would know why.
"""

import asyncio
import contextlib
import contextvars
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ghapp import config
from ghapp.broker import Broker
from ghapp.credential import Credential, Query, Repository
from ghapp.errors import GhappError, GrantEnded, GrantRefused, UsageError
from ghapp.grant import (
    ANY,
    MAX_LIFE,
    Grant,
    checked_life,
    checked_name,
    checked_permissions,
    checked_uids,
    grant_from_json,
    patterns_of,
)
from ghapp.installation import Permissions
from ghapp.lease import Lease
from ghapp.listener import Handler, Listener
from ghapp.protocols import OK, Clock, Recorder
from ghapp.server import Source


MAX_GRANTS = 100  # at once; each has a socket, and its clients' descriptors are ours
MAX_CLIENTS = 32  # of one grant at once; a sandbox that babbles delays itself
MAX_ENDED = 32  # grants that have ended and still say so
SAYS_SO = 3600.0  # seconds for which a grant that has ended says so; nobody waits longer before the next git command
REVOKE_AGAIN = 30.0  # seconds between two tries to end what GitHub did not end yet
MAX_DEFINITION = 1024 * 1024

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Loan:
    """A grant and its socket, as git sees it: the source of its credentials."""

    grant: Grant
    kept: bool
    """Whether it comes back with the next daemon: one that was named."""
    ends: float | None
    """In the boot clock."""
    broker: Broker
    clock: Clock
    expire: Callable[["Loan"], None]
    listener: Listener | None = None
    timer: asyncio.TimerHandle | None = None
    ended: str = ""
    """Why no credential comes any more."""
    comes_back: str = ""
    """Why the next daemon lends it again, if it does."""

    async def fill(self, query: Query) -> Credential | None:
        """Return a credential of the grant. Raises `GrantEnded`, `OutsideGrant` and whatever the broker does."""
        self._check()
        try:
            return await self.broker.fill(query, self.grant)
        except GrantEnded:
            self._check()
            raise

    def erase(self, password: str) -> bool:
        """Forget a token of this grant that git saw rejected; no other."""
        return self.broker.erase(password, self.grant.key)

    def _check(self) -> None:
        if not self.ended and self.ends is not None and self.clock.boot() >= self.ends:
            self.expire(self)  # the timer's clock stands still in suspend
        if self.ended:
            raise GrantEnded(self.ended)


class Lending:
    """All that is lent; a class because it is the one owner of those sockets and definitions."""

    def __init__(
        self,
        directory: str,
        broker: Broker,
        clock: Clock,
        serve: Callable[[Source, str], Handler],
        recorder: Recorder,
        *,
        on_activity: Callable[[], None] = lambda: None,
    ) -> None:
        """`serve` returns what answers on a socket that lends from a source, for the grant of a name."""
        self._directory = Path(directory) / "grants"
        machine = hashlib.sha256(f"{os.uname().nodename}:{directory}".encode()).hexdigest()[:12]
        self._definitions = config.state_dir() / "grants" / machine  # a home may be on several machines
        self._broker = broker
        self._clock = clock
        self._serve = serve
        self._recorder = recorder
        self._on_activity = on_activity
        self._loans: dict[str, Loan] = {}
        self._ended: dict[str, Loan] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._loans)

    @property
    def owes(self) -> bool:
        """Whether there are tokens of grants that have ended: nobody after us knows them."""
        return bool(self._owed())

    def _owed(self) -> set[str]:
        """Return the grants that have ended and whose tokens GitHub did not end yet."""
        lent = {loan.grant.key for loan in self._loans.values()}
        return {lease.scope.grant for lease, _ in self._broker.leases() if lease.scope.grant} - lent

    @property
    def listeners(self) -> list[Listener]:
        """The sockets, those of grants that have ended included."""
        loans = (*self._loans.values(), *self._ended.values())
        return [loan.listener for loan in loans if loan.listener is not None]

    def describe(self) -> list[dict[str, object]]:
        """Return what is lent now."""
        for loan in list(self._loans.values()):
            if loan.ends is not None and self._clock.boot() >= loan.ends:
                self._expire(loan)
        return [self._describe(loan) for loan in self._loans.values()]

    # -- beginning -----------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Lend again what was lent by name and has not ended; clear away what nobody lends any more."""
        with contextlib.suppress(OSError):  # no such directory
            for path in self._definitions.glob(".*.json.*"):
                path.unlink()  # of a daemon that was killed while it wrote
            for path in sorted(self._definitions.glob("*.json")):
                try:
                    self._restore(path)
                except (ValueError, RecursionError, OSError, GhappError) as error:
                    log.error("cannot lend what %s says: %s", path, type(error).__name__)  # noqa: TRY400  # as ever
        with contextlib.suppress(OSError):  # as above
            for entry in list(self._directory.iterdir()):
                if entry.name.lower() not in self._loans:
                    self._clear(entry.name)

    def _restore(self, path: Path) -> None:
        grant = grant_from_json(json.loads(_content(path)))
        if grant.name != path.stem or grant.ends is None:
            raise ValueError("the definition is another grant's")
        left = min(grant.ends - self._clock.wall(), MAX_LIFE)  # whatever clock it was written by
        if left <= 0:
            path.unlink()
            self._recorder.record("grant-end", OK, grant=grant)
            return
        self._check_free(grant.name)  # one file may be another's copy, in other case
        self._open(grant, kept=True, left=left)

    async def create(
        self,
        repositories: list[str],
        host: str,
        *,
        permissions: dict[str, str] | None = None,
        read_only: bool = False,
        seconds: float,
        name: str | None = None,
        uids: Sequence[int] = (),
        replace: bool = False,
    ) -> dict[str, object]:
        """Lend a socket, and describe it. Raises `GhappError`: a repository that cannot be reached is told now.

        With `replace` the grant of that name ends first, once it is known that there can be another.
        """
        patterns = patterns_of(repositories)
        wanted = checked_permissions(permissions, for_git=True)
        life, allowed = checked_life(seconds), checked_uids(list(uids))
        taken = self._loans.get(checked_name(name).lower()) if name is not None else None
        if taken is None or not replace:
            self._check_free(name or "")
        lendable = await self._broker.lendable(host, patterns, wanted, read_only=read_only)
        alive = 0
        if replace and name is not None and (former := self._loans.get(name.lower())) is not None:
            _, alive = await asyncio.shield(self._end(former, self._clock.wall()))
        grant = self._new(name or self._generate(patterns[0]), host, patterns, lendable)
        grant = dataclasses.replace(
            grant, exact=wanted is not None, read_only=read_only, ends=self._clock.wall() + life, uids=allowed
        )
        self._check_free(grant.name)  # again: GitHub took its time
        kept = name is not None
        if kept:
            self._write(grant)
        try:
            loan = self._open(grant, kept=kept, left=life)
        except GhappError:
            self._path(grant).unlink(missing_ok=True)
            raise
        self._recorder.record("grant", OK, grant=grant)
        return self._describe(loan) | ({"not_revoked": alive} if alive else {})

    async def hold(
        self,
        repositories: list[str],
        host: str,
        *,
        permissions: Permissions | None,
        read_only: bool,
        name: str | None = None,
    ) -> tuple[dict[str, object], Lease]:
        """Lend to somebody who says when it ends, with one token for all; return the description and a lease.

        `name` is the one that it had with a daemon before us.
        """
        patterns = patterns_of(repositories)
        if any(pattern.name == ANY for pattern in patterns):
            raise UsageError("name the repositories")
        self._check_free(checked_name(name) if name is not None else "")
        grant = self._new(name or self._generate(Repository("", "exec")), host, patterns, ())
        self._broker.open_grant(grant.key)
        try:
            lease = await self._broker.token(host, patterns, permissions, read_only=read_only, grant=grant.key)
            self._check_free(grant.name)
            grant = dataclasses.replace(
                grant, permissions=lease.scope.permissions, exact=True, together=True, read_only=read_only
            )
            loan = self._open(grant, kept=False, left=None)
        except BaseException:
            self._start(self._broker.close_grant(grant.key))
            raise
        self._recorder.record("grant", OK, grant=grant)
        return self._describe(loan), lease

    def release(self, name: str, number: str) -> "asyncio.Task[tuple[int, int]]":
        """End what somebody held, as `revoke`; what has ended stays so, and a daemon that ends revokes nothing.

        `number` is the grant's id: another one may have its name by now.
        """
        loan = self._loans.get(name.lower())
        if loan is not None and loan.grant.id == number and not self._stopped:
            return self.revoke(name)
        return self._start(asyncio.sleep(0, (0, 0)))

    @contextlib.contextmanager
    def noting_refusals(self, repositories: list[str]) -> Iterator[None]:
        """Note in the audit trail that nothing was lent, and why."""
        try:
            yield
        except GhappError as error:
            self._recorder.record("grant", error.code, repository=str(repositories[0]) if repositories else "")
            raise

    def _new(self, name: str, host: str, patterns: tuple[Repository, ...], permissions: Permissions) -> Grant:
        return Grant(name, secrets.token_hex(6), host, patterns, permissions)

    def _generate(self, like: Repository) -> str:
        base = (like.owner if like.name == ANY else like.name).lstrip("._-")[:40] or "grant"
        while (name := f"{base}-{secrets.token_hex(3)}").lower() in self._loans:
            pass
        return name

    def _check_free(self, name: str) -> None:
        if name.lower() in self._loans:
            raise GrantRefused(f"there is a grant {name} already", hint=f"ghapp grant revoke {name}")
        if len(self._loans) >= MAX_GRANTS:
            raise GrantRefused(f"{MAX_GRANTS} grants are as many as there can be", hint="ghapp grant list")

    def _open(self, grant: Grant, *, kept: bool, left: float | None) -> Loan:
        ends = None if left is None else self._clock.boot() + left
        loan = Loan(grant, kept, ends, self._broker, self._clock, self._expire)
        name = grant.name.lower()
        if former := self._ended.get(name):
            self._bury(former, clear=False)  # its directory may be mounted where the new grant is meant for
        loan.listener = Listener(
            str(self._directory / grant.name / "git.sock"),
            self._serve(loan, grant.name),
            on_activity=self._on_activity,
            most=MAX_CLIENTS,
            uids=grant.uids,
        )
        self._listen(loan)
        self._loans[name] = loan
        self._broker.open_grant(grant.key)
        self._watch(loan)
        return loan

    def _listen(self, loan: Loan) -> None:
        """Make directory and socket. Raises `GrantRefused`."""
        assert loan.listener is not None  # noqa: S101  # made with it
        place = Path(loan.listener.path).parent
        try:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            place.mkdir(mode=0o700, exist_ok=True)
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                raise NotADirectoryError(20, "Not a directory", str(place))
            # Only what is mounted elsewhere can be reached by others at all: the directory above is ours alone.
            place.chmod(0o711 if loan.grant.uids else 0o700)
            loan.listener.open()
        except OSError as error:
            raise GrantRefused(f"cannot listen in {place}: {error.strerror}", hint=f"ls -ld {place}") from None

    # -- ending --------------------------------------------------------------------------------------------------

    def revoke(self, name: str) -> "asyncio.Task[tuple[int, int]]":
        """End the grant of that name now; the task ends its tokens, and tells how many are dead and how many not.

        Raises `GrantRefused` if there is none.
        """
        loan = self._loans.get(name.lower())
        if loan is None:
            gone = self._ended.get(name.lower())
            raise GrantRefused(gone.ended if gone else f"there is no grant {name}", hint="ghapp grant list")
        return self._end(loan, self._clock.wall())

    def comes_back(self, name: str) -> str:
        """Return why the next daemon lends again what has ended, if it does."""
        gone = self._ended.get(name.lower())
        return gone.comes_back if gone is not None else ""

    def _expire(self, loan: Loan) -> None:
        now = self._clock.wall()
        at = now if loan.grant.ends is None else min(now, loan.grant.ends)
        # Of nobody: neither who made the grant ends it, nor who asks just now; and the trail's own file tells of it.
        contextvars.Context().run(self._end, loan, at)

    def _end(self, loan: Loan, at: float) -> "asyncio.Task[tuple[int, int]]":
        if loan.timer is not None:
            loan.timer.cancel()
        when = datetime.fromtimestamp(at, tz=UTC).astimezone()
        loan.ended = f"grant {loan.grant.name} ended at {when:%H:%M}"
        self._recorder.record("grant-end", OK, grant=loan.grant)
        del self._loans[loan.grant.name.lower()]
        self._ended[loan.grant.name.lower()] = loan
        while len(self._ended) > MAX_ENDED:
            ended = list(self._ended.values())  # those of a loop of `exec` go before one that a container has mounted
            self._bury(next((each for each in ended if not each.kept), ended[0]))
        loan.timer = asyncio.get_running_loop().call_later(SAYS_SO, self._bury, loan)
        try:
            self._path(loan.grant).unlink(missing_ok=True)
        except OSError as error:
            loan.comes_back = f"{self._path(loan.grant)} cannot be removed: {error.strerror}"
            log.error("grant %s comes back with the next daemon: %s", loan.grant.name, error.strerror)  # noqa: TRY400  # as above
        closing = self._start(self._broker.close_grant(loan.grant.key))
        closing.add_done_callback(lambda task: None if task.cancelled() else self._insist(loan, task.result()[1]))
        return closing

    def _insist(self, loan: Loan, alive: int) -> None:
        """Try again to end what GitHub did not end, until it has ended by itself, mints under way too."""
        if alive:

            async def again() -> tuple[int, int]:
                await asyncio.sleep(REVOKE_AGAIN)
                return await self._broker.close_grant(loan.grant.key)

            self._start(again()).add_done_callback(
                lambda task: None if task.cancelled() else self._insist(loan, task.result()[1])
            )

    def _bury(self, loan: Loan, *, clear: bool = True) -> None:
        """Let go of the socket of a grant that has ended."""
        if loan.timer is not None:
            loan.timer.cancel()
        self._ended.pop(loan.grant.name.lower(), None)
        if loan.listener is not None:
            loan.listener.stop_accepting()
        if clear:
            self._clear(loan.grant.name)

    # -- with the daemon -----------------------------------------------------------------------------------------

    def mend(self) -> None:
        """Make sockets anew that are gone."""
        for loan in (*self._loans.values(), *self._ended.values()):
            if loan.listener is not None and not loan.listener.is_in_place():
                loan.listener.stop_accepting()
                try:
                    self._listen(loan)
                except GhappError as error:
                    log.error("grant %s: %s", loan.grant.name, error)  # noqa: TRY400  # as above

    def stop_accepting(self) -> None:
        """Let nobody in any more. What was named comes back with the next daemon, in the same directory."""
        before, self._stopped = self._stopped, True
        for loan in (*self._loans.values(), *self._ended.values()):
            if loan.timer is not None:
                loan.timer.cancel()
            if loan.listener is not None:
                loan.listener.stop_accepting()
            if not before and not loan.kept and not loan.ended:
                self._recorder.record("grant-end", OK, grant=loan.grant)
            if not loan.kept or loan.ended:
                self._clear(loan.grant.name)
        with contextlib.suppress(OSError):
            self._directory.rmdir()

    async def end_what_stays_away(self) -> None:
        """End the tokens of grants that no daemon after us lends again: nobody could end them any more.

        Not of those that somebody holds: `exec` asks the next daemon to go on, and its command still uses its token.
        """
        gone = {loan.grant.key for loan in self._loans.values() if not loan.kept and loan.ends is not None}
        await asyncio.gather(*(self._broker.close_grant(key) for key in gone | self._owed()))

    async def aclose(self, limit: float) -> None:
        """Wait up to `limit` seconds for what is being ended, and let go of the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _watch(self, loan: Loan) -> None:
        if loan.ends is None or loan.ended:
            return
        left = loan.ends - self._clock.boot()
        if left <= 0:
            self._expire(loan)
        else:
            loan.timer = asyncio.get_running_loop().call_later(left, self._watch, loan)

    def _start(self, work: Any) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- files ---------------------------------------------------------------------------------------------------

    def _path(self, grant: Grant) -> Path:
        return self._definitions / f"{grant.name}.json"

    def _write(self, grant: Grant) -> None:
        path = self._path(grant)
        try:
            config.write_atomically(path, json.dumps(grant.to_json(), indent=1).encode() + b"\n", mode=0o600)
        except OSError as error:
            why = f"cannot write {path}: {error.strerror}; a grant without --name needs no file"
            raise GrantRefused(why, hint="df -h") from None

    def _clear(self, name: str) -> None:
        """Remove a grant's directory; of whatever else lies there nothing is touched."""
        place = self._directory / name
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.lstat(place / "git.sock").st_mode):
                (place / "git.sock").unlink()
        with contextlib.suppress(OSError):
            place.rmdir()

    def _describe(self, loan: Loan) -> dict[str, object]:
        grant = loan.grant
        ends = None if loan.ends is None else self._clock.wall() + loan.ends - self._clock.boot()
        return {
            "name": grant.name,
            "id": grant.id,
            "socket": str(self._directory / grant.name / "git.sock"),
            "host": grant.host,
            "repositories": [str(repository) for repository in grant.repositories],
            "permissions": dict(grant.permissions),
            "read_only": grant.read_only,
            "uids": list(grant.uids),
            "expires_at": ends and datetime.fromtimestamp(ends, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


def _content(path: Path) -> bytes:
    """Return what a definition says. Raises OSError, and `ValueError` for what is no file, or too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would hold us up
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("the definition is no file")
        content = file.read(MAX_DEFINITION + 1)
    if len(content) > MAX_DEFINITION:
        raise ValueError("the definition is too large")
    return content
