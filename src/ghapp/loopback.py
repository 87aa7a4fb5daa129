"""A page on this machine for one browser, for ten minutes at most: it sends a form off and hears what came of it.

Who else could ask, and what stops them:

- A web page somewhere, which can make the browser send requests to 127.0.0.1: it does not know the path, which is
  drawn anew each time. By DNS rebinding it could even read answers, but then `Host` is its own name.
- Another user of this machine, who sees the URL in the arguments of the browser: the kernel tells whose a connection
  is (on Linux; macOS hands a URL to the browser without arguments). This matters: the page holds the state, and with
  that one could slip us the code of an app of one's own, whose key one has.
- An old tab, or a link that somebody sent: it lacks the state of this run.

Only GET, two paths, bounded sizes and times; nothing is left listening once the answer came or the wait is over.
"""

import asyncio
import hmac
import os
import re
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

from ghapp import page
from ghapp.errors import BrowserLeft, BrowserSilent, CodeRejected, ForeignRequest, GhappError, Rebound
from ghapp.manifest import read_redirect
from ghapp.page import Page
from ghapp.wire import printable


LIMIT = 600.0  # seconds for a person to sign in and press two buttons
MAX_HEAD = 16 * 1024  # bytes; browsers send 1 KB, and cookies of other servers on this machine
HEAD_LIMIT = 10.0  # seconds to send a request: browsers open connections that they may need later
WRITE_LIMIT = 5.0
MAX_CONNECTIONS = 32  # browsers open up to six; beyond that the oldest that has asked for nothing is dropped
MAX_NAMES = 20  # of those who were refused; whoever rebinds names has many
LAST_WORDS = 2.0  # seconds for a page that is being written when the wait is over

_ADDRESS = "127.0.0.1"  # not "localhost": that is ::1 first on some systems, and RFC 8252 advises against it
_HERE = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?", re.IGNORECASE)
_TCP_TABLES = (
    ("/proc/net/tcp", ""),
    # A client may reach us by an IPv6 socket and a mapped address.
    ("/proc/net/tcp6", "0" * 16 + f"{int.from_bytes(bytes((0, 0, 255, 255)), sys.byteorder):08X}"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head, as far as we care."""

    method: str
    target: str
    host: str

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


class Malformed(Exception):
    """What came is not a request for us."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def parse_head(head: bytes) -> Request:
    """Read a request's head. Raises `Malformed`."""
    line, *fields = head.decode("latin-1").split("\r\n")
    parts = line.split(" ")
    if len(parts) != 3 or not re.fullmatch(r"HTTP/1\.[01]", parts[2]):  # noqa: PLR2004  # method, target, version
        raise Malformed(HTTPStatus.BAD_REQUEST)
    method, target, _ = parts
    if method != "GET":
        raise Malformed(HTTPStatus.METHOD_NOT_ALLOWED)
    # Not the form with a scheme and a host, which would contradict `Host`.
    if not target.startswith("/") or any(not "!" <= character <= "~" for character in target):
        raise Malformed(HTTPStatus.BAD_REQUEST)
    pairs = [field.partition(":") for field in fields if field]
    if any(not colon or not re.fullmatch(r"[!-9;-~]+", name) for name, colon, _ in pairs):  # folded lines too
        raise Malformed(HTTPStatus.BAD_REQUEST)
    hosts = [value.strip() for name, _, value in pairs if name.lower() == "host"]
    if len(hosts) != 1:
        raise Malformed(HTTPStatus.BAD_REQUEST)
    return Request(method, target, hosts[0])


def uid_of(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """Return whose the other end of a connection on this machine is, or None where that cannot be told.

    A socket that its owner has closed already belongs to nobody; who does that reads no answer.
    """
    for path, prefix in _TCP_TABLES:
        wanted = [prefix + _in_table(*client), prefix + _in_table(*server)]
        with suppress(OSError), open(path, encoding="ascii") as table:  # noqa: PTH123  # a constant, no path
            for line in table:
                fields = line.split()
                if fields[1:3] == wanted:
                    return int(fields[7])
    return None


def _in_table(address: str, port: int) -> str:
    return f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}:{port:04X}"


class Loopback:
    """The page, its address, and what comes back; an asynchronous context manager, which listens inside."""

    def __init__(
        self,
        form: Callable[[str, str], Page],
        *,
        owner_of: Callable[[tuple[str, int], tuple[str, int]], int | None] = uid_of,
        head_limit: float = HEAD_LIMIT,
    ) -> None:
        """`form` makes the page from the state and from the URL that GitHub is to send the browser to."""
        self.state = secrets.token_urlsafe(32)
        self.foreign: Counter[str] = Counter()
        """Who was refused, and how often: the names under which we were asked, and the other users."""
        self._form = form
        self._owner_of = owner_of
        self._head_limit = head_limit
        self._path = f"/{secrets.token_urlsafe(24)}"
        self._port = 0
        self._opened = False
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port, chosen by the system."""
        return self._port

    @property
    def url(self) -> str:
        """Where the page is, for this one run."""
        return f"http://{self._authority}{self._path}"

    @property
    def redirect_url(self) -> str:
        """Where GitHub sends the browser."""
        return f"{self.url}/created"

    @property
    def _authority(self) -> str:
        return f"{_ADDRESS}:{self._port}"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._code: asyncio.Future[str] = loop.create_future()
        self._verdict: asyncio.Future[Page] = loop.create_future()
        self._server = await asyncio.start_server(self._serve, _ADDRESS, 0, limit=MAX_HEAD)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let nobody in any more, and whoever is being answered hear the end of it."""
        assert self._server is not None  # noqa: S101  # for mypy
        self._server.close()
        if not self._verdict.done():
            self._verdict.set_result(_OVER)
        if not self._code.cancel() and not self._code.cancelled():
            self._code.exception()  # whether or not somebody asked for it
        if self._answering:
            await asyncio.wait(self._answering, timeout=LAST_WORDS)
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def code(self, limit: float = LIMIT) -> str:
        """Return the code that the browser, or `take`, brings.

        Raises `StateMismatch`, `NotCreated`, `Rebound`; `BrowserSilent` and `BrowserLeft` when `limit` is over.
        """
        try:
            async with asyncio.timeout(limit):
                return await self._code
        except TimeoutError:
            minutes = f"{limit / 60:.0f} min" if limit >= 60 else f"{limit:.0f} s"  # noqa: PLR2004  # a minute
            if self._opened:
                why = f"the page was opened, and nobody came back from GitHub within {minutes}"
                raise BrowserLeft(why, hint=_AGAIN) from None
            raise BrowserSilent(f"nobody opened the page within {minutes}", hint=_WITHOUT_BROWSER) from None

    def take(self, redirected: str) -> None:
        """Accept the URL that somebody copied from their browser. Raises as `code`, and nothing is over then."""
        code = read_redirect(redirected, self.state)
        if self._code.done():
            raise CodeRejected("that answer was used already", hint=_AGAIN)
        self._code.set_result(code)

    def conclude(self, verdict: Page) -> None:
        """Show `verdict` in the browser that brought the code."""
        if not self._verdict.done():
            self._verdict.set_result(verdict)

    def fail(self, error: GhappError) -> None:
        """Let `code` raise `error`, unless there is a code already."""
        if not self._code.done():
            self._code.set_exception(error)

    # -- one connection ------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # for mypy
        self._open[task] = None
        if len(self._open) > MAX_CONNECTIONS:
            next(other for other in self._open if other not in self._answering).cancel()
        try:
            await self._converse(reader, writer, task)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went away, or is too slow
        except asyncio.CancelledError:
            pass  # we are ending: asyncio would print a task of start_server that ends cancelled
        finally:
            del self._open[task]
            self._answering.discard(task)
            writer.close()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: "asyncio.Task[None]"
    ) -> None:
        try:
            async with asyncio.timeout(self._head_limit):
                head = await reader.readuntil(b"\r\n\r\n")
            self._answering.add(task)
            request = parse_head(head[:-4])
        except asyncio.LimitOverrunError:
            answer = page.plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Too much", "The request is too long.")
        except Malformed as malformed:
            answer = page.plain(malformed.status, "Not here", "This is not a request for this page.")
        else:
            answer = await self._answer(request, writer.get_extra_info("peername"))
        async with asyncio.timeout(WRITE_LIMIT):
            writer.write(_bytes_of(answer))
            await writer.drain()
            writer.write_eof()
            await reader.read(1)  # until the client has it all and closes: an early close could cut the page short

    async def _answer(self, request: Request, client: tuple[str, int]) -> Page:
        path = request.path.encode()
        is_form = hmac.compare_digest(path, self._path.encode())
        is_callback = hmac.compare_digest(path, f"{self._path}/created".encode())
        refusal = self._refuse(request, client, knows_path=is_form or is_callback)
        if refusal is not None:
            return refusal
        if is_callback:
            return await self._answer_callback(request)
        if not is_form:
            return _NOTHING
        if self._code.done():
            return _OVER
        self._opened = True
        return self._form(self.state, self.redirect_url)

    def _refuse(self, request: Request, client: tuple[str, int], *, knows_path: bool) -> Page | None:
        uid = self._owner_of(client, (_ADDRESS, self._port))
        if uid not in {None, 0, os.geteuid()}:  # root: a relay, such as that of WSL; and root could do anything
            self._count(f"user {uid}")
            error: GhappError = ForeignRequest(f"user {uid} asked for a page of user {os.geteuid()}", hint=_SAME_USER)
            return page.failure(error, status=HTTPStatus.FORBIDDEN, title="This page is another user's")
        if request.host == self._authority:
            return None
        name = printable(request.host)[:100]
        self._count(name)
        if knows_path and not _HERE.fullmatch(request.host):
            error = Rebound(f"a page of {name} knows the path of the page on this machine", hint=_AGAIN)
            self.fail(error)
        else:
            error = ForeignRequest(
                f"this page is at {self._authority}, not at {name}", hint=f"open the URL with {self._authority} in it"
            )
        # Not 421, which means just this: Chromium would ask a second time.
        return page.failure(error, status=HTTPStatus.FORBIDDEN, title="This page has another address")

    def _count(self, name: str) -> None:
        known = name in self.foreign or len(self.foreign) < MAX_NAMES
        self.foreign[name if known else "others"] += 1

    async def _answer_callback(self, request: Request) -> Page:
        if self._code.done():
            return page.failure(
                CodeRejected("that answer was used already", hint=_AGAIN), status=HTTPStatus.GONE, title="Used already"
            )
        try:
            self.take(request.target)
        except GhappError as error:
            # An innocent browser cannot come here without the state: path and port are of this run alone.
            self.fail(error)
            return page.failure(error)
        return await self._verdict


_AGAIN = "ghapp app create"
_WITHOUT_BROWSER = "ghapp app create --no-browser"
_SAME_USER = "forward the port as the user who runs ghapp"
_NOTHING = page.plain(HTTPStatus.NOT_FOUND, "Nothing here", "The terminal shows the right address.")
_OVER = page.plain(HTTPStatus.GONE, "This is over", "The page was for one use. Go back to the terminal.")


def _bytes_of(answer: Page) -> bytes:
    body = answer.html.encode()
    headers = answer.headers | {"Content-Length": str(len(body)), "Connection": "close"}
    if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = "GET"
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
