"""``ghapp setup-git``."""

import os
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from ghapp import config, gitconfig, helper_chain
from ghapp.cli.daemon_client import call
from ghapp.cli.host import check_host
from ghapp.cli.installations import Unasked, ask_each
from ghapp.cli.output import FIRST, hint, say, warn
from ghapp.errors import GhappError, NotInstalled, PermissionMissing, Suspended
from ghapp.gitconfig import Change, Identity, Written


HASCONFIG = (2, 36)  # the first git that includes by a remote's URL
PROACTIVE = (2, 46)  # the first git that sends a credential unasked

_NO_BOT_THERE = {NotInstalled.code, PermissionMissing.code, Suspended.code}


def _check_hosts(ctx: click.Context, param: click.Parameter, hosts: Sequence[str]) -> tuple[str, ...]:
    return tuple(found for host in hosts if (found := check_host(ctx, param, host)))


@click.command(name="setup-git", short_help="Let git ask ghapp; --undo takes it out.")
@click.option("--global", "is_global", is_flag=True, help="In your own configuration (default).")
@click.option("--system", "is_system", is_flag=True, help="For everyone on this machine.")
@click.option("--local", "is_local", is_flag=True, help="For the repository here.")
@click.option("--all/--no-all", "whole_host", default=None, help="For all of the host, not by owner: bots, cargo.")
@click.option("--host", "hosts", multiple=True, callback=_check_hosts, help="Only this host; may be repeated.")
@click.option("--identity/--no-identity", default=None, help="Commit as the app's bot, in those owners' repositories.")
@click.option(
    "--proactive/--no-proactive", default=None, help="Send the token with the first request (git 2.46 or newer)."
)
@click.option("--rewrite-ssh/--no-rewrite-ssh", default=None, help="Serve those owners' git@HOST: remotes, too.")
@click.option("--undo", is_flag=True, help="Take it out again, byte for byte.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
def setup_git(
    *,
    is_global: bool,
    is_system: bool,
    is_local: bool,
    whole_host: bool | None,
    hosts: tuple[str, ...],
    identity: bool | None,
    proactive: bool | None,
    rewrite_ssh: bool | None,
    undo: bool,
    dry_run: bool,
) -> int:
    """Let git ask ghapp for the owners your apps are installed on.

    Whatever you use for the rest of github.com goes on working. Run it again
    after an app was installed somewhere, or when another tool took over: what
    you chose before stays as it is, and --no-identity takes that one out.

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
    if undo and (hosts or {identity, proactive, rewrite_ssh, whole_host} != {None}):
        raise click.UsageError("--undo takes everything out; it goes with a scope and --dry-run alone")
    answered, is_whole = configure(
        gitconfig.Scope.SYSTEM if is_system else gitconfig.Scope.LOCAL if is_local else gitconfig.Scope.GLOBAL,
        whole_host=whole_host,
        hosts=hosts,
        identity=identity,
        proactive=proactive,
        rewrite_ssh=rewrite_ssh,
        undo=undo,
        dry_run=dry_run,
    )
    if answered and is_whole and not dry_run:
        hint(f"git clone {answered[0]}/{'' if urlsplit(answered[0]).path else 'OWNER/'}REPOSITORY")
    return 0 if is_whole else 1


def configure(
    where: gitconfig.Scope,
    *,
    whole_host: bool | None = None,
    hosts: Sequence[str] = (),
    identity: bool | None = None,
    proactive: bool | None = None,
    rewrite_ssh: bool | None = None,
    undo: bool = False,
    dry_run: bool = False,
) -> tuple[list[str], bool]:
    """Do what ``setup-git`` does; return the URLs for which git asks ghapp now, and whether every app could be asked.

    What is None stays as an earlier run wrote it, and so do `hosts` if none is named. Raises `GhappError`.
    """
    owned = config.config_dir() / "gitconfig"
    if undo:
        with gitconfig.turn(owned.parent):
            _carry_out(gitconfig.undo(where, owned, env=os.environ, cwd=gitconfig.here()), dry_run=dry_run)
        return [], True
    gitconfig.user_file(where, os.environ, gitconfig.here())  # first: whether there is a repository costs no network
    helper = gitconfig.installed_helper()
    gitconfig.check_lasting(helper)  # before anything else is asked for: nothing that is done with it would last
    with gitconfig.turn(owned.parent):  # whoever runs at the same moment keeps what is chosen here
        return _configure(
            where,
            owned,
            helper,
            whole_host=whole_host,
            hosts=hosts,
            identity=identity,
            proactive=proactive,
            rewrite_ssh=rewrite_ssh,
            dry_run=dry_run,
        )


def _configure(
    where: gitconfig.Scope,
    owned: Path,
    helper: Path,
    *,
    whole_host: bool | None,
    hosts: Sequence[str],
    identity: bool | None,
    proactive: bool | None,
    rewrite_ssh: bool | None,
    dry_run: bool,
) -> tuple[list[str], bool]:
    before = gitconfig.written(where, owned, env=os.environ, cwd=gitconfig.here())
    chosen = _Chosen(
        all=bool(before.hosts) if whole_host is None else whole_host,
        identity=before.identity if identity is None else identity,
        proactive=before.proactive if proactive is None else proactive,
        rewrite_ssh=before.rewrite_ssh if rewrite_ssh is None else rewrite_ssh,
    )
    served, left_out = _hosts(hosts, before, owned)
    entries, unasked, still = _where_installed(served, before) if not chosen.all or chosen.is_by_owner else ((), (), ())
    owners = sorted({*((entry["host"], entry["account"]) for entry in entries), *still})
    bots, kept = _identities(entries, before) if chosen.identity else ({}, {})
    if chosen.identity:
        kept |= {key: path for key, path in before.identities.items() if key in still and path.is_file()}
    text = gitconfig.render(
        owners,
        helper,
        all_owners_of=served if chosen.all else (),
        identities=kept | {key: bot.path(owned) for key, bot in bots.items()},
        with_identity=chosen.identity,
        proactive=chosen.proactive,
        rewrite_ssh=chosen.rewrite_ssh,
        left_out=left_out,
    )
    changes = gitconfig.setup(
        where, text, owned, env=os.environ, cwd=gitconfig.here(), identities=set(bots.values()), keep=kept.values()
    )
    changes = [change for change in changes if change.is_needed]
    _carry_out(changes, dry_run=dry_run)
    if not dry_run:
        helper_chain.read(os.environ, gitconfig.here())  # where git cannot, it does nothing at all, and says why
    urls = [f"https://{host}/{owner}" for host, owner in owners]
    answered = [f"https://{host}" for host in sorted(served)] if chosen.all else urls
    for url in answered:
        say(f"{url} {'would be' if dry_run and changes else 'is'} answered by ghapp")
    _say_what_went(where, before, gitconfig.read_back(text), dry_run=dry_run)
    _warn_of_old_git(identity=bool(identity), proactive=bool(proactive))
    for each in unasked:
        warn(f"{each.app} could not be asked where it is installed, what was written for it stays: {each.error}")
        hint(each.error.hint)
    return answered, not unasked


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is wanted, by this command line or an earlier one."""

    all: bool
    identity: bool
    proactive: bool
    rewrite_ssh: bool

    @property
    def is_by_owner(self) -> bool:
        """Whether the owners matter, also where all of a host is ours."""
        return self.identity or self.proactive or self.rewrite_ssh


def _say_what_went(where: gitconfig.Scope, before: Written, now: Written, *, dry_run: bool) -> None:
    """Name what stood there and does not any more, in one line, with the command that puts it back."""
    served = _registered_hosts()
    options = [
        option
        for option, was, is_ in (
            ("--all", before.hosts, now.hosts),
            ("--identity", before.identity, now.identity),
            ("--proactive", before.proactive, now.proactive),
            ("--rewrite-ssh", before.rewrite_ssh, now.rewrite_ssh),
        )
        if was and not is_
    ]
    back = list(options)
    if gone := sorted(before.all_hosts & served - now.all_hosts):
        options += gone
        back += [f"--host {host}" for host in sorted({*gone, *now.all_hosts})]
    if options:
        went = "would be taken out" if dry_run else "was taken out"
        scope = "" if where is gitconfig.Scope.GLOBAL else f"--{where.value} "
        say(f"{', '.join(options)} {went}; this puts it back: ghapp setup-git {scope}{' '.join(back)}")


def _carry_out(changes: Sequence[Change], *, dry_run: bool) -> None:
    for change in changes:
        if dry_run:
            click.echo(change.diff())
        elif gitconfig.apply(change):
            say(f"{'removed' if change.after is None else 'wrote'} {change.path}")
    if not changes:
        say("nothing to change")


def _registered_hosts() -> set[str]:
    return {app.host for app in config.load(config.config_file()).apps}


def _hosts(named: Sequence[str], before: Written, owned: Path) -> tuple[set[str], set[str]]:
    """Return the hosts of registered apps that git is to ask us for, and those left out, now or before."""
    registered = _registered_hosts()
    served = registered & set(named) if named else registered - before.left_out or registered
    if not served:
        first = "ghapp app add --help" if named else FIRST
        advice = "ghapp setup-git --undo" if owned.exists() and not named else first
        raise NotInstalled(f"no app is registered for {' or '.join(named) or 'any host'}", hint=advice)
    left_out = registered - served
    if left_out and not named:
        every = " ".join(f"--host {host}" for host in sorted(registered))
        say(f"{', '.join(sorted(left_out))} stays left out, as chosen before; to have it: ghapp setup-git {every}")
    return served, left_out


def _where_installed(
    hosts: Container[str], before: Written
) -> tuple[Sequence[dict[str, Any]], Sequence[Unasked], Sequence[tuple[str, str]]]:
    """Return where the apps of `hosts` are installed, those that cannot be asked, and owners that stay for these."""
    found, dead = ask_each(update=False)
    entries = [entry for entry in found if entry["host"] in hosts]
    unasked = [each for each in dead if each.host in hosts]
    names, known = {each.app for each in unasked}, {(entry["host"], entry["account"].lower()) for entry in entries}
    apps = [app for app in config.load(config.config_file()).apps if app.name in names]
    still = [
        (host, owner)
        for host, owner in before.owners
        if (host, owner.lower()) not in known and any(app.serves(host, owner) for app in apps)
    ]
    if unasked and not entries and not still:
        raise unasked[0].error
    if not entries and not still:
        raise NotInstalled("no app of yours is installed anywhere yet", hint="ghapp app show NAME")
    return entries, unasked, still


def _identities(
    entries: Sequence[dict[str, Any]], before: Written
) -> tuple[dict[tuple[str, str], Identity], dict[tuple[str, str], Path]]:
    """Ask GitHub for the bot of each owner: that of the first app that has tokens there; else what it has stays."""
    found: dict[tuple[str, str], Identity] = {}
    kept: dict[tuple[str, str], Path] = {}
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
            if key in before.identities and before.identities[key].is_file():
                kept[key] = before.identities[key]
                continue
            warn(f"{entry['account']} gets no identity: {error}")
            hint(error.hint)
        else:
            found[key] = bots[app]
            say(f"in repositories of {entry['account']} commits are by {bots[app].login} <{bots[app].email}>")
    return found, kept


def _warn_of_old_git(*, identity: bool, proactive: bool) -> None:
    """Say what this git will not do: it ignores what it does not know, without a word."""
    for wanted, option, needed in ((identity, "--identity", HASCONFIG), (proactive, "--proactive", PROACTIVE)):
        if not wanted:
            continue
        found = gitconfig.git_version(os.environ, gitconfig.here())
        if found < needed:
            warn(f"git {found[0]}.{found[1]} ignores {option}; git {needed[0]}.{needed[1]} is the first that knows it")
