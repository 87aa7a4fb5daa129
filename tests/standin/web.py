"""The few pages of github.com that the manifest flow and an installation go through."""

from html import escape
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from standin import manifest
from standin.model import App
from standin.world import World


class Web:
    """The pages, as whoever `settings.signed_in` names."""

    def __init__(self, world: World, manifests: manifest.Manifests) -> None:
        self._world = world
        self._manifests = manifests

    def routes(self) -> list[Route]:
        both = ["GET", "POST"]
        return [
            Route("/settings/apps/new", self.new_app, methods=both),
            Route("/organizations/{org}/settings/apps/new", self.new_app, methods=both),
            Route("/apps/{slug}/installations/new", self.new_installation, methods=both),
        ]

    async def new_app(self, request: Request) -> Response:
        """Show the form, then the name to confirm, then go back to the manifest's `redirect_url`."""
        if request.method == "GET":
            return _page("Register new GitHub App", _form('<textarea name="manifest"></textarea>', "Continue"))
        form = await _fields(request)
        try:
            wanted = manifest.parse(form.get("manifest", ""))
            if "name" not in form:
                return _page("Create GitHub App", _name_form(form["manifest"], wanted.get("name", "")))
            code = self._manifests.create(wanted, form["name"], request.path_params.get("org"))
        except manifest.ManifestError as error:
            return _page("Invalid GitHub App configuration", f"<p>{escape(str(error))}</p>", 422)
        answer = {"code": code} | {k: v for k, v in request.query_params.items() if k == "state"}
        target = wanted.get("redirect_url", f"https://{request.url.hostname}/settings/apps")
        return RedirectResponse(f"{target}{'&' if '?' in target else '?'}{urlencode(answer)}", 302)

    async def new_installation(self, request: Request) -> Response:
        """Show the button; the POST installs on the app's owner, on all or on the named repositories."""
        app = self._app(request.path_params["slug"])
        if app is None:
            return _page("Page not found", "", 404)
        if request.method == "GET":
            field = '<input name="repositories" placeholder="all, or names with commas between">'
            return _page(f"Install {escape(app.name)}", _form(field, "Install"))
        names = (await _fields(request)).get("repositories", "")
        owner = app.owner
        kind = owner.type if owner.type != "Bot" else "User"
        selected = [name.strip() for name in names.split(",") if name.strip()]
        installation = self._world.install(app, owner.login, selected or "all", account_type=kind)
        return _page("Installed", f"<p>Installation {installation.id} on {escape(owner.login)}</p>")

    def _app(self, slug: str) -> App | None:
        return next((app for app in self._world.apps.values() if app.slug == slug), None)


def _page(title: str, body: str, status: int = 200) -> Response:
    return HTMLResponse(f"<!doctype html><title>{title}</title><h1>{title}</h1>{body}", status)


def _form(fields: str, button: str) -> str:
    return f'<form method="post">{fields}<button type="submit">{button}</button></form>'


def _name_form(text: str, name: str) -> str:
    hidden = f'<input type="hidden" name="manifest" value="{escape(text)}">'
    return _form(f'{hidden}<input name="name" value="{escape(name)}">', "Create GitHub App")


async def _fields(request: Request) -> dict[str, str]:
    # Starlette's own form() needs another package even for this simple encoding.
    parsed = parse_qs((await request.body()).decode(), keep_blank_values=True)
    return {name: values[0] for name, values in parsed.items()}
