"""A proxy that is every host of the world, and writes down what each of them is sent.

It ends the TLS of every tunnel itself. What goes to github.com is handed on to the stand-in; everybody else asks for
a password, as somebody who fishes for one would.
"""

import asyncio
import base64
import re
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import trustme
from standin.server import StandIn


GITHUB = "github.com:443"
HEAD = 64 * 1024  # bytes of a request's head
CHUNK = 1 << 16
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
HANDED_ON = re.compile(r"/acme/[a-z.]+/", re.IGNORECASE)
TARGET = re.compile(rb"(\S+) (?:http://([^/]+))?(\S*) HTTP/1\.[01]\r\n")


@dataclass(slots=True)
class Visit:
    """One connection through the proxy, and all that the client said in it."""

    asker: str
    """The user that the proxy was addressed with: which of several clones at once this is."""
    target: str
    """Host and port in lower case, as CONNECT named it, or ``http://`` and that without TLS."""
    said: bytearray = field(default_factory=bytearray, repr=False)

    def holds(self, token: str) -> bool:
        """Tell whether the token was sent, as it is or in the base64 of anything."""
        return any(shape in self.said for shape in shapes(token))


def shapes(token: str) -> list[bytes]:
    """Return what to look for: the token, and its base64 at each of the three places it can begin at."""
    found = [token.encode()]
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + token.encode())
        found.append(encoded[4 if before else 0 : -4])  # the ends mix with what stands beside
    return found


class LeakProxy:
    """Runs in a thread of its own until the block ends."""

    def __init__(self, github: StandIn, token: str, redirects: Mapping[str, tuple[int, str]]) -> None:
        self.visits: list[Visit] = []
        self.port = 0
        self._github = github
        self._token = token
        """What all tokens begin with."""
        self._redirects = redirects
        """By ``host:port/path``, up to ``.git``: the status, and where the rest of the path is led to."""
        self._ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert("anybody.invalid").configure_cert(self._ours)
        self._theirs = ssl.create_default_context(cafile=str(github.ca_file))
        self._ready = threading.Event()
        self._open: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="leak-proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def environment(self, asker: str) -> dict[str, str]:
        """Return what leads a git, and all that it runs, through here."""
        url = f"http://{asker}:x@127.0.0.1:{self.port}"
        return {
            "HTTPS_PROXY": url,
            "http_proxy": url,
            "GIT_HTTP_PROXY_AUTHMETHOD": "basic",  # without being asked
            "GIT_SSL_NO_VERIFY": "1",
        }

    def by(self, asker: str) -> list[Visit]:
        return [visit for visit in list(self.visits) if visit.asker == asker]

    def holders(self) -> set[str]:
        """Return the targets that were sent a token."""
        return {visit.target for visit in list(self.visits) if visit.holds(self._token)}

    async def _main(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=HEAD, backlog=256)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._tunnel(reader, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # the client went away, or does not like our certificate
        except asyncio.CancelledError:
            pass  # the block ended
        finally:
            self._open.discard(task)
            await _close(writer)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        match = TARGET.match(head)
        assert match, head
        method, host, target = (part.decode("latin-1").lower() if part else "" for part in match.groups())
        proxied = re.search(rb"(?im)^proxy-authorization: basic (\S+)", head)
        asker = base64.b64decode(proxied[1]).decode().partition(":")[0] if proxied else ""
        if method == "connect":
            writer.write(ESTABLISHED)
            await writer.start_tls(self._ours)
            head = await reader.readuntil(b"\r\n\r\n")
        else:
            target = f"http://{host}" if ":" in host else f"http://{host}:80"
        visit = Visit(asker, target)
        self.visits.append(visit)
        while True:
            visit.said += head
            answer = self._answer(visit.target, head)
            if answer is None:
                await self._hand_on(visit, head, reader, writer)
                return
            writer.write(answer)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")

    def _answer(self, target: str, head: bytes) -> bytes | None:
        """Return what this host says, or None if the stand-in says it."""
        match = TARGET.match(head)
        assert match, head
        path = match[3].decode("latin-1")
        repository, dot_git, rest = path.partition(".git/")
        caught = any(shape in head for shape in shapes(self._token))
        if target + repository in self._redirects:
            status, where = self._redirects[target + repository]
            if target == GITHUB and not caught:
                return _head(401, b'WWW-Authenticate: Basic realm="GitHub"\r\n')  # with the token it is led away
            return _head(status, f"Location: {where}{dot_git}{rest}\r\n".encode())
        if target == GITHUB and HANDED_ON.match(path) and b"\r\nhost: github.com\r\n" in head.lower():
            return None
        # Whoever sends a token is not told that it is wrong: git would tell the helper to forget it.
        return _head(404) if caught else _head(401, b'WWW-Authenticate: Basic realm="GitHub"\r\n')

    async def _hand_on(
        self, visit: Visit, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        from_github, to_github = await asyncio.open_connection(
            "127.0.0.1", self._github.port, ssl=self._theirs, server_hostname="github.com"
        )
        try:
            to_github.write(head)
            await asyncio.gather(_pump(reader, to_github, visit.said), _pump(from_github, writer, None))
        finally:
            await _close(to_github)


def _head(status: int, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Said\r\n%sContent-Length: 0\r\n\r\n" % (status, more)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: bytearray | None) -> None:
    try:
        while chunk := await reader.read(CHUNK):
            if copy is not None:
                copy += chunk
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()  # TLS has no half-open state; the other direction ends too


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()
