"""``ghapp setup-git``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ghapp import config, gitconfig
from ghapp.cli.daemon_client import call
from ghapp.cli.host import check_host
from ghapp.cli.output import hint, say, warn
from ghapp.errors import GhappError, NotInstalled, PermissionMissing, Suspended
from ghapp.gitconfig import Change, Identity


HASCONFIG = (2, 36)  # the first git that includes by a remote's URL
PROACTIVE = (2, 46)  # the first git that sends a credential unasked

_NO_BOT_THERE = {NotInstalled.code, PermissionMissing.code, Suspended.code}


@click.command(name="setup-git", short_help="Let git ask ghapp; --undo takes it out.")
@click.option("--global", "is_global", is_flag=True, help="In your own configuration (default).")
@click.option("--system", "is_system", is_flag=True, help="For everyone on this machine.")
@click.option("--local", "is_local", is_flag=True, help="For the repository here.")
@click.option("--all", "whole_host", is_flag=True, help="For all of the host, not by owner: bots, cargo.")
@click.option("--host", default=None, callback=check_host, help="Only this host; all that apps are registered for.")
@click.option("--identity", is_flag=True, help="Commit as the app's bot, in those owners' repositories.")
@click.option("--proactive", is_flag=True, help="Send the token with the first request (git 2.46 or newer).")
@click.option("--rewrite-ssh", is_flag=True, help="Serve those owners' git@HOST: remotes, too.")
@click.option("--undo", is_flag=True, help="Take it out again, byte for byte.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
def setup_git(
    *,
    is_global: bool,
    is_system: bool,
    is_local: bool,
    whole_host: bool,
    host: str | None,
    identity: bool,
    proactive: bool,
    rewrite_ssh: bool,
    undo: bool,
    dry_run: bool,
) -> None:
    """Let git ask ghapp for the owners your apps are installed on.

    Whatever you use for the rest of github.com goes on working. Run it again
    after an app was installed somewhere, or when another tool took over; what
    you leave out then, such as --identity, is taken out.

    \b
    Examples:
      ghapp setup-git --dry-run
      ghapp setup-git --identity --rewrite-ssh
      ghapp setup-git --undo
    """
    if is_global + is_system + is_local > 1:
        raise click.UsageError("give --global, --system or --local, one of them")
    if identity and (is_system or is_local):
        raise click.UsageError("--identity goes with --global: it includes files of yours")
    if undo and (identity or proactive or rewrite_ssh or whole_host or host):
        raise click.UsageError("--undo takes everything out; it goes with a scope and --dry-run alone")
    answered = configure(
        gitconfig.Scope.SYSTEM if is_system else gitconfig.Scope.LOCAL if is_local else gitconfig.Scope.GLOBAL,
        whole_host=whole_host,
        host=host,
        identity=identity,
        proactive=proactive,
        rewrite_ssh=rewrite_ssh,
        undo=undo,
        dry_run=dry_run,
    )
    if answered and not dry_run:
        hint(f"git clone {answered[0]}/{'OWNER/' if whole_host else ''}REPOSITORY")


def configure(
    where: gitconfig.Scope,
    *,
    whole_host: bool,
    host: str | None = None,
    identity: bool = False,
    proactive: bool = False,
    rewrite_ssh: bool = False,
    undo: bool = False,
    dry_run: bool = False,
) -> list[str]:
    """Do what ``setup-git`` does; return the URLs for which git asks ghapp now. Raises `GhappError`."""
    owned = config.config_dir() / "gitconfig"
    answered: list[str] = []
    if undo:
        changes = gitconfig.undo(where, owned, env=os.environ, cwd=Path.cwd())
    else:
        gitconfig.user_file(where, os.environ, Path.cwd())  # first: whether there is a repository costs no network
        helper = gitconfig.installed_helper()
        hosts, entries = _where_installed(host, owned, by_owner=not whole_host or identity or proactive or rewrite_ssh)
        owners = sorted({(entry["host"], entry["account"]) for entry in entries})
        identities = _identities(entries) if identity else {}
        text = gitconfig.render(
            owners,
            helper,
            all_owners_of=hosts if whole_host else (),
            identities={key: bot.path(owned) for key, bot in identities.items()},
            proactive=proactive,
            rewrite_ssh=rewrite_ssh,
        )
        changes = gitconfig.setup(
            where, text, owned, env=os.environ, cwd=Path.cwd(), identities=set(identities.values())
        )
        urls = [f"https://{name}/{owner}" for name, owner in owners]
        answered = [f"https://{name}" for name in sorted(hosts)] if whole_host else urls
    changes = [change for change in changes if change.is_needed]
    _carry_out(changes, dry_run=dry_run)
    for url in answered:
        say(f"{url} {'would be' if dry_run and changes else 'is'} answered by ghapp")
    _warn_of_old_git(identity=identity, proactive=proactive)
    return answered


def _carry_out(changes: Sequence[Change], *, dry_run: bool) -> None:
    for change in changes:
        if dry_run:
            click.echo(change.diff())
        elif gitconfig.apply(change):
            say(f"{'removed' if change.after is None else 'wrote'} {change.path}")
    if not changes:
        say("nothing to change")


def _where_installed(host: str | None, owned: Path, *, by_owner: bool) -> tuple[set[str], Sequence[dict[str, Any]]]:
    """Return the hosts of the registered apps, and where these are installed if that matters."""
    hosts = {app.host for app in config.load(config.config_file()).apps}
    if host is not None:
        hosts &= {host}
    if not hosts:
        advice = "ghapp setup-git --undo" if owned.exists() and host is None else "ghapp app add --help"
        raise NotInstalled(f"no app is registered for {host or 'any host'}", hint=advice)
    if not by_owner:
        return hosts, ()
    entries = [entry for entry in call("installations") if entry["host"] in hosts]
    if not entries:
        raise NotInstalled("no app of yours is installed anywhere yet", hint="ghapp app show NAME has the link")
    return hosts, entries


def _identities(entries: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Identity]:
    """Ask GitHub for the bot of each owner: that of the first app that has tokens there."""
    found: dict[tuple[str, str], Identity] = {}
    bots: dict[str, Identity] = {}
    for entry in sorted(entries, key=lambda entry: bool(entry["suspended"])):
        key, app = (entry["host"], entry["account"]), entry["app"]
        if key in found:
            continue
        try:
            if app not in bots:
                answer = call("bot", app=app, owner=entry["account"])
                bots[app] = Identity(entry["host"], answer["login"], answer["id"])
        except GhappError as error:
            if error.code not in _NO_BOT_THERE:
                raise  # GitHub is down, say: what stands in the files already is better than nothing
            warn(f"{entry['account']} gets no identity: {error}")
            hint(error.hint)
        else:
            found[key] = bots[app]
            say(f"in repositories of {entry['account']} commits are by {bots[app].login} <{bots[app].email}>")
    return found


def _warn_of_old_git(*, identity: bool, proactive: bool) -> None:
    """Say what this git will not do: it ignores what it does not know, without a word."""
    for wanted, option, needed in ((identity, "--identity", HASCONFIG), (proactive, "--proactive", PROACTIVE)):
        if not wanted:
            continue
        found = gitconfig.git_version(os.environ, Path.cwd())
        if found < needed:
            warn(f"git {found[0]}.{found[1]} ignores {option}; git {needed[0]}.{needed[1]} is the first that knows it")
