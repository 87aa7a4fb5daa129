"""control.sock: JSON-RPC 2.0, one object a line, for the command line; never git.

No method takes code, a module's name or a path that the daemon would run.
"""

import asyncio
import contextlib
import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ghapp.errors import GhappError
from ghapp.listener import Connection, Peer


MAX_LINE = 256 * 1024  # 500 repositories' names are 50 KiB
GHAPP_ERROR = -32000
_PARSE_ERROR, _INVALID_REQUEST, _UNKNOWN_METHOD, _INVALID_PARAMS, _INTERNAL = -32700, -32600, -32601, -32602, -32603

Method = Callable[..., Awaitable[Any]]

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Session:
    """One client's connection, for a method whose effect is to last as long as that."""

    at_end: "Callable[[], asyncio.Task[Any]] | None" = None
    """Begins to end it, at once, in a task that may be waited for. Once it is set no further request is read."""
    unheard: "Callable[[], object] | None" = None
    """Takes back what the last request made, if nobody is there any more to hear of it."""


SESSION: ContextVar[Session] = ContextVar("SESSION")
"""The session that a method was called in."""


class ControlServer:
    """Answers any number of requests a connection, in order."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        on_error: Callable[[GhappError], None],
        called_by: Callable[[Peer], AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
    ) -> None:
        """`called_by` names the peer in what is recorded while its request is served."""
        self._methods = methods
        self._called_by = called_by
        self._on_error = on_error

    async def handle(self, connection: Connection) -> None:
        """Serve one connection until the client closes it."""
        session = Session()
        SESSION.set(session)
        with self._called_by(connection.peer):
            try:
                while session.at_end is None and (line := await connection.read_until(b"\n", MAX_LINE)):
                    session.unheard = None
                    answer = await self.respond(line)
                    try:
                        if answer is not None:
                            await connection.write(answer + b"\n")
                    except OSError:
                        if session.unheard is not None:
                            session.unheard()
                        raise
                if session.at_end is not None:
                    await connection.until_closed()
            finally:
                ending = None if session.at_end is None else session.at_end()
            if ending is not None:
                await connection.write(json.dumps(await asyncio.shield(ending)).encode() + b"\n")

    async def respond(self, line: bytes) -> bytes | None:
        """Return the answer to one request, or None for a notification (JSON-RPC 2.0, 4.1)."""
        try:
            request = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return json.dumps(_error(None, _PARSE_ERROR, "not JSON")).encode()
        if not _is_request(request):
            return json.dumps(_error(None, _INVALID_REQUEST, "not a JSON-RPC 2.0 request")).encode()
        try:
            answer = json.dumps(await self._call(request))
        except MemoryError:
            raise  # the listener ends us
        except Exception as error:  # noqa: BLE001  # a bug in one method; whoever asks must not wait for an answer
            log.error("method %s failed: %s", request["method"], type(error).__name__)  # noqa: TRY400  # as below
            answer = json.dumps(_error(request.get("id"), _INTERNAL, f"unexpected {type(error).__name__}"))
        return answer.encode() if "id" in request else None

    async def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        number, name, params = request.get("id"), request["method"], request.get("params", {})
        method = self._methods.get(name)
        if method is None:
            return _error(number, _UNKNOWN_METHOD, "there is no such method")
        if not isinstance(params, dict):
            return _error(number, _INVALID_PARAMS, "params must be an object")
        try:
            inspect.signature(method).bind(**params)
        except TypeError:
            return _error(number, _INVALID_PARAMS, "the parameters do not fit")  # the caller's mistake: not logged
        try:
            result = await method(**params)
        except GhappError as error:
            self._on_error(error)
            data = {"code": error.code, "hint": error.hint}
            return _error(number, GHAPP_ERROR, error.message, data)
        except (TypeError, ValueError, KeyError) as error:
            # The class alone: the text may repeat what was received.
            log.error("method %s failed: %s", name, type(error).__name__)  # noqa: TRY400  # as said
            return _error(number, _INVALID_PARAMS, "the parameters do not fit")
        return {"jsonrpc": "2.0", "id": number, "result": result}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_request(request: object) -> bool:
    return (
        isinstance(request, dict)
        and request.get("jsonrpc") == "2.0"
        and isinstance(request.get("method"), str)
        and isinstance(request.get("id"), str | int | float | None)
    )


def _error(number: object, code: int, message: str, data: object = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": number, "error": error}
