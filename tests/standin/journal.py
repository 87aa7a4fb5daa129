"""What the stand-in has seen and done."""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One request and the status it got; 0 when the connection was cut instead."""

    host: str
    method: str
    path: str
    query: str
    status: int
    time: float
    """By the stand-in's clock, when the request came."""
    duration: float
    """Seconds until the answer's first byte."""
    headers: Mapping[str, str] = field(repr=False)
    """Lower-case names; `authorization` is left out."""
    scheme: str | None
    """Of the authorization, in lower case."""
    username: str | None
    """Of a Basic authorization."""
    token_sha256: str | None
    issuer: str | int | None
    """Of a JWT, unverified."""
    body: Any
    """The JSON that came with a request to the API."""
    faulty: bool
    """A fault, not GitHub, gave the answer."""

    @property
    def user_agent(self) -> str | None:
        return self.headers.get("user-agent")


@dataclass(frozen=True, slots=True)
class Mint:
    """One token that was minted."""

    app: int
    installation: int
    repositories: tuple[str, ...] | None
    """Full names, sorted; `None`: all of the installation."""
    permissions: Mapping[str, str]
    asked: Mapping[str, Any]
    """The request's JSON."""
    token: str = field(repr=False)
    token_sha256: str
    time: float
    expires_at: float


class Journal:
    """Keeps requests and mints; the server's thread writes, any thread reads copies."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._requests: list[Request] = []
        self._mints: list[Mint] = []

    def add_request(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)

    def add_mint(self, mint: Mint) -> None:
        with self._lock:
            self._mints.append(mint)

    @property
    def requests(self) -> list[Request]:
        with self._lock:
            return list(self._requests)

    @property
    def mints(self) -> list[Mint]:
        with self._lock:
            return list(self._mints)

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()
            self._mints.clear()


def token_sha256(token: str) -> str:
    """Name a token as GitHub's audit log does."""
    return base64.b64encode(hashlib.sha256(token.encode()).digest()).decode()


def summary(requests: Iterable[Request], mints: Iterable[Mint]) -> dict[str, Any]:
    """Tell what happened, without a token in it."""
    seen = list(requests)
    counts: dict[str, int] = {}
    for request in seen:
        key = f"{request.host} {request.method} {request.status}"
        counts[key] = counts.get(key, 0) + 1
    return {
        "mints": [
            {
                "installation": mint.installation,
                "repositories": "all" if mint.repositories is None else list(mint.repositories),
                "permissions": dict(mint.permissions),
                "token_sha256": mint.token_sha256,
                "time": mint.time,
                "expires_at": mint.expires_at,
            }
            for mint in mints
        ],
        "counts": counts,
        "requests": [
            {
                "host": request.host,
                "method": request.method,
                "path": request.path,
                "status": request.status,
                "time": request.time,
                "duration": round(request.duration, 6),
                "token_sha256": request.token_sha256,
            }
            for request in seen
        ],
    }
