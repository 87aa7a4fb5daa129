"""``ghapp token``."""

import re
import subprocess

import click

from ghapp import config
from ghapp.cli.daemon_client import call
from ghapp.cli.host import check_host, require_app
from ghapp.cli.output import json_option, print_json
from ghapp.credential import Repository, normal_host, parse_repository
from ghapp.errors import GitConfigFailed, UsageError


_ADDRESS = re.compile(r"^(?:https?://[^/@]+/|(?:ssh://)?git@[^/:@]+[/:])")


def parse_permissions(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Turn ``contents=read`` into a map; a click callback."""
    permissions: dict[str, str] = {}
    for value in values:
        name, equals, level = value.partition("=")
        if not equals or not name or level not in {"read", "write", "admin"}:
            raise click.BadParameter(f"{value!r} is not NAME=read, NAME=write or NAME=admin")
        if permissions.setdefault(name, level) != level:
            raise click.BadParameter(f"{name}={permissions[name]} contradicts {value}")
    return permissions


def not_a_repository(value: str, why: str = "is not OWNER/REPO") -> str:
    """Return what is wrong with `value`, and what was probably meant: people paste addresses."""
    path = _ADDRESS.sub("", value)
    meant = parse_repository(path) if path != value else None
    return f"{value!r} {why}" + (f"; did you mean {str(meant)!r}?" if meant else "")


def repository_of_origin(hint: str = "ghapp token OWNER/REPO") -> tuple[str, str]:
    """Return host and OWNER/REPO of this checkout's remote `origin`. Raises `UsageError`."""
    command = ("git", "config", "--get", "remote.origin.url")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # a fixed command
    except FileNotFoundError:
        raise GitConfigFailed("git is not on PATH", hint=hint) from None
    url = done.stdout.rstrip("\n")
    scheme, separator, rest = url.partition("://")
    host, _, path = rest.rpartition("@")[2].partition("/")
    repository = parse_repository(path) if separator and scheme == "https" else None
    if repository is None:
        raise UsageError("name a repository: there is no remote 'origin' on https here", hint=hint)
    return normal_host(host), str(repository)


@click.command()
@click.argument("repositories", nargs=-1, metavar="[OWNER/REPO]...")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    callback=parse_permissions,
    metavar="K=V",
    help="Only this, such as issues=write; may be repeated.",
)
@click.option("--read-only", is_flag=True, help="Read, where the installation grants write.")
@click.option("--host", callback=check_host, metavar="HOST", help="Where the repositories are; github.com.")
@json_option
def token(
    *, repositories: tuple[str, ...], permissions: dict[str, str], read_only: bool, host: str | None, as_json: bool
) -> None:
    """Print a token for other tools than git.

    It carries all that the installation grants on the named repositories
    (without a name: that of the remote "origin"), and lives for an hour at
    most. For a single command 'ghapp exec' is better: its token ends with it.

    \b
    Examples:
      GH_TOKEN=$(ghapp token acme/rocket) gh pr list --repo acme/rocket
      ghapp token acme/rocket --permission contents=read --json
    """
    above = [name for name, level in permissions.items() if level != "read"]
    if read_only and above:
        raise click.UsageError(f"--read-only contradicts --permission {above[0]}={permissions[above[0]]}")
    names: list[str] = list(repositories)
    if not names:
        origin_host, name = repository_of_origin()
        host, names = host or origin_host, [name]
    for name in names:
        parsed: Repository | None = parse_repository(name)
        if parsed is None:
            raise click.UsageError(not_a_repository(name))
    host = host or config.GITHUB
    require_app(host)
    found = call(
        "token",
        repositories=names,
        host=host,
        permissions=permissions or None,
        read_only=read_only,
    )
    if as_json:
        print_json(found)
    else:
        click.echo(found["token"])
