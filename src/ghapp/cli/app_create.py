"""``ghapp app create``: GitHub's App Manifest flow, from a page on this machine to a key in its place.

GitHub shows the key once, in the answer to the code. So everything that can be wrong with the key's place is found out
before the browser opens, and from the moment the code is sent until the key is stored nothing interrupts.
"""

import asyncio
import contextlib
import getpass
import os
import resource
import secrets
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click
from cryptography.hazmat.primitives.asymmetric import rsa

from ghapp import autostart, config, page
from ghapp.cli.daemon_client import call, call_if_running
from ghapp.cli.host import check_host
from ghapp.cli.key_import import Stored, check_directory, store_pem_in_file, store_pem_in_keyring
from ghapp.cli.output import counted, hint, json_option, print_json, say, say_error, typed, warn
from ghapp.cli.token import parse_permissions
from ghapp.errors import AppRejected, GhappError, KeyLost, KeyUnavailable, RateLimited, UsageError
from ghapp.keystore import KeyStore
from ghapp.loopback import LIMIT, Loopback
from ghapp.manifest import (
    DEFAULT_PERMISSIONS,
    Draft,
    Registered,
    check_name,
    check_organization,
    default_name,
    read_registered,
)
from ghapp.private_key import PUBLIC_EXPONENT, fingerprint, load_key
from ghapp.routing import App


LONGEST_WAIT = 3600.0  # seconds; GitHub's code ends then
PAUSE = 2.0  # seconds between two looks for the installation: 300 in ten minutes, of the 5,000 an hour there may be
LONGEST_PAUSE = 60.0
REJECTIONS = 3  # in a row: a new app may need a moment, and GitHub locks out who insists on a wrong key
OPEN_LIMIT = 10.0  # seconds for a browser to start, or to say that it cannot


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where the key is to be: ``keyring``, or ``file:PATH``."""

    reference: str
    store: KeyStore

    def check(self, host: str) -> None:
        """Try the place with a key of no worth. Raises `KeyUnavailable` and `UsageError`."""
        if self.reference == "keyring":
            self._check_keyring(host)
            return
        path = Path(self.reference.removeprefix("file:"))
        if path.exists() or path.is_symlink():
            raise UsageError(f"{path} exists", hint=f"give another path: {typed(signer='file:PATH')}")
        check_directory(path)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise KeyUnavailable(f"cannot write to {path.parent}: {error.strerror}", hint=_elsewhere()) from None

    def _check_keyring(self, host: str) -> None:
        account = f"{host}/probe"  # always the same: what a kill leaves behind is overwritten
        try:
            self.store.write(account, rsa.generate_private_key(PUBLIC_EXPONENT, 2048))
            self.store.delete(account)
        except KeyUnavailable as error:
            raise type(error)(error.message, hint=f"unlock the keyring, or {_elsewhere()}") from None

    def put(self, pem: bytes, app: App) -> Stored:
        """Store the key. Raises `KeyUnavailable` and `UsageError`."""
        if self.reference == "keyring":
            return store_pem_in_keyring(pem, app, self.store, source="GitHub's answer")
        return store_pem_in_file(pem, Path(self.reference.removeprefix("file:")), source="GitHub's answer")


def _elsewhere() -> str:
    return f"name a file for the key: {typed(signer='file:PATH')}"


def key_place(signer: str | None, store: KeyStore) -> KeyPlace:
    """Return the place that ``--signer`` names. Raises `click.UsageError`."""
    kind, _, path = (signer or "keyring").partition(":")
    if kind == "keyring" and not path:
        return KeyPlace("keyring", store)
    if kind == "file" and path:
        return KeyPlace(f"file:{Path(path).expanduser().absolute()}", store)
    raise click.UsageError(f"the key of a new app goes to keyring or file:PATH, not to {signer!r}")


@dataclass(slots=True)
class Created:
    """An app that GitHub has created, and what became of its key."""

    registered: Registered
    known: App | None = None
    """The app as configured; None while its key has no place."""
    problem: GhappError | None = None
    by_browser: bool = False
    """Whether we opened a browser, and can open one again."""
    interrupted: bool = False

    def report(self) -> dict[str, Any]:
        """Return what ``app add --json`` tells of an app, as far as it is known without asking GitHub again."""
        assert self.known is not None  # noqa: S101  # for mypy
        registered = self.registered
        return {
            "app_id": registered.app_id,
            "client_id": registered.client_id,
            "slug": registered.slug,
            "name": self.known.name,
            "html_url": registered.html_url,
            "fingerprint": fingerprint(load_key(registered.pem, source="GitHub's answer")),
            "installations": [],
            "signer": self.known.keys[0],
            "owner": registered.owner,
        }


def parse_wait(_ctx: click.Context, _param: click.Parameter, text: str) -> float:
    """Return the seconds of ``--wait``; a click callback."""
    try:
        seconds = config.parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not 0 < seconds <= LONGEST_WAIT:
        raise click.BadParameter("at least 1s, at most 1h")
    return seconds


@click.command(short_help="Create an app on GitHub, in the browser.")
@click.argument("name", required=False)
@click.option("--org", default="", metavar="ORG", help="Make it the organisation's, not your own.")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    callback=parse_permissions,
    metavar="K=V",
    help="Beyond contents=write, such as workflows=write; may be repeated.",
)
@click.option("--signer", metavar="S", help="Where the key is to be: keyring (default) or file:PATH.")
@click.option(
    "--host",
    default=config.GITHUB,
    show_default=True,
    callback=check_host,
    help="github.com, SUB.ghe.com or your server.",
)
@click.option("--no-browser", is_flag=True, help="Print the page's address instead of opening it.")
@click.option("--no-install-wait", is_flag=True, help="End once the key is stored.")
@click.option(
    "--wait",
    default="10m",
    show_default=True,
    callback=parse_wait,
    metavar="TIME",
    help="For the browser, and then for the installation.",
)
@json_option
def create(
    *,
    name: str | None,
    org: str,
    permissions: dict[str, str],
    signer: str | None,
    host: str,
    no_browser: bool,
    no_install_wait: bool,
    wait: float,
    as_json: bool,
) -> int:
    """Create a GitHub App in the browser, and store its key.

    A page on this machine shows what will be created and leads to GitHub, where
    you confirm. The key goes straight into the keyring; with --signer file:PATH
    to PATH. Then you choose the repositories that the app may use.

    \b
    Examples:
      ghapp app create acme-bot --org acme
      ghapp app create --no-browser --signer file:$HOME/.ssh/acme-bot.pem
    """
    before = config.load(config.config_file())
    draft = new_draft(name, org, host, permissions)
    place = key_place(signer, KeyStore(before.keyring_backend))
    created = create_app(draft, place, browser=not no_browser, limit=wait)
    report = created.report()
    if not as_json:
        click.echo(f"app          {report['name']}")
        click.echo(f"owner        {report['owner']}")
        click.echo(f"signer       {report['signer']}")
        click.echo(f"fingerprint  {report['fingerprint']}")
    created.registered = replace(created.registered, pem=b"")  # stored; the wait may be long
    say(f"install it: {created.registered.install_url}")
    if not no_install_wait and not created.interrupted:
        try:
            if created.by_browser:
                start_browser(created.registered.install_url)
            report["installations"] = wait_for_installation(created, wait)
        except KeyboardInterrupt:
            created.interrupted = True
    if as_json:
        print_json(report)
    else:
        for entry in report["installations"]:
            click.echo(f"installed    on {entry['account']} ({entry['repository_selection']} repositories)")
    if created.interrupted:
        say_error("interrupted; the app is registered, and its key stored")
    hint("ghapp setup-git" if report["installations"] else "once it is installed: ghapp setup-git")
    return 130 if created.interrupted else 0


def new_draft(name: str | None, org: str, host: str, permissions: Mapping[str, str]) -> Draft:
    """Return the app that is wanted. Raises `UsageError`."""
    organization = check_organization(org) if org else ""
    chosen = name if name is not None else default_name(organization or _user("my"), secrets.token_hex(2))
    return Draft(check_name(chosen), host, organization, {**DEFAULT_PERMISSIONS, **permissions})


def _user(otherwise: str) -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return otherwise


def create_app(draft: Draft, place: KeyPlace, *, browser: bool = True, limit: float = LIMIT) -> Created:
    """Go through the browser, store the key, and write the configuration. Raises `GhappError`."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # the key passes through this process
    place.check(draft.host)
    try:
        created = asyncio.run(_Flow(draft, place, browser=browser).run(limit))
    except GhappError as error:
        if error.hint.startswith("ghapp app create"):  # with --org, and all else that was typed
            error.hint = typed(no_browser=True) if "--no-browser" in error.hint else typed()
        raise
    while created.known is None:
        place = _another_place(created, place)
        _keep(created, place)
    try:
        call_if_running("reload")
    except GhappError as error:
        warn(f"the running daemon does not know the app yet: {error}")
        hint("ghapp daemon restart")
    return created


def _another_place(created: Created, place: KeyPlace) -> KeyPlace:
    """Ask where else the key is to go; it is in our memory alone. Raises `KeyLost` where nobody can be asked."""
    problem = created.problem
    assert problem is not None  # noqa: S101  # for mypy
    app = created.registered
    lost = KeyLost(
        f"the app {app.slug} exists, and its key could not be stored: {problem.message}",
        hint=f"generate another at {app.settings_url}, then: {_add_command(app)} --key FILE",
    )
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        raise lost
    say_error(f"the key could not be stored: {problem}")
    say(f"GitHub shows it once, so {app.slug} would need another one.")
    try:
        answer = click.prompt("Enter tries again; or file:PATH", default="", show_default=False, err=True)
        return place if not answer.strip() else key_place(answer.strip(), place.store)
    except click.UsageError as error:
        say_error(error.message)
        return place
    except click.Abort:
        raise lost from None


def _keep(created: Created, place: KeyPlace) -> None:
    """Store the key and write the configuration; what goes wrong is noted in `created`."""
    app = created.registered
    api = config.api_url(app.host)
    new = App("app", app.host, api, app.client_id or str(app.app_id), (), client_id=app.client_id, app_id=app.app_id)
    try:
        stored = place.put(app.pem, new)
    except GhappError as error:
        created.problem = error
        return
    taken = {other.name for other in config.load(config.config_file()).apps}
    name = next(name for name in _names(app.slug) if name not in taken)
    known = replace(new, name=name, keys=(stored.reference,))
    table = config.app_table(
        name=name, host=app.host, url=api, client_id=app.client_id, app_id=app.app_id, key=stored.reference
    )
    try:
        config.put_app(config.config_file(), table)
    except (GhappError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise KeyLost(
            f"the key of {app.slug} is stored, and {config.config_file()} cannot be written: {why}",
            hint=f"mend that, then: {_add_command(app)} --signer {shlex.quote(stored.reference)}",
        ) from None
    created.known = known


def _add_command(app: Registered) -> str:
    elsewhere = "" if app.host == config.GITHUB else f" --host {app.host}"
    return f"ghapp app add --app-id {app.app_id}{elsewhere}"


def _names(slug: str) -> Iterator[str]:
    """Yield names for the configuration: that of an app of another host, or of one long gone, stays theirs."""
    yield slug
    for number in range(2, sys.maxsize):
        yield f"{slug}-{number}"


class _Flow:
    """One way through the browser."""

    def __init__(self, draft: Draft, place: KeyPlace, *, browser: bool) -> None:
        self._draft = draft
        self._place = place
        self._browser = browser and can_open_browser(os.environ)
        self._opened = False
        self._shown = contextlib.ExitStack()
        """The progress, until somebody is to type."""

    async def run(self, limit: float) -> Created:
        """Return the app once the browser has shown how it went. Raises `GhappError`; no listener is left then."""
        draft, place = self._draft, self._place

        def form(state: str, redirect_url: str) -> page.Page:
            return page.form(draft, state=state, redirect_url=redirect_url, signer=place.reference)

        async with Loopback(form) as loopback:
            if self._browser:
                say(f"opening {loopback.url}")  # before the progress, which would share its line
            helper = asyncio.create_task(self._lead_there(loopback))
            try:
                with self._shown:
                    self._shown.enter_context(_progress("waiting for the browser", quiet=not self._browser))
                    code = await loopback.code(limit)
            finally:
                helper.cancel()
                await asyncio.gather(helper, return_exceptions=True)
                for name, times in loopback.foreign.items():
                    warn(f"refused for the local page: {counted(times, 'request')} of {name} (E63)")
            created = await self._land(loopback, code)
            created.by_browser = self._opened
            return created

    async def _land(self, loopback: Loopback, code: str) -> Created:
        landing = asyncio.create_task(self._exchange(code))
        interrupted = False
        while not landing.done():
            try:
                await asyncio.wait({landing})
            except asyncio.CancelledError:
                # Ctrl-C: a moment later, because GitHub gives the key once.
                task = asyncio.current_task()
                assert task is not None  # noqa: S101  # for mypy
                task.uncancel()
                interrupted = True
        try:
            created = landing.result()
        except GhappError as error:
            loopback.conclude(page.failure(error, title="The app was not set up"))
            raise
        created.interrupted = interrupted
        if created.problem is None:
            loopback.conclude(page.success(created.registered))
        else:
            lost = KeyLost(created.problem.message, hint="the terminal says how to go on")
            loopback.conclude(page.failure(lost, status=500, title="The app is created, and its key is not stored"))
        return created

    async def _exchange(self, code: str) -> Created:
        # Imported here: this costs a quarter of a second, which no other command of the group has to pay.
        from ghapp.clock import SystemClock  # noqa: PLC0415  # as said
        from ghapp.github import GitHub  # noqa: PLC0415  # as said
        from ghapp.network import network_from  # noqa: PLC0415  # as said

        network = network_from(os.environ, config.load(config.config_file()).network)
        github = GitHub(config.api_url(self._draft.host), network, SystemClock())
        try:
            created = Created(read_registered(await github.convert_manifest(code), self._draft))
        finally:
            await github.aclose()
        await asyncio.to_thread(_keep, created, self._place)
        return created

    async def _lead_there(self, loopback: Loopback) -> None:
        """Open the page, or say how, and then take the address that somebody pastes."""
        if self._browser:
            self._opened = await _open_browser(loopback.url)
            if self._opened:
                return
            self._shown.close()
            say("no browser could be opened")
        say(f"open this page in a browser on this machine: {loopback.url}")
        connection = os.environ.get("SSH_CONNECTION", "").split()
        if len(connection) == 4:  # noqa: PLR2004  # both ends' address and port
            port = "" if connection[3] == "22" else f"-p {connection[3]} "
            forward = f"-L {loopback.port}:127.0.0.1:{loopback.port}"
            say(f"from another machine, run there first: ssh {port}{forward} {_user('USER')}@{connection[2]}")
        say("if the browser cannot come back here, paste the address that it stopped at and press Enter")
        async for line in _lines_of_stdin():
            try:
                loopback.take(line)
            except GhappError as error:
                if not sys.stdin.isatty():
                    loopback.fail(error)
                    return
                say_error(str(error))
                hint("paste the whole address, from http://127.0.0.1 on")


async def _lines_of_stdin() -> AsyncIterator[str]:
    """Yield the lines that are typed or piped in, without their ends, and none that is empty."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        descriptor = sys.stdin.fileno()
        loop.add_reader(descriptor, readable.set)
    except (AttributeError, OSError, ValueError) as error:
        if not isinstance(error, PermissionError):
            return  # closed
        for line in sys.stdin:  # a regular file cannot be waited for, and need not be
            if line.strip():
                yield line.strip()
        return
    pending, chunk = b"", b"begin"
    try:
        while chunk:
            await readable.wait()
            readable.clear()
            chunk = os.read(descriptor, 64 * 1024)
            *lines, pending = (pending + (chunk or b"\n")).split(b"\n")
            for raw in lines:
                if raw.strip():
                    yield raw.decode("utf-8", "replace").strip()
    finally:
        loop.remove_reader(descriptor)


def can_open_browser(environment: Mapping[str, str]) -> bool:
    """Tell whether a browser can have a window: without one, a text browser would take the terminal over."""
    names = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform == "darwin" or any(environment.get(name) for name in names)


async def _open_browser(url: str) -> bool:
    """Open `url`; tell whether that seems to have worked. A browser may run on until somebody closes it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def tell(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    def on_end(status: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has long been closed
            loop.call_soon_threadsafe(tell, status)

    start_browser(url, on_end)
    done, _ = await asyncio.wait({ended}, timeout=OPEN_LIMIT)
    return not done or ended.result() == 0


def start_browser(url: str, on_end: Callable[[int], object] = bool) -> None:
    """Let a child open `url`: browsers print, into our stdout too, and must outlive a Ctrl-C meant for us.

    The child hears the URL on its stdin; what the browser gets as an argument, others can see for a moment.
    `ghapp.loopback` says why that does no harm.
    """
    try:
        child = subprocess.Popen(  # noqa: S603  # our own interpreter
            [*autostart.interpreter(), "-c", _OPEN],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except OSError:  # an upgrade has just taken it away
        on_end(1)
        return

    def wait() -> None:
        with contextlib.suppress(BrokenPipeError):
            child.communicate(url.encode())
        on_end(child.returncode)

    threading.Thread(target=wait, name="browser", daemon=True).start()


_OPEN = "import sys, webbrowser; sys.exit(not webbrowser.open(sys.stdin.read()))"


def wait_for_installation(created: Created, limit: float) -> list[dict[str, Any]]:
    """Return the app's installations once there is one; none when `limit` is over."""
    app = created.known
    assert app is not None  # noqa: S101  # for mypy
    end, pause, rejections = time.monotonic() + limit, PAUSE, 0
    problem: GhappError | None = None
    with _progress("waiting for the installation"):
        while True:
            try:
                found = call(
                    "verify_app",
                    host=app.host,
                    api=app.api,
                    signer=app.keys[0],
                    client_id=app.client_id,
                    app_id=app.app_id,
                    name=app.name,
                )
            except GhappError as error:
                problem, pause = error, min(LONGEST_PAUSE, 2 * pause)
                if error.code == RateLimited.code:
                    pause = LONGEST_PAUSE
                rejections += error.code == AppRejected.code
            else:
                problem, pause, rejections = None, PAUSE, 0
                if found["installations"]:
                    installations: list[dict[str, Any]] = found["installations"]
                    return installations
            if rejections >= REJECTIONS or time.monotonic() + pause > end:
                break
            time.sleep(pause)
    warn("the app is not installed yet" if problem is None else f"GitHub could not be asked: {problem}")
    return []


@contextlib.contextmanager
def _progress(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Show on a terminal that we wait, and for how long."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415  # 40 ms, which a pipe does not pay
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415  # as above

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(text, total=None)
        yield
