"""The way out: GitHub for each configured app, imported while the sockets listen already.

httpx and cryptography take longer to import than all else together; the first request waits for nothing else.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from ghapp import config
from ghapp.broker import Broker
from ghapp.config import Config
from ghapp.credential import Repository
from ghapp.errors import DaemonFailed, GhappError, Locked
from ghapp.installation import Installation, Scope
from ghapp.protocols import Clock, IssuedToken, Signer, TokenIssuer
from ghapp.routing import App, Place


if TYPE_CHECKING:
    from types import ModuleType

    from ghapp.git_edge import GitEdge
    from ghapp.github import AppClient, GitHub

RIM = ("ghapp.git_edge", "ghapp.github", "ghapp.keystore", "ghapp.network", "ghapp.signers", "ghapp.gitconfig")
# What libraries import at their first use. After an upgrade the files are another version's, or gone.
BEHIND_THE_RIM = ("anyio._backends._asyncio", "certifi", "encodings.ascii", "encodings.idna", "httpcore")
SIGNING_THREADS = 4  # a signer that hangs must not take the threads that name resolution needs

log = logging.getLogger(__name__)


class Unusable:
    """An app that cannot be set up, as an issuer: git is told why, instead of asking for a password."""

    def __init__(self, app: App, problem: GhappError, keyless: "AppClient | None" = None) -> None:
        self._app = app
        self._problem = problem
        self._keyless = keyless

    @property
    def app(self) -> App:
        """The app this would speak for."""
        return self._app

    def _refuse(self) -> NoReturn:
        raise type(self._problem)(self._problem.message, hint=self._problem.hint)

    async def fingerprint(self) -> str:
        """Raise why."""
        self._refuse()

    async def find_by_repository(self, repository: Repository) -> Place | None:  # noqa: ARG002  # the protocol's
        """Raise why."""
        self._refuse()

    async def find_by_owner(self, owner: str) -> Installation | None:  # noqa: ARG002  # the protocol's
        """Raise why."""
        self._refuse()

    async def list_installations(self) -> list[Installation]:
        """Raise why."""
        self._refuse()

    async def create_token(self, scope: Scope) -> IssuedToken:  # noqa: ARG002  # the protocol's
        """Raise why."""
        self._refuse()

    async def revoke_token(self, token: str) -> None:
        """End `token`, which takes no key. Raises why, where GitHub cannot be asked at all."""
        if self._keyless is None:
            self._refuse()
        await self._keyless.revoke_token(token)

    async def approach(self) -> None:
        """Do nothing: no token will come of this app."""

    async def sees(self, repository: Repository, token: str) -> bool:  # noqa: ARG002  # the protocol's
        """Tell that there is no telling."""
        return True


class Outside:
    """The configuration, and what it makes of GitHub for the broker."""

    def __init__(self, broker: Broker, clock: Clock) -> None:
        self.config = Config()
        self._broker = broker
        self._clock = clock
        self._rim: dict[str, ModuleType] = {}
        self._ready = asyncio.Event()
        self._unusable: GhappError | None = None
        self._githubs: dict[str, GitHub] = {}
        self._edges: dict[str, GitEdge] = {}
        self._former: list[GitHub | GitEdge] = []
        self._key_holders: weakref.WeakSet[AppClient] = weakref.WeakSet()
        self._installed: dict[str, list[tuple[str, str]]] = {}
        self._threads = ThreadPoolExecutor(SIGNING_THREADS, thread_name_prefix="signer")

    async def load(self) -> bool:
        """Import it all, and give the broker its apps; tell whether that went well. Who asks is told why it did not."""
        # httpx imports its own command line as well, and click, rich and pygments with it, if it can: a third of all.
        sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: it cannot
        try:
            modules = await asyncio.to_thread(
                lambda: [importlib.import_module(name) for name in (*RIM, *BEHIND_THE_RIM)]
            )
        except Exception as error:  # noqa: BLE001  # a module of ours or of others, gone or broken
            # An upgrade under way, most likely. Whoever asks is told; then we end, and the next one starts us whole.
            log.error("cannot import: %s", type(error).__name__)  # noqa: TRY400  # tracebacks are not logged
            self._unusable = DaemonFailed(f"ghapp is not whole: {error}", hint="uv tool install --force ghapp")
        else:
            self._rim = dict(zip(RIM, modules, strict=False))
            self.configure_broker()
        self._ready.set()
        return self._unusable is None

    async def wait_until_ready(self) -> None:
        """Wait until GitHub can be asked. Raises `DaemonFailed` if it never can, `Locked` while nothing is answered."""
        if self._broker.locked:
            raise Locked
        await self.wait_until_whole()

    async def wait_until_whole(self) -> None:
        """Wait until GitHub can be asked, locked or not. Raises `DaemonFailed`."""
        await self._ready.wait()
        if self._unusable is not None:
            raise DaemonFailed(self._unusable.message, hint=self._unusable.hint)

    def use(self, fresh: Config) -> None:
        """Go by that configuration from now on."""
        if fresh.network != self.config.network:
            self._former += [*self._githubs.values(), *self._edges.values()]  # requests in flight still use them
            self._githubs, self._edges = {}, {}
        self.config = fresh
        if self._rim:
            self.configure_broker()

    def configure_broker(self) -> None:
        """Give the broker an issuer for each app; one that cannot be set up says why to all who ask."""
        self.forget_keys()  # of apps as they were: those are asked for nothing any more but the end of tokens
        issuers: list[TokenIssuer] = []
        for app in self.config.apps:
            try:
                issuers.append(self.issuer(app))
            except GhappError as error:
                log.error("app %s: %s", app.name, error)  # noqa: TRY400  # tracebacks are not logged
                issuers.append(Unusable(app, error, self._keyless(app)))
        self._broker.configure(issuers, probe=self.config.probe)

    def issuer(self, app: App, *, afresh: bool = False) -> "AppClient":
        """Return GitHub for one app; `afresh` also shows keys that it rejected a moment ago."""
        store = self._rim["ghapp.keystore"].KeyStore(self.config.keyring_backend)
        client = self._client(app, self._rim["ghapp.signers"].open_signers(app, store), afresh=afresh)
        self._key_holders.add(client)
        return client

    def _keyless(self, app: App) -> "AppClient | None":
        """Return GitHub for an app whose keys cannot be opened, if there is nothing else in the way."""
        try:
            return self._client(replace(app, keys=()), [])
        except GhappError:
            return None

    def _client(self, app: App, signers: Sequence[Signer], *, afresh: bool = False) -> "AppClient":
        client: AppClient = self._rim["ghapp.github"].AppClient(
            app,
            signers,
            self._github(app.api),
            self._threads,
            edge=self._edge(app.host),
            key_ttl=self.config.key_ttl,
            afresh=afresh,
        )
        return client

    def _github(self, api: str) -> "GitHub":
        if api not in self._githubs:
            network = self._rim["ghapp.network"].network_from(os.environ, self.config.network)
            self._githubs[api] = self._rim["ghapp.github"].GitHub(api, network, self._clock)
        return self._githubs[api]

    def _edge(self, host: str) -> "GitEdge":
        if host not in self._edges:
            network = self._rim["ghapp.network"].network_from(os.environ, self.config.network)
            self._edges[host] = self._rim["ghapp.git_edge"].GitEdge(host, network)
        return self._edges[host]

    def forget_keys(self) -> None:
        """Let every key leave memory; what is signed next reads its key again."""
        for issuer in list(self._key_holders):
            issuer.forget()

    async def list_installations(self, app: App) -> list[Installation]:
        """Ask GitHub where `app` is installed, where it is to be asked for."""
        listed = await self.issuer(app).list_installations()
        there = [installation for installation in listed if app.serves(app.host, installation.account)]
        self._installed[app.name] = [(app.host, installation.account) for installation in there]
        return there

    async def follow_installations(self) -> None:
        """Write the sections of owners that came, and take out those of owners that went, once every app was asked."""
        names = {app.name for app in self.config.apps}
        self._installed = {name: owners for name, owners in self._installed.items() if name in names}
        if names <= self._installed.keys():
            owned, installed = config.config_dir() / "gitconfig", dict(self._installed)
            try:
                if await asyncio.to_thread(self._rim["ghapp.gitconfig"].follow, owned, installed):
                    log.info("git asks for other owners from now on")
            except GhappError as error:
                log.error("git's owners stay as they are: %s", error)  # noqa: TRY400  # as above

    @property
    def calls(self) -> int:
        """How many requests were sent to GitHub."""
        return sum(github.calls for github in self._githubs.values())

    @property
    def clock_offset(self) -> float | None:
        """How many seconds GitHub's clock is ahead of ours, once it said."""
        offsets = [github.clock_offset for github in self._githubs.values() if github.clock_offset is not None]
        return offsets[0] if offsets else None

    def describe_network(self) -> dict[str, str] | None:
        """Return which proxy and which CA are in use, and where they came from; None before that is known."""
        if not self._rim:
            return None
        network = self._rim["ghapp.network"].network_from(os.environ, self.config.network)
        return {
            "proxy": network.proxy_name,
            "proxy_origin": network.proxy_origin,
            "ca": network.ca_file or network.ca_directory,
            "ca_origin": network.ca_origin,
        }

    async def aclose(self, limit: float) -> None:
        """Close every connection, each within `limit` seconds, and let go of the signers' threads."""
        for github in (*self._former, *self._githubs.values(), *self._edges.values()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    await github.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)
