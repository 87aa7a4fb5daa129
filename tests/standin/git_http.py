"""Smart HTTP: the bridge between a request and `git http-backend`, streaming both ways."""

import asyncio
import os
import shlex
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from standin import bare, git_access
from standin.errors import GitRefusalError
from standin.model import Repository, Token
from standin.world import World


SERVICES = ("git-upload-pack", "git-receive-pack")
CHUNK = 1 << 16
LARGEST_HEAD = 1 << 16  # of the CGI's answer; http-backend writes a few hundred bytes


class GitHttp:
    """Repositories over HTTP, as an ASGI application below `/{owner}/{repo}`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hooks = world.directory / "hooks"
        _write_hook(self._hooks / "proc-receive")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        owner, name, rest = [*scope["path"].lstrip("/").split("/", 2), "", ""][:3]
        try:
            environment = self._admit(request, owner, name, rest)
        except GitRefusalError as refusal:
            await answer(send, refusal.status, refusal.headers, refusal.message.encode())
            return
        await _run(environment, receive, send)

    def _admit(self, request: Request, owner: str, name: str, rest: str) -> dict[str, str]:
        """Check a request and return the CGI's environment."""
        service = request.query_params.get("service", "") if rest == "info/refs" else rest
        if service not in SERVICES:
            raise GitRefusalError(404, "Not Found")
        if request.method == "POST" and self._world.settings.reject_every_post:
            raise GitRefusalError(401, git_access.INVALID)
        stem, wiki = repository_name(name)
        repository = self._world.find_repository(owner, stem)
        token = git_access.check(
            self._world,
            repository,
            request.headers.get("authorization"),
            write=service == "git-receive-pack",
        )
        assert repository is not None, "check() refuses what does not exist"
        path = repository.wiki_path if wiki else repository.bare_path
        if not path.is_dir():
            raise GitRefusalError(404, git_access.NOT_FOUND)
        return self._environment(request, path, rest, self._config(token, repository))

    def _config(self, token: Token | None, repository: Repository) -> dict[str, str]:
        if token is None or not token.reaches(repository) or token.allows("workflows", "write"):
            return {}
        return {"receive.procReceiveRefs": "refs", "core.hooksPath": str(self._hooks)}

    @staticmethod
    def _environment(request: Request, path: Path, rest: str, config: dict[str, str]) -> dict[str, str]:
        headers = {
            "CONTENT_TYPE": "content-type",
            "CONTENT_LENGTH": "content-length",  # absent for a chunked body: http-backend reads to its end
            "HTTP_CONTENT_ENCODING": "content-encoding",
            "GIT_PROTOCOL": "git-protocol",
        }
        return bare.environment(config) | {
            "GIT_PROJECT_ROOT": str(path.parent),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "x-access-token",
            "REQUEST_METHOD": request.method,
            "PATH_INFO": f"/{path.name}/{rest}",
            "QUERY_STRING": request.url.query,
            **{key: request.headers[name] for key, name in headers.items() if name in request.headers},
        }


def repository_name(name: str) -> tuple[str, bool]:
    """Strip `.git` and `.wiki`; the flag tells whether the wiki was meant."""
    stem = name.removesuffix(".git")
    return stem.removesuffix(".wiki"), stem.endswith(".wiki")


async def answer(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    """Send a short answer."""
    all_headers = headers | {"content-length": str(len(body))}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in all_headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def _run(environment: dict[str, str], receive: Receive, send: Send) -> None:
    process = await asyncio.create_subprocess_exec(
        "git",
        "http-backend",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
        limit=LARGEST_HEAD,
        start_new_session=True,  # http-backend's own children end with it
    )
    feeder = asyncio.create_task(_feed(process, receive))
    try:
        await _relay(process, send)
        await process.wait()
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)
        _kill(process)
        await process.wait()


async def _relay(process: asyncio.subprocess.Process, send: Send) -> None:
    assert process.stdout is not None
    try:
        head = await process.stdout.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        await answer(send, 500, {"content-type": "text/plain"}, b"git http-backend gave no answer")
        return
    await send(_start(head))
    while chunk := await process.stdout.read(CHUNK):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body"})


async def _feed(process: asyncio.subprocess.Process, receive: Receive) -> None:
    """Pass on the request's body; a client that goes away ends the process."""
    assert process.stdin is not None
    try:
        while (message := await receive())["type"] == "http.request":
            if not process.stdin.is_closing():
                process.stdin.write(message.get("body", b""))
                with suppress(ConnectionError):  # git does not read a body that it has refused
                    await process.stdin.drain()
                if not message.get("more_body"):
                    process.stdin.close()
        _kill(process)
    finally:
        process.stdin.close()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _start(head: bytes) -> Message:
    status, headers = 200, []
    for line in head.decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(": ")
        if name.lower() == "status":
            status = int(value.split(" ", 1)[0])
        elif colon:
            headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))
    message: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
    return message


def _write_hook(path: Path) -> None:
    program = Path(__file__).with_name("proc_receive.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -I {shlex.quote(str(program))}\n")
    path.chmod(0o755)
