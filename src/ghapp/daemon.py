"""The daemon: wiring, life and death. The only process that sees a key or mints.

It listens before httpx and cryptography are imported, which takes longer than all else together, and imports them
while the first request waits for nothing else.
"""

import argparse
import asyncio
import contextlib
import faulthandler
import importlib
import logging
import os
import signal
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from ghapp import activation, autostart, config, logs, paths, process
from ghapp.audit import Audit
from ghapp.broker import Broker, Clock, IssuedToken, TokenIssuer
from ghapp.clock import SystemClock
from ghapp.config import Config
from ghapp.control import SESSION, ControlServer
from ghapp.credential import Repository, parse_repository
from ghapp.errors import DaemonFailed, GhappError, Locked, NotInstalled, UsageError
from ghapp.grant import checked_permissions, name_of
from ghapp.installation import ALL, Installation, Scope, permissions_of
from ghapp.lease import Lease, token_sha256
from ghapp.lending import Lending
from ghapp.listener import MAX_CONNECTIONS, Listener
from ghapp.routing import App, Place
from ghapp.server import VERSION, GitServer, Source
from ghapp.upgrade import Installation as InstalledPackage
from ghapp.watchdog import Watchdog


if TYPE_CHECKING:
    from socket import socket
    from types import ModuleType

    from ghapp.git_edge import GitEdge
    from ghapp.github import AppClient, GitHub

log = logging.getLogger("ghapp.daemon")  # by name: run as a module, ours is __main__

GRACE = 2.0  # seconds for requests in flight when we are told to end
START_LIMIT = 15.0  # seconds until we listen; the lock is waited for up to 10, and starters give up after 20
RIM = ("ghapp.git_edge", "ghapp.github", "ghapp.keystore", "ghapp.network", "ghapp.signers", "ghapp.gitconfig")
# What libraries import at their first use. After an upgrade the files are another version's, or gone.
BEHIND_THE_RIM = ("anyio._backends._asyncio", "certifi", "encodings.ascii", "encodings.idna", "httpcore")
SIGNING_THREADS = 4  # a signer that hangs must not take the threads that name resolution needs


class Threads(ThreadPoolExecutor):
    """The loop's own threads, for name resolution and imports: whoever hangs there does not keep us from ending."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002  # as the base
        """Let go of the threads, and wait for none."""
        super().shutdown(wait=False, cancel_futures=True)


class Unusable:
    """An app that cannot be set up, as an issuer: git is told why, instead of asking for a password."""

    def __init__(self, app: App, problem: GhappError) -> None:
        self._app = app
        self._problem = problem

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

    async def revoke_token(self, token: str) -> None:  # noqa: ARG002  # the protocol's
        """Raise why."""
        self._refuse()

    async def approach(self) -> None:
        """Do nothing: no token will come of this app."""

    async def sees(self, repository: Repository, token: str) -> bool:  # noqa: ARG002  # the protocol's
        """Tell that there is no telling."""
        return True


class Daemon:
    """One daemon: its listeners, its broker, its configuration."""

    def __init__(
        self,
        directory: str,
        clock: Clock,
        *,
        lock: int | None = None,
        package: str = "ghapp",
        sockets: "Mapping[str, socket] | None" = None,
        notify: activation.Notify = activation.silent,
    ) -> None:
        self._clock = clock
        self._directory = directory
        self._lock = lock
        self._sockets = sockets or {}
        self._notify = notify
        self._started = clock.boot()
        self._last_activity = self._started
        self._config = Config()
        self._audit = Audit(config.state_dir(), clock)
        self._broker = Broker(clock, recorder=self._audit)
        self._key_holders: weakref.WeakSet[AppClient] = weakref.WeakSet()
        self._rim: dict[str, ModuleType] = {}
        self._ready = asyncio.Event()
        self._unusable: GhappError | None = None
        self._leaving = False
        self._ending = asyncio.Event()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._githubs: dict[str, GitHub] = {}
        self._edges: dict[str, GitEdge] = {}
        self._installed: dict[str, list[tuple[str, str]]] = {}
        self._former: list[GitHub | GitEdge] = []
        self._package = InstalledPackage(package)
        self._watchdog = Watchdog(self._is_busy, logs.descriptor)
        self._threads = ThreadPoolExecutor(SIGNING_THREADS, thread_name_prefix="signer")
        self._lending = Lending(
            directory,
            self._broker,
            clock,
            lambda source, grant: self._git_server(source, grant).handle,
            self._audit,
            on_activity=self._note_activity,
        )
        git = self._git_server(self._broker)
        control = ControlServer(
            {
                "bot": self._bot,
                "exec": self._exec,
                "grant_create": self._grant_create,
                "grant_revoke": self._grant_revoke,
                "grants": self._grants,
                "installations": self._installations,
                "leases": self._leases,
                "lock": self._lock_all,
                "reload": self._reload,
                "repos": self._repos,
                "retire": self._retire,
                "revoke": self._revoke,
                "status": self._status,
                "stop": self._stop,
                "token": self._token,
                "unlock": self._unlock,
                "verify_app": self._verify_app,
                "verify_key": self._verify_key,
            },
            on_error=self._note_error,
            called_by=self._audit.called_by,
        )
        clients = min(MAX_CONNECTIONS, process.connection_budget())
        for_control = max(2, clients // 4)  # git's clients must not keep the command line out
        self._listeners = [
            Listener(f"{directory}/{name}", handle, on_activity=self._note_activity, most=most)
            for name, handle, most in (
                ("git.sock", git.handle, clients - for_control),
                ("control.sock", control.handle, for_control),
            )
        ]

    def _git_server(self, source: Source, grant: str | None = None) -> GitServer:
        return GitServer(
            source,
            hosts=lambda: {app.host for app in self._config.apps},
            ready=self._wait_until_ready,
            quit_on_error=lambda: self._config.quit_on_error,
            on_error=self._note_error,
            audit=self._audit,
            grant=grant,
        )

    @property
    def _all_listeners(self) -> list[Listener]:
        return [*self._listeners, *self._lending.listeners]

    async def run(self, report: Callable[[], None]) -> None:
        """Serve until told to end; `report` is called when the sockets listen. Raises `GhappError` before that."""
        self._config = config.load(config.config_file())
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Threads(SIGNING_THREADS, thread_name_prefix="blocking"))
        try:
            for name, listener in zip(activation.NAMES, self._listeners, strict=True):
                if name in self._sockets:
                    listener.adopt(self._sockets[name])
                else:
                    listener.open()
            self._lending.restore()
        except BaseException:
            self._leave()
            raise
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.add_signal_handler(signal.SIGUSR1, self._forget_keys)
        if self._lock is not None:
            process.mark_serving(self._lock)
        self._watchdog.watch()
        report()
        self._notify("READY=1")
        log.info("ghapp %s serves, pid %d", VERSION, os.getpid())
        imports = asyncio.create_task(self._import_rim())
        self._watch_idleness()
        try:
            await self._ending.wait()
            self._watchdog.watch()  # an end that hangs would keep the lock
            self._leave()
            await self._end(imports)
        finally:
            self._watchdog.stop()

    def _leave(self) -> None:
        """Let nobody in any more; a starter that finds our lock taken waits for us from now on."""
        if not self._leaving:
            self._notify("STOPPING=1")
        self._leaving = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._lock is not None:
            process.mark_unreachable(self._lock)
        for listener in self._listeners:
            listener.stop_accepting()
        self._lending.stop_accepting()

    async def _end(self, imports: asyncio.Task[None]) -> None:
        await asyncio.gather(*(listener.drain(GRACE) for listener in self._all_listeners))
        await self._lending.aclose(GRACE)
        imports.cancel()
        await asyncio.gather(imports, return_exceptions=True)
        for github in (*self._former, *self._githubs.values(), *self._edges.values()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await github.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._audit.close)
        log.info("ended")

    # -- the rim, imported late ----------------------------------------------------------------------------------

    async def _import_rim(self) -> None:
        try:
            modules = await asyncio.to_thread(
                lambda: [importlib.import_module(name) for name in (*RIM, *BEHIND_THE_RIM)]
            )
        except Exception as error:  # noqa: BLE001  # a module of ours or of others, gone or broken
            # An upgrade under way, most likely. Whoever asks is told; then we end, and the next one starts us whole.
            log.error("cannot import: %s", type(error).__name__)  # noqa: TRY400  # tracebacks are not logged
            self._unusable = DaemonFailed(f"ghapp is not whole: {error}", hint="uv tool install --force ghapp")
            self._ending.set()
        else:
            self._rim = dict(zip(RIM, modules, strict=False))
            self._configure_broker()
        self._ready.set()

    async def _wait_until_ready(self) -> None:
        if self._broker.locked:
            raise Locked
        await self._wait_until_whole()

    async def _wait_until_whole(self) -> None:
        await self._ready.wait()
        if self._unusable is not None:
            raise DaemonFailed(self._unusable.message, hint=self._unusable.hint)

    def _configure_broker(self) -> None:
        """Give the broker an issuer for each app; one that cannot be set up says why to all who ask."""
        issuers: list[TokenIssuer] = []
        for app in self._config.apps:
            try:
                issuers.append(self._issuer(app))
            except GhappError as error:
                log.error("app %s: %s", app.name, error)  # noqa: TRY400  # tracebacks are not logged
                issuers.append(Unusable(app, error))
        self._broker.configure(issuers, probe=self._config.probe)

    def _issuer(self, app: App, *, afresh: bool = False) -> "AppClient":
        """Return GitHub for one app; `afresh` also shows keys that it rejected a moment ago."""
        github_module, signers = self._rim["ghapp.github"], self._rim["ghapp.signers"]
        issuer: AppClient = github_module.AppClient(
            app,
            signers.open_signers(app, self._rim["ghapp.keystore"].KeyStore(self._config.keyring_backend)),
            self._github(app.api),
            self._threads,
            edge=self._edge(app.host),
            key_ttl=self._config.key_ttl,
            afresh=afresh,
        )
        self._key_holders.add(issuer)
        return issuer

    def _github(self, api: str) -> "GitHub":
        if api not in self._githubs:
            network = self._rim["ghapp.network"].network_from(os.environ, self._config.network)
            self._githubs[api] = self._rim["ghapp.github"].GitHub(api, network, self._clock)
        return self._githubs[api]

    def _edge(self, host: str) -> "GitEdge":
        if host not in self._edges:
            network = self._rim["ghapp.network"].network_from(os.environ, self._config.network)
            self._edges[host] = self._rim["ghapp.git_edge"].GitEdge(host, network)
        return self._edges[host]

    # -- life ----------------------------------------------------------------------------------------------------

    def _is_busy(self) -> bool:
        return self._broker.flights > 0 or any(listener.busy for listener in self._all_listeners)

    def _note_activity(self) -> None:
        self._watchdog.watch()
        self._last_activity = self._clock.boot()
        self._mend_sockets()
        if self._broker.locked or len(self._lending):
            return  # whoever follows would not be locked; nobody in a container would start them
        if not self._ending.is_set() and (successor := self._package.successor()):
            log.info("ghapp %s was installed; the next request starts it", successor)
            self._ending.set()

    def _note_error(self, error: GhappError) -> None:
        if error.inherited and not self._ending.is_set() and not self._broker.locked:
            log.info("the environment that we were started in does not serve any more (%s)", error.code)
            self._ending.set()

    def _watch_idleness(self) -> None:
        """End when nothing was asked for the configured time; looked at when that time could be over, no earlier."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        limit = self._config.idle_timeout
        if limit <= 0 or self._leaving:
            return
        self._watchdog.watch()
        self._mend_sockets()
        if self._ending.is_set():
            return
        left = self._last_activity + limit - self._clock.boot()
        needed = self._broker.locked or len(self._lending) or any(each.connections for each in self._listeners)
        if left <= 0 and not needed:
            log.info("idle for %.0f s", limit)
            self._ending.set()
            return
        # With somebody here the time begins anew when they leave.
        self._idle_timer = asyncio.get_running_loop().call_later(left if left > 0 else limit, self._watch_idleness)

    def _on_hangup(self) -> None:
        """Make sockets anew that are gone or somebody else's, and read the configuration again."""
        if self._leaving:
            return  # a socket made now would be a dead one soon
        self._watchdog.watch()  # the configuration may lie on a disk that does not answer
        self._mend_sockets()
        if self._ending.is_set():
            return
        self._notify(activation.reloading())
        try:
            self._read_config()
        except GhappError as error:
            log.error("the old configuration stays: %s", error)  # noqa: TRY400  # as above
        self._notify("READY=1")

    def _mend_sockets(self) -> None:
        """Take our paths again, or end if they are another daemon's; looked at whenever we wake for something else."""
        if self._lock is not None and not self._leaving and not process.owns(self._lock, self._directory):
            log.info("the lock of %s is not ours any more", self._directory)
            self._ending.set()
            return
        if not self._leaving and any(listener.is_replaced() for listener in self._listeners):
            log.info("systemd listens anew in %s", self._directory)
            self._ending.set()
            return
        for listener in self._listeners:
            if not self._leaving and not listener.is_in_place():
                listener.stop_accepting()
                try:
                    if not process.free_path(listener.path):
                        log.info("somebody else listens at %s", listener.path)  # systemd: the next client starts it
                        self._ending.set()
                        return
                    listener.open()
                except (GhappError, OSError) as error:
                    log.error("cannot listen: %s", error)  # noqa: TRY400  # as above
        if not self._leaving:
            self._lending.mend()

    def _read_config(self) -> None:
        fresh = config.load(config.config_file())
        if fresh.network != self._config.network:
            self._former += [*self._githubs.values(), *self._edges.values()]  # requests in flight still use them
            self._githubs, self._edges = {}, {}
        self._config = fresh
        if self._rim:
            self._configure_broker()
        self._watch_idleness()

    # -- methods of control.sock ---------------------------------------------------------------------------------

    async def _status(self) -> dict[str, object]:
        offsets = [github.clock_offset for github in self._githubs.values() if github.clock_offset is not None]
        return {
            "running": True,
            "pid": os.getpid(),
            "version": VERSION,
            "uptime": round(self._clock.boot() - self._started, 3),
            "locked": self._broker.locked,
            "leases": len(self._broker.leases()),
            "mints": self._broker.mints,
            "hits": self._broker.hits,
            "rss_bytes": process.resident_bytes(),
            "clock_offset": offsets[0] if offsets else None,
            "apps": [
                {"name": app.name, "host": app.host, "issuer": app.issuer, "trouble": self._broker.trouble(app)}
                for app in self._config.apps
            ],
            "grants": len(self._lending),
            "connections": sum(listener.connections for listener in self._all_listeners),
            "connections_peak": max(listener.peak for listener in self._all_listeners),
            "rejected": sum(listener.rejected for listener in self._all_listeners),
            "timeouts": sum(listener.timeouts for listener in self._all_listeners),
            "network": self._describe_network(),
            "flights": self._broker.flights,
            "calls": sum(github.calls for github in self._githubs.values()),
            "descriptors": process.open_descriptors(),
        }

    def _describe_network(self) -> dict[str, str] | None:
        if not self._rim:
            return None
        network = self._rim["ghapp.network"].network_from(os.environ, self._config.network)
        return {
            "proxy": network.proxy_name,
            "proxy_origin": network.proxy_origin,
            "ca": network.ca_file or network.ca_directory,
            "ca_origin": network.ca_origin,
        }

    async def _leases(self) -> list[dict[str, object]]:
        return [self._describe(lease) | {"uses": uses} for lease, uses in self._broker.leases()]

    def _describe(self, lease: Lease) -> dict[str, object]:
        ends = self._clock.wall() + lease.remaining(self._clock.boot())
        described: dict[str, object] = {
            "id": lease.id,
            "app": lease.app,
            "owner": lease.owner,
            "repositories": "all" if lease.scope.repositories is ALL else list(lease.repositories or ()),
            "permissions": dict(lease.permissions),
            "expires_at": datetime.fromtimestamp(ends, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "token_sha256": token_sha256(lease.token),
        }
        if lease.scope.grant:
            described["grant"] = name_of(lease.scope.grant)
        return described

    async def _token(
        self,
        repositories: list[str],
        host: str = config.GITHUB,
        permissions: dict[str, str] | None = None,
        read_only: bool = False,  # noqa: FBT001, FBT002  # JSON-RPC passes it by name
    ) -> dict[str, object]:
        await self._wait_until_ready()
        named = [_repository(name) for name in repositories]
        asked = permissions_of(permissions) if permissions else None
        try:
            lease = await self._broker.token(host, named, asked, read_only=read_only)
        except NotInstalled as error:
            raise NotInstalled(error.message, hint=await self._install_link(host) or error.hint) from None
        described = self._describe(lease)
        return {"token": lease.token} | {key: described[key] for key in ("expires_at", "permissions", "repositories")}

    async def _grant_create(  # noqa: PLR0917  # JSON-RPC passes them by name
        self,
        repositories: list[str],
        seconds: float,
        host: str = config.GITHUB,
        permissions: dict[str, str] | None = None,
        read_only: bool = False,  # noqa: FBT001, FBT002  # as above
        name: str | None = None,
        uids: list[int] | None = None,
    ) -> dict[str, object]:
        await self._wait_until_ready()
        with self._lending.noting_refusals(repositories):
            return await self._lending.create(
                repositories,
                host,
                permissions=permissions,
                read_only=read_only,
                seconds=seconds,
                name=name,
                uids=uids or (),
            )

    async def _grants(self) -> list[dict[str, object]]:
        return self._lending.describe()

    async def _grant_revoke(self, name: str) -> dict[str, int]:
        await self._wait_until_ready()
        dead, alive = await asyncio.shield(self._lending.revoke(name))
        return {"revoked": dead, "not_revoked": alive}

    async def _exec(
        self,
        repositories: list[str],
        host: str = config.GITHUB,
        permissions: dict[str, str] | None = None,
        read_only: bool = False,  # noqa: FBT001, FBT002  # as above
        name: str | None = None,
    ) -> dict[str, object]:
        """Lend to whoever is connected, for as long as that is; with a token for what is not git."""
        await self._wait_until_ready()
        with self._lending.noting_refusals(repositories):
            asked = checked_permissions(permissions, for_git=False)
            described, lease = await self._lending.hold(
                repositories, host, permissions=asked, read_only=read_only, name=name
            )
        SESSION.get().at_end = lambda: self._lending.release(str(described["name"]))
        return described | {"token": lease.token, "owner": lease.owner}

    async def _install_link(self, host: str) -> str:
        """Return where the first app of `host` is installed, by GitHub's own word; "" if that cannot be had."""
        for app in self._config.apps:
            if app.host == host:
                with contextlib.suppress(GhappError):
                    page = (await self._issuer(app).get_app()).get("html_url")
                    return f"install it: {page}/installations/new" if isinstance(page, str) else ""
        return ""

    async def _installations(self, app: str = "", update: bool = True) -> list[dict[str, object]]:  # noqa: FBT001, FBT002  # as above
        """Ask GitHub afresh, as one app or as each; with `update` git asks us for these owners from now on."""
        await self._wait_until_ready()
        self._broker.forget_absences()
        found = []
        for each in self._config.apps:
            if app not in {"", each.name}:
                continue
            listed = await self._issuer(each).list_installations()
            there = [installation for installation in listed if each.serves(each.host, installation.account)]
            self._installed[each.name] = [(each.host, installation.account) for installation in there]
            found += [{"app": each.name, "host": each.host} | _describe_installation(one) for one in there]
        if update:
            await self._follow_installations()
        return found

    async def _follow_installations(self) -> None:
        """Write the sections of owners that came, and take out those of owners that went, once every app was asked."""
        names = {app.name for app in self._config.apps}
        self._installed = {name: owners for name, owners in self._installed.items() if name in names}
        if names <= self._installed.keys():
            owned, installed = config.config_dir() / "gitconfig", dict(self._installed)
            try:
                if await asyncio.to_thread(self._rim["ghapp.gitconfig"].follow, owned, installed):
                    log.info("git asks for other owners from now on")
            except GhappError as error:
                log.error("git's owners stay as they are: %s", error)  # noqa: TRY400  # as above

    async def _repos(self, app: str, owner: str, page: int = 1) -> dict[str, object]:
        """Return one page of the repositories that `app` reaches on `owner`: who asks can show how far it is."""
        async with self._looking_around(app, owner) as (issuer, token):
            entries, total, more = await issuer.list_repositories(token, page)
        return {
            "repositories": [
                {
                    "repository": entry["full_name"],
                    "private": entry.get("private") is True,
                    "archived": entry.get("archived") is True,
                }
                for entry in entries
            ],
            "total": total,
            "next": page + 1 if more else None,
        }

    async def _bot(self, app: str, owner: str) -> dict[str, object]:
        """Return the user that the app's commits are by."""
        async with self._looking_around(app, owner) as (issuer, token):
            login, number = await issuer.bot_user(token)
        return {"login": login, "id": number}

    @contextlib.asynccontextmanager
    async def _looking_around(self, name: str, owner: str) -> AsyncIterator[tuple["AppClient", str]]:
        await self._wait_until_ready()
        lease = await self._broker.lease_to_look_around(name, owner)
        app = next(app for app in self._config.apps if app.name == name)
        try:
            yield self._issuer(app), lease.token
        except GhappError:
            self._broker.erase(lease.token)  # somebody may have ended it: the next time with another
            raise

    async def _verify_key(
        self, host: str, api: str, signer: str, client_id: str = "", app_id: int | None = None
    ) -> dict[str, object]:
        """Ask GitHub about one key, and let go of it; of what is remembered for its app, this is newer."""
        _check_api(api)
        await self._wait_until_ready()
        app = App("app", host, api, client_id or str(app_id), (signer,), client_id=client_id, app_id=app_id)
        issuer = self._issuer(app, afresh=True)
        try:
            body = await issuer.get_app()
        finally:
            issuer.forget()
        if self._broker.trouble(app):
            self._configure_broker()
        return {"app_id": body["id"], "slug": body.get("slug") or "", "fingerprint": issuer.accepted}

    async def _verify_app(  # noqa: PLR0917  # JSON-RPC passes them by name
        self,
        host: str,
        api: str,
        signer: str = "",
        client_id: str = "",
        app_id: int | None = None,
        signers: list[str] | None = None,
        name: str = "app",
    ) -> dict[str, object]:
        """Ask GitHub whether id and key, or one of several, belong together, without changing anything."""
        _check_api(api)
        await self._wait_until_ready()
        keys = tuple(signers) if signers is not None else (signer,)
        app = App(name, host, api, client_id or str(app_id), keys, client_id=client_id, app_id=app_id)
        issuer = self._issuer(app, afresh=True)
        body = await issuer.get_app()
        self._broker.forget_absences()
        return {
            "app_id": body["id"],
            "client_id": body.get("client_id") or "",
            "slug": body.get("slug") or "",
            "name": body["name"],
            "html_url": body.get("html_url") or "",
            "permissions": body.get("permissions") or {},
            "rate_limit": await issuer.rate_limit(),
            "fingerprint": issuer.accepted,
            "installations": [_describe_installation(entry) for entry in await issuer.list_installations()],
        }

    async def _retire(self, targets: list[str]) -> list[dict[str, object]]:
        """Return the leases that `revoke` is to end, and hand them out no more; without targets, all.

        A target is a lease, OWNER/REPO or OWNER/*; a token that reaches one repository among others is meant too.
        """
        await self._wait_until_whole()
        found = await self._broker.retire(lambda lease: not targets or any(_is_meant(lease, one) for one in targets))
        return [self._describe(lease) for lease in found]

    async def _revoke(self, leases: list[str]) -> dict[str, object]:
        """Try to end a few leases; those that are neither revoked nor failed are to be tried after `wait` seconds."""
        await self._wait_until_whole()
        chosen = set(leases)
        held = [lease for lease, _ in self._broker.leases() if lease.id in chosen]
        result = await self._broker.revoke(held)
        gone = sorted(chosen - {lease.id for lease in held})  # ended or expired meanwhile
        return {
            "revoked": [*gone, *(lease.id for lease in result.revoked)],
            "failed": {
                lease.id: {"code": error.code, "message": error.message, "hint": error.hint}
                for lease, error in result.failed
            },
            "wait": result.wait,
        }

    async def _lock_all(self, revoke: bool = False) -> dict[str, object]:  # noqa: FBT001, FBT002  # as above
        """Answer nothing until `unlock`, and hold neither key nor token."""
        self._forget_keys()
        dead, alive = await self._broker.lock(revoke=revoke)
        self._forget_keys()  # one that was signing just now
        self._audit.record("lock", "ok")
        log.info("locked")
        return {"locked": True, "revoked": dead, "not_revoked": alive}

    async def _unlock(self) -> dict[str, object]:
        """Answer again; tell whether we did not."""
        was_locked = self._broker.locked
        self._broker.unlock()
        self._read_config()
        if was_locked:
            self._audit.record("unlock", "ok")
            log.info("unlocked")
        return {"was_locked": was_locked}

    def _forget_keys(self) -> None:
        """Let every key leave memory; what is signed next reads its key again."""
        for issuer in list(self._key_holders):
            issuer.forget()

    async def _reload(self) -> None:
        self._read_config()

    async def _stop(self, revoke: bool = True) -> dict[str, int]:  # noqa: FBT001, FBT002  # as above
        """End after answering; the tokens we gave out end too, unless another daemon is to follow.

        First nobody comes in any more and git gets its answers: what is minted for them now is to end as well.
        """
        self._leave()
        for_git = [self._listeners[0], *self._lending.listeners]
        await asyncio.gather(*(listener.drain(GRACE) for listener in for_git))
        dead, alive = await self._broker.lock(revoke=True) if revoke else (0, 0)
        asyncio.get_running_loop().call_soon(self._ending.set)
        return {"pid": os.getpid(), "revoked": dead, "not_revoked": alive}


def _describe_installation(installation: Installation) -> dict[str, object]:
    return {
        "id": installation.id,
        "account": installation.account,
        "permissions": dict(installation.permissions),
        "repository_selection": installation.repository_selection,
        "suspended": installation.suspended,
        "html_url": installation.html_url,
    }


def _is_meant(lease: Lease, target: str) -> bool:
    owner, slash, name = target.lower().partition("/")
    if not slash:
        return lease.id == owner
    if lease.owner.lower() != owner:
        return False
    return name == "*" or lease.repositories is None or name in {each.lower() for each in lease.repositories}


def _repository(name: str) -> Repository:
    repository = parse_repository(name)
    if repository is None:
        raise UsageError(f"{name!r} is not OWNER/REPO")
    return repository


def _check_api(url: str) -> None:
    """Refuse an API's base that a configuration could not name: our JWT would go there."""
    if not config.is_api(url):
        raise UsageError(f"{url!r} is not https://HOST or https://HOST/PATH")


def serve(directory: str, report: Callable[[str], None]) -> int:
    """Take the lock and serve; `report` hears "" once the sockets listen, or why they cannot."""
    lock = None
    try:
        notify, sockets = activation.take_notify(os.environ), activation.take_sockets(os.environ)
        autostart.make_runtime_dir(directory)
        lock = process.take_lock(directory, activated=bool(sockets))
        if lock is None:
            log.info("another daemon serves already")
            report("")  # another daemon serves, which is all that a starter wants
            return 0
        for name in activation.NAMES:
            if name not in sockets:  # nobody else is there, and we would wait for our own answer
                process.free_path(f"{directory}/{name}.sock")
        daemon = Daemon(directory, SystemClock(), lock=lock, sockets=sockets, notify=notify)
        asyncio.run(daemon.run(lambda: report("")))
    except GhappError as error:
        report(f"{error}\n{error.hint}")
        return 1
    except OSError as error:
        text = f"cannot start in {directory}: {error.strerror} (E41)" if error.strerror else str(error.args[-1])
        report(text)
        return 1
    finally:
        faulthandler.cancel_dump_traceback_later()
        if lock is not None:
            os.close(lock)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon: detached for `ghapp.autostart`, or in the foreground."""
    parser = argparse.ArgumentParser(prog="ghapp.daemon")
    parser.add_argument("--detach", action="store_true")
    detached = parser.parse_args(arguments).detach
    process.sanitise_descriptors()
    process.harden()
    report: Callable[[str], None] = process.detach() if detached else _report_in_the_foreground
    # Who hangs while it starts, on a disk that does not answer, holds the lock without a pid: nobody could end it.
    faulthandler.dump_traceback_later(START_LIMIT, exit=True, file=2)
    logs.configure(config.state_dir() if detached else None)
    logs.install_hooks()
    return serve(paths.runtime_dir(), report)


def _report_in_the_foreground(problem: str) -> None:
    if problem:
        error, _, hint = problem.partition("\n")
        sys.stderr.write(f"ghapp: error: {error}\n")
        if hint:
            sys.stderr.write(f"ghapp: hint: {hint}\n")


if __name__ == "__main__":
    process.leave(main())
