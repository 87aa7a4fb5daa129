"""Keys in the OS keyring: one line each, under a name that says which key it is.

Keyrings hang, lose data, and keep only what they like (some the first line, Windows 1,280 characters). So each
call runs in a child that is killed at a limit, a key is two numbers on one line, and nothing counts as stored
before it was read back and found equal.
"""

import base64
import binascii
import json
import os
import subprocess
import sys
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPrivateNumbers,
    RSAPublicNumbers,
    rsa_crt_dmp1,
    rsa_crt_dmq1,
    rsa_crt_iqmp,
)

from ghapp import autostart
from ghapp.config import GITHUB
from ghapp.errors import (
    GhappError,
    KeyMissing,
    KeyringAbsent,
    KeyringDismissed,
    KeyringFailed,
    KeyringLocked,
    KeyringSilent,
    KeyUnavailable,
)
from ghapp.private_key import PUBLIC_EXPONENT, fingerprint


READ_LIMIT = 5.0  # seconds; a keyring answers in 20 ms, and git waits
PERSON_LIMIT = 120.0  # seconds for a person to type a password
_PREFIX = b"rsa1:"


def encode_key(key: RSAPrivateKey) -> bytes:
    """Return ``rsa1:`` and base64url of p and q, both padded to the longer: all that a key with e = 65537 is."""
    numbers = key.private_numbers()
    length = (max(numbers.p.bit_length(), numbers.q.bit_length()) + 7) // 8
    halves = numbers.p.to_bytes(length, "big") + numbers.q.to_bytes(length, "big")
    return _PREFIX + base64.urlsafe_b64encode(halves)


def decode_key(value: bytes | bytearray) -> RSAPrivateKey:
    """Rebuild the key. Raises `KeyUnavailable`, whose text holds nothing of `value`."""
    try:
        halves = base64.b64decode(bytes(value).removeprefix(_PREFIX), altchars=b"-_", validate=True)
        middle, odd = divmod(len(halves), 2)
        if value.startswith(_PREFIX) and not odd:
            return _rebuild(int.from_bytes(halves[:middle], "big"), int.from_bytes(halves[middle:], "big"))
    except (ValueError, binascii.Error, ZeroDivisionError):
        pass
    # Outside of the except block, so that no exception with a part of the value in it hangs on ours.
    raise KeyUnavailable("the key in the keyring is damaged", hint="ghapp app add NAME --app-id N --key FILE")


def _rebuild(p: int, q: int) -> RSAPrivateKey:
    d = pow(PUBLIC_EXPONENT, -1, (p - 1) * (q - 1))
    numbers = RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=rsa_crt_dmp1(d, p),
        dmq1=rsa_crt_dmq1(d, q),
        iqmp=rsa_crt_iqmp(p, q),
        public_numbers=RSAPublicNumbers(PUBLIC_EXPONENT, p * q),
    )
    return numbers.private_key()


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
        value = self._call("get", account, interactive=interactive)
        try:
            key = decode_key(value)
        finally:
            value[:] = bytes(len(value))
        if not account.endswith(fingerprint(key)):
            raise KeyUnavailable("the keyring holds another key under that name", hint=_again(account))
        return key

    def write(self, account: str, key: RSAPrivateKey) -> None:
        """Store `key` as `account` and read it back; a person may be asked to unlock.

        Raises the keyring's errors, and `KeyringFailed` if what comes back is not what was stored.
        """
        value = encode_key(key)
        self._call("set", account, value, interactive=True)
        if bytes(self._call("get", account, interactive=True)) != value:
            raise KeyringFailed("the keyring did not keep the key", hint=_CHOICES)

    def delete(self, account: str) -> None:
        """Remove the key stored as `account`; a missing one is done."""
        try:
            self._call("delete", account, interactive=True)
        except KeyMissing:
            return

    def _call(self, action: str, account: str, secret: bytes = b"", *, interactive: bool) -> bytearray:
        limit = PERSON_LIMIT if interactive else READ_LIMIT
        request = {"action": action, "account": account, "backend": self.backend, "interactive": interactive}
        child = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            [*autostart.interpreter(), "-m", "ghapp.keyring_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=autostart.daemon_environment(os.environ),
        )
        with child:
            try:
                output, _ = child.communicate(json.dumps(request).encode() + b"\n" + secret, timeout=limit)
            except subprocess.TimeoutExpired:
                child.kill()
                raise KeyringSilent(
                    f"the keyring did not answer within {limit:.0f} s", hint=_OPEN if interactive else "ghapp unlock"
                ) from None
            except BaseException:
                child.kill()
                raise
        word, _, rest = output.partition(b"\n")
        if word == b"ok":
            return bytearray(rest)
        raise _error(word.decode("ascii", "replace"), account, interactive=interactive)


_CHOICES = "choose where the key is to be: --signer file:PATH, or a keyring by [keyring] backend in config.toml"


_OPEN = "unlock it on the desktop; on a machine without one: ghapp app add NAME ... --key FILE --signer file:PATH"


def _again(account: str) -> str:
    """Return the command that stores the key of `account` anew."""
    host, _, rest = account.partition("/")
    number = rest.partition("/")[0]
    option = "--app-id" if number.isdecimal() else "--client-id"
    elsewhere = "" if host == GITHUB else f" --host {host}"
    return f"ghapp app add NAME {option} {number}{elsewhere} --key FILE"


def _error(word: str, account: str, *, interactive: bool) -> GhappError:
    kind, _, detail = word.partition(" ")
    match kind:
        case "locked":
            unlock = _OPEN if interactive else "unlock it: log in on the desktop, or 'ghapp unlock'"
            return KeyringLocked("the keyring is locked", hint=unlock)
        case "dismissed":
            return KeyringDismissed("the keyring's question was dismissed", hint=_OPEN)
        case "absent":
            return KeyringAbsent("no keyring service runs on this session", hint=_CHOICES)
        case "missing":
            return KeyMissing("the key is not in the keyring", hint=_again(account))
        case "refused":
            return KeyringFailed(
                f"the keyring backend {detail} is not used: it would not protect the key", hint=_CHOICES
            )
    return KeyringFailed(f"the keyring failed ({detail or sys.platform})", hint=_CHOICES)
