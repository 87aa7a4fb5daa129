"""``ghapp grant``."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from ghapp import config
from ghapp.cli import lent
from ghapp.cli.daemon_client import call
from ghapp.cli.host import check_host
from ghapp.cli.output import FIRST, Group, counted, hint, json_option, print_json, print_table, say
from ghapp.cli.token import parse_permissions
from ghapp.errors import ConfigError, GrantRefused, UsageError
from ghapp.grant import DEFAULT_LIFE, MAX_LIFE, checked_name, patterns_of


LONGEST_FOR_SSH = 103 if sys.platform == "darwin" else 107  # bytes of sun_path; ssh goes no other way
FORMS = ("docker", "podman", "ssh", "devcontainer", "env")


def check_patterns(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is neither OWNER/REPO nor OWNER/*; a click callback."""
    try:
        patterns_of(list(values))
    except UsageError as error:
        raise click.BadParameter(error.message) from None
    return values


def check_name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Refuse what cannot be a directory's name; a click callback."""
    try:
        return None if value is None else checked_name(value)
    except UsageError as error:
        raise click.BadParameter(error.message) from None


def parse_life(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float:
    """Turn ``8h`` into seconds; a click callback."""
    if value is None:
        return DEFAULT_LIFE
    try:
        seconds = config.parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not 0 < seconds <= MAX_LIFE:
        raise click.BadParameter(f"{value} is not between 1s and {MAX_LIFE / 86400:.0f}d")
    return seconds


def refuse_contradiction(permissions: dict[str, str], *, read_only: bool) -> None:
    """Raise `click.UsageError` where --read-only and --permission say different things."""
    above = [name for name, level in permissions.items() if level != "read"]
    if read_only and above:
        raise click.UsageError(f"--read-only contradicts --permission {above[0]}={permissions[above[0]]}")


@click.group(cls=Group)
def grant() -> None:
    """Lend git access: a socket, for a while.

    For a container, a remote host or an agent: whoever has the socket, and
    stock git, reaches the repositories that you named, for as long as you
    said. Nothing of ghapp is installed there, and the key stays here.

    \b
    Example:
      ghapp grant create acme/rocket --name rocket --for 2h
      ghapp grant run-args rocket docker
    """


@grant.command()
@click.argument("repositories", nargs=-1, required=True, metavar="OWNER/REPO...", callback=check_patterns)
@click.option("--read-only", is_flag=True, help="Fetch, and no push.")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    callback=parse_permissions,
    metavar="K=V",
    help="Only this, such as contents=read; may be repeated.",
)
@click.option("--for", "seconds", callback=parse_life, metavar="TIME", help="How long: 90s, 15m, 8h (default), 2d.")
@click.option("--name", callback=check_name, help="A name, and a path that stays when the daemon is restarted.")
@click.option(
    "--uid",
    "uids",
    multiple=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Let that user connect too, as this machine numbers it.",
)
@click.option("--host", default=config.GITHUB, callback=check_host, help="Where the repositories are; github.com.")
@json_option
def create(
    *,
    repositories: tuple[str, ...],
    read_only: bool,
    permissions: dict[str, str],
    seconds: float,
    name: str | None,
    uids: tuple[int, ...],
    host: str,
    as_json: bool,
) -> None:
    """Lend a socket that reaches the named repositories.

    OWNER/* is all that the app reaches there. Its tokens are for one repository each, and end at GitHub when the grant
    ends. Without a name it ends with the daemon at the latest.

    \b
    Examples:
      ghapp grant create acme/rocket --read-only --for 1h
      ghapp grant create 'acme/*' --name agent --uid 1000 --json
    """
    refuse_contradiction(permissions, read_only=read_only)
    if not config.load(config.config_file()).apps:
        raise ConfigError("no app is registered", hint=FIRST)
    found = call(
        "grant_create",
        repositories=list(repositories),
        host=host,
        permissions=permissions or None,
        read_only=read_only,
        seconds=seconds,
        name=name,
        uids=list(uids),
    )
    if as_json:
        print_json(found)
        return
    click.echo(found["socket"])
    say(f"grant {found['name']}: {_permissions(found)} on {', '.join(found['repositories'])}")
    say(f"until {found['expires_at']}")
    hint(f"ghapp grant run-args {found['name']} {'|'.join(FORMS)}")


@grant.command(name="list")
@json_option
def list_grants(*, as_json: bool) -> None:
    """List what is lent.

    \b
    Example:
      ghapp grant list
    """
    found = _grants()
    if as_json:
        print_json(found)
        return
    if not found:
        say("nothing is lent")
        return
    rows = [
        (
            each["name"],
            ", ".join(each["repositories"]),
            _permissions(each),
            each["expires_at"] or "with its command",
            each["socket"],
        )
        for each in found
    ]
    print_table(("NAME", "REPOSITORIES", "PERMISSIONS", "EXPIRES", "SOCKET"), rows)


@grant.command()
@click.argument("name")
def revoke(*, name: str) -> int:
    """End a grant now, and its tokens at GitHub.

    \b
    Example:
      ghapp grant revoke rocket
    """
    found = call("grant_revoke", name=name)
    say(f"grant {name} has ended; revoked {counted(found['revoked'], 'token')}")
    if found["not_revoked"]:
        alive, ends = counted(found["not_revoked"], "token"), "its" if found["not_revoked"] == 1 else "their"
        say(f"{alive} could not be revoked yet; the daemon tries again until {ends} hour is over")
        return 1
    return 0


@grant.command(name="run-args")
@click.argument("name")
@click.argument("form", type=click.Choice(FORMS))
def run_args(*, name: str, form: str) -> None:
    """Print what to paste, so that git there uses a grant.

    \b
    docker, podman  arguments of "run": the grant's directory, mounted
                    read-only, and git's settings (git 2.31 or newer)
    ssh             arguments of "ssh", and what to run on the other side
    devcontainer    what belongs into devcontainer.json
    env             lines for a shell on this machine, any git

    \b
    Examples:
      eval "$(ghapp grant run-args rocket env)"
      eval "docker run --rm -it $(ghapp grant run-args rocket docker) IMAGE"
    """
    found = _grant(name)
    url = f"https://{found['host']}"
    directory = str(Path(found["socket"]).parent)
    inside = lent.settings([url], f"{lent.INSIDE}/git.sock")
    if form in {"docker", "podman"}:
        click.echo(lent.shell(lent.for_container(inside, directory)))
        if sys.platform == "darwin":
            hint("a virtual machine cannot mount a socket of its host: use the form ssh")
    elif form == "devcontainer":
        click.echo(lent.for_dev_container(inside, directory))
    elif form == "env":
        click.echo("\n".join(lent.for_shell(lent.settings([url], found["socket"]))))
    else:
        if len(os.fsencode(found["socket"])) > LONGEST_FOR_SSH:
            raise GrantRefused(f"ssh takes no path as long as {found['socket']}", hint="set GHAPP_RUNTIME_DIR")
        there = f"/tmp/ghapp-{found['name']}-{found['id']}.sock"  # noqa: S108  # nobody knows the name before
        click.echo(lent.shell(["-o", "ExitOnForwardFailure=yes", "-R", f"{there}:{found['socket']}"]))
        say("on the other side, once:")
        for line in lent.for_remote(lent.settings([url], there)):
            say(f"  {line}")
        hint(f"a socket that an earlier connection left behind is in the way: rm -f {there}")


def _grants() -> list[dict[str, Any]]:
    """Return what is lent; where no daemon runs, one is started, which lends again what was named."""
    found: list[dict[str, Any]] = call("grants")
    return found


def _grant(name: str) -> dict[str, Any]:
    found = next((each for each in _grants() if each["name"].lower() == name.lower()), None)
    if found is None:
        raise GrantRefused(f"there is no grant {name}", hint="ghapp grant list")
    return found


def _permissions(found: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {level}" for name, level in found["permissions"].items())
