"""GitHub's REST API, for one app: the requests of the broker, and its errors told apart.

Statuses and messages are those of GitHub's documentation and of recorded answers; what no list mentions becomes
`BadAnswer` or `GitHubFailing`, never a guess.
"""

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import httpx
from jwt.utils import base64url_encode

from ghapp.broker import Clock, IssuedToken, Signer
from ghapp.credential import Repository
from ghapp.errors import (
    AppRejected,
    BadAnswer,
    ClockRejected,
    Forbidden,
    GhappError,
    GitHubFailing,
    NetworkFailed,
    NotInstalled,
    NotSelected,
    NotTheApi,
    PermissionMissing,
    ProxyFailed,
    RateLimited,
    Suspended,
    TlsFailed,
)
from ghapp.installation import ALL, Installation, InstallationId, Scope, permissions_of
from ghapp.network import Network, http_client
from ghapp.routing import App, Place


Result = TypeVar("Result")

API_VERSION = "2022-11-28"  # the one that every supported GitHub Enterprise Server knows
CALL_BUDGET = 12.0  # seconds, name resolution and body included; httpx alone limits only each read
MAX_BODY = 4 * 1024 * 1024  # 500 repositories of 6 KB, the most that one mint can return
MAX_REDIRECTS = 3
JWT_BACK = 60  # GitHub's advice, against a clock that is fast
JWT_AHEAD = 9 * 60  # GitHub allows 10 minutes, and rejects exactly 10 when our clock is fast
PER_PAGE = 100

_TOKEN = re.compile(r"[!-~]{1,4096}")  # opaque; nothing that git's protocol could read as something else
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:\d{2})")
_TIME_MESSAGES = (
    "'Expiration time' claim ('exp')",
    "'Issued at' claim ('iat')",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the API, its body read within the limits."""

    status: int
    headers: Mapping[str, str]
    body: Any = field(repr=False)
    sent_at: float = 0.0
    """When the request left, in the boot clock."""
    dated: float | None = None
    """The server's clock when it answered, in Unix time."""

    @property
    def message(self) -> str:
        """GitHub's explanation, or ""."""
        text = self.body.get("message") if isinstance(self.body, dict) else None
        return text if isinstance(text, str) else ""


class GitHub:
    """One API base: its connections, and what we know of its clock."""

    def __init__(self, api: str, network: Network, clock: Clock) -> None:
        self._api = api
        self._host = urlsplit(api).hostname or ""
        self._network = network
        self._clock = clock
        self._client = http_client(network, self._host)
        self._server_minus_boot: float | None = None

    @property
    def clock_offset(self) -> float | None:
        """Seconds by which GitHub's clock is ahead of this machine's; None before the first answer."""
        if self._server_minus_boot is None:
            return None
        return self._server_minus_boot + self._clock.boot() - self._clock.wall()

    def server_now(self) -> float:
        """Return the time as GitHub sees it, as far as we know."""
        return self._clock.wall() + (self.clock_offset or 0.0)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def request(self, method: str, url: str, bearer: str, body: object = None) -> Answer:
        """Send one request and read its answer; `url` is absolute or below the API's base.

        Raises the network's errors only: every status is an answer.
        """
        target = url if "://" in url else self._api + url
        headers = {
            "Authorization": f"Bearer {bearer}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": API_VERSION,
        }
        sent_at = self._clock.boot()
        with self._explained():
            async with (
                asyncio.timeout(CALL_BUDGET),
                self._client.stream(method, target, headers=headers, json=body) as response,
            ):
                dated = self._read_clock(response.headers.get("date", ""))
                data = await _read_body(response, self._host)
        return Answer(response.status_code, response.headers, _parse(response, data), sent_at, dated)

    def _read_clock(self, date: str) -> float | None:
        try:
            dated = parsedate_to_datetime(date).timestamp()
        except (ValueError, OverflowError):
            return None
        self._server_minus_boot = dated - self._clock.boot()
        return dated

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Translate the HTTP library's exceptions; their texts are not passed on, they may quote headers."""
        name, proxy = self._host, self._network.proxy_for(self._host) and self._network.proxy_name
        try:
            yield
        except TimeoutError:
            error: GhappError = NetworkFailed(f"{name} did not answer within {CALL_BUDGET:.0f} s", hint=_CHECK_NETWORK)
        except httpx.ProxyError:
            error = ProxyFailed(f"the proxy {proxy} refused", hint=f"mend {self._network.proxy_origin}")
        except httpx.TimeoutException:
            error = NetworkFailed(f"{proxy or name} did not answer in time", hint=_CHECK_NETWORK)
        except httpx.ConnectError as caught:
            error = self._why_no_connection(caught, proxy)
        except (httpx.TransportError, httpx.InvalidURL) as caught:
            error = NetworkFailed(f"the connection to {name} broke ({type(caught).__name__})", hint=_CHECK_NETWORK)
        else:
            return
        raise error

    def _why_no_connection(self, caught: BaseException, proxy: str) -> GhappError:
        chain = list(_causes(caught))
        for cause in chain:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return TlsFailed(
                    f"the TLS certificate of {self._host} does not verify: {cause.verify_message}",
                    hint="a proxy or captive portal may be in the way; set network.ca_file for a company's CA",
                )
            if isinstance(cause, ssl.SSLError):
                return TlsFailed(f"no TLS connection to {self._host} ({cause.reason})", hint=_CHECK_NETWORK)
        if proxy:
            return ProxyFailed(f"cannot connect to the proxy {proxy}", hint=f"mend {self._network.proxy_origin}")
        if any("gaierror" in type(cause).__name__ for cause in chain):
            return NetworkFailed(f"cannot resolve {self._host}", hint=_CHECK_NETWORK)
        return NetworkFailed(f"cannot connect to {self._host}", hint=_CHECK_NETWORK)


_CHECK_NETWORK = "check the network, and https://www.githubstatus.com"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def _read_body(response: httpx.Response, host: str) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise BadAnswer(f"{host} compressed its answer, unasked")
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_BODY:
            raise BadAnswer(f"{host} sent more than {MAX_BODY} bytes")
    return bytes(data)


def _parse(response: httpx.Response, data: bytes) -> Any:
    """Return the JSON body; None for no body or another type, which every caller refuses where it matters."""
    if "json" not in response.headers.get("content-type", ""):
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


class AppClient:
    """The API as one app sees it: the broker's `TokenIssuer`."""

    def __init__(
        self, app: App, signer: Signer, github: GitHub, threads: ThreadPoolExecutor, *, key_ttl: float = 0.0
    ) -> None:
        self._app = app
        self._signer = signer
        self._github = github
        self._threads = threads
        self._key_ttl = key_ttl
        self._forgetting: asyncio.TimerHandle | None = None

    @property
    def app(self) -> App:
        """The app this speaks for."""
        return self._app

    # -- the app's own voice -------------------------------------------------------------------------------------

    async def fingerprint(self) -> str:
        """Return the signing key's fingerprint."""
        return await self._blocking(self._signer.fingerprint)

    async def get_app(self) -> dict[str, Any]:
        """Return ``GET /app``: the best test of id and key."""
        answer = await self._as_app("GET", "/app")
        body = _object(answer)
        for key, kind in {"id": int, "name": str}.items():
            if not isinstance(body.get(key), kind):
                raise BadAnswer(f"GET /app came without {key}")
        return body

    async def list_installations(self) -> list[Installation]:
        """Return all installations of the app."""
        found: list[Installation] = []
        async for page in self._pages(f"/app/installations?per_page={PER_PAGE}"):
            found += [_installation(entry) for entry in page]
        return found

    async def find_by_repository(self, repository: Repository) -> Place | None:
        """Return the installation that includes `repository`; by id if GitHub says that it moved."""
        path = f"/repos/{quote(repository.owner, safe='')}/{quote(repository.name, safe='')}/installation"
        named: str | int = repository.name.lower()
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._as_app("GET", path, accept=(200, 301, 302, 307, 308, 404))
            if answer.status == httpx.codes.NOT_FOUND:
                return None
            if answer.status == httpx.codes.OK:
                return Place(_installation(answer.body), named)
            path = self._same_origin(answer)
            moved = re.search(r"/repositories/(\d+)/installation$", path)
            if moved:
                named = int(moved[1])
        raise NotTheApi(f"{urlsplit(self._app.api).hostname} redirects in a circle")

    async def find_by_owner(self, owner: str) -> Installation | None:
        """Return the installation on a user or an organisation: this endpoint serves both."""
        answer = await self._as_app("GET", f"/users/{quote(owner, safe='')}/installation", accept=(200, 404))
        return None if answer.status == httpx.codes.NOT_FOUND else _installation(answer.body)

    async def create_token(self, scope: Scope) -> IssuedToken:
        """Mint a token for exactly `scope`; whether it is exactly that is the caller's to check."""
        body: dict[str, object] = {"permissions": dict(scope.permissions)}
        if scope.repositories is not ALL:
            by_id = all(isinstance(repository, int) for repository in scope.repositories)
            body["repository_ids" if by_id else "repositories"] = list(scope.repositories)
        answer = await self._as_app(
            "POST", f"/app/installations/{scope.installation}/access_tokens", body, accept=(201,)
        )
        return self._issued(answer)

    async def revoke_token(self, token: str) -> None:
        """End `token`. 401 means that it is dead already."""
        answer = await self._github.request("DELETE", "/installation/token", token)
        if answer.status not in {httpx.codes.NO_CONTENT, httpx.codes.UNAUTHORIZED}:
            raise self._refusal(answer)

    # -- how a request is made -----------------------------------------------------------------------------------

    async def _as_app(self, method: str, path: str, body: object = None, accept: Sequence[int] = (200,)) -> Answer:
        """Send a request with a JWT; once more with the corrected clock when GitHub rejects its times."""
        answer = await self._github.request(method, path, await self._jwt(), body)
        if answer.status == httpx.codes.UNAUTHORIZED and answer.message.startswith(_TIME_MESSAGES):
            if answer.dated is None:
                raise _clock_rejected()
            answer = await self._github.request(method, path, await self._jwt(), body)
        if answer.status not in accept:
            raise self._refusal(answer)
        if answer.body is None and answer.status < httpx.codes.MULTIPLE_CHOICES:
            raise NotTheApi(
                f"{urlsplit(self._app.api).hostname} answered {answer.status} without usable JSON",
                hint="a captive portal or a proxy may be in the way",
            )
        return answer

    async def _jwt(self) -> str:
        """Return a JWT of the app, signed now and kept nowhere (RFC 7519; GitHub: RS256, integers, ``iss`` a string)."""
        now = int(self._github.server_now())
        claims = {"iat": now - JWT_BACK, "exp": now + JWT_AHEAD, "iss": self._app.issuer}
        parts = ({"alg": "RS256", "typ": "JWT"}, claims)
        message = b".".join(base64url_encode(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
        signature = await self._blocking(self._signer.sign, message)
        self._forget_later()
        return (message + b"." + base64url_encode(signature)).decode()

    def _forget_later(self) -> None:
        """Let the key leave memory some time after its last use; 0 keeps it."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        if self._key_ttl > 0:
            self._forgetting = asyncio.get_running_loop().call_later(self._key_ttl, self._signer.forget)

    async def _blocking(self, function: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def _pages(self, path: str) -> AsyncIterator[list[Any]]:
        """Yield the pages of a list, following ``Link: rel="next"`` as GitHub asks, never a constructed URL."""
        url: str | None = path
        while url:
            answer = await self._as_app("GET", url)
            if not isinstance(answer.body, list):
                raise BadAnswer("GitHub's list of installations is not a list")
            yield answer.body
            following = httpx.Response(200, headers=dict(answer.headers)).links.get("next")
            url = self._below_api(following["url"]) if following else None

    def _below_api(self, url: str) -> str:
        """Return `url` if it stays at the API, which is the only place our JWT may go."""
        if urlsplit(url)[:2] != urlsplit(self._app.api)[:2]:
            raise NotTheApi(f"{urlsplit(self._app.api).hostname} points to another host")
        return url

    def _same_origin(self, answer: Answer) -> str:
        return self._below_api(urljoin(self._app.api + "/", answer.headers.get("location", "")))

    def _issued(self, answer: Answer) -> IssuedToken:
        body = _object(answer)
        token, expires_at = body.get("token"), body.get("expires_at")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise BadAnswer("GitHub returned a malformed token; it was not used")
        if not isinstance(expires_at, str) or not _TIME.fullmatch(expires_at):
            raise BadAnswer("GitHub returned a token without a usable expires_at")
        dated = answer.dated if answer.dated is not None else self._github.server_now()
        life = datetime.fromisoformat(expires_at).astimezone(UTC).timestamp() - dated
        if life <= 0:
            raise BadAnswer("GitHub returned a token that has expired already")
        repositories = body.get("repositories") or []
        return IssuedToken(
            token=token,
            ends=answer.sent_at + life,
            permissions=permissions_of(_strings(body.get("permissions"))),
            repository_selection=str(body.get("repository_selection", "")),
            repositories=tuple((int(entry["id"]), str(entry["name"])) for entry in repositories),
        )

    def _refusal(self, answer: Answer) -> GhappError:
        """Tell apart what GitHub's refusals mean; the order matters, a 403 may be any of four things."""
        status, message = answer.status, answer.message
        host = urlsplit(self._app.api).hostname
        wait = _asked_to_wait(answer, self._github.server_now())
        if wait is not None:
            until = datetime.fromtimestamp(self._github.server_now() + wait, tz=UTC).astimezone()
            return RateLimited(f"GitHub limits this app's requests until {until:%H:%M:%S}", wait=wait)
        if message.startswith(_TIME_MESSAGES):
            return _clock_rejected()
        if status == httpx.codes.UNAUTHORIZED or message == "Integration not found":
            return AppRejected(
                f"GitHub does not accept the key of {self._app.name} for app {self._app.issuer}: {message or status}",
                hint=f"compare the fingerprint in 'ghapp app show {self._app.name}' with the app's page on GitHub",
            )
        if status == httpx.codes.FORBIDDEN and "suspended" in message:
            return Suspended(
                f"an installation of {self._app.name} is suspended",
                hint=f"unsuspend it at https://{self._app.host}/settings/installations",
            )
        if status == httpx.codes.NOT_FOUND:
            return NotInstalled(f"the installation of {self._app.name} is gone", hint="install the app again")
        if status == httpx.codes.UNPROCESSABLE_ENTITY and "permissions requested" in message:
            return PermissionMissing(
                f"GitHub: {message}", hint="the account's owner has to accept the app's new permissions"
            )
        if status == httpx.codes.UNPROCESSABLE_ENTITY and "repository" in message:
            return NotSelected(f"GitHub: {message}", hint="select the repository in the installation's settings")
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return GitHubFailing(f"{host} is failing (HTTP {status})", hint="see https://www.githubstatus.com")
        if message:
            return Forbidden(f"GitHub refused (HTTP {status}): {message}")
        return NotTheApi(f"{host} answered {status}, not as the API does", hint="a captive portal or a proxy?")


def _asked_to_wait(answer: Answer, now: float) -> float | None:
    """Return the seconds that GitHub wants us to stay away, by its own order: retry-after, then reset, then a minute."""
    if answer.status not in {httpx.codes.FORBIDDEN, httpx.codes.TOO_MANY_REQUESTS}:
        return None
    after, reset = answer.headers.get("retry-after", ""), answer.headers.get("x-ratelimit-reset", "")
    limited = "rate limit" in answer.message or "login attempts" in answer.message
    if after:
        return _between(float(after), 1, 3600) if re.fullmatch(r"\d{1,9}", after) else 60.0
    if answer.headers.get("x-ratelimit-remaining") == "0" and re.fullmatch(r"\d{1,12}", reset):
        return _between(float(reset) - now, 1, 3600)
    return 60.0 if limited or answer.status == httpx.codes.TOO_MANY_REQUESTS else None


def _between(value: float, least: float, most: float) -> float:
    return max(least, min(value, most))


def _clock_rejected() -> ClockRejected:
    return ClockRejected("GitHub rejected the time in our request", hint="check this machine's clock: timedatectl")


def _object(answer: Answer) -> dict[str, Any]:
    if not isinstance(answer.body, dict):
        raise BadAnswer("GitHub's answer is not a JSON object")
    return answer.body


def _strings(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(level, str) for level in value.values()):
        raise BadAnswer("GitHub's permissions are not a map of strings")
    return value


def _installation(entry: object) -> Installation:
    """Read an installation object; an enterprise's account has a slug and no login, and an account can be null."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
        raise BadAnswer("GitHub's installation object has no id")
    account = entry.get("account") or {}
    return Installation(
        id=InstallationId(entry["id"]),
        account=str(account.get("login") or account.get("slug") or ""),
        permissions=permissions_of(_strings(entry.get("permissions"))),
        repository_selection=str(entry.get("repository_selection", "")),
        suspended=entry.get("suspended_at") is not None,
        html_url=str(entry.get("html_url", "")),
    )
