"""``ghapp grant``."""

import os
import pwd
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ghapp import config
from ghapp.cli import lent
from ghapp.cli.daemon_client import call, call_if_running
from ghapp.cli.host import check_host, require_app
from ghapp.cli.output import Group, counted, hint, json_option, print_json, print_table, say, say_error, typed
from ghapp.cli.token import not_a_repository, parse_permissions
from ghapp.errors import GhappError, GrantRefused, UsageError
from ghapp.grant import DEFAULT_LIFE, MAX_LIFE, checked_name, patterns_of


LONGEST_FOR_SSH = 103 if sys.platform == "darwin" else 107  # bytes of sun_path; ssh goes no other way
FORMS = ("docker", "podman", "ssh", "devcontainer", "env", "gitconfig")
_UID = re.compile(r"[0-9]{1,10}")
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def check_patterns(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is neither OWNER/REPO nor OWNER/*; a click callback."""
    for value in values:
        try:
            patterns_of([value])
        except UsageError:
            raise click.BadParameter(not_a_repository(value, "is neither OWNER/REPO nor OWNER/*")) from None
    return values


def check_name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Refuse what cannot be a directory's name; a click callback."""
    try:
        return None if value is None else checked_name(value)
    except UsageError as error:
        raise click.BadParameter(error.message) from None


def parse_uids(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Turn each uid, or user's name, into a number; a click callback."""
    found = []
    for value in values:
        if _UID.fullmatch(value):
            found.append(int(value))
            continue
        try:
            found.append(pwd.getpwnam(value).pw_uid)
        except KeyError:
            raise click.BadParameter(f"{value!r} is neither a uid nor a user of this machine") from None
    return tuple(found)


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


def complete_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of what is lent, for the shell."""
    try:
        found = call_if_running("grants") or []
    except GhappError:
        return []  # the shell has no place for the reason
    return [CompletionItem(each["name"]) for each in found if each["name"].startswith(incomplete)]


@click.group(cls=Group)
def grant() -> None:
    """Lend git access: a socket, for a while.

    For a container, a remote host or an agent: whoever has the socket, and
    stock git, reaches the repositories that you named, for as long as you
    said. Nothing of ghapp is installed there, and the key stays here.

    \b
    Examples:
      ghapp grant create acme/rocket --name rocket --for 2h
      ghapp grant run-args rocket docker
      ghapp log --grant rocket
      ghapp grant revoke rocket
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
@click.option(
    "--name", callback=check_name, metavar="NAME", help="A name, and a path that stays when the daemon is restarted."
)
@click.option("--replace", is_flag=True, help="End the grant of that name first, if there is one.")
@click.option(
    "--uid",
    "uids",
    multiple=True,
    callback=parse_uids,
    metavar="N",
    help="Let that user connect too: this machine's number, or name, of it.",
)
@click.option(
    "--host",
    default=config.GITHUB,
    callback=check_host,
    metavar="HOST",
    help="Where the repositories are; github.com.",
)
@json_option
def create(
    *,
    repositories: tuple[str, ...],
    read_only: bool,
    permissions: dict[str, str],
    seconds: float,
    name: str | None,
    replace: bool,
    uids: tuple[int, ...],
    host: str,
    as_json: bool,
) -> None:
    """Lend a socket that reaches the named repositories.

    git there can fetch and push, unless you say less. OWNER/* is all that the
    app reaches there, also what is added later. Tokens are for one repository
    each, and end at GitHub when the grant ends: by 'ghapp grant revoke', after
    its time, and without --name with the daemon.

    Prints the socket's path; 'ghapp grant run-args' prints how to use it.

    \b
    Examples:
      ghapp grant create acme/rocket --read-only --for 1h
      ghapp grant create 'acme/*' --name agent --uid 1000 --json
    """
    refuse_contradiction(permissions, read_only=read_only)
    if replace and name is None:
        raise click.UsageError("--replace needs --name")
    require_app(host)
    try:
        found = call(
            "grant_create",
            repositories=list(repositories),
            host=host,
            permissions=permissions or None,
            read_only=read_only,
            seconds=seconds,
            name=name,
            uids=list(uids),
            replace=replace,
        )
    except GhappError as error:
        if error.code == GrantRefused.code and _is_lent(name):
            error.hint = typed(replace=True)
        raise
    try:
        _show_lent(found, seconds, stays=name is not None, as_json=as_json)
    except BaseException:  # a full disk, a pipe that nobody reads, ^C: nobody knows of it, and nobody would end it
        _revoke(found["name"])
        raise
    if alive := found.get("not_revoked"):
        say(f"{counted(alive, 'token')} of the grant before could not be revoked yet; the daemon tries again")


def _show_lent(found: dict[str, Any], seconds: float, *, stays: bool, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    click.echo(found["socket"])
    say(f"grant {found['name']}: {_permissions(found)} on {', '.join(found['repositories'])}")
    ends = datetime.fromisoformat(found["expires_at"]).astimezone()
    or_else = "" if stays else ", or until the daemon ends"
    say(f"for {duration(round(seconds))}, until {ends:%Y-%m-%d %H:%M:%S}{or_else}")
    hint(f"ghapp grant run-args {found['name']} {FORMS[0]}  # or {', '.join(FORMS[1:])}")


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
    at_terminal = sys.stdout.isatty()
    rows = [
        (
            each["name"],
            ", ".join(each["repositories"]),
            _permissions(each),
            _left(each) if at_terminal else each["expires_at"] or _left(each),
            each["socket"],
        )
        for each in found
    ]
    columns = ("NAME", "REPOSITORIES", "PERMISSIONS", "EXPIRES", "SOCKET")
    if at_terminal:  # all the paths are alike, and too long for one
        print_table(columns[:-1], [row[:-1] for row in rows])
        say(f"sockets: {Path(found[0]['socket']).parent.parent}/NAME/git.sock")
    else:
        print_table(columns, rows)


@grant.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_names)
@click.option("--all", "everything", is_flag=True, help="Every grant, those of 'ghapp exec' included.")
def revoke(*, names: tuple[str, ...], everything: bool) -> int:
    """End a grant now, and its tokens at GitHub.

    git there fails from now on, and says that the grant has ended.

    \b
    Examples:
      ghapp grant revoke rocket
      ghapp grant revoke --all
    """
    if everything == bool(names):
        raise click.UsageError("name what to revoke, or --all")
    if everything:
        names = tuple(each["name"] for each in _grants())
        if not names:
            say("nothing is lent")
    outcomes = [_revoke(name) for name in dict.fromkeys(names)]
    return 0 if all(outcomes) else 1


def _revoke(name: str) -> bool:
    """End one, say so, and tell whether all is done; what is missing is told and holds up no other."""
    try:
        found = call("grant_revoke", name=name)
    except GhappError as error:
        say_error(str(error))
        hint(error.hint)
        return False
    say(f"grant {name} has ended; revoked {counted(found['revoked'], 'token')}")
    if found["not_revoked"]:
        alive, ends = counted(found["not_revoked"], "token"), "its" if found["not_revoked"] == 1 else "their"
        say(f"{alive} could not be revoked yet; the daemon tries again until {ends} hour is over")
    if found["comes_back"]:
        say_error(f"{found['comes_back']}; the next daemon lends it again")
    return not found["not_revoked"] and not found["comes_back"]


@grant.command(name="run-args")
@click.argument("name", shell_complete=complete_names)
@click.argument("form", type=click.Choice(FORMS))
def run_args(*, name: str, form: str) -> None:
    """Print what to paste, so that git there uses a grant.

    \b
    docker, podman  arguments of "run": the grant's directory, mounted
                    read-only at /run/ghapp, and git's settings
    ssh             arguments of "ssh", and what to run on the other side
    devcontainer    what belongs into devcontainer.json
    env             lines for a shell on this machine
    gitconfig       git's settings as a file, for wherever you mount the
                    directory at /run/ghapp yourself

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
    elif form == "gitconfig":
        click.echo(lent.for_file(inside))
    elif form == "env":
        click.echo("\n".join(lent.for_shell(lent.settings([url], found["socket"]))))
    else:
        if len(os.fsencode(found["socket"])) > LONGEST_FOR_SSH:
            raise GrantRefused(f"ssh takes no path as long as {found['socket']}", hint="a shorter GHAPP_RUNTIME_DIR")
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


def _is_lent(name: str | None) -> bool:
    return name is not None and any(each["name"].lower() == name.lower() for each in _grants())


def _grant(name: str) -> dict[str, Any]:
    found = next((each for each in _grants() if each["name"].lower() == name.lower()), None)
    if found is None:
        raise GrantRefused(f"there is no grant {name}", hint="ghapp grant list")
    return found


def _left(found: dict[str, Any]) -> str:
    """Return when a grant ends, from now, in the form that --for takes."""
    if found["expires_at"] is None:
        return "with its command"
    left = max(0, round(datetime.fromisoformat(found["expires_at"]).timestamp() - time.time()))
    return f"in {duration(left)}"


def duration(seconds: int) -> str:
    """Return ``1h30m`` for 5400: the two largest units."""
    parts: list[str] = []
    for unit, size in _UNITS:
        number, seconds = divmod(seconds, size)
        if number or parts:
            parts.append(f"{number}{unit}" if number else "")
    return "".join(parts[:2]) or "0s"


def _permissions(found: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {level}" for name, level in found["permissions"].items())
