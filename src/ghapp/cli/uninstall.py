"""``ghapp uninstall``: everything that ghapp put on this machine, out again."""

import contextlib
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from ghapp import config, gitconfig, paths, process, service
from ghapp.cli.daemon import remove_units, stop_daemon
from ghapp.cli.key_import import forget_keyring_keys, hint_at_orphan
from ghapp.cli.output import confirm, counted, hint, say, warn
from ghapp.config import Config
from ghapp.errors import ConfigError, GitConfigFailed, KeyUnavailable, UsageError
from ghapp.gitconfig import Change
from ghapp.keystore import KeyStore


# What is ours in each directory, by name: somebody's key may lie beside it.
_IN_CONFIG = ("config.toml", ".config.toml.*", ".gitconfig.*")
_IN_STATE = ("daemon.log*", "audit*.jsonl*", "grants")
_IN_RUNTIME = ("git.sock", "control.sock", "daemon.lock", "spawn.lock", "grants")


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of us, as it was found."""

    config: Config
    git: list[Change]
    units: list[Path]
    daemon: int | None
    keyring: list[str]
    """Fingerprints of the keys in the keyring that go."""
    files: list[Path]
    directories: list[Path]
    """To be removed where nothing is left in them, the innermost first."""
    key_files: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return what goes, a line each."""
        return [
            *(f"in {change.path}: our lines" for change in self.git if change.after is not None),
            *(f"file {change.path}" for change in self.git if change.after is None),
            *([f"the daemon (pid {self.daemon}), its tokens revoked"] if self.daemon else []),
            *(f"systemd unit {path}" for path in self.units),
            *(f"key {fingerprint} in the keyring" for fingerprint in self.keyring),
            *(f"in {place}: {', '.join(names)}" for place, names in self._by_place().items()),
        ]

    def _by_place(self) -> dict[Path, list[str]]:
        places: dict[Path, list[str]] = {}
        for path in self.files:
            places.setdefault(path.parent, []).append(path.name)
        return places


@click.command(short_help="Take everything out again; asks before.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-keys", is_flag=True, help="Leave the keys in the keyring.")
def uninstall(*, yes: bool, keep_keys: bool) -> None:
    """Take everything out again that ghapp put on this machine.

    That is git's configuration, the systemd units, the daemon (its tokens are
    revoked), keys in the keyring, configuration and logs. First it lists them
    and asks. Key files stay, and so do the package and the app on GitHub.

    \b
    Examples:
      ghapp uninstall
      ghapp uninstall --yes --keep-keys
    """
    found = _look(keep_keys=keep_keys)
    lines = found.lines()
    if lines:
        say("this goes:")
        for line in lines:
            say(f"  {line}")
        if not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError("nobody is here to confirm that", hint="ghapp uninstall --yes")
        confirm("take all of it out?", yes=yes)
        _take_out(found)
    _remove_empty(found.directories)  # also those that a run which was killed has emptied
    say("all of it is gone" if lines else "nothing of ghapp is set up here")
    _say_what_stays(found, keep_keys=keep_keys)


def _look(*, keep_keys: bool) -> Found:
    """Look at what there is; changes nothing. Raises `ConfigError` if the keys cannot be known that should go."""
    try:
        configured = config.load(config.config_file())
    except ConfigError as error:
        if not keep_keys:
            raise ConfigError(f"{error.message}; --keep-keys does without it", hint=error.hint) from None
        configured = Config()  # it goes as it is
    references = sorted({reference for app in configured.apps for reference in app.keys})
    runtime = Path(paths.runtime_dir())
    places = ((config.config_dir(), _IN_CONFIG), (config.state_dir(), _IN_STATE), (runtime, _IN_RUNTIME))
    return Found(
        config=configured,
        git=_git_changes(),
        units=service.installed(),
        daemon=process.lock_holder(str(runtime)),
        keyring=[] if keep_keys else [key.removeprefix("keyring:") for key in references if key.startswith("keyring:")],
        files=[path for place, names in places for name in names for path in sorted(place.glob(name))],
        directories=[
            config.config_dir() / "keys",
            *(place for place, _ in places),
            *([runtime.parent] if runtime.parent.name == "ghapp" else []),
        ],
        key_files=[key.removeprefix("file:") for key in references if key.startswith("file:")],
    )


def _git_changes() -> list[Change]:
    return gitconfig.undo(
        gitconfig.Scope.GLOBAL, config.config_dir() / "gitconfig", env=os.environ, cwd=gitconfig.here()
    )


def _take_out(found: Found) -> None:
    """Take out what was found, in an order in which nothing starts anew, and what names other things goes last.

    Killed anywhere, the next run finds the rest.
    """
    for change in found.git:  # first: git must not start the daemon again
        gitconfig.apply(change)
    stop_daemon(revoke=True)  # before its units: systemd would stop it without revoking
    remove_units()
    stop_daemon(revoke=True)  # who connected to systemd's socket in between started another
    if found.keyring:
        _empty_keyring(found.config)
    for path in found.files:
        _remove(path)


def _empty_keyring(configured: Config) -> None:
    """Remove the keys of all apps; the configuration, which names them, is still there if the keyring refuses."""
    store = KeyStore(configured.keyring_backend)
    for app in configured.apps:
        try:
            forget_keyring_keys(app, store, [])
        except KeyUnavailable as error:
            warn(f"a key of {app.name} is still in the keyring, and so the configuration stays: {error}")
            hint_at_orphan(app)
            raise type(error)(error.message, hint="run it again, or: ghapp uninstall --keep-keys") from None


def _remove_empty(directories: Sequence[Path]) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):  # something of somebody's lies there, or it is not there
            directory.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _say_what_stays(found: Found, *, keep_keys: bool) -> None:
    ours = config.config_dir() / "keys"
    lying = sorted(str(path) for path in ours.iterdir()) if ours.is_dir() else []
    key_files = list(dict.fromkeys([*found.key_files, *lying]))
    for path in key_files:
        say(f"stays: key file {path}")
    there = [path for path in key_files if os.path.lexists(path)]
    if there:
        hint(f"once nothing needs {'it' if len(there) == 1 else 'them'}: {shlex.join(['rm', *there])}")
    kept = [key for app in found.config.apps for key in app.keys if key.startswith("keyring:")]
    if keep_keys and kept:
        say(f"stays: {counted(len(kept), 'key')} in the keyring, service ghapp")
    for scope in _other_scopes():
        sudo = "sudo " if scope is gitconfig.Scope.SYSTEM else ""
        say(f"stays: our lines in git's --{scope.value} configuration")
        hint(f"{sudo}ghapp setup-git --{scope.value} --undo")
    for directory in found.directories:
        known = {ours, *map(Path, there)}
        if directory.is_dir() and not known.issuperset(directory.iterdir()):
            say(f"stays: {directory}, which holds something that is not ours")
    for app in found.config.apps:
        say(f"stays: the app {app.name} on {app.host}, until you delete it there")
    say("stays: the package")
    hint(_package_command())


def _other_scopes() -> Sequence[gitconfig.Scope]:
    """Return the further configurations that hold lines of ours, as far as they can be seen from here."""
    scopes = []
    for scope in (gitconfig.Scope.SYSTEM, gitconfig.Scope.LOCAL):
        with contextlib.suppress(GitConfigFailed):
            if gitconfig.undo(scope, config.config_dir() / "gitconfig", env=os.environ, cwd=gitconfig.here()):
                scopes.append(scope)
    return scopes


def _package_command() -> str:
    """Return what removes the package, by how it was installed."""
    prefix = Path(sys.prefix)
    if (prefix / "uv-receipt.toml").exists() or "/uv/tools/" in sys.prefix:
        return "uv tool uninstall ghapp"
    if (prefix / "pipx_metadata.json").exists() or "/pipx/venvs/" in sys.prefix:
        return "pipx uninstall ghapp"
    if importlib.util.find_spec("pip") is None:  # uv makes environments without it
        return f"uv pip uninstall --python {shlex.quote(sys.executable)} ghapp"
    return f"{shlex.quote(sys.executable)} -m pip uninstall ghapp"
