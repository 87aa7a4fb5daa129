"""``ghapp setup-git``."""

import os
from pathlib import Path

import click

from ghapp import config, gitconfig
from ghapp.cli.daemon_client import call
from ghapp.cli.host import check_host
from ghapp.cli.output import hint, say
from ghapp.errors import NotInstalled


@click.command(name="setup-git", short_help="Let git ask ghapp; --undo takes it out.")
@click.option("--global", "is_global", is_flag=True, help="In your own configuration (default).")
@click.option("--system", "is_system", is_flag=True, help="For everyone on this machine.")
@click.option("--local", "is_local", is_flag=True, help="For the repository here.")
@click.option("--all", "whole_host", is_flag=True, help="For all of the host, not by owner: bots, cargo.")
@click.option("--host", default=None, callback=check_host, help="Only this host; all that apps are registered for.")
@click.option("--undo", is_flag=True, help="Take it out again, byte for byte.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
def setup_git(
    *,
    is_global: bool,
    is_system: bool,
    is_local: bool,
    whole_host: bool,
    host: str | None,
    undo: bool,
    dry_run: bool,
) -> None:
    """Let git ask ghapp for the owners your apps are installed on.

    Whatever you use for the rest of github.com goes on working. Run it again
    after an app was installed somewhere, or when another tool took over.

    \b
    Examples:
      ghapp setup-git --dry-run
      ghapp setup-git --undo
    """
    if is_global + is_system + is_local > 1:
        raise click.UsageError("give --global, --system or --local, one of them")
    where = gitconfig.Scope.SYSTEM if is_system else gitconfig.Scope.LOCAL if is_local else gitconfig.Scope.GLOBAL
    owned = config.config_dir() / "gitconfig"
    answered: list[str] = []
    if undo:
        changes = gitconfig.undo(where, owned, env=os.environ, cwd=Path.cwd())
    else:
        gitconfig.user_file(where, os.environ, Path.cwd())  # first: whether there is a repository costs no network
        text, answered = _sections(host, whole_host=whole_host, owned=owned)
        changes = gitconfig.setup(where, text, owned, env=os.environ, cwd=Path.cwd())
    needed = [change for change in changes if change.is_needed]
    for change in needed:
        if dry_run:
            click.echo(change.diff())
        elif gitconfig.apply(change):
            say(f"{'removed' if change.after is None else 'wrote'} {change.path}")
    if not needed:
        say("nothing to change")
    for url in answered:
        say(f"{url} {'would be' if dry_run and needed else 'is'} answered by ghapp")
    if answered and not dry_run:
        hint(f"git clone {answered[0]}/{'OWNER/' if whole_host else ''}REPOSITORY")


def _sections(host: str | None, *, whole_host: bool, owned: Path) -> tuple[str, list[str]]:
    """Return git's configuration for the registered apps, and the URLs that it makes ghapp answer."""
    helper = gitconfig.installed_helper()
    hosts = {app.host for app in config.load(config.config_file()).apps}
    if host is not None:
        hosts &= {host}
    if not hosts:
        advice = "ghapp setup-git --undo" if owned.exists() and host is None else "ghapp app add --help"
        raise NotInstalled(f"no app is registered for {host or 'any host'}", hint=advice)
    if whole_host:
        return gitconfig.render([], helper, all_owners_of=hosts), [f"https://{name}" for name in sorted(hosts)]
    owners = sorted({(entry["host"], entry["account"]) for entry in call("installations") if entry["host"] in hosts})
    if not owners:
        raise NotInstalled("no app of yours is installed anywhere yet", hint="ghapp app show NAME has the link")
    return gitconfig.render(owners, helper), [f"https://{name}/{owner}" for name, owner in owners]
