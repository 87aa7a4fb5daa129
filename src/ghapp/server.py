"""git.sock: git's credential-cache protocol, answered by the broker."""

import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection
from importlib.metadata import version

from ghapp.audit import Audit
from ghapp.broker import Broker
from ghapp.credential import answer_attributes, read_query
from ghapp.errors import DaemonFailed, GhappError, UsageError
from ghapp.listener import Connection
from ghapp.wire import MAX_REQUEST, Request, error_attributes, format_answer, parse_request


REPORT = "ghapp daemon restart; if it happens again, report it as a bug"

log = logging.getLogger(__name__)

VERSION = version("ghapp")  # now: after an upgrade the installed one is not the one that runs
MARKER = ("ghapp", "1")
"""Says that we answer, and as the last line that the answer is whole."""


class GitServer:
    """Answers one request a connection."""

    def __init__(
        self,
        broker: Broker,
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
                pairs = await self._get(request)
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
            log.info("no credential: %s", error.code)
            self._on_error(error)
            problem = error
        except MemoryError:
            raise  # the listener ends us
        except Exception as error:  # noqa: BLE001  # without an answer our client would ask again and again
            log.error("a get failed: %s", type(error).__name__)  # noqa: TRY400  # a traceback may hold the request
            problem = DaemonFailed(f"the daemon failed unexpectedly: {type(error).__name__}", hint=REPORT)
        else:
            return [] if credential is None else answer_attributes(credential, query)
        if self._audit is not None:
            seconds, name = time.monotonic() - began, str(query.repository or "")
            self._audit.record("refusal", problem.code, repository=name, seconds=seconds)
        if not request.shows_messages:
            return []  # git's own client cannot show a reason; ours asks next
        return error_attributes(problem, quit_git=problem.stops_git and self._quit_on_error())
