"""``ghapp setup``: from nothing to a git that pushes as a bot, one step after the other.

Each step is what a command of its own does, and looks first whether it is done already. Nothing else is remembered:
whatever ends a run, the next one finds what is there and goes on behind it.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from ghapp import autostart, config, gitconfig, service
from ghapp.cli import app as app_commands
from ghapp.cli import app_create, checks
from ghapp.cli import daemon as daemon_commands
from ghapp.cli import key as key_commands
from ghapp.cli.app_create import Created, KeyPlace
from ghapp.cli.checks import git as git_checks
from ghapp.cli.daemon_client import call, call_if_running
from ghapp.cli.doctor import diagnose
from ghapp.cli.host import check_host
from ghapp.cli.installations import left_out
from ghapp.cli.key_import import check_directory
from ghapp.cli.output import hint, say, say_error, typed, warn
from ghapp.cli.setup_git import configure
from ghapp.cli.token import parse_permissions
from ghapp.errors import (
    AppRejected,
    DaemonFailed,
    GhappError,
    GitConfigFailed,
    KeyMissing,
    KeyringAbsent,
    KeyUnavailable,
    NotInstalled,
    UsageError,
)
from ghapp.keystore import KeyStore
from ghapp.manifest import Registered, check_organization
from ghapp.routing import App


Answer = TypeVar("Answer")

INTRODUCTION = (
    "A GitHub App will be your bot: setup creates or imports it, has it installed on your",
    "account, lets git push as it, and checks that. Enter takes what stands in [brackets].",
)
_ANOTHER_KEY_HELPS = {AppRejected.code, KeyMissing.code, KeyUnavailable.code}


@dataclass(frozen=True, slots=True)
class Answers:
    """What the options say; None where a person has to be asked."""

    create: bool
    org: str
    name: str | None
    permissions: Mapping[str, str]
    no_browser: bool
    app_id: int | None
    client_id: str
    key: str | None
    delete_key_file: bool
    signer: str | None
    host: str | None
    no_install_wait: bool
    wait: float
    by_owner: bool | None
    identity: bool | None
    no_git: bool
    no_network: bool
    service: bool | None
    no_doctor: bool
    yes: bool

    @property
    def names_an_app(self) -> bool:
        """Whether the app is one that there is on GitHub."""
        return self.app_id is not None or bool(self.client_id)

    @property
    def wants_import(self) -> bool:
        """Whether an app is to be imported."""
        return self.names_an_app or self.key is not None

    @property
    def wants_new(self) -> bool:
        """Whether an app is to be created."""
        return self.create or bool(self.org) or self.name is not None or bool(self.permissions)

    @property
    def asks(self) -> bool:
        """Whether there is somebody to ask, who wants to be asked."""
        return not self.yes and is_terminal()

    @property
    def new_host(self) -> str:
        """The host of an app that is not registered yet."""
        return self.host or config.GITHUB


@dataclass(frozen=True, slots=True)
class Bot:
    """An app that is registered, and what GitHub says of it."""

    known: App
    html_url: str
    installations: Sequence[Mapping[str, Any]] = ()
    by_browser: bool = False
    """Whether a browser could be opened for it a moment ago."""


@click.command(short_help="The guided way: from nothing to git push.")
@click.option("--create", is_flag=True, help="Create an app, in the browser.")
@click.option("--org", default="", metavar="ORG", help="Create it for an organisation, not for yourself.")
@click.option("--name", metavar="NAME", help="What the new app is to be called.")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    callback=parse_permissions,
    metavar="K=V",
    help="For the new app, beyond contents=write.",
)
@click.option("--no-browser", is_flag=True, help="Print addresses instead of opening them.")
@click.option("--app-id", type=app_commands.AppId(min=1), metavar="N", help="Import this app, by its numeric ID.")
@click.option("--client-id", default="", metavar="ID", help="Import this app, by its client ID.")
@click.option("--key", type=click.Path(), metavar="FILE", help="Its private key, as downloaded; - reads stdin.")
@click.option("--delete-key-file", is_flag=True, help="Delete FILE once its key is stored.")
@click.option("--signer", metavar="S", help="Where the key is to be: keyring (default) or file:PATH.")
@click.option("--host", metavar="HOST", callback=check_host, help="SUB.ghe.com or your server, instead of github.com.")
@click.option("--no-install-wait", is_flag=True, help="Do not wait until the app is installed.")
@click.option(
    "--wait",
    default="10m",
    show_default=True,
    callback=app_create.parse_wait,
    metavar="TIME",
    help="For the browser, and then for the installation.",
)
@click.option("--owners/--all", "by_owner", default=None, help="git asks for those owners, or for all of the host.")
@click.option("--identity/--no-identity", default=None, help="Commit as the bot in those owners' repositories.")
@click.option("--no-git", is_flag=True, help="Leave git's configuration alone.")
@click.option("--no-network", is_flag=True, help="Do not keep this shell's proxy and CA.")
@click.option("--service/--no-service", default=None, help="Have systemd start the daemon (where it runs).")
@click.option("--no-doctor", is_flag=True, help="Do not check at the end.")
@click.option("--yes", is_flag=True, help="Ask nothing; take the defaults.")
@click.pass_context
def setup(ctx: click.Context, /, **given: Any) -> int:
    """Set everything up, step by step; run it again at any time.

    The app (created in the browser, or imported), its installation, git, the
    daemon's service, and a check of all that. What is done already is skipped.
    Every answer can be an option; --yes takes the defaults for the rest. The
    steps are commands, too: app create, app add, setup-git, daemon install,
    doctor.

    \b
    Examples:
      ghapp setup
      ghapp setup --yes --app-id 4242 --key acme-bot.pem
    """
    answers = Answers(**given)
    registered = _registered(answers)
    _check(answers, registered)
    _check_machine(answers)
    try:
        return _walk(ctx, answers, registered)
    except (click.Abort, KeyboardInterrupt):
        say("")
        say_error("interrupted; what is done stays")
        hint(f"to go on from here: {typed()}")
        return 130
    except GhappError as error:
        say_error(str(error))
        hint(error.hint)
        if "ghapp setup " not in f"{error.hint} ":
            hint(f"then, to go on from here: {typed()}")
        return 2 if error.code == UsageError.code else 1


def is_terminal() -> bool:
    """Tell whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _registered(answers: Answers) -> list[App]:
    """Return the apps that are meant, of those that are registered."""
    return [
        app
        for app in config.load(config.config_file()).apps
        if answers.host in {None, app.host}
        and answers.app_id in {None, app.app_id}
        and answers.client_id in {"", app.client_id}
    ]


def _check(answers: Answers, registered: Sequence[App]) -> None:
    """Find out what is wrong before anything is done. Raises `click.UsageError` and `GhappError`."""
    if answers.wants_new and answers.wants_import:
        raise click.UsageError("--app-id, --client-id and --key import an app; they do not go with a new one")
    if answers.app_id is not None and answers.client_id:
        raise click.UsageError("give --client-id or --app-id, one of them")
    if answers.no_git and (answers.by_owner is not None or answers.identity):
        raise click.UsageError("--no-git does not go with --owners, --all and --identity")
    has_app = bool(registered) or answers.wants_new or answers.names_an_app
    if not has_app and not is_terminal():
        raise UsageError(
            "which app? there is no terminal to ask on",
            hint=f"one that is: {typed(yes=True, app_id='N', key='FILE')}; a new one: {typed(yes=True, create=True)}",
        )
    if answers.key is not None and not answers.names_an_app and not answers.asks:
        raise click.UsageError("--key goes with --app-id or --client-id")
    if not registered and answers.names_an_app and not (answers.asks or answers.key or answers.signer):
        raise click.UsageError("give the app's key: --key FILE, or --signer file:PATH where one lies")
    if not registered:
        _check_answers(answers)


def _check_answers(answers: Answers, owners: Sequence[tuple[str, str]] = ()) -> None:
    """Find out before the wait for an installation whether git's step will have its answers. Raises `UsageError`."""
    if answers.yes or answers.no_git or is_terminal() or _git_is_done(answers, owners):
        return
    missing = [
        option
        for option, given in (
            ("--owners or --all", answers.by_owner),
            ("--identity or --no-identity", answers.identity),
        )
        if given is None
    ]
    if missing:
        raise UsageError(
            f"there is no terminal to ask on; give {', and '.join(missing)}",
            hint=f"with the defaults: {typed(yes=True)}",
        )


def _check_machine(answers: Answers) -> None:
    """Find out what would stop a later step. Raises `GhappError`."""
    gitconfig.here()
    if autostart.is_throw_away(sys.prefix):
        raise DaemonFailed(f"{sys.prefix} lies in a throw-away cache", hint="uv tool install ghapp")
    for check in git_checks.check_version(checks.here()):
        if check.status == checks.FAIL:
            raise GitConfigFailed(check.message, hint=check.hint)
    if not answers.no_git:
        gitconfig.installed_helper()


def _walk(ctx: click.Context, answers: Answers, registered: Sequence[App]) -> int:
    if is_terminal():
        for line in INTRODUCTION:
            say(line)
    if not answers.no_network:
        _keep_network(answers)
    bots = _take_registered(answers, registered)
    if bots:
        _say_what_was_not_used(answers, bots)
        _check_answers(answers, _owners(entry for bot in bots for entry in bot.installations))
    bots = bots or [_new_bot(answers)]
    installations = _installations(answers, bots)
    asks_us = _git(answers, installations)
    _daemon(ctx, answers)
    repository = _first_repository(installations)
    status = 0 if answers.no_doctor else _prove(repository, with_git=asks_us)
    if status == 0 and installations and asks_us:
        entry = installations[0]
        hint(f"git clone https://{entry['host']}/{repository or entry['account'] + '/REPOSITORY'}")
    return status


# The way to GitHub


def _keep_network(answers: Answers) -> None:
    """Write the proxy and the CA of this shell down: the daemon may be started where nobody has set them."""
    # Imported here: this costs a quarter of a second, which --help and wrong usage need not pay.
    from ghapp.network import is_inherited, network_from  # noqa: PLC0415  # as said

    configured = dict(config.load(config.config_file()).network)
    here, there = network_from(os.environ, {}), network_from({}, configured)
    offers = (
        ("proxy", there.proxy_name, here.proxy_name, here.proxy_origin, "@" not in here.proxy),
        ("ca_file", there.ca_file, here.ca_file, "SSL_CERT_FILE", True),
    )
    for key, before, now, variable, can_be_kept in offers:
        if before and now and before != now:
            fact = f"network.{key} in {config.config_file()} is {before}, {variable} of this shell {now}"
            if _replaces(fact, asks=answers.asks and can_be_kept):
                configured |= {key: ""} | ({"no_proxy": ""} if key == "proxy" else {})
    found = network_from(os.environ, configured)
    keep: dict[str, str] = {}
    if found.proxy and is_inherited(found.proxy_origin):
        if "@" in found.proxy:
            warn(f"the proxy in {found.proxy_origin} has a password, which setup does not write down")
            hint(f"the daemon knows it where a shell that has it starts it; or edit {config.config_file()}")
        else:
            keep["proxy"] = found.proxy
            keep |= {"no_proxy": found.no_proxy} if found.no_proxy else {}
    if found.ca_origin and is_inherited(found.ca_origin):
        keep |= {
            key: value for key, value in (("ca_file", found.ca_file), ("ca_directory", found.ca_directory)) if value
        }
    if not keep:
        return
    config.edit(config.config_file(), lambda document: document.setdefault("network", {}).update(keep))
    call_if_running("reload")
    say(f"0. The way to GitHub: {_listed(list(keep))} of this shell, kept in {config.config_file()}")


def _replaces(fact: str, *, asks: bool) -> bool:
    """Ask whether this shell's setting is to replace the configured one; where nobody can be asked, a line says so."""
    if not asks:
        warn(f"{fact}; the configured one is used")
        hint(f"if that is the old one: edit {config.config_file()}, then: ghapp daemon restart")
        return False
    say(f"0. The way to GitHub: {fact}")
    return _choose("Which one shall ghapp use?", ("configured", "shell"), "configured") == "shell"


# The app


def _take_registered(answers: Answers, registered: Sequence[App]) -> list[Bot]:
    """Ask GitHub about the apps that are registered; none where there is none, or a new key was given for it."""
    bots, problems = [], []
    for app in registered:
        try:
            found = app_commands.verify_app(app)
        except GhappError as error:
            problems.append((app, error))
        else:
            served = _served(app, found["installations"])
            if found["installations"] and not served:
                problems.append((app, left_out(app, [str(entry["account"]) for entry in found["installations"]])))
            else:
                bots.append(Bot(app, found["html_url"], served))
    if problems and not bots and not (answers.wants_import and problems[0][1].code in _ANOTHER_KEY_HELPS):
        raise problems[0][1]
    for app, problem in problems:
        warn(f"{app.name}: {problem}")
        hint(problem.hint)
    if bots:
        names = _listed([bot.known.name for bot in bots])
        say(f"1. The app: {names} {'is' if len(bots) == 1 else 'are'} registered, and GitHub accepts {_whose(bots)}")
    if bots and answers.wants_new:
        hint("for another one: ghapp app create" + (f" --org {answers.org}" if answers.org else ""))
    return bots


def _listed(names: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _whose(bots: Sequence[Bot]) -> str:
    return "its key" if len(bots) == 1 else "a key of each"


def _say_what_was_not_used(answers: Answers, bots: Sequence[Bot]) -> None:
    """Tell who gave a key what became of it, where the app is registered: it has one that works."""
    if answers.key is None and answers.signer in {None, "keyring"}:
        return
    problem, there, apps = "", None, [bot.known for bot in bots]
    try:
        there = key_commands.find_key(apps, answers.key, answers.signer)
    except (GhappError, click.UsageError) as error:
        problem = f"; {error.message}"
    if there is not None:
        say(f"   {there.app.name} has the key {there.fingerprint} already, as {there.reference}")
        if answers.delete_key_file and answers.key is not None:
            key_commands.delete_copy(there, answers.key)
        return
    if answers.delete_key_file and answers.key is not None and not os.path.lexists(answers.key):
        return  # an earlier run stored it, and deleted it as it was told
    used = answers.key if answers.key is not None else answers.signer
    given = [] if answers.key is None else ["FILE" if problem else answers.key]
    name = apps[0].name if len(apps) == 1 else "NAME"
    names = _listed([app.name for app in apps])
    warn(f"{used} was not used: {names} {'has a key that works' if len(apps) == 1 else 'have keys that work'}{problem}")
    words = ["ghapp", "key", "add", *given, "--app", name, *(["--signer", answers.signer] if answers.signer else [])]
    hint(f"to add it: {shlex.join(words)}" + (" < FILE" if "-" in given else ""))


def _served(app: App, installations: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the installations that the app answers for, as `call("installations")` tells them."""
    return [
        {**entry, "host": app.host, "app": app.name}
        for entry in installations
        if app.serves(app.host, str(entry["account"]))
    ]


def _new_bot(answers: Answers) -> Bot:
    say("1. The app: who the bot is")
    creates = answers.wants_new
    if answers.asks and not creates and not answers.wants_import:
        question = "Create an app in the browser, or import one that there is?"
        creates = _choose(question, ("create", "import"), "create") == "create"
    elif not answers.wants_import:
        creates = True
    return _create(answers) if creates else _import(answers)


def _create(answers: Answers) -> Bot:
    organization = answers.org
    if answers.asks and not organization:
        organization = _ask("Whose? Enter for yours, or an organisation's name", _read_organization)
    draft = app_create.new_draft(answers.name, organization, answers.new_host, answers.permissions)
    place = _place(answers, draft.name, is_new=True)
    created = app_create.create_app(draft, place, browser=not answers.no_browser, limit=answers.wait)
    report = created.report()
    created.registered = replace(created.registered, pem=b"")  # stored; the wait may be long
    assert created.known is not None  # noqa: S101  # for mypy
    app_commands.report_configured(created.known)
    click.echo(f"fingerprint  {report['fingerprint']}")
    if created.interrupted:
        raise click.Abort
    return Bot(created.known, created.registered.html_url, by_browser=created.by_browser)


def _read_organization(text: str) -> str:
    return check_organization(text) if text else ""


def _import(answers: Answers) -> Bot:
    app_id, client_id, key = answers.app_id, answers.client_id, answers.key
    asks_id = answers.asks and not answers.names_an_app
    asks_key = answers.asks and answers.key is None and not _lies_there(answers.signer)
    while True:
        if asks_id:
            app_id, client_id = _ask(
                "App ID or client ID, from its page on GitHub",
                _read_issuer,
                default=client_id or str(app_id or "") or None,
            )
        if asks_key:
            key = _ask("Its private key, the .pem downloaded there", _read_file, default=key or _downloaded())
        try:
            signer = answers.signer or _place(answers, client_id or str(app_id), is_new=False).reference
            found, known = app_commands.add_app(
                client_id=client_id,
                app_id=app_id,
                key=key,
                signer=signer,
                host=answers.new_host,
                delete_key_file=answers.delete_key_file,
            )
        except GhappError as error:
            if not asks_id and not asks_key:
                raise
            say_error(str(error))
            hint(error.hint)
            continue
        app_commands.report_configured(known)
        click.echo(f"fingerprint  {found['fingerprint']}")
        if not answers.delete_key_file:
            app_commands.hint_at_copy(key, known)
        return Bot(known, found["html_url"], _served(known, found["installations"]))


def _lies_there(signer: str | None) -> bool:
    """Tell whether `signer` names a file that holds a key already."""
    kind, _, path = (signer or "").partition(":")
    return kind == "file" and Path(path).expanduser().is_file()


def _read_issuer(text: str) -> tuple[int | None, str]:
    if text.isdecimal() and int(text):
        return int(text), ""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]+", text):
        raise click.UsageError(f"{text!r} is neither a number nor a client ID such as Iv23li…")
    return None, text


def _read_file(text: str) -> str:
    path = Path(text.strip("'\"")).expanduser()  # terminals quote what is dropped on them
    if not path.is_file():
        raise click.UsageError(f"{path} is a directory" if path.is_dir() else f"there is no file {path}")
    return str(path)


def _downloaded() -> str | None:
    """Return the key that was downloaded last, by the name that GitHub gives them."""
    found = [path for path in Path("~/Downloads").expanduser().glob("*.private-key.pem") if path.is_file()]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def _place(answers: Answers, stem: str, *, is_new: bool) -> KeyPlace:
    """Return where the key goes: into the keyring, and only where that cannot be into a file that somebody named."""
    store = KeyStore(config.load(config.config_file()).keyring_backend)
    place = app_create.key_place(answers.signer, store)
    file = config.config_dir() / "keys" / f"{stem}.pem"
    while place.reference == "keyring":
        try:
            place.check(answers.new_host)
        except KeyUnavailable as error:
            if not answers.asks:
                first = "" if error.code == KeyringAbsent.code else "unlock the keyring, or: "
                raise type(error)(error.message, hint=first + typed(signer=f"file:{file}")) from None
            say(f"The key cannot go into the keyring: {error}.")
            default = str(file) if error.code == KeyringAbsent.code else "keyring"
        else:
            return place
        question = "A file for it, which you alone can read; or keyring, to try again"

        def read(text: str) -> KeyPlace:
            signer = "keyring" if text == "keyring" else f"file:{text.removeprefix('file:')}"
            if signer != "keyring" and "/" not in signer:  # "y" is no place for a key
                raise click.UsageError(f"{text!r} is no path with a slash in it")
            chosen = app_create.key_place(signer, store)
            if signer != "keyring":
                check_directory(Path(signer.removeprefix("file:")).expanduser().absolute())
            if is_new and signer != "keyring":
                chosen.check(answers.new_host)
            return chosen

        place = _ask(question, read, default=default)
    return place


# Where it is installed


def _installations(answers: Answers, bots: Sequence[Bot]) -> list[Mapping[str, Any]]:
    found = [entry for bot in bots for entry in bot.installations]
    if found:
        say(f"2. The installation: {_described(found)}")
        return found
    bot, *_ = bots
    link = f"{bot.html_url}/installations/new"
    say("2. The installation: which repositories the bot may reach")
    say(f"   choose them there: {link}")
    if not answers.no_install_wait:
        if not answers.no_browser and (bot.by_browser or (is_terminal() and app_create.can_open_browser(os.environ))):
            app_create.start_browser(link)
        found = _served(bot.known, app_create.wait_for_installation(_as_created(bot), answers.wait))
    if not found and not answers.no_git and answers.by_owner is not False:
        raise NotInstalled(f"{bot.known.name} is not installed yet", hint=f"install it: {link}, then: {typed()}")
    if found:
        say(f"   {_described(found)}")
    return found


def _as_created(bot: Bot) -> Created:
    known = bot.known
    slug = bot.html_url.rpartition("/")[2]
    registered = Registered(known.app_id or 0, known.client_id, slug, known.name, "", known.host, False, b"")  # noqa: FBT003  # whose it is does not matter here
    return Created(registered, known)


def _described(installations: Iterable[Mapping[str, Any]]) -> str:
    places = (f"on {entry['account']} ({entry['repository_selection']} repositories)" for entry in installations)
    return ", ".join(places)


def _first_repository(installations: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a repository to try, OWNER/REPO, on the host that doctor takes; None if nobody tells one."""
    for entry in installations:
        if entry["host"] != installations[0]["host"]:
            continue
        try:
            page = call("repos", app=entry["app"], owner=entry["account"], page=1)
        except GhappError:
            continue
        if page["repositories"]:
            return str(page["repositories"][0]["repository"])
    return None


# git


def _git(answers: Answers, installations: Sequence[Mapping[str, Any]]) -> bool:
    """Have git set up; tell whether it asks ghapp now, by this run or an earlier one."""
    owners = _owners(installations)
    if answers.no_git:
        return _asks_us(owners)
    names = _listed([owner for _, owner in owners] or [""])
    if _git_is_done(answers, owners):
        say(f"3. git: it asks ghapp for {names}")
        return True
    say("3. git: whom it asks for a credential")
    whole_host = None if answers.by_owner is None else not answers.by_owner
    if answers.asks and answers.by_owner is None:
        hosts = " and ".join(sorted({host for host, _ in owners}))
        question = f"Shall git ask ghapp for {names} alone, or for all of {hosts}?"
        way = _choose(question, ("owners", "all", "skip"), "owners")
        if way == "skip":
            return _asks_us(owners)
        whole_host = way == "all"
    identity = answers.identity
    if identity is None and owners:
        proposed = not _has_email()
        identity = proposed or None  # what an earlier run wrote stays
        if answers.asks:
            identity = _choose("Commit as the bot there?", ("yes", "no"), "yes" if proposed else "no") == "yes"
    configure(gitconfig.Scope.GLOBAL, whole_host=whole_host, identity=identity)
    return True


def _owners(installations: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return sorted({(str(entry["host"]), str(entry["account"])) for entry in installations})


def _git_is_done(answers: Answers, owners: Sequence[tuple[str, str]]) -> bool:
    """Tell whether git is set up for each owner, and nobody wants it otherwise."""
    return answers.by_owner is None and answers.identity is None and _asks_us(owners)


def _asks_us(owners: Sequence[tuple[str, str]]) -> bool:
    """Tell whether git asks ghapp alone for each owner already."""
    if not owners:
        return False
    ground = checks.here()
    ground.owners = list(owners)
    found = [check for check in git_checks.check_helpers(ground) if check.name.startswith("helpers")]
    return all(check.status == checks.OK for check in found)


def _has_email() -> bool:
    """Tell whether git knows whose commits they are; without that it refuses to commit."""
    if os.environ.get("GIT_AUTHOR_EMAIL") or os.environ.get("EMAIL"):
        return True
    done = subprocess.run(("git", "config", "user.email"), capture_output=True, check=False)  # noqa: S607  # the user's git
    return bool(done.stdout.strip())


# The daemon, and the proof


def _daemon(ctx: click.Context, answers: Answers) -> None:
    by_itself = "4. The daemon: git starts it when it needs it"
    if answers.service is False:
        say(by_itself)
        return
    try:
        service.manager()
    except DaemonFailed:
        if answers.service:
            raise
        say(by_itself)
        return
    if answers.service is None and len(service.installed()) == len(service.UNITS):
        say("4. The daemon: systemd starts it")
        return
    say("4. The daemon: systemd starts it, and 'ghapp daemon uninstall' undoes that")
    try:
        ctx.invoke(daemon_commands.install, now=True)
    except DaemonFailed as error:
        if answers.service:
            raise
        warn(str(error))
        hint(error.hint)


def _prove(repository: str | None, *, with_git: bool) -> int:
    say("5. The check: ghapp doctor" + (f" {repository}" if repository and with_git else ""))
    return diagnose(repository if with_git else None, with_git=with_git)


# Questions


def _ask(question: str, read: Callable[[str], Answer], *, default: str | None = "") -> Answer:
    """Ask until the answer can be used; Enter takes the default. Raises `click.Abort`."""
    while True:
        text = click.prompt(f"   {question}", default=default, show_default=bool(default), err=True)
        try:
            return read(str(text).strip())
        except (click.UsageError, GhappError) as error:
            say_error(error.message)


def _choose(question: str, choices: Sequence[str], default: str) -> str:
    def read(text: str) -> str:
        found = [choice for choice in choices if text and choice.startswith(text.lower())]
        if len(found) != 1:
            raise click.UsageError(f"the answer is one of {', '.join(choices)}")
        return found[0]

    return _ask(f"{question} ({'/'.join(choices)})", read, default=default)
