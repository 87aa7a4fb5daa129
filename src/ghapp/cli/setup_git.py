"""``ghapp setup-git``."""

import os
from pathlib import Path

import click

from ghapp import config, gitconfig
from ghapp.cli.daemon_client import call
from ghapp.cli.output import hint, say
from ghapp.credential import normal_host
from ghapp.errors import NotInstalled


@click.command(name="setup-git")
@click.option("--global", "scope", flag_value="global", default="global", help="In your own configuration (default).")
@click.option("--system", "scope", flag_value="system", help="For everyone on this machine.")
@click.option("--local", "scope", flag_value="local", help="For the repository here.")
@click.option("--all", "whole_host", is_flag=True, help="For all of the host, not by owner: bots, cargo.")
@click.option("--host", default=None, help="Only this host; all that apps are registered for.")
@click.option("--undo", is_flag=True, help="Take it out again, byte for byte.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
def setup_git(*, scope: str, whole_host: bool, host: str | None, undo: bool, dry_run: bool) -> None:
    r"""Let git ask ghapp for the owners your apps are installed on.

    Whatever you use for the rest of github.com goes on working. Run it again
    after an app was installed somewhere, or when another tool took over.

    \b
    Examples:
      ghapp setup-git --dry-run
      ghapp setup-git --undo
    """
    where = gitconfig.Scope(scope)
    owned = config.config_dir() / "gitconfig"
    if undo:
        changes = gitconfig.undo(where, owned, env=os.environ, cwd=Path.cwd())
    else:
        text = _sections(None if host is None else normal_host(host), whole_host=whole_host)
        changes = gitconfig.setup(where, text, owned, env=os.environ, cwd=Path.cwd())
    needed = [change for change in changes if change.is_needed]
    for change in needed:
        if dry_run:
            click.echo(change.diff(), nl=False)
        elif gitconfig.apply(change):
            say(f"{'removed' if change.after is None else 'wrote'} {change.path}")
    if not needed:
        say("nothing to change")


def _sections(host: str | None, *, whole_host: bool) -> str:
    helper = gitconfig.installed_helper()
    hosts = {app.host for app in config.load(config.config_file()).apps}
    if host is not None:
        hosts &= {host}
    if not hosts:
        raise NotInstalled(f"no app is registered for {host or 'any host'}", hint="ghapp app add --help")
    if whole_host:
        return gitconfig.render([], helper, all_owners_of=sorted(hosts))
    owners = sorted({(entry["host"], entry["account"]) for entry in call("installations") if entry["host"] in hosts})
    if not owners:
        raise NotInstalled("no app of yours is installed anywhere yet", hint="ghapp app show NAME has the link")
    for owner_host, owner in owners:
        say(f"https://{owner_host}/{owner} is answered by ghapp")
    hint(f"git clone https://{'/'.join(owners[0])}/REPOSITORY")
    return gitconfig.render(owners, helper)
