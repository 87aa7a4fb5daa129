"""Plain clients of the stand-in, for tests that must not lean on our own product."""

import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import jwt

from standin.model import App
from standin.server import StandIn


API = "https://api.github.com"
PATIENCE = 30.0  # seconds for an answer, on a machine that does much else


def app_jwt(app: App, now: float, **claims: object) -> str:
    """Sign as an app; a claim given as `None` is left out."""
    usual: dict[str, Any] = {"iss": app.client_id, "iat": int(now) - 60, "exp": int(now) + 540}
    chosen = {name: value for name, value in (usual | claims).items() if value is not None}
    # PyJWT refuses an integer issuer, which GitHub does not: so only the signature is PyJWT's.
    return jwt.PyJWS().encode(_json(chosen), app.private_keys[0], algorithm="RS256")


class Client(httpx.Client):
    """httpx through the proxy, trusting the stand-in's CA and following nothing by itself."""

    def __init__(self, github: StandIn, authorization: str | None = None, base_url: str = API) -> None:
        headers = {} if authorization is None else {"authorization": authorization}
        super().__init__(
            base_url=base_url,
            headers=headers,
            proxy=github.proxy_url,
            verify=ssl.create_default_context(cafile=str(github.ca_file)),
            trust_env=False,
            timeout=PATIENCE,
        )


def as_app(github: StandIn, app: App) -> Client:
    return Client(github, f"Bearer {app_jwt(app, github.clock.now())}")


def git(
    github: StandIn, *arguments: str, cwd: Path | None = None, config: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run git as on a bare machine: nobody's configuration, the proxy and the CA from the environment."""
    pairs = config or {}
    numbered = {f"GIT_CONFIG_KEY_{i}": key for i, key in enumerate(pairs)}
    numbered |= {f"GIT_CONFIG_VALUE_{i}": value for i, value in enumerate(pairs.values())}
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(github.directory),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSL_CAINFO": str(github.ca_file),
        "GIT_CONFIG_COUNT": str(len(pairs)),
        **numbered,
        **{f"GIT_{role}_{key}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")},
        **github.environment,
    }
    return subprocess.run(
        ["git", *arguments], check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )


def _json(value: dict[str, Any]) -> bytes:
    return httpx.Request("POST", API, json=value).content
