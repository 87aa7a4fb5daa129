"""The running stand-in: a world, served over TLS behind a CONNECT proxy, from a thread of its own."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from standin import tls
from standin.connect_proxy import ConnectProxy
from standin.front import Front
from standin.openapi import NEWEST, OLDEST, Description
from standin.world import World


GRACE = 3  # seconds for requests in flight when the stand-in ends
KEEP_ALIVE = 75  # seconds; GitHub's is about a minute, uvicorn's five seconds would surprise a daemon


class StandIn(World):
    """GitHub on the loopback: the world, and where its servers are."""

    def __init__(self, directory: Path, ca_file: Path, proxy: ConnectProxy, user: str) -> None:
        super().__init__(directory)
        self.ca_file = ca_file
        self.proxy = proxy
        self.port = 0
        """Of the TLS server itself, for a client with a way of its own to reach it."""
        self.proxy_port = 0
        self._user = user

    @property
    def proxy_url(self) -> str:
        return f"http://{self._user}127.0.0.1:{self.proxy_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs for `https://github.com` to be this stand-in."""
        return {"HTTPS_PROXY": self.proxy_url, "SSL_CERT_FILE": str(self.ca_file)}

    @classmethod
    @contextmanager
    def start(
        cls,
        directory: Path,
        *,
        hosts: Sequence[str] = (),
        ca_file: Path | None = None,
        description: Path | None = None,
        proxy_credentials: tuple[str, str] | None = None,
    ) -> Iterator["StandIn"]:
        """Serve until the block ends.

        `hosts` are further names to answer to (a GHE.com tenant brings its `api.` name along). With the
        `description` every request and answer of the API is held against it; see `violations`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        names = [*hosts, *(f"api.{host}" for host in hosts if host.endswith(".ghe.com"))]
        proxy = ConnectProxy([*tls.HOSTS, *names], proxy_credentials)
        user = "{}:{}@".format(*proxy_credentials) if proxy_credentials else ""
        github = cls(directory, ca_file or directory / "ca.pem", proxy, user)
        versions = (OLDEST, NEWEST) if description else ()
        descriptions = {v: Description.load(description, v) for v in versions if description}
        server = _Server(github, Front(github, descriptions), names)
        server.start()
        try:
            yield github
        finally:
            server.stop()


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, telling which connection is whose, so that a fault can cut it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self._transports()[self.client] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transports().pop(self.client, None)
        super().connection_lost(exc)

    def _transports(self) -> dict[object, asyncio.Transport]:
        return cast("Front", self.config.app).transports


class _Server(uvicorn.Server):
    """uvicorn and the proxy in one thread; waits for events where uvicorn would look at a clock."""

    def __init__(self, github: StandIn, front: Front, names: Sequence[str]) -> None:
        config = uvicorn.Config(
            front,
            interface="asgi3",
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,  # ours is of the adjustable clock
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
        )
        config.load()
        config.ssl = tls.server_context(github.ca_file, names)
        super().__init__(config)
        self._github = github
        self._front = front
        # With the protocol named asyncio sets TCP_NODELAY; else every answer would wait 40 ms for an ACK.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        github.port = self._socket.getsockname()[1]
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="standin")

    def start(self) -> None:
        """Return when both servers listen."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        self._github.faults.clear()
        assert self._loop is not None
        assert self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _main(self) -> None:
        try:
            asyncio.run(self.serve(sockets=[self._socket]))
        except BaseException as error:  # noqa: BLE001  # start() raises it in the caller's thread
            self._failure = error
        finally:
            self._ready.set()

    async def main_loop(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._github.proxy_port = await self._github.proxy.start(self._github.port)
        self._ready.set()
        await self._end.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End at once what is idle, and soon what is not; uvicorn's own pauses in every case."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        if self.server_state.tasks:
            _, slow = await asyncio.wait(self.server_state.tasks, timeout=GRACE)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        await self._github.proxy.stop()
        for transport in list(self._front.transports.values()):
            transport.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                while self._front.transports:  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0)  # connection_lost() comes with one of the loop's next turns
