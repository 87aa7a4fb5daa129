"""git.sock: git's credential-cache protocol, answered by the broker."""

import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection
from importlib.metadata import version
from typing import Protocol

from ghapp.audit import Audit
from ghapp.credential import Credential, Query, answer_attributes, read_query
from ghapp.errors import DaemonFailed, GhappError, UsageError
from ghapp.listener import Connection
from ghapp.wire import MAX_REQUEST, Request, error_attributes, format_answer, format_refusal, parse_request


REPORT = "ghapp daemon restart; if it happens again, report it as a bug"

log = logging.getLogger(__name__)

VERSION = version("ghapp")  # now: after an upgrade the installed one is not the one that runs
MARKER = ("ghapp", "1")
"""Says that we answer, and as the last line that the answer is whole."""


class Source(Protocol):
    """Whoever has the credentials: the broker, or what it lends."""

    async def fill(self, query: Query) -> Credential | None:
        """Return the credential for `query`, or None if that is not ours."""
        ...

    def erase(self, password: str) -> bool:
        """Forget the token that git saw rejected."""
        ...


class GitServer:
    """Answers one request a connection; on a socket that is `lent`, to a git that has nothing of ours beside it."""

    def __init__(
        self,
        broker: Source,
        *,
        hosts: Callable[[], Collection[str]],
        ready: Callable[[], Awaitable[None]],
        quit_on_error: Callable[[], bool],
        on_error: Callable[[GhappError], None] = lambda _: None,
        audit: Audit | None = None,
        grant: str | None = None,
    ) -> None:
        """`grant` names the one that is lent here: its lines are kept apart in the audit trail."""
        self._broker = broker
        self._hosts = hosts
        self._ready = ready
        self._quit_on_error = quit_on_error
        self._on_error = on_error
        self._audit = audit
        self._grant = grant

    async def handle(self, connection: Connection) -> None:
        """Serve one connection."""
        data = await connection.read_until(b"\n\n", MAX_REQUEST)
        audit = self._audit
        with audit.called_by(connection.peer, of_git=True, grant=self._grant) if audit else contextlib.nullcontext():
            answer = await self.respond(data)
        await connection.write(answer)

    async def respond(self, data: bytes) -> bytes:
        """Return the whole answer to a whole request."""
        try:
            request = parse_request(data)
        except UsageError as error:
            ours = b"\nghapp=1\n" in data[:100]
            return format_answer([*error_attributes(error, quit_git=False), MARKER]) if ours else b""
        match request.action:
            case "get":
                try:
                    pairs = await self._get(request)
                except GhappError as problem:
                    return self._explain(problem, request)
            case "erase":
                self._broker.erase(request.attributes.get("password", ""))
                pairs = []
            case "hello":
                pairs = [("version", VERSION), ("pid", str(os.getpid()))]
            case _:
                pairs = []  # unknown operations are silently ignored, as gitcredentials(7) asks
        return format_answer([*pairs, MARKER] if request.shows_messages else pairs)

    async def _get(self, request: Request) -> list[tuple[str, str]]:
        query = read_query(request, self._hosts())
        if query is None:
            return []
        if self._audit is not None:
            self._audit.look()  # whoever asked may not wait until all is done
        began = time.monotonic()
        try:
            await self._ready()
            credential = await self._broker.fill(query)
        except GhappError as error:
            # A sandbox may ask as often as it likes: its refusals are in its own audit file, and fill no log of ours.
            log.log(logging.DEBUG if self._grant else logging.INFO, "no credential: %s", error.code)
            self._note_refusal(error, query, began)
            self._on_error(error)
            raise
        except MemoryError:
            raise  # the listener ends us
        except Exception as error:  # noqa: BLE001  # without an answer our client would ask again and again
            log.error("a get failed: %s", type(error).__name__)  # noqa: TRY400  # a traceback may hold the request
            problem = DaemonFailed(f"the daemon failed unexpectedly: {type(error).__name__}", hint=REPORT)
            self._note_refusal(problem, query, began)
            raise problem from None
        return [] if credential is None else answer_attributes(credential, query)

    def _note_refusal(self, problem: GhappError, query: Query, began: float) -> None:
        if self._audit is not None:
            name, seconds = str(query.repository or ""), time.monotonic() - began
            self._audit.record("refusal", problem.code, repository=name, seconds=seconds)

    def _explain(self, problem: GhappError, request: Request) -> bytes:
        lent = self._grant is not None
        if request.shows_messages:
            quit_git = lent or (problem.stops_git and self._quit_on_error())
            return format_answer([*error_attributes(problem, quit_git=quit_git), MARKER])
        if lent:
            return format_refusal(f"ghapp: error: {problem}")
        return b""  # git's own client cannot show a reason; ours asks next
