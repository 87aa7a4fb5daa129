"""The REST API: one method for each operation."""

from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from standin import app_jwt, mint, shape
from standin.clock import from_iso
from standin.errors import ApiError
from standin.manifest import Manifests
from standin.model import App, Installation, Token
from standin.site import Site
from standin.world import World


APPS = "https://docs.github.com/rest/reference/apps"
FIND_BY_REPOSITORY = f"{APPS}#get-a-repository-installation-for-the-authenticated-app"
BAD_CREDENTIALS = "Bad credentials"
NOT_ALLOWED = (
    "Although you appear to have the correct authorization credentials, the `{login}` organization has an "
    "IP allow list enabled, and your IP address is not permitted to access this resource."
)
T = TypeVar("T")
MOST_PER_PAGE, USUAL_PER_PAGE = 100, 30


class Api:
    """GitHub's API over one world."""

    def __init__(self, world: World, manifests: Manifests) -> None:
        self._world = world
        self._manifests = manifests

    def application(self) -> Starlette:
        routes = [
            Route("/app", self.get_app),
            Route("/app/installations", self.list_installations),
            Route("/app/installations/{id:int}", self.get_installation),
            Route("/app/installations/{id:int}/access_tokens", self.create_token, methods=["POST"]),
            Route("/app/installations/{id:int}/suspended", self.suspend, methods=["PUT", "DELETE"]),
            Route("/repos/{owner}/{repo}/installation", self.installation_of_repository),
            Route("/repositories/{id:int}/installation", self.installation_of_repository),
            Route("/orgs/{login}/installation", self.installation_of_account),
            Route("/users/{login}/installation", self.installation_of_account),
            Route("/enterprises/{login}/installation", self.installation_of_account),
            Route("/users/{login}", self.get_user),
            Route("/installation/repositories", self.list_repositories),
            Route("/installation/token", self.revoke_token, methods=["DELETE"]),
            Route("/rate_limit", self.rate_limit),
            Route("/versions", self.versions),
            Route("/app-manifests/{code}/conversions", self.convert_manifest, methods=["POST"]),
        ]
        handlers = {ApiError: _refusal, HTTPException: _no_route}
        application = Starlette(routes=routes, exception_handlers=handlers)
        application.router.redirect_slashes = False  # a trailing slash is a 404 at GitHub
        return application

    # Operations of an app.

    async def get_app(self, request: Request) -> Response:
        app = self._app(request)
        return JSONResponse(shape.app(app, _site(request), len(self._installations(app))))

    async def list_installations(self, request: Request) -> Response:
        installations = self._installations(self._app(request))
        if (since := request.query_params.get("since")) is not None:
            installations = [item for item in installations if item.updated_at >= _moment(since)]
        part, headers = _page(request, installations)
        return JSONResponse([shape.installation(item, _site(request)) for item in part], headers=headers)

    async def get_installation(self, request: Request) -> Response:
        return self._show(self._own_installation(request), request)

    async def create_token(self, request: Request) -> Response:
        installation = self._own_installation(request)
        self._check_address(installation)
        asked = mint.parse(await request.body())
        body = mint.mint(self._world, installation, asked, _site(request), _version(request))
        return JSONResponse(body, 201)

    async def suspend(self, request: Request) -> Response:
        installation = self._own_installation(request)
        if request.method == "PUT":
            self._world.suspend(installation)
        else:
            self._world.unsuspend(installation)
        return Response(status_code=204)

    async def installation_of_repository(self, request: Request) -> Response:
        app = self._app(request)
        world, given = self._world, request.path_params
        if "id" in given:
            repository = world.repositories.get(given["id"])
        else:
            repository = world.find_repository(given["owner"], given["repo"])
        if repository is None:
            raise ApiError(404, "Not Found", documentation_url=FIND_BY_REPOSITORY)
        installation = world.installation_on(app, repository.account.login)
        if installation is None or not installation.covers(repository):
            raise ApiError(404, "Not Found", documentation_url=FIND_BY_REPOSITORY)
        if "id" not in given and world.named(given["owner"], given["repo"]) is None:
            url = f"{_site(request).api}/repositories/{repository.id}/installation"
            raise ApiError(301, "Moved Permanently", headers={"location": url}, more={"url": url})
        return self._show(installation, request)

    async def installation_of_account(self, request: Request) -> Response:
        installation = self._world.installation_on(self._app(request), request.path_params["login"])
        fitting = {"/orgs/": ("Organization",), "/enterprises/": ("Enterprise",)}
        kind = next((fitting[start] for start in fitting if request.url.path.startswith(start)), None)
        if installation is None or installation.account.type not in (kind or ("User", "Organization")):
            raise ApiError(404, "Not Found", documentation_url=APPS)
        return self._show(installation, request)

    # Operations of an installation.

    async def list_repositories(self, request: Request) -> Response:
        token = self._token(request)
        covered = self._world.covered(token.installation)
        repositories = [repository for repository in covered if token.reaches(repository)]
        part, headers = _page(request, repositories)
        everything = token.installation.everything and token.repository_ids is None
        site, version = _site(request), _version(request)
        body = {
            "total_count": len(repositories),
            "repository_selection": "all" if everything else "selected",
            "repositories": [shape.repository(item, site, version) for item in part],
        }
        return JSONResponse(body, headers=headers)

    async def revoke_token(self, request: Request) -> Response:
        self._token(request).revoked = True
        return Response(status_code=204)

    # Operations of anybody.

    async def get_user(self, request: Request) -> Response:
        self._anybody(request)
        account = self._world.accounts.get(request.path_params["login"].lower())
        if account is None or account.type == "Enterprise":
            raise ApiError(404, "Not Found")
        public = [r for r in self._world.repositories.values() if r.account is account and not r.private]
        return JSONResponse(shape.public_user(account, _site(request), len(public)))

    async def rate_limit(self, request: Request) -> Response:
        caller = self._anybody(request)
        numbers = self._world.limits.numbers(caller)
        names = ("core", "search", "graphql", "integration_manifest")
        body: dict[str, Any] = {"resources": dict.fromkeys(names, numbers)}
        if _version(request) < "2026-03-10":
            body["rate"] = numbers
        return JSONResponse(body, headers=self._world.limits.headers(caller))

    async def versions(self, request: Request) -> Response:
        self._anybody(request)
        return JSONResponse(list(self._world.settings.api_versions))

    async def convert_manifest(self, request: Request) -> Response:
        app = self._manifests.convert(request.path_params["code"])
        if app is None:
            raise ApiError(404, "Not Found", documentation_url=f"{APPS}#create-a-github-app-from-a-manifest")
        secrets = {
            "client_secret": self._manifests.client_secret(),
            "webhook_secret": None,
            "pem": app.private_key_pem.decode(),
        }
        return JSONResponse(shape.app(app, _site(request), 0) | secrets, 201)

    # Who asks.

    def _app(self, request: Request) -> App:
        world = self._world
        world.limits.check_lockout()
        host = request.url.hostname or ""
        client_ids = host not in world.settings.hosts_without_client_ids
        scheme, token = _authorization(request)
        try:
            # "token <JWT>" is not accepted for a JWT.
            app = app_jwt.verify(
                token if scheme == "bearer" else "",
                list(world.apps.values()),
                world.clock.now(),
                client_ids=client_ids,
            )
        except ApiError:
            world.limits.failed_login()
            raise
        self._charge(request, f"app ID {app.id}")
        return app

    def _token(self, request: Request) -> Token:
        world = self._world
        world.limits.check_lockout()
        scheme, value = _authorization(request)
        token = world.live_token(value) if scheme in ("token", "bearer") else None
        if token is None:
            world.limits.failed_login()
            raise ApiError(401, BAD_CREDENTIALS if value else "Requires authentication")
        before, token.rest_requests = token.rest_requests, token.rest_requests + 1
        if world.lags(token, before):
            _refuse_fresh(world.settings.lag.rest_status)
        if token.installation.suspended_at is not None:
            raise ApiError(403, mint.SUSPENDED)
        self._check_address(token.installation)
        self._charge(request, f"installation ID {token.installation.id}")
        return token

    def _anybody(self, request: Request) -> str:
        scheme, value = _authorization(request)
        if not value:
            if not _site(request).anonymous:
                raise ApiError(401, "Requires authentication")
            return "anonymous"
        if scheme == "bearer" and not value.startswith("ghs_"):
            return f"app ID {self._app(request).id}"
        return f"installation ID {self._token(request).installation.id}"

    def _charge(self, request: Request, caller: str) -> None:
        endpoint = request.scope["endpoint"].__name__
        if endpoint == "rate_limit":  # free, and answered even when nothing is left
            return
        request.scope["standin.headers"].update(self._world.limits.charge(caller, request.method, endpoint))

    # What there is.

    def _installations(self, app: App) -> list[Installation]:
        with self._world.lock:
            return [item for item in self._world.installations.values() if item.app is app]

    def _own_installation(self, request: Request) -> Installation:
        app = self._app(request)
        installation = self._world.installations.get(request.path_params["id"])
        if installation is None or installation.app is not app:
            raise ApiError(404, "Not Found", documentation_url=APPS)
        return installation

    def _show(self, installation: Installation, request: Request) -> Response:
        self._check_address(installation)
        return JSONResponse(shape.installation(installation, _site(request)))

    def _check_address(self, installation: Installation) -> None:
        login = installation.account.login
        if login.lower() in self._world.settings.ip_allow_list:
            raise ApiError(403, NOT_ALLOWED.format(login=login))


def _refuse_fresh(status: int | None) -> None:
    texts = {401: BAD_CREDENTIALS, 403: "Resource not accessible by integration", 404: "Not Found"}
    if status is not None:
        raise ApiError(status, texts[status])


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, headers=dict(error.headers))


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(ApiError(404, "Not Found").body, 404)


def _site(request: Request) -> Site:
    site: Site = request.scope["standin.site"]
    return site


def _version(request: Request) -> str:
    version: str = request.scope["standin.version"]
    return version


def _authorization(request: Request) -> tuple[str, str]:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return scheme.lower(), value.strip()


def _moment(text: str) -> float:
    try:
        return from_iso(text)
    except ValueError:
        raise ApiError(422, "Invalid request") from None


def _number(request: Request, name: str, usual: int) -> int:
    text = request.query_params.get(name, "")
    return max(1, int(text)) if text.isdecimal() else usual


def _page(request: Request, items: Sequence[T]) -> tuple[Sequence[T], dict[str, str]]:
    """Cut out the page asked for, with the `Link` header to the others."""
    size = min(_number(request, "per_page", USUAL_PER_PAGE), MOST_PER_PAGE)
    page = _number(request, "page", 1)
    last = max(1, -(-len(items) // size))
    targets = {"prev": page - 1, "next": page + 1, "last": last, "first": 1}
    wanted = [name for name in targets if (page > 1 if name in ("prev", "first") else page < last)]
    base = _site(request).api + request.url.path
    others = {key: value for key, value in request.query_params.items() if key != "page"}
    links = [f'<{base}?{urlencode({**others, "page": targets[name]})}>; rel="{name}"' for name in wanted]
    headers = {"link": ", ".join(links)} if links else {}
    return items[(page - 1) * size : page * size], headers
