"""Putting a downloaded key where it is to be, so that at every moment the old key or the new one works.

A key is written under a name of its own and read back; the configuration switches; only then the old one goes.
"""

import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from ghapp import config
from ghapp.cli.output import hint, say, typed
from ghapp.errors import KeyMissing, KeyringAbsent, KeyUnavailable, UsageError
from ghapp.keystore import KeyStore
from ghapp.private_key import MAX_PEM, fingerprint, load_key
from ghapp.routing import App
from ghapp.signers.keyring import accounts


@dataclass(frozen=True, slots=True)
class Stored:
    """A key in its place, not yet in use."""

    reference: str
    take_back: Callable[[], None]
    """Undo the storing, where it was we who stored."""


def read_pem(source: str) -> bytes:
    """Return what `source` holds, stdin for ``-``. Raises `KeyUnavailable`."""
    if source == "-":
        if sys.stdin.isatty():
            say("paste the key, end with Ctrl-D")
        return sys.stdin.buffer.read(MAX_PEM + 1)
    try:
        with Path(source).open("rb") as file:
            return file.read(MAX_PEM + 1)
    except OSError as error:
        raise KeyUnavailable(f"cannot read {source}: {error.strerror}", hint=_with_a_file(source)) from None


def _with_a_file(source: str) -> str:
    context = click.get_current_context(silent=True)
    names = [name for name, value in (context.params if context else {}).items() if value == source]
    return f"give the downloaded .pem: {typed(**dict.fromkeys(names, 'FILE'))}"


def store_in_file(source: str, target: Path) -> Stored:
    """Write the key from `source` to `target`, for us alone."""
    return store_pem_in_file(read_pem(source), target, source="stdin" if source == "-" else source)


def store_pem_in_file(pem: bytes, target: Path, *, source: str) -> Stored:
    """Write a key that is in memory to `target`, for us alone; `source` names it in messages."""
    load_key(pem, source=source)
    check_directory(target)
    reference = f"file:{target}"
    there = _content(target)
    if there == pem:
        return Stored(reference, lambda: None)
    if there is not None:
        raise UsageError(
            f"{target} exists and holds something else", hint=f"give another path: {typed(signer='file:PATH')}"
        )
    try:
        config.write_atomically(target, pem, mode=0o600)
    except OSError as error:
        look = f"ls -ld {shlex.quote(str(target.parent))}"
        raise KeyUnavailable(f"cannot write {target}: {error.strerror}", hint=look) from None
    return Stored(reference, lambda: target.unlink(missing_ok=True))


def check_directory(target: Path) -> None:
    """Raise `KeyUnavailable` if `target` cannot be written for want of a directory; below our own one is made."""
    directory = target.parent
    nearest = next(place for place in (directory, *directory.parents) if place.exists())
    if nearest != directory and nearest.is_dir() and config.config_dir() not in {directory, *directory.parents}:
        raise KeyUnavailable(
            f"cannot write {target}: there is no directory {directory}", hint=f"mkdir -p {shlex.quote(str(directory))}"
        )


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyUnavailable(
            f"cannot read {path}: {error.strerror}", hint=f"give another path: {typed(signer='file:PATH')}"
        ) from None


def store_in_keyring(source: str, app: App, store: KeyStore) -> Stored:
    """Put the key from `source` into the keyring, where the keyring may ask a person to unlock it."""
    with offering_a_file(app):
        return store_pem_in_keyring(read_pem(source), app, store, source="stdin" if source == "-" else source)


@contextlib.contextmanager
def offering_a_file(app: App) -> Iterator[None]:
    """Let the error of a machine without a keyring name the command line that stores the key in a file."""
    try:
        yield
    except KeyringAbsent as error:
        name = app.name if app.name != "app" else app.issuer  # GitHub was not asked yet
        suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        places = (config.config_dir() / "keys" / f"{name}{suffix}.pem" for suffix in suffixes)
        file = next(place for place in places if not os.path.lexists(place))
        raise KeyringAbsent(error.message, hint=typed(signer=f"file:{file}")) from None


def store_pem_in_keyring(pem: bytes, app: App, store: KeyStore, *, source: str) -> Stored:
    """Put a key that is in memory into the keyring, as `store_in_keyring`; `source` names it in messages."""
    key = load_key(pem, source=source)
    name = fingerprint(key)
    account, *_ = accounts(app, name)
    was_there = _holds(store, account)
    if not was_there:
        store.write(account, key)
    return Stored(f"keyring:{name}", lambda: None if was_there else store.delete(account))


def settle_in_keyring(before: App, after: App, store: KeyStore) -> Stored | None:
    """Store a second copy under the app's number, now that GitHub has told it; None if the first is there already."""
    name = after.keys[0].removeprefix("keyring:")
    old, *_ = accounts(before, name)
    new, *_ = accounts(after, name)
    if old == new:
        return None
    was_there = _holds(store, new)  # another entry for the same app
    if not was_there:
        store.write(new, store.read(old, interactive=True))
    return Stored(after.keys[0], lambda: None if was_there else store.delete(new))


def forget_keyring_keys(app: App, store: KeyStore, remaining: Iterable[App]) -> list[str]:
    """Remove the keys of `app` from the keyring, except those of `remaining` apps; return who of these uses one.

    An account's name does not tell whose entry it is, so two entries for one app share it. Raises the keyring's errors.
    """
    users = []
    for reference in app.keys:
        if not reference.startswith("keyring:"):
            continue
        sharing = [other.name for other in remaining if other.host == app.host and reference in other.keys]
        users += sharing
        if not sharing:
            for account in accounts(app, reference.removeprefix("keyring:")):
                store.delete(account)
    return users


def hint_at_orphan(app: App) -> None:
    """Say under which name the keyring still holds a key that nothing needs any more."""
    for reference in app.keys:
        if reference.startswith("keyring:"):
            account, *_ = accounts(app, reference.removeprefix("keyring:"))
            hint(f"unlock the keyring and delete it there: service ghapp, username {account}")


def _holds(store: KeyStore, account: str) -> bool:
    try:
        store.read(account, interactive=True)
    except KeyMissing:
        return False
    return True
