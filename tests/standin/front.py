"""The front door: what GitHub does with every request before and after the part that answers it."""

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from standin import app_jwt, git_access
from standin.api import Api
from standin.errors import ApiError
from standin.faults import Fault
from standin.git_http import GitHttp
from standin.journal import Request, token_sha256
from standin.lfs import Lfs
from standin.manifest import Manifests
from standin.openapi import OLDEST, Description
from standin.site import Place, locate
from standin.web import Web
from standin.world import World


CUT = 0  # the status of an answer that was not given
NO_USER_AGENT = (
    b"\r\nRequest forbidden by administrative rules. Please make sure your request has a User-Agent header "
    b"(https://docs.github.com/en/rest/overview/resources-in-the-rest-api#user-agent-required). Check "
    b"https://developer.github.com for other possible causes.\r\n"
)
LARGEST_BODY = 1 << 20  # of a request to the API; GitHub's own limit is not known, a mint is a few KiB


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of the API."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Front:
    """The ASGI application that uvicorn serves for all hosts."""

    def __init__(self, world: World, descriptions: Mapping[str, Description]) -> None:
        manifests = Manifests(world)
        self.transports: dict[Any, asyncio.Transport] = {}
        """Open connections by the client's address; uvicorn's protocol keeps this up to date."""
        self._world = world
        self._descriptions = descriptions
        self._api = Api(world, manifests).application()
        pages = [*Web(world, manifests).routes(), *Lfs(world).routes(), Mount("", app=GitHttp(world))]
        self._site = Starlette(routes=pages)
        self._site.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Visit(self, self._world, scope, receive, send).serve()

    def part(self, place: Place) -> ASGIApp:
        return self._api if place.surface == "api" else self._site

    def description(self, version: str) -> Description | None:
        return self._descriptions.get(version)


class Visit:
    """One request on its way through; a class because every step needs the same five things."""

    def __init__(self, front: Front, world: World, scope: Scope, receive: Receive, send: Send) -> None:
        self._front = front
        self._world = world
        self._scope = scope
        self._receive = receive
        self._send = send
        self._began = time.perf_counter()
        self._headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self._record = self._first_record()
        self._fixed = {
            "server": "github.com",
            "x-github-request-id": ":".join(secrets.token_hex(2).upper() for _ in range(5)),
        }

    async def serve(self) -> None:
        place = locate(self._headers.get("host", ""), self._scope["path"])
        if place is None:
            await self._answer(Answer(404, {"content-type": "text/plain"}, b"404: Not Found"))
            return
        fault = self._world.faults.match(place.surface, self._record.method, place.path)
        if fault is not None:
            await fault.wait()
            if fault.cut or fault.status is not None:
                self._record = replace(self._record, faulty=True)
                await self._misbehave(fault)
                return
        self._scope.update({"path": place.path, "standin.site": place.site})
        if place.surface == "git":
            await self._front.part(place)(self._scope, self._receive, self._watch)
            return
        await self._serve_api(place, fault)

    # The API: whole requests, whole answers.

    async def _serve_api(self, place: Place, fault: Fault | None) -> None:
        body = await self._read()
        self._record = replace(self._record, body=_json(body))
        version = self._headers.get("x-github-api-version", OLDEST)
        answer = self._refusal(version) or await self._ask(self._front.part(place), body, version)
        if fault is not None and fault.edit is not None:
            edited = json.dumps(fault.edit(json.loads(answer.body))).encode()
            answer = replace(answer, body=edited)
            self._record = replace(self._record, faulty=True)
        else:
            self._check(place.path, version, answer)
        await self._answer(answer)

    def _refusal(self, version: str) -> Answer | None:
        settings = self._world.settings
        if not self._headers.get("user-agent"):
            return Answer(403, {"content-type": "text/plain; charset=utf-8"}, NO_USER_AGENT)
        if version in settings.retired_versions:
            return _refused(410, f"The API version {version} is no longer supported.")
        if version not in settings.api_versions:
            return _refused(400, f"{version} is not a supported version of the API.")
        return None

    async def _ask(self, part: ASGIApp, body: bytes, version: str) -> Answer:
        self._scope.update({"standin.version": version, "standin.headers": {}})
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        async def send(message: Message) -> None:
            sent.append(message)

        await part(self._scope, receive, send)
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in sent[0]["headers"]}
        common = {
            "x-github-api-version-selected": version,
            "x-github-media-type": "github.v3; format=json",
            # Recorded also on the answer that carries a token.
            "cache-control": "public, max-age=60, s-maxage=60",
        }
        if headers.get("content-type") == "application/json":
            headers["content-type"] = "application/json; charset=utf-8"
        return Answer(
            sent[0]["status"],
            common | self._scope["standin.headers"] | headers,
            b"".join(m.get("body", b"") for m in sent[1:]),
        )

    def _check(self, path: str, version: str, answer: Answer) -> None:
        """Hold the request and the answer against GitHub's description, if the test gave one."""
        description = self._front.description(version)
        if description is None:
            return
        record = self._record
        query = dict(parse_qsl(record.query, keep_blank_values=True))
        problems = description.check_request(record.method, path, query, record.body)
        problems += description.check_response(record.method, path, answer.status, answer.headers, answer.body)
        self._world.violations.extend(problems)

    async def _read(self) -> bytes:
        parts, size = [], 0
        while size <= LARGEST_BODY:
            message = await self._receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if not message.get("more_body"):
                break
        return b"".join(parts)

    # Answers.

    async def _watch(self, message: Message) -> None:
        """Note the status of a streamed answer before its first byte leaves."""
        if message["type"] == "http.response.start":
            self._note(message["status"])
            fixed = self._fixed | {"date": self._world.clock.http_date()}
            message["headers"] = [*message["headers"], *_raw(fixed)]
        await self._send(message)

    async def _answer(self, answer: Answer) -> None:
        # A 204 has no body, and so no length either.
        length = {"content-length": str(len(answer.body))} if answer.status != 204 else {}
        date = {"date": self._world.clock.http_date()}
        headers = self._fixed | date | dict(answer.headers) | length
        self._note(answer.status)
        await self._send({"type": "http.response.start", "status": answer.status, "headers": list(_raw(headers))})
        await self._send({"type": "http.response.body", "body": answer.body})

    async def _misbehave(self, fault: Fault) -> None:
        if fault.cut:
            self._note(CUT)
            self._transport().abort()
            return
        assert fault.status is not None
        headers = {"content-type": "text/html"} | dict(fault.headers)
        if fault.content_length is None:
            await self._answer(Answer(fault.status, headers, fault.body))
            return
        self._note(fault.status)
        headers |= {"content-length": str(fault.content_length), "date": self._world.clock.http_date()}
        await self._send({"type": "http.response.start", "status": fault.status, "headers": list(_raw(headers))})
        await self._send({"type": "http.response.body", "body": fault.body, "more_body": True})
        self._transport().close()  # after what was written

    def _transport(self) -> asyncio.Transport:
        return self._front.transports[tuple(self._scope["client"])]

    # The journal.

    def _note(self, status: int) -> None:
        duration = time.perf_counter() - self._began
        self._world.journal.add_request(replace(self._record, status=status, duration=duration))

    def _first_record(self) -> Request:
        authorization = self._headers.get("authorization", "")
        scheme, _, value = authorization.partition(" ")
        pair = git_access.basic(authorization)
        token = pair[1] if pair else value
        return Request(
            host=self._headers.get("host", ""),
            method=self._scope["method"],
            path=self._scope["path"],
            query=self._scope["query_string"].decode("latin-1"),
            status=CUT,
            time=self._world.clock.now(),
            duration=0.0,
            headers={name: text for name, text in self._headers.items() if name != "authorization"},
            scheme=scheme.lower() or None,
            username=pair[0] if pair else None,
            token_sha256=token_sha256(token) if token else None,
            issuer=app_jwt.unverified_issuer(token) if scheme.lower() == "bearer" else None,
            body=None,
            faulty=False,
        )


def _refused(status: int, message: str) -> Answer:
    body = json.dumps(ApiError(status, message).body).encode()
    return Answer(status, {"content-type": "application/json; charset=utf-8"}, body)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body.decode("latin-1")


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
