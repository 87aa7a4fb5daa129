"""``ghapp app``."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ghapp import config
from ghapp.cli.daemon_client import call, call_if_running
from ghapp.cli.host import check_host
from ghapp.cli.key_import import (
    Stored,
    forget_keyring_keys,
    hint_at_orphan,
    settle_in_keyring,
    store_in_file,
    store_in_keyring,
)
from ghapp.cli.output import Group, confirm, hint, json_option, print_json, print_table, say, say_no_app, typed, warn
from ghapp.errors import ConfigError, KeyUnavailable, UsageError
from ghapp.keystore import KeyStore
from ghapp.routing import App


def _names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of the apps, for the shell."""
    try:
        apps = config.load(config.config_file()).apps
    except ConfigError:
        return []  # the shell has no place for the reason
    return [CompletionItem(entry.name) for entry in apps if entry.name.startswith(incomplete)]


class AppId(click.IntRange):
    """The number of an app."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; raises `click.BadParameter`, which says where it stands."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is not the number that the app's page shows as App ID", param, ctx)


@click.group(cls=Group, lazy={"create": "ghapp.cli.app_create:create"})  # which brings much along
def app() -> None:
    """Create, register, list, show and remove apps.

    \b
    Example:
      ghapp app add --app-id 4242 --signer file:$HOME/acme-bot.pem
    """


@app.command()
@click.argument("name", required=False)
@click.option("--client-id", default="", metavar="ID", help="The app's client ID (preferred by GitHub).")
@click.option("--app-id", type=AppId(min=1), metavar="N", help="The app's numeric ID.")
@click.option(
    "--key", type=click.Path(), metavar="FILE", help="The private key that GitHub let you download; - reads stdin."
)
@click.option("--signer", metavar="S", help="Where the key is to be: keyring (default) or file:PATH.")
@click.option(
    "--host",
    default=config.GITHUB,
    show_default=True,
    callback=check_host,
    help="github.com, SUB.ghe.com or your server.",
)
@click.option("--api-url", default="", metavar="URL", help="The API's base, where it is not the usual one.")
@click.option("--no-verify", is_flag=True, help="Do not ask GitHub whether ID and key fit.")
@click.option("--delete-key-file", is_flag=True, help="Delete FILE once its key is stored.")
@json_option
def add(
    *,
    name: str | None,
    client_id: str,
    app_id: int | None,
    key: str | None,
    signer: str | None,
    host: str,
    api_url: str,
    no_verify: bool,
    delete_key_file: bool,
    as_json: bool,
) -> None:
    """Register an app and its key, and check both with GitHub.

    The key goes into the keyring of your desktop session. On a machine without
    one, --signer file:PATH writes it to PATH, readable by you alone; without
    --key the file at PATH stays as it lies. NAME defaults to the app's slug.

    \b
    Examples:
      ghapp app add --app-id 4242 --key acme-bot.pem --delete-key-file
      ghapp app add --app-id 4242 --signer file:/run/secrets/acme-bot.pem
    """
    found, known = add_app(
        name=name,
        client_id=client_id,
        app_id=app_id,
        key=key,
        signer=signer,
        host=host,
        api_url=api_url,
        verify=not no_verify,
        delete_key_file=delete_key_file,
    )
    if as_json:
        print_json(found | {"name": known.name, "signer": known.keys[0]})
        return
    report_configured(known)
    _report_found(found)
    if not delete_key_file:
        hint_at_copy(key, known)
    if not found:
        hint("nothing was checked; 'ghapp installations' asks GitHub")
    elif found["installations"]:
        hint("ghapp setup-git")


def add_app(
    *,
    name: str | None = None,
    client_id: str,
    app_id: int | None,
    key: str | None,
    signer: str | None,
    host: str,
    api_url: str = "",
    verify: bool = True,
    delete_key_file: bool = False,
) -> tuple[dict[str, Any], App]:
    """Do what ``app add`` does; return what GitHub said and what is configured now. Raises `GhappError`."""
    if bool(client_id) == (app_id is not None):
        raise click.UsageError("give --client-id or --app-id, one of them")
    if delete_key_file and key in {None, "-"}:
        raise click.UsageError("--delete-key-file goes with --key FILE")
    reference = _signer(signer, key)
    if delete_key_file and key is not None and _is_same(key, reference.removeprefix("file:")):
        raise click.UsageError("--delete-key-file would delete the key itself: --signer names the same file")
    url = (api_url or config.api_url(host)).rstrip("/")
    given = App("app", host, url, client_id or str(app_id), (reference,), client_id=client_id, app_id=app_id)
    found, known = _register(given, name, key, verify=verify)
    if delete_key_file and key is not None:
        Path(key).unlink()
    return found, known


def hint_at_copy(key: str | None, known: App) -> None:
    """Say that the file the key was read from is not needed any more, where it is not the one that is used."""
    if key not in {None, "-"} and not _is_same(str(key), known.keys[0].removeprefix("file:")):
        hint(f"the key is stored; {key} can go: rm {shlex.quote(str(key))}")


def _register(given: App, name: str | None, key: str | None, *, verify: bool) -> tuple[dict[str, Any], App]:
    """Store the key, ask GitHub, switch the configuration, and only then let go of what was there before."""
    before = config.load(config.config_file())
    store = KeyStore(before.keyring_backend)
    stored, settled = _put_key(key, given, store, verify=verify), None
    try:
        found = verify_app(replace(given, keys=(stored.reference,))) if verify else {}
        known = replace(
            given,
            name=name or str(found.get("slug") or f"app-{given.issuer}"),
            keys=(stored.reference,),
            client_id=given.client_id or str(found.get("client_id", "")),
            app_id=given.app_id or found.get("app_id"),
        )
        if key is not None and stored.reference.startswith("keyring:"):
            settled = settle_in_keyring(given, known, store)
        _write(known)
    except BaseException:
        for copy in (settled, stored):
            if copy is not None:
                copy.take_back()
        raise
    call_if_running("reload")  # before the old key goes: killed between the two, the daemon would believe in it still
    others = [old for old in before.apps if old.name != known.name]
    for old in others:
        if _is_same_app(old, known):
            warn(f"{old.name} is the same app under another name")
            hint(f"if one is enough: ghapp app remove {shlex.quote(old.name)}")
    outdated = given
    try:
        if settled is not None:
            stored.take_back()
        for outdated in (old for old in before.apps if old.name == known.name):
            forget_keyring_keys(outdated, store, [*others, known])
    except KeyUnavailable as error:
        warn(f"a former key of {known.name} is still in the keyring: {error}")
        hint_at_orphan(outdated if outdated is not given else replace(given, keys=known.keys))
    return found, known


def _is_same_app(one: App, other: App) -> bool:
    ids = (one.app_id is not None and one.app_id == other.app_id, one.client_id and one.client_id == other.client_id)
    return one.host == other.host and any(ids)


def _write(known: App) -> None:
    entries = config.app_table(
        name=known.name,
        host=known.host,
        url=known.api,
        client_id=known.client_id,
        app_id=known.app_id,
        key=known.keys[0],
    )
    config.put_app(config.config_file(), entries)


def _signer(given: str | None, key: str | None) -> str:
    """Return the reference that was asked for; plain ``keyring`` where the key decides its name."""
    if given in {None, "keyring"}:
        if key is None:
            raise click.UsageError("give the app's key: --key FILE, or --signer file:PATH where one lies")
        return "keyring"
    kind, _, path = str(given).partition(":")
    if kind == "keyring" and path.startswith("SHA256:") and key is None:
        return str(given)
    if str(given).startswith(("/", "~", "./", "../")):
        raise UsageError(f"there is no signer {given}", hint=f"--signer file:{given}")
    if kind != "file" or not path:
        raise click.UsageError(f"there is no signer {given!r}; this version knows keyring and file:PATH")
    return f"file:{Path(path).expanduser().absolute()}"


def _is_same(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _put_key(key: str | None, app: App, store: KeyStore, *, verify: bool) -> Stored:
    (reference,) = app.keys
    if key is None:
        path = Path(reference.removeprefix("file:"))
        if verify and path.is_absolute() and not path.exists():  # unverified it may come with the next mount
            raise KeyUnavailable(f"there is no file {path}", hint=f"put the key there, or: {typed(key='FILE')}")
        return Stored(reference, lambda: None)
    if reference == "keyring":
        return store_in_keyring(key, app, store)
    return store_in_file(key, Path(reference.removeprefix("file:")))


def verify_app(app: App) -> dict[str, Any]:
    """Ask GitHub whether the app and one of its keys fit, and where it is installed. Raises `GhappError`."""
    found: dict[str, Any] = call(
        "verify_app",
        host=app.host,
        api=app.api,
        signers=list(app.keys),
        client_id=app.client_id,
        app_id=app.app_id,
        name=app.name,
    )
    return found


def report_configured(known: App) -> None:
    """Print what the configuration holds of an app."""
    click.echo(f"app          {known.name}")
    for key in known.keys:
        click.echo(f"signer       {key}")


def _report_found(found: dict[str, Any]) -> None:
    if not found:
        return
    click.echo(f"fingerprint  {found['fingerprint']}")
    for entry in found["installations"]:
        state = ", suspended" if entry["suspended"] else ""
        click.echo(f"installed    on {entry['account']} ({entry['repository_selection']} repositories{state})")
    if not found["installations"]:
        click.echo("installed    nowhere yet")
        hint(f"install it: {found['html_url']}/installations/new")


@app.command(name="list")
@json_option
def list_apps(*, as_json: bool) -> None:
    """List the registered apps.

    \b
    Example:
      ghapp app list
    """
    apps = config.load(config.config_file()).apps
    if as_json:
        print_json([_entries(entry) for entry in apps])
        return
    if not apps:
        say_no_app()
        return
    rows = [(entry.name, entry.host, entry.app_id or "", entry.client_id, _places(entry)) for entry in apps]
    print_table(("NAME", "HOST", "APP ID", "CLIENT ID", "KEYS"), rows)


def _places(app: App) -> str:
    """Return where the keys lie; which they are `ghapp key list` tells."""
    files = [reference for reference in app.keys if not reference.startswith("keyring:")]
    kept = len(app.keys) - len(files)
    return ", ".join([*(["keyring" if kept == 1 else f"keyring ({kept})"] if kept else []), *files])


@app.command()
@click.argument("name", shell_complete=_names)
@json_option
def show(*, name: str, as_json: bool) -> None:
    """Show one app: its key's fingerprint and where it is installed.

    Compare the fingerprint with the one on the app's page on GitHub.

    \b
    Example:
      ghapp app show acme-bot
    """
    entry = _find(name)
    if as_json:
        print_json(_entries(entry) | verify_app(entry) | {"name": entry.name})  # GitHub's name for it may be another
        return
    report_configured(entry)  # first: why GitHub cannot be asked is easier to see with it
    found = verify_app(entry)
    _report_found(found)
    if found["installations"] and not (config.config_dir() / "gitconfig").exists():
        hint("ghapp setup-git")


@app.command(short_help="Forget an app, and its key in the keyring.")
@click.argument("name", shell_complete=_names)
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(*, name: str, yes: bool) -> None:
    """Forget an app, and its key in the keyring; a key in a file stays there.

    It asks on a terminal; without one it goes ahead.

    \b
    Example:
      ghapp app remove acme-bot
    """
    entry = _find(name)
    confirm(f"forget {name}?", yes=yes)
    before = config.load(config.config_file())
    config.remove_app(config.config_file(), name)
    call_if_running("reload")
    remaining = [other for other in before.apps if other.name != name]
    try:
        users = forget_keyring_keys(entry, KeyStore(before.keyring_backend), remaining)
    except KeyUnavailable as error:
        warn(f"{name} is forgotten; its key is still in the keyring: {error}")
        hint_at_orphan(entry)
    else:
        say(f"{name} is forgotten{_what_became_of_keys(entry, users)}")
    say("git's configuration may still be as it was for that app")
    hint("ghapp setup-git" if remaining else "ghapp setup-git --undo")


def _what_became_of_keys(entry: App, users: list[str]) -> str:
    files = [key.removeprefix("file:") for key in entry.keys if key.startswith("file:")]
    if users:
        return f"; its key stays: app {users[0]} uses it"
    return f"; its key stays in {', '.join(files)}" if files else ", and its key"


def _find(name: str) -> App:
    for entry in config.load(config.config_file()).apps:
        if entry.name == name:
            return entry
    raise ConfigError(f"there is no app {name}", hint="ghapp app list")


def _entries(entry: App) -> dict[str, object]:
    return {
        "name": entry.name,
        "host": entry.host,
        "api_url": entry.api,
        "client_id": entry.client_id or None,
        "app_id": entry.app_id,
        "keys": list(entry.keys),
        "owners": list(entry.owners),
        "scope": "installation" if entry.whole_installation else "repository",
        "permissions": dict(entry.permissions) if entry.permissions else None,
    }
