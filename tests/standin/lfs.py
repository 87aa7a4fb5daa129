"""Git LFS: the batch API and the storage behind it."""

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from standin import git_access
from standin.errors import GitRefusalError
from standin.git_http import repository_name
from standin.model import Repository
from standin.world import World


MEDIA_TYPE = "application/vnd.git-lfs+json"


class Lfs:
    """LFS below `/{owner}/{repo}.git/info/lfs`, with git's own credentials; transfers have others."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._directory = world.directory / "lfs"
        self._ticket = f"RemoteAuth {secrets.token_urlsafe(16)}"

    def routes(self) -> list[Route]:
        return [
            Route("/{owner}/{repo}/info/lfs/objects/batch", self.batch, methods=["POST"]),
            Route("/{owner}/{repo}/info/lfs/locks/verify", self.verify_locks, methods=["POST"]),
            Route("/lfs-storage/{id:int}/{oid}", self.transfer, methods=["GET", "PUT"]),
        ]

    async def batch(self, request: Request) -> Response:
        wanted = json.loads(await request.body())
        operation = "upload" if wanted["operation"] == "upload" else "download"
        repository = self._admit(request, write=operation == "upload")
        if isinstance(repository, Response):
            return repository
        base = f"https://{request.headers['host']}/lfs-storage/{repository.id}"
        objects = [self._offer(base, repository.id, operation, item) for item in wanted["objects"]]
        return JSONResponse({"transfer": "basic", "objects": objects}, media_type=MEDIA_TYPE)

    async def verify_locks(self, request: Request) -> Response:
        """Say that nobody holds a lock, to whoever may push."""
        repository = self._admit(request, write=True)
        if isinstance(repository, Response):
            return repository
        return JSONResponse({"ours": [], "theirs": [], "next_cursor": ""}, media_type=MEDIA_TYPE)

    async def transfer(self, request: Request) -> Response:
        path = self._path(request.path_params["id"], request.path_params["oid"])
        if not secrets.compare_digest(request.headers.get("authorization", ""), self._ticket):
            return Response(status_code=403)
        if request.method == "GET":
            return FileResponse(path) if path.exists() else Response(status_code=404)
        content = await request.body()
        if hashlib.sha256(content).hexdigest() != path.name:
            return Response("the content is not what its name says", 422)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return Response(status_code=200)

    def _admit(self, request: Request, *, write: bool) -> Repository | Response:
        """Return the repository, or the refusal."""
        name, _ = repository_name(request.path_params["repo"])
        repository = self._world.find_repository(request.path_params["owner"], name)
        try:
            git_access.check(self._world, repository, request.headers.get("authorization"), write=write)
        except GitRefusalError as refusal:
            headers = {"lfs-authenticate": 'Basic realm="GitHub"'} if refusal.status == 401 else {}
            return JSONResponse({"message": refusal.message}, refusal.status, headers=headers, media_type=MEDIA_TYPE)
        assert repository is not None, "check() refuses what does not exist"
        return repository

    def _offer(self, base: str, number: int, operation: str, item: dict[str, Any]) -> dict[str, Any]:
        there = self._path(number, item["oid"]).exists()
        if operation == "download" and not there:
            return item | {"error": {"code": 404, "message": "Object does not exist"}}
        if operation == "upload" and there:
            return item
        action = {
            "href": f"{base}/{item['oid']}",
            "header": {"Authorization": self._ticket},
            "expires_in": 900,
        }
        return item | {"authenticated": True, "actions": {operation: action}}

    def _path(self, number: int, oid: str) -> Path:
        return self._directory / str(number) / Path(oid).name
