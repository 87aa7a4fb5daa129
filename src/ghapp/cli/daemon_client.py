"""The command line's end of control.sock."""

import json
from typing import Any

from ghapp import autostart, client, paths
from ghapp.errors import DaemonFailed, GhappError


PATIENCE = 60.0  # seconds for one method: a list of installations may be several pages


class RemoteError(GhappError):
    """An error that the daemon named; it carries the daemon's code."""

    def __init__(self, message: str, *, code: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def call(method: str, **params: object) -> Any:
    """Call a method of the daemon, starting it if none runs. Raises `GhappError`."""
    path = paths.control_socket()
    try:
        autostart.ensure(path)
    except OSError as error:
        raise _from_text(str(error.args[-1])) from None
    answer = ask(method, **params)
    if answer is None:
        raise DaemonFailed("the daemon went away", hint="ghapp daemon status")
    return answer["result"]


def call_if_running(method: str, **params: object) -> Any | None:
    """Call a method of the daemon that runs, or return None if none does."""
    answer = ask(method, **params)
    return None if answer is None else answer["result"]


def ask(method: str, **params: object) -> dict[str, Any] | None:
    """Send one request and return the answer's object, or None if nobody listens. Raises `GhappError`."""
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n"
    try:
        connection = client.connect(paths.control_socket(), PATIENCE)
    except (FileNotFoundError, ConnectionError, NotADirectoryError):
        return None
    except OSError as error:
        raise _from_text(str(error.args[-1])) from None
    try:
        connection.sendall(request)
        data = b""
        while not data.endswith(b"\n"):
            chunk = connection.recv(1024 * 1024)
            if not chunk:
                return None
            data += chunk
    except TimeoutError:
        raise DaemonFailed(f"the daemon did not answer within {PATIENCE:.0f} s", hint="ghapp daemon restart") from None
    except OSError:
        return None
    finally:
        connection.close()
    answer: dict[str, Any] = json.loads(data)
    if "error" in answer:
        refusal = answer["error"]
        details = refusal.get("data") or {}
        raise RemoteError(refusal["message"], code=details.get("code", "E41"), hint=details.get("hint", ""))
    return answer


def _from_text(text: str) -> GhappError:
    """Return the error that a starting daemon reported: ``cause (E…)`` and, on a second line, the hint."""
    cause, _, hint = text.partition("\n")
    message, _, code = cause.rpartition(" (")
    if message and code.endswith(")"):
        return RemoteError(message, code=code[:-1], hint=hint)
    return DaemonFailed(cause, hint=hint)
