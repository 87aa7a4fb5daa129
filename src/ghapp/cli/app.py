"""``ghapp app``."""

import sys
from pathlib import Path
from typing import Any

import click

from ghapp import config
from ghapp.cli.daemon_client import call, call_if_running
from ghapp.cli.output import confirm, hint, json_option, print_json, print_table, say
from ghapp.credential import normal_host
from ghapp.errors import ConfigError, KeyUnavailable, UsageError


@click.group()
def app() -> None:
    r"""Register, list, show and remove apps.

    \b
    Example:
      ghapp app add --app-id 4242 --signer file:$HOME/acme-bot.pem
    """


@app.command()
@click.argument("name", required=False)
@click.option("--client-id", default="", metavar="ID", help="The app's client ID (preferred by GitHub).")
@click.option("--app-id", type=click.IntRange(min=1), metavar="N", help="The app's numeric ID.")
@click.option("--key", metavar="FILE", help="The private key that GitHub let you download; - reads stdin.")
@click.option("--signer", metavar="S", help="Where the key is to be: file:PATH.")
@click.option("--host", default=config.GITHUB, show_default=True, help="github.com, SUB.ghe.com or your server.")
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
    r"""Register an app and its key, and check both with GitHub.

    NAME defaults to the app's slug. With --signer file:PATH alone the key stays
    where it lies; with --key FILE it is written there, readable by you alone.

    \b
    Examples:
      ghapp app add --app-id 4242 --signer file:$HOME/acme-bot.pem
      ghapp app add --client-id Iv23li... --key acme-bot.pem \
          --signer file:$HOME/.config/ghapp/acme-bot.pem --delete-key-file
    """
    if bool(client_id) == (app_id is not None):
        raise click.UsageError("give --client-id or --app-id, one of them")
    if delete_key_file and key in {None, "-"}:
        raise click.UsageError("--delete-key-file goes with --key FILE")
    reference = _signer(signer)
    if delete_key_file and key is not None and _is_same(key, reference.removeprefix("file:")):
        raise click.UsageError("--delete-key-file would delete the key itself: --signer names the same file")
    host = normal_host(host)
    url = (api_url or config.api_url(host)).rstrip("/")
    written = None if key is None else _store_key(key, Path(reference.removeprefix("file:")))
    try:
        found = _verify(host, url, reference, client_id, app_id) if not no_verify else {}
        name = name or str(found.get("slug") or f"app-{client_id or app_id}")
        entries = config.app_table(
            name=name,
            host=host,
            url=url,
            client_id=client_id or str(found.get("client_id", "")),
            app_id=app_id or found.get("app_id"),
            key=reference,
        )
        config.put_app(config.config_file(), entries)
    except BaseException:
        if written is not None:
            written.unlink(missing_ok=True)
        raise
    call_if_running("reload")
    if delete_key_file and key is not None:
        Path(key).unlink()
    _report(name, reference, found, as_json=as_json)


def _signer(given: str | None) -> str:
    if given is None:
        raise click.UsageError("say where the key is to be: --signer file:/path/to/key.pem")
    kind, _, path = given.partition(":")
    if kind != "file" or not path:
        raise click.UsageError(f"there is no signer {given!r}; this version knows file:PATH")
    return f"file:{Path(path).expanduser().absolute()}"


def _is_same(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _store_key(source: str, target: Path) -> Path | None:
    """Write the key from `source` to `target`, for us alone; return the path if it was not there before."""
    from ghapp.private_key import MAX_PEM, load_key  # noqa: PLC0415  # cryptography, which no other command needs

    if source == "-":
        pem = sys.stdin.buffer.read(MAX_PEM + 1)
    else:
        try:
            with Path(source).open("rb") as file:
                pem = file.read(MAX_PEM + 1)
        except OSError as error:
            raise KeyUnavailable(f"cannot read {source}: {error.strerror}", hint="give the downloaded .pem") from None
    load_key(pem, source="stdin" if source == "-" else source)
    if target.exists():
        if target.read_bytes() == pem:
            return None
        raise UsageError(f"{target} exists and holds something else", hint="give another path")
    try:
        config.write_atomically(target, pem, mode=0o600)
    except OSError as error:
        raise KeyUnavailable(f"cannot write {target}: {error.strerror}") from None
    return target


def _verify(host: str, url: str, signer: str, client_id: str, app_id: int | None) -> dict[str, Any]:
    found: dict[str, Any] = call("verify_app", host=host, api=url, signer=signer, client_id=client_id, app_id=app_id)
    return found


def _report(name: str, reference: str, found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found | {"name": name, "signer": reference})
        return
    click.echo(f"app          {name}")
    click.echo(f"signer       {reference}")
    if not found:
        hint("nothing was checked; 'ghapp installations' asks GitHub")
        return
    click.echo(f"fingerprint  {found['fingerprint']}")
    for entry in found["installations"]:
        state = ", suspended" if entry["suspended"] else ""
        click.echo(f"installed    on {entry['account']} ({entry['repository_selection']} repositories{state})")
    if not found["installations"]:
        click.echo("installed    nowhere yet")
        hint(f"install it: {found['html_url']}/installations/new")
        return
    hint("ghapp setup-git")


@app.command(name="list")
@json_option
def list_apps(*, as_json: bool) -> None:
    r"""List the registered apps.

    \b
    Example:
      ghapp app list
    """
    apps = config.load(config.config_file()).apps
    if as_json:
        print_json([_entries(entry) for entry in apps])
        return
    if not apps:
        say("no app is registered")
        hint("ghapp app add --help")
        return
    rows = ((entry.name, entry.host, entry.issuer, ", ".join(entry.keys)) for entry in apps)
    print_table(("NAME", "HOST", "ID", "KEYS"), rows)


@app.command()
@click.argument("name")
@json_option
def show(*, name: str, as_json: bool) -> None:
    r"""Show one app: its key's fingerprint and where it is installed.

    Compare the fingerprint with the one on the app's page on GitHub.

    \b
    Example:
      ghapp app show acme-bot
    """
    entry = _find(name)
    found = _verify(entry.host, entry.api, entry.keys[0], entry.client_id, entry.app_id)
    if as_json:
        print_json(_entries(entry) | found | {"name": entry.name})  # GitHub's name for it may be another
        return
    _report(entry.name, entry.keys[0], found, as_json=False)


@app.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(*, name: str, yes: bool) -> None:
    r"""Forget an app; a key in a file stays where it is.

    \b
    Example:
      ghapp app remove acme-bot
    """
    entry = _find(name)
    confirm(f"forget {name}?", yes=yes)
    config.remove_app(config.config_file(), name)
    call_if_running("reload")
    say(f"{name} is forgotten; its key stays in {entry.keys[0].removeprefix('file:')}")
    hint("ghapp setup-git brings git's configuration up to date")


def _find(name: str) -> Any:
    for entry in config.load(config.config_file()).apps:
        if entry.name == name:
            return entry
    raise ConfigError(f"there is no app {name}", hint="ghapp app list")


def _entries(entry: Any) -> dict[str, object]:
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
