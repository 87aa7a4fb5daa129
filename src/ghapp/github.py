"""GitHub's REST API, for one app: the requests of the broker, and its errors told apart.

Statuses and messages are those of GitHub's documentation and of recorded answers; what no list mentions becomes
`BadAnswer` or `GitHubFailing`, never a guess.
"""

import asyncio
import json
import random
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
from ghapp.git_edge import GitEdge
from ghapp.installation import ALL, Installation, InstallationId, Scope, permissions_of
from ghapp.network import Network, http_client, is_inherited, mend
from ghapp.routing import App, Place
from ghapp.wire import printable


Result = TypeVar("Result")

API_VERSION = "2022-11-28"  # the one that every supported GitHub Enterprise Server knows
PAUSES = (0.3, 1.0)  # seconds before another try
CALL_BUDGET = 12.0  # seconds, name resolution and body included; httpx alone limits only each read
MAX_BODY = 4 * 1024 * 1024  # 500 repositories of 6 KB, the most that one mint can return
MAX_REDIRECTS = 3
JWT_BACK = 60  # GitHub's advice, against a clock that is fast
JWT_AHEAD = 9 * 60  # GitHub allows 10 minutes, and rejects exactly 10 when our clock is fast
PER_PAGE = 100
MAX_PAGES = 1_000  # 100,000 installations; a list that points to itself must end

_TOKEN = re.compile(r"[!-~]{1,4096}")  # opaque; nothing that git's protocol could read as something else
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:\d{2})")
_UNKNOWN_APP = "Integration not found"  # with 404, which else says that something is not installed
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
    def may_pass(self) -> bool:
        """Tell whether the same request may succeed in a second: GitHub is failing, or its answer was cut short."""
        if self.status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return self.status != httpx.codes.NOT_IMPLEMENTED and "retry-after" not in self.headers
        is_json = "json" in self.headers.get("content-type", "")
        return self.body is None and is_json and httpx.codes.is_success(self.status)

    @property
    def is_redirect(self) -> bool:
        """Tell whether the answer points elsewhere; its body says nothing then."""
        return httpx.codes.is_redirect(self.status)

    @property
    def message(self) -> str:
        """GitHub's explanation, or ""."""
        text = self.body.get("message") if isinstance(self.body, dict) else None
        return printable(text) if isinstance(text, str) else ""


class GitHub:
    """One API base: its connections, and what we know of its clock."""

    def __init__(
        self,
        api: str,
        network: Network,
        clock: Clock,
        *,
        call_budget: float = CALL_BUDGET,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self._api = api
        self._host = urlsplit(api).hostname or ""
        self._network = network
        self._clock = clock
        self._call_budget = call_budget
        self._pauses = pauses
        self._client: httpx.AsyncClient | None = None
        self._server_minus_boot: float | None = None
        self.calls = 0
        """Requests sent, the repeated ones included."""

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
        if self._client is not None:
            await self._client.aclose()

    async def request(self, method: str, url: str, bearer: str, body: object = None) -> Answer:
        """Send one request and read its answer; `url` is absolute or below the API's base.

        What may pass (the network, a 5xx, an answer cut short) is tried again a few times: this is the only layer
        that does, and minting twice is harmless. Raises the network's errors only: every status is an answer.
        """
        target = url if "://" in url else self._api + url
        headers = {
            "Authorization": f"Bearer {bearer}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": API_VERSION,
        }
        with self._explained():
            async with asyncio.timeout(self._call_budget):
                for pause in self._pauses:
                    try:
                        answer = await self._send(method, target, headers, body)
                    except NetworkFailed:
                        pass
                    else:
                        if not answer.may_pass:
                            return answer
                    await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter
                return await self._send(method, target, headers, body)

    async def _send(self, method: str, target: str, headers: dict[str, str], body: object) -> Answer:
        if self._client is None:  # not before: a CA file that is gone is an answer to whoever asks
            self._client = http_client(self._network, self._host)
        sent_at = self._clock.boot()
        self.calls += 1
        with self._explained():
            async with self._client.stream(method, target, headers=headers, json=body) as response:
                dated = self._read_clock(response.headers.get("date", ""))
                data = await _read_body(response, self._host)
        return Answer(response.status_code, response.headers, _parse(response, data), sent_at, dated)

    def _read_clock(self, date: str) -> float | None:
        try:
            parsed = parsedate_to_datetime(date)
        except (ValueError, OverflowError):
            return None
        dated = parsed.replace(tzinfo=UTC).timestamp()  # RFC 9110: always GMT, whatever the zone is written as
        self._server_minus_boot = dated - self._clock.boot()
        return dated

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Translate the HTTP library's exceptions; their texts are not passed on, they may quote headers."""
        name, proxy = self._host, self._network.proxy_for(self._host) and self._network.proxy_name
        try:
            yield
        except TimeoutError:
            error: GhappError = NetworkFailed(
                f"{name} did not answer within {self._call_budget:.0f} s", hint=_CHECK_NETWORK
            )
        except httpx.ProxyError as caught:
            status = re.match(r"\d{3}", str(caught))
            why = f"the proxy {proxy} refused to connect to {name}" + (f" (HTTP {status[0]})" if status else "")
            error = self._blame_the_proxy(why)
        except httpx.TimeoutException:
            error = NetworkFailed(f"{proxy or name} did not answer in time", hint=_CHECK_NETWORK)
        except httpx.ConnectError as caught:
            error = self._why_no_connection(caught, proxy)
        except (httpx.TransportError, httpx.InvalidURL) as caught:
            error = NetworkFailed(f"the connection to {name} broke ({type(caught).__name__})", hint=_CHECK_NETWORK)
        else:
            return
        raise error from None

    def _why_no_connection(self, caught: BaseException, proxy: str) -> GhappError:
        chain = list(_causes(caught))
        for cause in chain:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return TlsFailed(
                    f"the TLS certificate of {self._host} does not verify: {cause.verify_message}",
                    hint="for a company's CA: set SSL_CERT_FILE or network.ca_file, then: ghapp daemon restart",
                )
            if isinstance(cause, ssl.SSLError):
                return TlsFailed(f"no TLS connection to {self._host} ({cause.reason})", hint=_CHECK_NETWORK)
        if proxy:
            why = f"cannot connect to the proxy {proxy}, on the way to {self._host}"
            return self._blame_the_proxy(why)
        if any("gaierror" in type(cause).__name__ for cause in chain):
            return NetworkFailed(f"cannot resolve {self._host}", hint=_CHECK_WAY)
        return NetworkFailed(f"cannot connect to {self._host}", hint=_CHECK_WAY)

    def _blame_the_proxy(self, why: str) -> ProxyFailed:
        origin = self._network.proxy_origin
        return ProxyFailed(why, hint=mend(origin), inherited=is_inherited(origin))


_CHECK_NETWORK = "check the network, and https://www.githubstatus.com"
_CHECK_WAY = "check the network; where a proxy is needed: set HTTPS_PROXY, then: ghapp daemon restart"


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
        body = json.loads(data.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if b"\\u" in data:
            json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is text that nobody can write
    except (ValueError, RecursionError):
        return None
    return body


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice, and parsers differ in which one counts")
    return entries


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class AppClient:
    """The API as one app sees it: the broker's `TokenIssuer`."""

    def __init__(
        self,
        app: App,
        signer: Signer,
        github: GitHub,
        threads: ThreadPoolExecutor,
        *,
        edge: GitEdge | None = None,
        key_ttl: float = 0.0,
    ) -> None:
        self._app = app
        self._signer = signer
        self._github = github
        self._threads = threads
        self._edge = edge
        self._key_ttl = key_ttl
        self._forgetting: asyncio.TimerHandle | None = None
        self._fingerprint = ""

    @property
    def app(self) -> App:
        """The app this speaks for."""
        return self._app

    # -- the app's own voice -------------------------------------------------------------------------------------

    async def fingerprint(self) -> str:
        """Return the signing key's fingerprint: asked once, so that a hit waits for no thread."""
        if not self._fingerprint:
            self._fingerprint = await self._blocking(self._signer.fingerprint)
            self._forget_later()
        return self._fingerprint

    async def get_app(self) -> dict[str, Any]:
        """Return ``GET /app``: the best test of id and key."""
        answer = await self._as_app("GET", "/app")
        body = _object(answer)
        for key, kind in {"id": int, "name": str}.items():
            if type(body.get(key)) is not kind:  # JSON's true is an int in Python
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
                return Place(_installation(answer.body, repository.owner), named)
            path = self._below_api(answer.headers.get("location", ""))
            moved = re.search(r"/repositories/(\d+)/installation$", path)
            if moved:
                named = int(moved[1])
        raise NotTheApi(f"{urlsplit(self._app.api).hostname} redirects in a circle")

    async def find_by_owner(self, owner: str) -> Installation | None:
        """Return the installation on a user or an organisation: this endpoint serves both."""
        answer = await self._as_app("GET", f"/users/{quote(owner, safe='')}/installation", accept=(200, 404))
        return None if answer.status == httpx.codes.NOT_FOUND else _installation(answer.body, owner)

    async def create_token(self, scope: Scope) -> IssuedToken:
        """Mint a token for exactly `scope`; whether it is exactly that is the caller's to check."""
        body: dict[str, object] = {"permissions": dict(scope.permissions)}
        if scope.repositories is not ALL:
            names = [repository for repository in scope.repositories if isinstance(repository, str)]
            ids = [repository for repository in scope.repositories if isinstance(repository, int)]
            # Only what is not empty: GitHub reads an empty list as everything.
            body |= {key: some for key, some in (("repositories", names), ("repository_ids", ids)) if some}
        answer = await self._as_app(
            "POST", f"/app/installations/{scope.installation}/access_tokens", body, accept=(201,)
        )
        try:
            return self._issued(answer)
        except BadAnswer:
            await self._revoke_unusable(answer)
            raise

    async def revoke_token(self, token: str) -> None:
        """End `token`. 401 means that it is dead already."""
        answer = await self._github.request("DELETE", "/installation/token", token)
        if answer.status not in {httpx.codes.NO_CONTENT, httpx.codes.UNAUTHORIZED}:
            raise self._refusal(answer)

    async def approach(self) -> None:
        """Open the connection that `sees` will use."""
        if self._edge is not None:
            await self._edge.approach()

    async def sees(self, repository: Repository, token: str) -> bool:
        """Tell whether the git server knows `token`, or whether there is no telling."""
        return self._edge is None or await self._edge.sees(repository, token)

    async def _revoke_unusable(self, answer: Answer) -> None:
        """End the token of an answer that we refuse, if it is a token."""
        token = answer.body.get("token") if isinstance(answer.body, dict) else None
        if isinstance(token, str) and _TOKEN.fullmatch(token):
            with suppress(GhappError):  # the refusal is what the caller has to hear
                await self.revoke_token(token)

    # -- how a request is made -----------------------------------------------------------------------------------

    async def _as_app(self, method: str, path: str, body: object = None, accept: Sequence[int] = (200,)) -> Answer:
        """Send a request with a JWT; once more with the corrected clock when GitHub rejects its times."""
        answer = await self._github.request(method, path, await self._jwt(), body)
        if answer.status == httpx.codes.UNAUTHORIZED and answer.message.startswith(_TIME_MESSAGES):
            if answer.dated is None:
                raise _clock_rejected()
            answer = await self._github.request(method, path, await self._jwt(), body)
        if answer.status not in accept or answer.message == _UNKNOWN_APP:
            if answer.status == httpx.codes.UNAUTHORIZED:
                with suppress(GhappError):  # to be named in the refusal
                    await self.fingerprint()
            raise self._refusal(answer)
        if answer.body is None and not answer.is_redirect:
            raise self._not_the_api(answer)
        return answer

    def _not_the_api(self, answer: Answer) -> NotTheApi:
        host = urlsplit(self._app.api).hostname
        return NotTheApi(
            f"{host} answered {answer.status} without usable JSON", hint="a captive portal or a proxy may be in the way"
        )

    async def _jwt(self) -> str:
        """Return a JWT of the app, signed now and kept nowhere (GitHub wants RS256, integers, ``iss`` a string)."""
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
        for _ in range(MAX_PAGES):
            if url is None:
                return
            answer = await self._as_app("GET", url)
            if not isinstance(answer.body, list):
                raise BadAnswer("GitHub's list of installations is not a list")
            yield answer.body
            following = httpx.Response(200, headers=dict(answer.headers)).links.get("next")
            url = self._below_api(following["url"]) if following else None
        raise BadAnswer(f"GitHub's list of installations has more than {MAX_PAGES} pages")

    def _below_api(self, reference: str) -> str:
        """Return the URL that `reference` means if it is at the API's origin, the only place our JWT may go."""
        with suppress(ValueError):  # of urllib, such as for "https://["
            url = urljoin(self._app.api + "/", reference)
            if reference and urlsplit(url)[:2] == urlsplit(self._app.api)[:2]:
                return url
        raise NotTheApi(f"{urlsplit(self._app.api).hostname} points to another host")

    def _issued(self, answer: Answer) -> IssuedToken:
        body = _object(answer)
        token, expires_at = body.get("token"), body.get("expires_at")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise BadAnswer("GitHub returned a malformed token; it was not used")
        dated = answer.dated if answer.dated is not None else self._github.server_now()
        life = _unix_time(expires_at) - dated
        if life <= 0:
            raise BadAnswer("GitHub returned a token that has expired already")
        return IssuedToken(
            token=token,
            ends=answer.sent_at + life,
            permissions=permissions_of(_strings(body.get("permissions"))),
            repository_selection=str(body.get("repository_selection", "")),
            repositories=_repositories(body.get("repositories")),
        )

    def _refusal(self, answer: Answer) -> GhappError:
        """Tell apart what GitHub's refusals mean; the order matters, a 403 may be any of four things."""
        status, message = answer.status, answer.message
        wait = _asked_to_wait(answer, self._github.server_now())
        if wait is not None:
            until = datetime.fromtimestamp(self._github.server_now() + wait, tz=UTC).astimezone()
            return RateLimited(f"GitHub limits this app's requests until {until:%H:%M:%S}", wait=wait)
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            host = urlsplit(self._app.api).hostname
            return GitHubFailing(f"{host} is failing (HTTP {status})", hint="see https://www.githubstatus.com")
        if not message:
            return self._not_the_api(answer)  # whoever it was, nothing was said about app or key
        if message.startswith(_TIME_MESSAGES):
            return _clock_rejected()
        if status == httpx.codes.UNAUTHORIZED or message == _UNKNOWN_APP:
            return self._app_rejected(message)
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
        return Forbidden(f"GitHub refused (HTTP {status}): {message}")

    def _app_rejected(self, message: str) -> AppRejected:
        issuer, page = self._app.issuer, f"the app's page: https://{self._app.host}/settings/apps"
        if message == _UNKNOWN_APP:
            return AppRejected(f"GitHub knows no app {issuer}", hint=f"compare the id with {page}")
        return AppRejected(
            f"GitHub does not accept the key {self._fingerprint} for app {issuer}: {message}",
            hint=f"compare the fingerprint with {page}",
        )


def _asked_to_wait(answer: Answer, now: float) -> float | None:
    """Return the seconds that GitHub wants us to stay away: by retry-after, else by reset, else a minute."""
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


def _unix_time(text: object) -> float:
    try:
        if isinstance(text, str) and _TIME.fullmatch(text):  # fromisoformat() takes also what has no time zone
            return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        pass  # there is no 30 February
    raise BadAnswer("GitHub returned a token without a usable expires_at")


def _repositories(entries: object) -> tuple[tuple[int, str], ...]:
    found = []
    for entry in entries if isinstance(entries, list) else [] if entries is None else [None]:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or type(entry.get("name")) is not str:
            raise BadAnswer("GitHub's list of the token's repositories is malformed")
        found.append((entry["id"], entry["name"]))
    return tuple(found)


def _installation(entry: object, owner: str = "") -> Installation:
    """Read an installation object; an enterprise's account has a slug and no login, and an account can be null.

    `owner` is the account's name where the answer does not tell it.
    """
    if not isinstance(entry, dict) or type(entry.get("id")) is not int:
        raise BadAnswer("GitHub's installation object has no id")
    account = entry.get("account")
    account = account if isinstance(account, dict) else {}
    return Installation(
        id=InstallationId(entry["id"]),
        account=str(account.get("login") or account.get("slug") or owner),
        permissions=permissions_of(_strings(entry.get("permissions"))),
        repository_selection=str(entry.get("repository_selection", "")),
        suspended=entry.get("suspended_at") is not None,
        html_url=str(entry.get("html_url") or ""),
    )
