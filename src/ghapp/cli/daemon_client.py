"""The command line's end of control.sock."""

import _socket
import json
from typing import Any

from ghapp import autostart, client, paths, process
from ghapp.errors import DaemonFailed, GhappError


PATIENCE = 60.0  # seconds for one method: a list of installations may be several pages
GLANCE = 5.0  # seconds for a method that asks nobody else
ATTEMPTS = 3  # a daemon that ends while we ask is replaced


class RemoteError(GhappError):
    """An error that the daemon named; it carries the daemon's code."""

    def __init__(self, message: str, *, code: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def call(method: str, **params: Any) -> Any:
    """Call a method of the daemon, starting it if none runs. Raises `GhappError`."""
    for _ in range(ATTEMPTS):
        try:
            autostart.ensure(paths.control_socket())
        except OSError as error:
            raise started_error(error) from None
        answer = ask(method, **params)
        if answer is not None:
            return answer["result"]
    raise DaemonFailed("the daemon went away", hint="ghapp daemon status")


def call_if_running(method: str, **params: Any) -> Any | None:
    """Call a method of the daemon that runs, or return None if none does: systemd would start one just to be asked."""
    directory = paths.runtime_dir()
    if autostart.manager_dir(directory) and not process.is_locked(directory):
        return None
    answer = ask(method, patience=GLANCE, **params)
    return None if answer is None else answer["result"]


def ask(method: str, *, patience: float = PATIENCE, **params: Any) -> dict[str, Any] | None:
    """Send one request and return the answer's object, or None if nobody listens. Raises `GhappError`."""
    held = hold(method, patience=patience, **params)
    if held is None:
        return None
    answer, connection = held
    connection.close()
    return answer


def hold(method: str, *, patience: float = PATIENCE, **params: Any) -> tuple[dict[str, Any], _socket.socket] | None:
    """As `ask`, and hand over the connection: what the method did lasts until that is closed."""
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n"
    try:
        connection = client.connect(paths.control_socket(), patience)
        try:
            data = _exchange(connection, request)
        except BaseException:
            connection.close()
            raise
    except (FileNotFoundError, ConnectionError, NotADirectoryError):
        return None
    except TimeoutError:
        raise DaemonFailed(f"the daemon did not answer within {patience:.0f} s", hint="ghapp daemon restart") from None
    except OSError as error:
        raise started_error(error) from None
    try:
        answer = _answer_of(data)
    except BaseException:
        connection.close()
        raise
    if answer is None:
        connection.close()
        return None
    return answer, connection


def _answer_of(data: bytes) -> dict[str, Any] | None:
    if not data:
        return None
    try:
        answer: dict[str, Any] = json.loads(data)
    except ValueError:
        raise DaemonFailed(f"{paths.control_socket()} is not served by ghapp", hint="ghapp daemon restart") from None
    if "error" in answer:
        refusal = answer["error"]
        details = refusal.get("data") or {}
        raise RemoteError(refusal["message"], code=details.get("code", "E41"), hint=details.get("hint", ""))
    return answer


def _exchange(connection: _socket.socket, request: bytes) -> bytes:
    """Return the answer's line, b"" if it does not come whole."""
    connection.sendall(request)
    data = b""
    while not data.endswith(b"\n"):
        chunk = connection.recv(1024 * 1024)
        if not chunk:
            return b""
        data += chunk
    return data


def started_error(error: OSError) -> GhappError:
    """Return the error that a starting daemon reported: ``cause (E…)`` and, on a second line, the hint."""
    cause, _, hint = client.explained(error).partition("\n")
    message, _, code = cause.rpartition(" (")
    if message and code.endswith(")"):
        return RemoteError(message, code=code[:-1], hint=hint)
    return DaemonFailed(cause, hint=hint)
