"""Keys in the OS keyring: one line each, under a name that says which key it is.

Keyrings hang, lose data, and keep only what they like (some the first line, Windows 1,280 characters). So each
call runs in a child that is killed at a limit, a key is two numbers on one line, and nothing counts as stored
before it was read back and found equal.

A key comes out of the child as DER and into one buffer, which is overwritten: so of the key this process holds
OpenSSL's numbers, and nothing else of it stays behind in memory.
"""

import contextlib
import json
import os
import select
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from ghapp import autostart, config
from ghapp.errors import (
    ConfigError,
    GhappError,
    KeyMissing,
    KeyringAbsent,
    KeyringDismissed,
    KeyringFailed,
    KeyringLocked,
    KeyringSilent,
    KeyUnavailable,
)
from ghapp.private_key import encode_key, fingerprint, load_der
from ghapp.routing import App


READ_LIMIT = 5.0  # seconds; a keyring answers in 20 ms, and git waits
PERSON_LIMIT = 120.0  # seconds for a person to type a password
MAX_ANSWER = 32 * 1024  # bytes; an RSA-16384 key is 9 KB


@dataclass(frozen=True, slots=True)
class KeyStore:
    """The keyring of this session."""

    backend: str = ""
    """``module.Class`` from the configuration; empty for the platform's own."""

    def read(self, account: str, *, interactive: bool = False) -> RSAPrivateKey:
        """Return the key stored as `account`, which ends in its fingerprint.

        Only with `interactive` may the keyring ask a person. Raises the keyring's errors, and
        `KeyUnavailable` for a damaged key.
        """
        key = self._load(account, interactive=interactive)
        if not account.endswith(fingerprint(key)):
            raise KeyUnavailable("the keyring holds another key under that name", hint=_again(account))
        return key

    def write(self, account: str, key: RSAPrivateKey) -> None:
        """Store `key` as `account` and read it back; a person may be asked to unlock.

        Raises the keyring's errors, and `KeyringFailed` if what comes back is not what was stored.
        """
        value = encode_key(key)
        self._call("set", account, value, interactive=True)
        try:
            kept = encode_key(self._load(account, interactive=True)) == value
        except KeyUnavailable as error:
            if type(error) is not KeyUnavailable:
                raise
            kept = False
        if not kept:
            raise KeyringFailed("the keyring did not keep the key", hint=_choices(account))

    def delete(self, account: str) -> None:
        """Remove the key stored as `account`; a missing one is done."""
        try:
            self._call("delete", account, interactive=True)
        except KeyMissing:
            return

    def _load(self, account: str, *, interactive: bool) -> RSAPrivateKey:
        der = self._call("get", account, interactive=interactive)
        try:
            return load_der(der, source="the keyring")
        except KeyUnavailable as error:
            message = error.message
        finally:
            der[:] = bytes(len(der))
        raise KeyUnavailable(message, hint=_again(account))  # outside: its context would hold what was read

    def _call(self, action: str, account: str, secret: bytes = b"", *, interactive: bool) -> memoryview:
        """Return what the child answers behind its word, in a buffer that is the caller's to overwrite."""
        limit = PERSON_LIMIT if interactive else READ_LIMIT
        request = {"action": action, "account": account, "backend": self.backend, "interactive": interactive}
        child = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            [*autostart.interpreter(), "-m", "ghapp.keyring_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=autostart.daemon_environment(os.environ),
            bufsize=0,
        )
        with child:
            try:
                answer = _exchange(child, json.dumps(request).encode() + b"\n" + secret, limit)
            except (TimeoutError, subprocess.TimeoutExpired):
                child.kill()
                raise KeyringSilent(
                    f"the keyring did not answer within {limit:.0f} s",
                    hint=_open(account) if interactive else "ghapp unlock",
                ) from None
            except BaseException:
                child.kill()
                raise
        if bytes(answer[:3]) == b"ok\n":
            return answer[3:]
        word = bytes(answer[:_LONGEST_WORD]).partition(b"\n")[0].decode("ascii", "replace")
        raise _error(word, account, interactive=interactive)


def _exchange(child: "subprocess.Popen[bytes]", request: bytes, limit: float) -> memoryview:
    """Send the request and return the whole answer. Raises `TimeoutError` and `subprocess.TimeoutExpired`."""
    assert child.stdin is not None  # noqa: S101  # for mypy
    assert child.stdout is not None  # noqa: S101  # for mypy
    end = time.monotonic() + limit
    with contextlib.suppress(BrokenPipeError):  # it died; its answer, or the lack of one, says so
        child.stdin.write(request)
    child.stdin.close()
    answer, length = memoryview(bytearray(MAX_ANSWER)), 0
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    while poll.poll(max(0.0, end - time.monotonic()) * 1000):
        count = os.readv(child.stdout.fileno(), [answer[length:]])
        if count == 0:
            child.wait(max(0.0, end - time.monotonic()))
            return answer[:length]
        length += count
    raise TimeoutError


_LONGEST_WORD = 200  # characters, a class's name included


def _choices(account: str) -> str:
    file = config.config_file()
    return f"store the key in a file: {_elsewhere(account)}, or name another keyring: backend below [keyring] in {file}"


def _open(account: str) -> str:
    return f"unlock it on the desktop; on a machine without one: {_elsewhere(account)}"


def _elsewhere(account: str) -> str:
    """Return the command that stores the key of `account` where no keyring is needed."""
    return f"{_again(account)} --signer file:PATH"


def _again(account: str) -> str:
    """Return the command that stores the key of `account` anew, for an app that is registered or is to be."""
    host, _, rest = account.partition("/")
    number = rest.partition("/")[0]
    for app in _registered():
        if app.host == host and number in {str(app.app_id), app.client_id}:
            return f"ghapp key add FILE --app {shlex.quote(app.name)}"
    option = "--app-id" if number.isdecimal() else "--client-id"
    elsewhere = "" if host == config.GITHUB else f" --host {host}"
    return f"ghapp app add {option} {number}{elsewhere} --key FILE"


def _registered() -> tuple[App, ...]:
    try:
        return config.load(config.config_file()).apps
    except ConfigError:  # another trouble, which whoever reads it names
        return ()


def _error(word: str, account: str, *, interactive: bool) -> GhappError:
    kind, _, detail = word.partition(" ")
    match kind:
        case "locked":
            unlock = _open(account) if interactive else "unlock it: log in on the desktop, or 'ghapp unlock'"
            return KeyringLocked("the keyring is locked", hint=unlock)
        case "dismissed":
            return KeyringDismissed("the keyring's question was dismissed", hint=_open(account))
        case "absent":
            return KeyringAbsent("no keyring service runs on this session", hint=_choices(account))
        case "missing":
            return KeyMissing("the key is not in the keyring", hint=_again(account))
        case "damaged":
            return KeyUnavailable("the key in the keyring is damaged", hint=_again(account))
        case "refused":
            return KeyringFailed(
                f"the keyring backend {detail} is not used: it would not protect the key", hint=_choices(account)
            )
    return KeyringFailed(f"the keyring failed ({detail or sys.platform})", hint=_choices(account))
