"""``ghapp key``."""

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ghapp import config
from ghapp.cli.daemon_client import call, call_if_running
from ghapp.cli.key_import import (
    forget_keyring_keys,
    hint_at_orphan,
    offering_a_file,
    read_pem,
    store_pem_in_file,
    store_pem_in_keyring,
)
from ghapp.cli.output import (
    FIRST,
    Group,
    confirm,
    hint,
    json_option,
    print_json,
    print_table,
    say,
    say_no_app,
    typed,
    warn,
)
from ghapp.errors import (
    AppRejected,
    ConfigError,
    DaemonFailed,
    GhappError,
    KeyUnavailable,
    RuntimeDirectoryRefused,
    UsageError,
)
from ghapp.keystore import KeyStore
from ghapp.private_key import fingerprint as fingerprint_of
from ghapp.private_key import load_key
from ghapp.routing import App
from ghapp.signers import open_signer
from ghapp.signers.file import read_key_file


HASH = "SHA256:"  # what a fingerprint begins with; nobody has to type it
ACCEPTED, REJECTED, UNAVAILABLE, UNKNOWN = "accepted", "rejected", "unavailable", "unknown"
_NOBODY_ASKED = {DaemonFailed.code, RuntimeDirectoryRefused.code}
_KEY_CODES = {KeyUnavailable.code, ConfigError.code, *(cls.code for cls in KeyUnavailable.__subclasses__())}


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of one app, as configured."""

    app: App
    reference: str
    fingerprint: str
    """Empty where it cannot be told: the key of a file that is gone."""
    problem: GhappError | None = None
    """Why the key cannot be used on this machine, if it was tried."""

    @property
    def name(self) -> str:
        """How the key is called in a sentence."""
        return self.fingerprint or self.reference


def _apps(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of the apps, for the shell."""
    return [CompletionItem(app.name) for app in _configured() if app.name.startswith(incomplete)]


def _fingerprints(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the fingerprints of the keys, for the shell: all begin alike, with what nobody has to type."""
    whole = [entry.fingerprint for app in _configured() for entry in _entries(app) if entry.fingerprint]
    names = [*(name.removeprefix(HASH) for name in whole), *(whole if incomplete else ())]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _configured() -> tuple[App, ...]:
    try:
        return config.load(config.config_file()).apps
    except ConfigError:
        return ()  # the shell has no place for the reason


app_option = click.option("--app", "name", metavar="NAME", shell_complete=_apps, help="The app; needed with several.")
every_app_option = click.option("--app", "name", metavar="NAME", shell_complete=_apps, help="Only this app.")


@click.group(cls=Group)
def key() -> None:
    """Add, list, verify and remove the keys of an app.

    An app may have several keys: the first that works is used. So a key is
    replaced without a pause: make a new one on the app's page, add it here,
    delete the old one on the page, and remove it here.

    \b
    Example:
      ghapp key add acme-bot.2027.pem --app acme-bot --delete-key-file
    """


@key.command()
@click.argument("file", required=False, type=click.Path())
@app_option
@click.option("--signer", metavar="S", help="Where the key is to be: keyring (default) or file:PATH.")
@click.option("--no-verify", is_flag=True, help="Do not ask GitHub whether it accepts the key.")
@click.option("--delete-key-file", is_flag=True, help="Delete FILE once its key is stored.")
@json_option
def add(
    *, file: str | None, name: str | None, signer: str | None, no_verify: bool, delete_key_file: bool, as_json: bool
) -> None:
    """Add a key to an app that has one, and check it with GitHub.

    FILE is the private key that GitHub let you download; - reads stdin. The
    keys that the app has stay, and go on working.

    \b
    Examples:
      ghapp key add new.pem --app acme-bot --delete-key-file
      ghapp key add --app acme-bot --signer file:/run/secrets/new.pem
    """
    app = _the_app(name)
    if delete_key_file and file in {None, "-"}:
        raise click.UsageError("--delete-key-file goes with FILE")
    target = _target(signer, file)
    if delete_key_file and target is not None and _is_same(str(file), target):
        raise click.UsageError("--delete-key-file would delete the key itself: --signer names the same file")
    source, pem = ("stdin" if file == "-" else str(file or target)), _read(file, target)
    found = fingerprint_of(load_key(pem, source=source))
    store = KeyStore(config.load(config.config_file()).keyring_backend)
    there = next((entry for entry in _entries(app) if entry.fingerprint == found), None)
    if there is not None and _problem(there, store) is None:
        _finish_known(there, file, delete=delete_key_file, as_json=as_json)
        return
    with offering_a_file(app):
        stored = (
            store_pem_in_keyring(pem, app, store, source=source)
            if target is None
            else store_pem_in_file(pem, target, source=source)
        )
    try:
        if not no_verify:
            _ask(app, stored.reference)
        config.add_key(config.config_file(), app.name, stored.reference)
    except BaseException:
        stored.take_back()
        raise
    call_if_running("reload")
    if delete_key_file and file is not None:
        Path(file).unlink()
    if as_json:
        print_json({"app": app.name, "fingerprint": found, "signer": stored.reference, "added": True})
        return
    click.echo(f"app          {app.name}")
    click.echo(f"signer       {stored.reference}")
    click.echo(f"fingerprint  {found}")
    if no_verify:
        hint("nothing was checked; 'ghapp key verify' asks GitHub")
    if file not in {None, "-"} and not delete_key_file and not _is_same(str(file), target):
        hint(f"the key is stored; {file} can go: rm {shlex.quote(str(file))}")


def _finish_known(there: Entry, file: str | None, *, delete: bool, as_json: bool) -> None:
    """Say that the key is one of the app's; nothing else has to be done."""
    path = there.reference.removeprefix("file:")
    if delete and file is not None and _is_same(file, path):
        raise click.UsageError(f"--delete-key-file would delete the key itself: {there.app.name} uses it there")
    if delete and file is not None:
        Path(file).unlink()
    if as_json:
        details = {"app": there.app.name, "fingerprint": there.fingerprint, "signer": there.reference}
        print_json(details | {"added": False})
    else:
        say(f"{there.app.name} has the key {there.fingerprint} already, as {there.reference}; nothing was changed")


def find_key(apps: Sequence[App], file: str | None, signer: str | None) -> Entry | None:
    """Return the entry that `apps` have for the key in `file`, or where `signer` says; None if there is none.

    Raises `KeyUnavailable` and `click.UsageError` if that key cannot be told.
    """
    if file == "-" and sys.stdin.isatty():
        return None  # nobody was asked to paste it
    entries = [entry for app in apps for entry in _entries(app)]
    if file is None and str(signer).startswith("keyring:"):
        return next((entry for entry in entries if entry.reference == signer), None)
    target = None if file is not None else _target(signer, file)
    found = fingerprint_of(load_key(_read(file, target), source="stdin" if file == "-" else str(file or target)))
    return next((entry for entry in entries if entry.fingerprint == found), None)


def delete_copy(there: Entry, file: str) -> None:
    """Delete `file`, a copy of the key `there`, if that one works without it."""
    store = KeyStore(config.load(config.config_file()).keyring_backend)
    if file != "-" and not _is_same(file, there.reference.removeprefix("file:")) and _problem(there, store) is None:
        Path(file).unlink()


def _target(signer: str | None, file: str | None) -> Path | None:
    """Return the file where the key is to be; None for the keyring."""
    if signer in {None, "keyring"}:
        if file is None:
            raise click.UsageError("give the key: FILE, - for stdin, or --signer file:PATH where one lies")
        return None
    kind, _, path = str(signer).partition(":")
    if str(signer).startswith(("/", "~", "./", "../")):
        raise UsageError(f"there is no signer {signer}", hint=f"--signer file:{signer}")
    if kind != "file" or not path:
        raise click.UsageError(f"there is no signer {signer!r}; this version knows keyring and file:PATH")
    return Path(path).expanduser().absolute()


def _read(file: str | None, target: Path | None) -> bytes:
    return read_pem(file) if file is not None else read_key_file(str(target))


def _is_same(one: str, other: str | Path | None) -> bool:
    try:
        return other is not None and Path(one).samefile(other)
    except OSError:
        return False


@key.command(name="list")
@every_app_option
@json_option
def list_keys(*, name: str | None, as_json: bool) -> None:
    """List the keys of the apps, without asking GitHub.

    "usable" says whether a key can be read and signs; "ghapp key verify" asks
    GitHub whether it is accepted.

    \b
    Example:
      ghapp key list --app acme-bot
    """
    found = config.load(config.config_file())
    store = KeyStore(found.keyring_backend)
    entries = [_tried(entry, store) for app in _chosen(found.apps, name) for entry in _entries(app)]
    if as_json:
        print_json(
            [
                _described(entry)
                | {"usable": entry.problem is None, "problem": None if entry.problem is None else str(entry.problem)}
                for entry in entries
            ]
        )
        return
    if not entries:
        if not found.apps:
            say_no_app()
            return
        say("there is no key")
        hint(f"ghapp key add FILE --app {shlex.quote(name or found.apps[0].name)}")
        return
    rows = [
        (entry.app.name, entry.fingerprint or "?", _place(entry), "no" if entry.problem else "yes") for entry in entries
    ]
    print_table(("APP", "FINGERPRINT", "SIGNER", "USABLE"), rows)
    for entry in entries:
        if entry.problem is not None:
            warn(f"{entry.name}: {entry.problem}")
            hint(entry.problem.hint)


def _place(entry: Entry) -> str:
    """Return where the key lies; the keyring's name for it is the fingerprint, which is told beside it."""
    return "keyring" if entry.reference == f"keyring:{entry.fingerprint}" else entry.reference


@key.command()
@click.argument("fingerprint", required=False, shell_complete=_fingerprints)
@every_app_option
@json_option
def verify(*, fingerprint: str | None, name: str | None, as_json: bool) -> int:
    """Ask GitHub with each key whether it is accepted; exit 1 if one is not.

    Compare the fingerprints with those on the app's page on GitHub.

    \b
    Examples:
      ghapp key verify
      ghapp key verify SHA256:4mT0 --app acme-bot
    """
    apps = _chosen(config.load(config.config_file()).apps, name)
    entries = [entry for app in apps for entry in _entries(app)]
    if fingerprint is not None:
        entries = [_pick(entries, fingerprint)]
    if not entries:
        raise ConfigError(
            "there is no key to verify", hint=f"ghapp key add FILE --app {shlex.quote(apps[0].name)}" if apps else FIRST
        )
    verdicts = _with_removals([_judge(entry) for entry in _with_progress(entries, quiet=as_json)])
    if as_json:
        print_json([verdict.described() for verdict in verdicts])
    else:
        rows = [(verdict.entry.app.name, verdict.entry.fingerprint or "?", verdict.status) for verdict in verdicts]
        print_table(("APP", "FINGERPRINT", "STATUS"), rows)
        for verdict in verdicts:
            if verdict.error is not None:
                warn(f"{verdict.entry.name} is {verdict.words}: {verdict.error}")
                hint(verdict.hint)
    return 0 if all(verdict.status == ACCEPTED for verdict in verdicts) else 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of asking GitHub with one key."""

    entry: Entry
    status: str
    error: GhappError | None = None
    hint: str = ""

    @property
    def words(self) -> str:
        """The status, in a sentence."""
        return "not known to work or not" if self.status == UNKNOWN else self.status

    def described(self) -> dict[str, object]:
        """Return it for programs."""
        details = {"status": self.status, "error": str(self.error) if self.error else None, "hint": self.hint or None}
        return _described(self.entry) | details


def _judge(entry: Entry) -> Verdict:
    try:
        found = _ask(entry.app, entry.reference)
    except GhappError as error:
        if error.code in _NOBODY_ASKED:
            raise
        status = REJECTED if error.code == AppRejected.code else UNAVAILABLE if error.code in _KEY_CODES else UNKNOWN
        return Verdict(entry, status, error, error.hint)
    return Verdict(replace(entry, fingerprint=found["fingerprint"]), ACCEPTED)


def _with_removals(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return `verdicts`, with the removal as the hint for a dead key beside a living one."""
    living = {verdict.entry.app.name for verdict in verdicts if verdict.status == ACCEPTED}
    return [
        replace(
            verdict, hint=shlex.join(("ghapp", "key", "remove", verdict.entry.name, "--app", verdict.entry.app.name))
        )
        if verdict.status == REJECTED and verdict.entry.app.name in living
        else verdict
        for verdict in verdicts
    ]


def _ask(app: App, reference: str) -> dict[str, Any]:
    """Ask GitHub with that very key. Raises `GhappError`."""
    found: dict[str, Any] = call(
        "verify_key",
        host=app.host,
        api=app.api,
        signer=reference,
        client_id=app.client_id,
        app_id=app.app_id,
        name=app.name,
    )
    return found


def _with_progress(entries: Sequence[Entry], *, quiet: bool) -> Iterable[Entry]:
    """Yield `entries`, on a terminal with a bar for the time that GitHub takes."""
    from rich.console import Console  # noqa: PLC0415  # 40 ms that only this command pays
    from rich.progress import track  # noqa: PLC0415  # as above

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return entries
    return track(entries, "asking GitHub", console=console, transient=True)


@key.command(short_help="Remove a key of an app.")
@click.argument("fingerprint", shell_complete=_fingerprints)
@every_app_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also the last key that works, and without asking GitHub.")
def remove(*, fingerprint: str, name: str | None, yes: bool, force: bool) -> None:
    """Remove a key of an app: from the keyring too, while a file stays.

    The beginning of a FINGERPRINT is enough. The last key that GitHub accepts
    stays, unless --force is given. It asks on a terminal; without one it goes
    ahead.

    \b
    Example:
      ghapp key remove SHA256:4mT0 --app acme-bot
    """
    before = config.load(config.config_file())
    entry = _pick([found for app in _chosen(before.apps, name) for found in _entries(app)], fingerprint)
    others = [other for other in _entries(entry.app) if other.reference != entry.reference]
    if not force:
        _check_that_one_is_left(entry, others)
    confirm(f"remove the key {entry.name} of {entry.app.name}?", yes=yes)
    relied_on = [] if force else [other.reference for other in others]
    config.remove_key(config.config_file(), entry.app.name, entry.reference, others=relied_on)
    call_if_running("reload")  # before the key goes: killed between the two, the daemon would believe in it still
    _say_what_became_of(entry, before)
    if not others:
        hint(f"ghapp key add FILE --app {shlex.quote(entry.app.name)}")


def _check_that_one_is_left(entry: Entry, others: Sequence[Entry]) -> None:
    """Ask GitHub whether another key of the app works, or at least that this one does not. Raises `GhappError`."""
    verdicts = []
    for other in others:
        verdicts.append(_judge(other))
        if verdicts[-1].status == ACCEPTED:
            return
    this = _judge(entry)
    if this.status == REJECTED:
        return
    last = "the last key" if this.status == ACCEPTED else "perhaps the last key"
    why = "".join(f"; {verdict.entry.name}: {verdict.error}" for verdict in (*verdicts, this) if verdict.error)
    raise ConfigError(
        f"{entry.name} is {last} of {entry.app.name} that works{why}; --force removes it all the same",
        hint=f"ghapp key add FILE --app {shlex.quote(entry.app.name)}",
    )


def _say_what_became_of(entry: Entry, before: config.Config) -> None:
    app, reference = entry.app, entry.reference
    if reference.startswith("file:"):
        say(f"{entry.name} is removed from {app.name}; its key stays in {reference.removeprefix('file:')}")
        return
    gone = replace(app, keys=(reference,))
    try:
        users = forget_keyring_keys(
            gone, KeyStore(before.keyring_backend), [other for other in before.apps if other.name != app.name]
        )
    except KeyUnavailable as error:
        warn(f"{entry.name} is removed from {app.name}; it is still in the keyring: {error}")
        hint_at_orphan(gone)
    else:
        rest = f"; it stays in the keyring: app {users[0]} uses it" if users else ", and from the keyring"
        say(f"{entry.name} is removed from {app.name}{rest}")


# -- which key ---------------------------------------------------------------------------------------------------------


def _the_app(name: str | None) -> App:
    """Return the app of that name, or the only one. Raises `GhappError`."""
    apps = config.load(config.config_file()).apps
    if name is None and len(apps) > 1:
        names = ", ".join(app.name for app in apps)
        raise UsageError(f"there are several apps: {names}", hint=typed(name=apps[0].name))
    if not apps:
        raise ConfigError("no app is registered", hint=FIRST)
    return _chosen(apps, name)[0]


def _chosen(apps: Sequence[App], name: str | None) -> Sequence[App]:
    chosen = [app for app in apps if name in {None, app.name}]
    if name is not None and not chosen:
        raise ConfigError(f"there is no app {name}", hint="ghapp app list")
    return chosen


def _entries(app: App) -> list[Entry]:
    """Return the keys of `app`, with the fingerprints that can be told without a keyring."""
    return [Entry(app, reference, _fingerprint(reference)) for reference in app.keys]


def _fingerprint(reference: str) -> str:
    kind, _, rest = reference.partition(":")
    if kind == "keyring":
        return rest
    try:
        return fingerprint_of(load_key(read_key_file(rest), source=rest, known=True))
    except KeyUnavailable:
        return ""


def _tried(entry: Entry, store: KeyStore) -> Entry:
    return replace(entry, problem=_problem(entry, store))


def _problem(entry: Entry, store: KeyStore) -> GhappError | None:
    """Return why the key cannot sign on this machine, None if it can."""
    try:
        open_signer(entry.reference, entry.app, store).sign(b"")
    except GhappError as error:
        return error
    return None


def _pick(entries: Sequence[Entry], wanted: str) -> Entry:
    """Return the one that `wanted` names: a fingerprint or its beginning, or a signer. Raises `GhappError`."""
    matches: tuple[Callable[[Entry], bool], ...] = (
        lambda entry: wanted in {entry.fingerprint, entry.reference, entry.reference.removeprefix("file:")},
        lambda entry: _begins(entry.fingerprint, wanted),
    )
    for match in matches:
        found = [entry for entry in entries if match(entry)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{entry.name} of {entry.app.name}" for entry in found)
            apps = {entry.app.name for entry in found}
            raise UsageError(
                f"{wanted} is the beginning of several keys: {names}",
                hint="give more of it" if len(apps) == 1 else f"--app {found[0].app.name}",
            )
    raise ConfigError(f"there is no key {wanted}", hint="ghapp key list")


def _begins(fingerprint: str, wanted: str) -> bool:
    rest = wanted.removeprefix(HASH)
    return bool(rest) and fingerprint.removeprefix(HASH).startswith(rest)


def _described(entry: Entry) -> dict[str, object]:
    return {"app": entry.app.name, "fingerprint": entry.fingerprint or None, "signer": entry.reference}
