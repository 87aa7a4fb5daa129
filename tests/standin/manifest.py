"""The manifest flow: from a form to an app, by a code that works once and for an hour."""

import json
import secrets
from dataclasses import dataclass
from typing import Any

from standin.model import App
from standin.world import World


CODE_LIFETIME = 3600.0
LONGEST_NAME = 34
MOST_CALLBACKS = 10


class ManifestError(Exception):
    """What GitHub's page says about a manifest that it does not take."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An app that was created and whose key nobody has fetched yet."""

    app: App
    until: float


def parse(text: str) -> dict[str, Any]:
    """Read and check a manifest."""
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise ManifestError("Error manifest must be a JSON object")
    _need_url(manifest)
    if "hook_attributes" in manifest:
        _need_url(manifest["hook_attributes"])
    if len(manifest.get("name", "")) > LONGEST_NAME:
        raise ManifestError(f"Error Name is too long (maximum is {LONGEST_NAME} characters)")
    if len(manifest.get("callback_urls", [])) > MOST_CALLBACKS:
        raise ManifestError("Error Callback urls: you can have at most 10")
    permissions = manifest.get("default_permissions", {})
    if not isinstance(permissions, dict) or not all(isinstance(v, str) for v in permissions.values()):
        raise ManifestError("Error Default permissions are invalid")
    return manifest


def _need_url(part: Any) -> None:
    # GitHub names the field without its parent, which misleads: hook_attributes needs one of its own.
    if not isinstance(part, dict) or not part.get("url"):
        raise ManifestError('Error "url" wasn\'t supplied')


class Manifests:
    """Apps between the browser's form and the conversion."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: dict[str, Pending] = {}

    def create(self, manifest: dict[str, Any], name: str, organization: str | None) -> str:
        """Register the app and return the code for it."""
        slug = "-".join(name.lower().split())
        if any(app.slug == slug for app in self._world.apps.values()):
            raise ManifestError("Error Name is already taken")
        app = self._world.add_app(
            slug,
            manifest.get("default_permissions", {}),
            owner=organization or self._world.settings.signed_in,
            owner_type="User" if organization is None else "Organization",
        )
        app.name, app.external_url = name, manifest["url"]
        app.description = manifest.get("description")
        code = secrets.token_hex(20)
        self._pending[code] = Pending(app, self._world.clock.now() + CODE_LIFETIME)
        return code

    def convert(self, code: str) -> App | None:
        pending = self._pending.pop(code, None)
        return pending.app if pending and self._world.clock.now() < pending.until else None

    @staticmethod
    def client_secret() -> str:
        return secrets.token_hex(20)
