"""A keyring that lives as long as a test: `Backend` for the configuration, `Keyring` for the test that looks into it.

The product asks a keyring in a child of its own, which imports nothing from the environment or the directory: so this
module is on the path of a checkout's virtual environment (``dev-mode-dirs`` in pyproject.toml), and of nothing else.
What is stored stays in the test's memory; a socket in HOME leads there.
"""

import json
import math
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked, PasswordDeleteError


NAME = "fakes_keyring.Backend"
"""For ``backend`` below ``[keyring]``."""

_SOCKET = "keyring.sock"


class PromptDismissedException(Exception):  # the name that SecretStorage gives it
    """The person closed the question."""


_REFUSALS = {"locked": KeyringLocked, "dismissed": PromptDismissedException}


class Backend(KeyringBackend):
    """Hands each call to the `Keyring` of the test whose HOME this is."""

    priority = 0  # never chosen unasked

    def get_password(self, service: str, username: str) -> str | None:
        """Return what is stored under that name."""
        found: str | None = _ask("get", service, username)["secret"]
        return found

    def set_password(self, service: str, username: str, password: str) -> None:
        """Store it."""
        _ask("set", service, username, password)

    def delete_password(self, service: str, username: str) -> None:
        """Forget it; raises `PasswordDeleteError` where there is nothing."""
        if _ask("delete", service, username)["secret"] is None:
            raise PasswordDeleteError(username)


def _ask(action: str, service: str, username: str, secret: str | None = None) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(Path.home() / _SOCKET))
        with connection.makefile("rw") as stream:
            stream.write(json.dumps([action, service, username, secret]) + "\n")
            stream.flush()
            answer: dict[str, Any] = json.loads(stream.readline())
    if answer["refusal"]:
        raise _REFUSALS[answer["refusal"]]
    return answer


class Keyring:
    """What is in it by account, what was asked of it, and what it refuses."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.written: list[str] = []
        self.deleted: list[str] = []
        self._refuses: Callable[[str, str], str]
        self.relent()

    def refuse(self, outcome: str, action: str = "", *, spare: str = " ", times: float = math.inf) -> None:
        """Answer so many calls with `outcome`, ``locked`` or ``dismissed``.

        Only those of one action (``get``, ``set`` or ``delete``) if one is named, and none for an account that ends
        in `spare`.
        """
        left = times

        def word(asked: str, account: str) -> str:
            nonlocal left
            if action not in {"", asked} or account.endswith(spare) or left == 0:
                return ""
            left -= 1
            return outcome

        self._refuses = word

    def relent(self) -> None:
        """Refuse nothing from now on."""
        self.refuse("", times=0)

    def answer(self, action: str, service: str, account: str, secret: str | None) -> dict[str, Any]:
        """Serve one call of a `Backend`."""
        assert service == "ghapp"
        if action == "set":
            self.written.append(account)
        if refusal := self._refuses(action, account):
            return {"refusal": refusal}
        found = self.keys.get(account)
        if action == "set":
            assert secret is not None
            self.keys[account] = secret
        elif action == "delete":
            self.deleted.append(account)
            self.keys.pop(account, None)
        return {"refusal": "", "secret": found}


@contextmanager
def running() -> Iterator[Keyring]:
    """Give the keyring of this HOME."""
    keyring = Keyring()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            answer = keyring.answer(*json.loads(self.rfile.readline()))
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    place = Path(os.environ["HOME"]) / _SOCKET
    with socketserver.ThreadingUnixStreamServer(str(place), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield keyring
        finally:
            server.shutdown()
            thread.join()
            place.unlink()
