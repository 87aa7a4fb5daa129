"""The methods of control.sock: what the command line asks of the daemon.

None of them takes code, a module's name or a path that the daemon would run. Parameters come by name, as JSON.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ghapp import config, process
from ghapp.audit import Audit
from ghapp.broker import Broker
from ghapp.control import SESSION, Method
from ghapp.credential import Repository, parse_repository
from ghapp.errors import GhappError, NotInstalled, UsageError
from ghapp.grant import ANY, checked_former, checked_permissions, name_of
from ghapp.installation import ALL, Installation, permissions_of
from ghapp.lease import Lease, token_sha256
from ghapp.lending import Lending
from ghapp.listener import Listener
from ghapp.outside import Outside
from ghapp.protocols import Clock
from ghapp.routing import App
from ghapp.server import VERSION


if TYPE_CHECKING:
    from ghapp.github import AppClient

log = logging.getLogger(__name__)


class Methods:
    """All of them but `stop`, which is the daemon's own life."""

    def __init__(
        self,
        broker: Broker,
        lending: Lending,
        outside: Outside,
        audit: Audit,
        clock: Clock,
        *,
        listeners: Callable[[], Collection[Listener]],
        reload: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._lending = lending
        self._outside = outside
        self._audit = audit
        self._clock = clock
        self._listeners = listeners
        self._read_config = reload
        self._started = clock.boot()

    def by_name(self) -> dict[str, Method]:
        """Return each method, by the name that it is called by."""
        return {
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
            "token": self._token,
            "unlock": self._unlock,
            "verify_app": self._verify_app,
            "verify_key": self._verify_key,
        }

    async def _status(self) -> dict[str, object]:
        listeners = self._listeners()
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
            "clock_offset": self._outside.clock_offset,
            "apps": [
                {"name": app.name, "host": app.host, "issuer": app.issuer, "trouble": self._broker.trouble(app)}
                for app in self._outside.config.apps
            ],
            "grants": len(self._lending),
            "connections": sum(listener.connections for listener in listeners),
            "connections_peak": max(listener.peak for listener in listeners),
            "rejected": sum(listener.rejected for listener in listeners),
            "timeouts": sum(listener.timeouts for listener in listeners),
            "network": self._outside.describe_network(),
            "flights": self._broker.flights,
            "calls": self._outside.calls,
            "descriptors": process.open_descriptors(),
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
        await self._outside.wait_until_ready()
        named = [_repository(name) for name in repositories]
        asked = permissions_of(permissions) if permissions else None
        async with self._saying_where_to_install(host):
            lease = await self._broker.token(host, named, asked, read_only=read_only)
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
        replace: bool = False,  # noqa: FBT001, FBT002  # as above
    ) -> dict[str, object]:
        await self._outside.wait_until_ready()
        async with self._saying_where_to_install(host):
            with self._lending.noting_refusals(repositories):
                lent = await self._lending.create(
                    repositories,
                    host,
                    permissions=permissions,
                    read_only=read_only,
                    seconds=seconds,
                    name=name,
                    uids=uids or (),
                    replace=replace,
                )
        SESSION.get().unheard = lambda: self._lending.release(str(lent["name"]), str(lent["id"]))
        return lent

    async def _grants(self) -> list[dict[str, object]]:
        return self._lending.describe()

    async def _grant_revoke(self, name: str) -> dict[str, object]:
        await self._outside.wait_until_whole()  # locked or not: a token ends itself, without a key
        dead, alive = await asyncio.shield(self._lending.revoke(name))
        return {"revoked": dead, "not_revoked": alive, "comes_back": self._lending.comes_back(name)}

    async def _exec(  # noqa: PLR0917  # JSON-RPC passes them by name
        self,
        repositories: list[str],
        host: str = config.GITHUB,
        permissions: dict[str, str] | None = None,
        read_only: bool = False,  # noqa: FBT001, FBT002  # as above
        name: str | None = None,
        former: list[str] | None = None,
    ) -> dict[str, object]:
        """Lend to whoever is connected, for as long as that is; with a token for what is not git.

        `former` are the tokens that it had from daemons before us: they end with it too.
        """
        tokens = checked_former(former)
        await self._outside.wait_until_ready()
        async with self._saying_where_to_install(host):
            with self._lending.noting_refusals(repositories):
                asked = checked_permissions(permissions, for_git=False)
                described, lease = await self._lending.hold(
                    repositories, host, permissions=asked, read_only=read_only, name=name
                )
        self._broker.adopt(lease, tokens)
        SESSION.get().at_end = lambda: self._lending.release(str(described["name"]), str(described["id"]))
        return described | {"token": lease.token, "owner": lease.owner}

    @contextlib.asynccontextmanager
    async def _saying_where_to_install(self, host: str) -> AsyncIterator[None]:
        try:
            yield
        except NotInstalled as error:
            raise NotInstalled(error.message, hint=await self._install_link(host) or error.hint) from None

    async def _install_link(self, host: str) -> str:
        """Return where the first app of `host` is installed, by GitHub's own word; "" if that cannot be had."""
        for app in self._outside.config.apps:
            if app.host == host:
                with contextlib.suppress(GhappError):
                    page = (await self._outside.issuer(app).get_app()).get("html_url")
                    return f"install it: {page}/installations/new" if isinstance(page, str) else ""
        return ""

    async def _installations(self, app: str = "", update: bool = True) -> list[dict[str, object]]:  # noqa: FBT001, FBT002  # as above
        """Ask GitHub afresh, as one app or as each; with `update` git asks us for these owners from now on."""
        await self._outside.wait_until_ready()
        self._broker.forget_absences()
        found = []
        for each in self._outside.config.apps:
            if app not in {"", each.name}:
                continue
            there = await self._outside.list_installations(each)
            found += [{"app": each.name, "host": each.host} | _describe_installation(one) for one in there]
        if update:
            await self._outside.follow_installations()
        return found

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
        await self._outside.wait_until_ready()
        lease = await self._broker.lease_to_look_around(name, owner)
        app = next(app for app in self._outside.config.apps if app.name == name)
        try:
            yield self._outside.issuer(app), lease.token
        except GhappError:
            self._broker.erase(lease.token)  # somebody may have ended it: the next time with another
            raise

    async def _verify_key(  # noqa: PLR0917  # JSON-RPC passes them by name
        self, host: str, api: str, signer: str, client_id: str = "", app_id: int | None = None, name: str = "app"
    ) -> dict[str, object]:
        """Ask GitHub about one key, and let go of it; of what is remembered for its app, this is newer."""
        _check_api(api)
        await self._outside.wait_until_ready()
        app = App(name, host, api, client_id or str(app_id), (signer,), client_id=client_id, app_id=app_id)
        issuer = self._outside.issuer(app, afresh=True)
        try:
            body = await issuer.get_app()
        finally:
            issuer.forget()
        if self._broker.trouble(app):
            self._outside.configure_broker()
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
        await self._outside.wait_until_ready()
        keys = tuple(signers) if signers is not None else (signer,)
        app = App(name, host, api, client_id or str(app_id), keys, client_id=client_id, app_id=app_id)
        issuer = self._outside.issuer(app, afresh=True)
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
        await self._outside.wait_until_whole()
        found = await self._broker.retire(
            lambda lease: not targets or any(_is_meant(lease, one, self._broker.old_names(lease)) for one in targets)
        )
        return [self._describe(lease) for lease in found]

    async def _revoke(self, leases: list[str]) -> dict[str, object]:
        """Try to end a few leases; those that are neither revoked nor failed are to be tried after `wait` seconds."""
        await self._outside.wait_until_whole()
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
        self._outside.forget_keys()
        dead, alive = await self._broker.lock(revoke=revoke)
        self._outside.forget_keys()  # one that was signing just now
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

    async def _reload(self) -> None:
        self._read_config()


def _describe_installation(installation: Installation) -> dict[str, object]:
    return {
        "id": installation.id,
        "account": installation.account,
        "permissions": dict(installation.permissions),
        "repository_selection": installation.repository_selection,
        "suspended": installation.suspended,
        "html_url": installation.html_url,
    }


def _is_meant(lease: Lease, target: str, old_names: Collection[Repository]) -> bool:
    """Tell whether `target` is the lease's id, or what it reaches, also by a name that git goes on with."""
    owner, slash, name = target.partition("/")
    if not slash:
        return lease.id == owner.lower()
    if name == ANY:
        return owner.lower() in {lease.owner.lower(), *(old.key[0] for old in old_names)}
    meant = Repository(owner, name)
    return lease.reaches(meant) or meant.key in {old.key for old in old_names}


def _repository(name: str) -> Repository:
    repository = parse_repository(name)
    if repository is None:
        raise UsageError(f"{name!r} is not OWNER/REPO")
    return repository


def _check_api(url: str) -> None:
    """Refuse an API's base that a configuration could not name: our JWT would go there."""
    if not config.is_api(url):
        raise UsageError(f"{url!r} is not https://HOST or https://HOST/PATH")
