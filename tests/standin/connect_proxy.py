"""A CONNECT proxy that leads GitHub's names to the stand-in and refuses everything else."""

import asyncio
import base64
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress


LONGEST_HEAD = 16 * 1024  # a CONNECT request with its headers; a real one is under 1 KiB
CHUNK = 1 << 16
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
UNAUTHORIZED = (
    b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="proxy"\r\n'
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class ConnectProxy:
    """Counts every target it was asked for; runs on the server's loop."""

    def __init__(self, hosts: Iterable[str], credentials: tuple[str, str] | None) -> None:
        self.targets: Counter[str] = Counter()
        """`host:port` of every tunnel that was opened."""
        self.refused: Counter[str] = Counter()
        self._allowed = {f"{host}:443" for host in hosts}
        self._authorization = credentials and b"Basic " + base64.b64encode(":".join(credentials).encode())
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._target_port = 0

    async def start(self, target_port: int) -> int:
        """Listen on the loopback and return the port."""
        self._target_port = target_port
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LONGEST_HEAD, backlog=1024)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def end(self) -> None:
        """`stop`, from another thread: an outage of the proxy alone."""
        assert self._server is not None
        asyncio.run_coroutine_threadsafe(self.stop(), self._server.get_loop()).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._tunnel(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client went away, or spoke something else
        except asyncio.CancelledError:
            pass  # stop(): asyncio would print a task of start_server that ends cancelled
        finally:
            self._open.discard(task)
            await _close(writer)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *headers = head.split(b"\r\n")
        method, _, rest = line.partition(b" ")
        target = rest.partition(b" ")[0].decode("latin-1").lower()
        refusal = self._refusal(method, target, headers)
        if refusal is not None:
            self.refused[target] += 1
            writer.write(refusal)
            await writer.drain()
            return
        self.targets[target] += 1
        to_server, from_us = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            writer.write(ESTABLISHED)
            await asyncio.gather(_pump(reader, from_us), _pump(to_server, writer))
        finally:
            await _close(from_us)

    def _refusal(self, method: bytes, target: str, headers: list[bytes]) -> bytes | None:
        given = [h.partition(b":")[2].strip() for h in headers if h.lower().startswith(b"proxy-authorization:")]
        if self._authorization is not None and self._authorization not in given:
            return UNAUTHORIZED
        return None if method == b"CONNECT" and target in self._allowed else FORBIDDEN


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
    finally:
        # One side has ended: TLS has no half-open state worth keeping, and the other pump must end too.
        writer.close()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()
