"""One call to the OS keyring, in a process of its own, which can be killed when the keyring hangs.

Run by `ghapp.keystore` as ``python -m ghapp.keyring_child``. The request is one JSON line on stdin, followed by the
one line of a key if there is one to store; the answer is one word on a line, followed by the key that was asked for,
as DER: the line and the numbers in it stay here, in a process that ends. Nothing secret is in argv, environment, or
any file.

Words: ``ok``; ``locked``; ``dismissed`` (a person closed the prompt); ``absent`` (no keyring service on this
session); ``missing`` (no such key); ``damaged`` (no key is there, but something else); ``refused CLASS`` (a backend
that we do not use); ``failed CLASS``.
"""

import importlib
import json
import signal
import sys
from typing import Any

from keyring.backend import KeyringBackend
from keyring.errors import InitError, KeyringLocked, NoKeyringError, PasswordDeleteError

from ghapp import process
from ghapp.errors import KeyUnavailable
from ghapp.private_key import decode_key


SERVICE = "ghapp"

# Backends that keep nothing, keep it readable, or ask whatever else they find.
_REFUSED = ("keyring.backends.null.", "keyring.backends.fail.", "keyring.backends.chainer.", "keyrings.alt.")


class Word(Exception):
    """An outcome that is not ``ok``."""


def main() -> None:
    """Serve one request."""
    process.harden_child()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is our parent's to handle
    answer()


def answer() -> None:
    """Read the request from stdin and write the answer to stdout."""
    request = json.loads(sys.stdin.buffer.readline())
    secret = sys.stdin.buffer.read().decode("ascii")
    try:
        found = _serve(request, secret)
    except Word as word:
        sys.stdout.write(f"{word}\n")
        return
    sys.stdout.buffer.write(b"ok\n" + found)


def _serve(request: dict[str, Any], secret: str) -> bytes:
    backend = _backend(request["backend"], interactive=request["interactive"])
    account = request["account"]
    try:
        match request["action"]:
            case "get":
                return _key_in(backend.get_password(SERVICE, account))
            case "set":
                backend.set_password(SERVICE, account, secret)
            case "delete":
                backend.delete_password(SERVICE, account)
    except Word:
        raise
    except PasswordDeleteError:
        raise Word("missing") from None
    except KeyringLocked:
        raise Word("locked") from None
    except (NoKeyringError, InitError, OSError):
        raise Word("absent") from None
    except Exception as error:  # noqa: BLE001  # keyring's exceptions are not a closed set (R-55)
        raise Word(_word_for(error)) from None
    return b""


def _key_in(secret: str | None) -> bytes:
    if secret is None:
        raise Word("missing")
    try:
        return decode_key(secret.encode())
    except KeyUnavailable:
        raise Word("damaged") from None


def _word_for(error: Exception) -> str:
    name = type(error).__name__
    return {
        "LockedException": "locked",
        "PromptDismissedException": "dismissed",
        "SecretServiceNotAvailableException": "absent",
        "ItemNotFoundException": "missing",
    }.get(name, f"failed {name}")


def _backend(name: str, *, interactive: bool) -> KeyringBackend:
    """Return the backend of that name, or this platform's; never what the environment or an rc file says."""
    if name.startswith(_REFUSED):
        raise Word(f"refused {name}")
    if not name and sys.platform == "darwin":
        name = "keyring.backends.macOS.Keyring"
    if not name:
        from ghapp.secret_service import SecretService  # noqa: PLC0415  # only where there is D-Bus

        return SecretService(interactive=interactive)
    module, _, attribute = name.rpartition(".")
    try:
        backend = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        raise Word(f"refused {name}") from None
    if not (isinstance(backend, type) and issubclass(backend, KeyringBackend)):
        raise Word(f"refused {name}")
    found: KeyringBackend = backend()
    return found


if __name__ == "__main__":
    main()
