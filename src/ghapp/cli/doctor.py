"""``ghapp doctor``."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from ghapp import config
from ghapp.cli import checks
from ghapp.cli.checks import FAIL, OK, SKIP, WARN, Check, Ground, git, github, local
from ghapp.cli.output import counted, hint, json_option, print_json, printable, say
from ghapp.credential import parse_repository


CHECKS: tuple[Callable[[Ground], Iterator[Check]], ...] = (
    git.check_version,
    local.check_installation,
    local.check_configuration,
    local.check_state,
    local.check_service,
    local.check_runtime_directory,
    local.check_daemon,
    github.ask,
    local.check_proxy,  # now that the daemon has imported everything, to ask with each key
    github.check_apps,
    github.check_clock,
    git.check_helpers,
    git.check_other_ways,
    git.check_cargo,
    git.check_repository,
)
OF_GITS_CONFIGURATION = {git.check_helpers, git.check_other_ways, git.check_cargo, git.check_repository}
_MARKS = {OK: ("ok  ", "green"), WARN: ("warn", "yellow"), FAIL: ("FAIL", "red"), SKIP: ("skip", "bright_black")}
FIX_SECONDS = 120


@click.command()
@click.argument("repository", metavar="[OWNER/REPO]", required=False)
@click.option("--fix", is_flag=True, help="Run the hints that touch only what is ghapp's.")
@json_option
def doctor(*, repository: str | None, fix: bool, as_json: bool) -> int:
    """Say what is wrong, and which command mends it.

    Looks at everything between git and GitHub: git's helpers in git's own
    order, the daemon, the keyring, each key and installation (asked of GitHub
    now), clock, limits, proxy. With OWNER/REPO, git itself has to list that
    repository. Exits 1 if anything fails.

    \b
    Examples:
      ghapp doctor acme/rocket
      ghapp doctor --fix
    """
    return diagnose(repository, fix=fix, as_json=as_json)


def diagnose(repository: str | None, *, fix: bool = False, as_json: bool = False, with_git: bool = True) -> int:
    """Do what ``doctor`` does; not `with_git` leaves out what is of no use where git is not to ask ghapp."""
    wanted = _named(repository) if repository is not None else None
    found = list(_look(wanted, show=not as_json and not fix, with_git=with_git))
    if fix and _mend(found):
        found = list(_look(wanted, show=not as_json, with_git=with_git))
    elif fix and not as_json:
        for check in found:
            _show(check)
    if as_json:
        print_json({"checks": [check.as_json() for check in found]})
    else:
        _sum_up(found)
    return 1 if any(check.status == FAIL for check in found) else 0


def _named(repository: str) -> tuple[str, str]:
    """Return the host, "" where it is not told, and OWNER/REPO; of a URL, as a browser shows it, too."""
    host, path = "", repository
    if repository.startswith("https://") and "@" not in repository:
        host, _, path = repository.removeprefix("https://").rstrip("/").partition("/")
    found = parse_repository(path)
    if found is None:
        raise click.UsageError(f"{repository!r} is not OWNER/REPO")
    return host.lower(), f"{found.owner}/{found.name}"


def _host_of(ground: Ground, owner: str) -> str:
    """Return where an app is installed on `owner`; where none is, the host of the first app, or the usual one."""
    there = [host for host, account in ground.owners if account.lower() == owner.lower()]
    return next(iter([*there, *(app.host for app in ground.config.apps)]), config.GITHUB)


def _look(wanted: tuple[str, str] | None, *, show: bool, with_git: bool) -> Iterator[Check]:
    ground = checks.here()
    for look in CHECKS if with_git else (*(each for each in CHECKS if each not in OF_GITS_CONFIGURATION), _leave_out):
        if wanted is not None:
            host, name = wanted
            ground.repository = (host or _host_of(ground, name.partition("/")[0]), name)
        for check in look(ground):
            if show:
                _show(check)
            yield check


def _leave_out(_ground: Ground) -> Iterator[Check]:
    yield Check("helpers", SKIP, "git's configuration was left alone")


def _show(check: Check) -> None:
    mark, colour = _MARKS[check.status]
    click.echo(f"{click.style(mark, fg=colour)}  {check.name}: {printable(check.message)}")
    if check.hint and check.status in {WARN, FAIL}:
        click.echo(f"      {click.style(printable(check.hint), bold=True)}")


def _mend(found: Iterable[Check]) -> bool:
    """Run the safe hints, each once, in the order they were found; tell whether there was one."""
    # The hints say ghapp: the one that runs now, also where PATH lacks it or has another.
    here = str(Path(sys.argv[0]).absolute().parent)
    env = os.environ | {"PATH": os.pathsep.join((here, os.environ.get("PATH", os.defpath)))}
    commands = list(dict.fromkeys(check.hint for check in found if check.safe and check.status in {WARN, FAIL}))
    for command in commands:
        say(f"$ {command}")
        subprocess.run(("sh", "-c", command), env=env, timeout=FIX_SECONDS, check=False)  # noqa: S603, S607  # one of ours
    return bool(commands)


def _sum_up(found: list[Check]) -> None:
    failed, warned = (sum(check.status == status for check in found) for status in (FAIL, WARN))
    if not failed and not warned:
        say(f"{counted(len(found), 'check')}: all is well")
    else:
        say(f"{counted(len(found), 'check')}: {failed} failed, {counted(warned, 'warning')}")
    if any(check.safe and check.status in {WARN, FAIL} for check in found):
        hint("ghapp doctor --fix")
