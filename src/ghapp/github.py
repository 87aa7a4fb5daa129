"""GitHub's REST API, for one app: the requests of the broker, and its errors told apart.

Statuses and messages are those of GitHub's documentation and of recorded answers; what no list mentions becomes
`BadAnswer` or `GitHubFailing`, never a guess.
"""

import asyncio
import hashlib
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

from ghapp.config import config_file
from ghapp.credential import Repository
from ghapp.errors import (
    AppRejected,
    BadAnswer,
    ClockRejected,
    CodeRejected,
    Forbidden,
    GhappError,
    GitHubFailing,
    KeyUnavailable,
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
from ghapp.key_choice import Identity, Key, Verdicts, none_works, pages
from ghapp.lease import is_token
from ghapp.network import Network, http_client, is_inherited, mend
from ghapp.protocols import Clock, IssuedToken, Signer
from ghapp.routing import App, Place
from ghapp.wire import printable


Result = TypeVar("Result")

MAX_TIME = 253_402_300_799  # the last second that has a date
API_VERSION = "2022-11-28"  # the one that every supported GitHub Enterprise Server knows
PAUSES = (0.3, 1.0)  # seconds before another try
CALL_BUDGET = 12.0  # seconds, name resolution and body included; httpx alone limits only each read
MAX_BODY = 4 * 1024 * 1024  # 500 repositories of 6 KB, the most that one mint can return
MAX_REDIRECTS = 3
JWT_BACK = 60  # GitHub's advice, against a clock that is fast
JWT_AHEAD = 9 * 60  # GitHub allows 10 minutes, and rejects exactly 10 when our clock is fast
PER_PAGE = 100
NOT_YET = frozenset({401, 403, 404})  # what GitHub's replicas answer to a token that they do not know yet
TOKEN_PAUSES = (0.5, 1.0, 2.0, 3.0)  # seconds; its lag is mostly under 4
REVOKE_PAUSES = (0.5, 1.0, 2.0)  # seconds; with the calls they fit into the five that there are to end tokens
YOUNG = 10.0  # seconds; whoever says that a younger token is dead may not know it yet
MAX_YOUNG = 2_000  # remembered; in ten seconds no app may mint that many
MAX_PAGES = 1_000  # 100,000 installations; a list that points to itself must end

_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:\d{2})")
_UNKNOWN_APP = "Integration not found"  # with 404, which else says that something is not installed
_UNKNOWN_ISSUER = ("'Issuer' claim ('iss')", "Missing 'issuer' claim")
"""With 401: the id is of no app, or a client ID that an old Enterprise Server does not know; not the key's fault."""
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

    @property
    def may_not_know_the_token(self) -> bool:
        """Tell whether a replica that has not heard of the token yet may have said this, and not GitHub's last word."""
        is_final = "suspended" in self.message or _asked_to_wait(self, 0.0) is not None
        return self.status in NOT_YET and not is_final

    @property
    def rejects_key(self) -> bool:
        """Tell whether it was GitHub, and the key that it did not like."""
        is_about_another = self.message.startswith(_TIME_MESSAGES + _UNKNOWN_ISSUER)
        return self.status == httpx.codes.UNAUTHORIZED and bool(self.message) and not is_about_another

    @property
    def accepts_key(self) -> bool:
        """Tell whether the answer is one that only a good key gets; refusals to log in at all are 401 and 403."""
        if self.message == _UNKNOWN_APP or (self.body is None and not self.is_redirect):
            return False
        refused = {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN, httpx.codes.TOO_MANY_REQUESTS}
        return self.status < httpx.codes.INTERNAL_SERVER_ERROR and self.status not in refused


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
        token_pauses: Sequence[float] = TOKEN_PAUSES,
        revoke_pauses: Sequence[float] = REVOKE_PAUSES,
    ) -> None:
        self._api = api
        self._host = urlsplit(api).hostname or ""
        self._network = network
        self._clock = clock
        self._call_budget = call_budget
        self._pauses = pauses
        self._token_pauses = token_pauses
        self._revoke_pauses = revoke_pauses
        self._minted: dict[bytes, float] = {}
        """When, by the SHA-256 of the token; only the last ones, and what we revoked is none of them."""
        self._client: httpx.AsyncClient | None = None
        self._server_minus_boot: float | None = None
        self.calls = 0
        """Requests sent, the repeated ones included."""
        self.verdicts = Verdicts()
        """What it said of the keys that it was shown."""

    @property
    def clock_offset(self) -> float | None:
        """Seconds by which GitHub's clock is ahead of this machine's; None before the first answer."""
        if self._server_minus_boot is None:
            return None
        return self._server_minus_boot + self._clock.boot() - self._clock.wall()

    def boot(self) -> float:
        """Return the time of the clock that is never set."""
        return self._clock.boot()

    def server_now(self) -> float:
        """Return the time as GitHub sees it, as far as we know."""
        return self._clock.wall() + (self.clock_offset or 0.0)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def request(self, method: str, url: str, bearer: str, body: object = None) -> Answer:
        """Send one request and read its answer; `url` is absolute or below the API's base. Without `bearer`, as nobody.

        What may pass (the network, a 5xx, an answer cut short) is tried again a few times: this is the only layer
        that does, and minting twice is harmless. Raises the network's errors only: every status is an answer.
        """
        target = url if "://" in url else self._api + url
        headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": API_VERSION}
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
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

    async def ask_with(self, token: str, path: str) -> Answer:
        """Send a GET with an installation's token."""
        return await self._as_installation("GET", path, token, self._token_pauses)

    async def revoke(self, token: str) -> Answer:
        """Ask GitHub to end an installation's token."""
        answer = await self._as_installation("DELETE", "/installation/token", token, self._revoke_pauses)
        if answer.status in {httpx.codes.NO_CONTENT, httpx.codes.UNAUTHORIZED}:
            self._minted.pop(_sha256(token), None)  # from now on whoever says that it is dead knows it
        return answer

    async def _as_installation(self, method: str, path: str, token: str, pauses: Sequence[float]) -> Answer:
        """Send a request, and again while the token may be too new to be known; an older one is dead then."""
        answer = await self.request(method, path, token)
        for pause in pauses:
            if not answer.may_not_know_the_token or not self._is_young(token):
                break
            await asyncio.sleep(pause)
            answer = await self.request(method, path, token)
        return answer

    def note_mint(self, token: str, sent_at: float) -> None:
        """Remember that `token` is new."""
        while len(self._minted) >= MAX_YOUNG:
            del self._minted[next(iter(self._minted))]
        self._minted[_sha256(token)] = sent_at

    def _is_young(self, token: str) -> bool:
        """Tell whether `token` was minted here so lately that a replica may not know it yet."""
        minted = self._minted.get(_sha256(token))
        return minted is not None and self._clock.boot() - minted < YOUNG

    async def convert_manifest(self, code: str) -> Any:
        """Return the app, with its key, that the manifest flow's `code` stands for. Raises the errors of GitHub.

        Nobody signs this request: the code is all there is, and it works once. Trying again after a failure of the
        network is right nevertheless: when GitHub has served the first one, nothing is lost that was not lost.
        """
        before = self.calls
        answer = await self.request("POST", f"/app-manifests/{quote(code, safe='')}/conversions", "")
        if answer.status == httpx.codes.CREATED and answer.body is not None:
            return answer.body
        raise self._conversion_refusal(answer, repeated=self.calls > before + 1)

    def _conversion_refusal(self, answer: Answer, *, repeated: bool) -> GhappError:
        wait = _asked_to_wait(answer, self.server_now())
        if wait is not None:
            return RateLimited(f"{self._host} wants us to wait for {wait:.0f} s", wait=wait)
        if answer.status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return GitHubFailing(f"{self._host} is failing (HTTP {answer.status})", hint=_SEE_STATUS)
        if not answer.message or httpx.codes.is_success(answer.status):
            return NotTheApi(
                f"{self._host} answered {answer.status} without usable JSON",
                hint="a captive portal or a proxy may be in the way",
            )
        if answer.status == httpx.codes.NOT_FOUND:
            why = "its first answer was lost on the way" if repeated else "it was used already, or is over an hour old"
            return CodeRejected(f"GitHub does not take the code: {why}", hint="ghapp app create")
        return Forbidden(f"GitHub refused the code (HTTP {answer.status}): {answer.message}")

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
            # That it wants another password may be cured by whoever starts us next; what it thinks of a host is not.
            stale = status is not None and int(status[0]) == httpx.codes.PROXY_AUTHENTICATION_REQUIRED
            error = self._blame_the_proxy(why, stale=stale)
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
                    hint=f"for a company's CA: {_set('SSL_CERT_FILE', 'ca_file')}",
                )
            if isinstance(cause, ssl.SSLError):
                return TlsFailed(f"no TLS connection to {self._host} ({cause.reason})", hint=_CHECK_NETWORK)
        if proxy:
            why = f"cannot connect to the proxy {proxy}, on the way to {self._host}"
            return self._blame_the_proxy(why, stale=True)
        if any("gaierror" in type(cause).__name__ for cause in chain):
            return NetworkFailed(f"cannot resolve {self._host}", hint=_check_way())
        return NetworkFailed(f"cannot connect to {self._host}", hint=_check_way())

    def _blame_the_proxy(self, why: str, *, stale: bool) -> ProxyFailed:
        origin = self._network.proxy_origin
        return ProxyFailed(why, hint=mend(origin), inherited=stale and is_inherited(origin))


_FAILING = httpx.codes.INTERNAL_SERVER_ERROR
_SEE_STATUS = "see https://www.githubstatus.com"
_CHECK_NETWORK = "check the network, and https://www.githubstatus.com"


def _check_way() -> str:
    return f"check the network; where a proxy is needed: {_set('HTTPS_PROXY', 'proxy')}"


def _set(variable: str, key: str) -> str:
    """Return how a setting is made that is missing, as `mend` does for one that is wrong."""
    return f"set {variable} in this shell, or {key} below [network] in {config_file()}; then: ghapp daemon restart"


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
        signers: Sequence[Signer],
        github: GitHub,
        threads: ThreadPoolExecutor,
        *,
        edge: GitEdge | None = None,
        key_ttl: float = 0.0,
        afresh: bool = False,
        max_pages: int = MAX_PAGES,
    ) -> None:
        self._app = app
        self._keys = [Key(*pair) for pair in zip(app.keys, signers, strict=True)]
        self._github = github
        self._threads = threads
        self._edge = edge
        self._key_ttl = key_ttl
        self._afresh = afresh
        self._max_pages = max_pages
        self._forgetting: asyncio.TimerHandle | None = None
        self._fingerprint = ""
        self.accepted = ""
        """The fingerprint of the key that GitHub accepted last; "" before the first answer."""

    @property
    def app(self) -> App:
        """The app this speaks for."""
        return self._app

    # -- the app's own voice -------------------------------------------------------------------------------------

    async def fingerprint(self) -> str:
        """Return the fingerprint that leases go by: of the first key that tells it, whichever key signs.

        Tokens outlive their key. Would leases go by the key that signs, passing over a dead one would throw away what
        lives, just when GitHub has to be asked for everything anew. Asked once, so that a hit waits for no thread.
        """
        failures: list[tuple[Key, GhappError]] = []
        for key in () if self._fingerprint else self._keys:
            try:
                self._fingerprint = await self._name(key)
                break
            except KeyUnavailable as error:
                failures.append((key, error))
        if not self._fingerprint:
            raise none_works(self._app.name, self._app.issuer, failures, host=self._app.host)
        return self._fingerprint

    async def _name(self, key: Key) -> str:
        if not key.fingerprint:
            key.fingerprint = await self._blocking(key.signer.fingerprint)
            self._forget_later()
        return key.fingerprint

    async def get_app(self) -> dict[str, Any]:
        """Return ``GET /app``: the best test of id and key."""
        answer = await self._as_app("GET", "/app")
        body = _object(answer)
        for key, kind in {"id": int, "name": str}.items():
            if type(body.get(key)) is not kind:  # JSON's true is an int in Python
                raise BadAnswer(f"GET /app came without {key}")
        return body

    async def rate_limit(self) -> dict[str, int | str] | None:
        """Return what is left of the app's hourly requests: ``limit``, ``remaining``, ``resets_at`` (RFC 3339).

        None where the server does not limit. The question itself is free of charge.
        """
        answer = await self._as_app("GET", "/rate_limit", accept=(200, 404))
        core = answer.body
        for key in ("resources", "core"):
            core = core.get(key) if isinstance(core, dict) else None
        if not isinstance(core, dict) or any(type(core.get(key)) is not int for key in ("limit", "remaining", "reset")):
            return None
        resets_at = datetime.fromtimestamp(_between(core["reset"], 0, MAX_TIME), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"limit": core["limit"], "remaining": core["remaining"], "resets_at": resets_at}

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
        """End `token`. 401 means that it is dead already, where it is not so new that GitHub may not know it yet."""
        answer = await self._github.revoke(token)
        if answer.status not in {httpx.codes.NO_CONTENT, httpx.codes.UNAUTHORIZED}:
            raise self._refusal(answer)

    async def list_repositories(self, token: str, page: int) -> tuple[list[dict[str, Any]], int, bool]:
        """Return one page of what `token` reaches, how many there are, and whether there is more."""
        answer = await self._as_installation(f"/installation/repositories?per_page={PER_PAGE}&page={page}", token)
        body = _object(answer)
        entries, total = body.get("repositories"), body.get("total_count")
        if not isinstance(entries, list) or type(total) is not int:
            raise BadAnswer("GitHub's list of repositories is not a list")
        for entry in entries:
            if not isinstance(entry, dict) or type(entry.get("full_name")) is not str:
                raise BadAnswer("GitHub's list of repositories is malformed")
        return entries, total, "next" in httpx.Response(200, headers=dict(answer.headers)).links

    async def bot_user(self, token: str) -> tuple[str, int]:
        """Return the login and the id of the user that the app's commits are by; the id is not the app's."""
        slug = (await self.get_app()).get("slug")
        if not isinstance(slug, str) or not re.fullmatch(r"[A-Za-z0-9-]+", slug):
            raise BadAnswer("GET /app came without a usable slug")
        body = _object(await self._as_installation(f"/users/{slug}%5Bbot%5D", token))
        if type(body.get("id")) is not int or body.get("login") != f"{slug}[bot]":
            raise BadAnswer(f"GitHub's user {slug}[bot] came without login and id")
        return f"{slug}[bot]", body["id"]

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
        if is_token(token):
            with suppress(GhappError):  # the refusal is what the caller has to hear
                await self.revoke_token(token)

    # -- how a request is made -----------------------------------------------------------------------------------

    async def _as_app(self, method: str, path: str, body: object = None, accept: Sequence[int] = (200,)) -> Answer:
        """Send a request with a JWT of the first key that works."""
        failures: list[tuple[Key, GhappError]] = []
        for key in self._github.verdicts.in_order(self._app.issuer, self._keys):
            try:
                answer = await self._with_key(key, method, path, body)
                break
            except (AppRejected, KeyUnavailable) as error:
                failures.append((key, error))
        else:
            raise none_works(self._app.name, self._app.issuer, failures, host=self._app.host)
        if answer.status not in accept or answer.message == _UNKNOWN_APP:
            raise self._refusal(answer)
        if answer.body is None and not answer.is_redirect:
            raise self._not_the_api(answer)
        return answer

    async def _as_installation(self, path: str, token: str) -> Answer:
        """Ask with an installation's token."""
        answer = await self._github.ask_with(token, path)
        if answer.status != httpx.codes.OK:
            raise self._refusal(answer)
        if answer.body is None:
            raise self._not_the_api(answer)
        return answer

    async def _with_key(self, key: Key, method: str, path: str, body: object) -> Answer:
        """Send a request with a JWT of `key`. Raises `KeyUnavailable`, and `AppRejected` if GitHub rejects the key."""
        identity, verdicts = Identity(self._app.issuer, await self._name(key)), self._github.verdicts
        async with verdicts.one_at_a_time(identity):
            if not self._afresh:
                verdicts.raise_rejected(identity, self._github.boot())
            answer = await self._with_right_time(key, method, path, body)
            if answer.rejects_key:
                error = self._key_rejected(key, answer.message)
                verdicts.reject(identity, error, self._github.boot())
                raise error
            if answer.accepts_key:
                verdicts.accept(identity, key.reference)
                self.accepted = identity.fingerprint
            return answer

    async def _with_right_time(self, key: Key, method: str, path: str, body: object) -> Answer:
        """Send a request with a JWT; once more with the corrected clock when GitHub rejects its times."""
        answer = await self._github.request(method, path, await self._jwt(key), body)
        if answer.status == httpx.codes.UNAUTHORIZED and answer.message.startswith(_TIME_MESSAGES):
            if answer.dated is None:
                raise _clock_rejected()
            answer = await self._github.request(method, path, await self._jwt(key), body)
        return answer

    def _not_the_api(self, answer: Answer) -> NotTheApi:
        host = urlsplit(self._app.api).hostname
        return NotTheApi(
            f"{host} answered {answer.status} without usable JSON", hint="a captive portal or a proxy may be in the way"
        )

    async def _jwt(self, key: Key) -> str:
        """Return a JWT of the app, signed now and kept nowhere (GitHub wants RS256, integers, ``iss`` a string)."""
        now = int(self._github.server_now())
        claims = {"iat": now - JWT_BACK, "exp": now + JWT_AHEAD, "iss": self._app.issuer}
        parts = ({"alg": "RS256", "typ": "JWT"}, claims)
        message = b".".join(base64url_encode(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
        signature = await self._blocking(key.signer.sign, message)
        self._forget_later()
        return (message + b"." + base64url_encode(signature)).decode()

    def _forget_later(self) -> None:
        """Let the keys leave memory some time after the last use of one; 0 keeps them."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        if self._key_ttl > 0:
            self._forgetting = asyncio.get_running_loop().call_later(self._key_ttl, self.forget)

    def forget(self) -> None:
        """Let the keys leave memory."""
        for key in self._keys:
            key.signer.forget()

    async def _blocking(self, function: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def _pages(self, path: str) -> AsyncIterator[list[Any]]:
        """Yield the pages of a list, following ``Link: rel="next"`` as GitHub asks, never a constructed URL."""
        url: str | None = path
        for _ in range(self._max_pages):
            if url is None:
                return
            answer = await self._as_app("GET", url)
            if not isinstance(answer.body, list):
                raise BadAnswer("GitHub's list of installations is not a list")
            yield answer.body
            following = httpx.Response(200, headers=dict(answer.headers)).links.get("next")
            url = self._below_api(following["url"]) if following else None
        raise BadAnswer(f"GitHub's list of installations has more than {self._max_pages} pages")

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
        if not is_token(token):
            raise BadAnswer("GitHub returned a malformed token; it was not used")
        dated = answer.dated if answer.dated is not None else self._github.server_now()
        self._github.note_mint(token, answer.sent_at)
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
            why = "GitHub limits this app's requests" if status < _FAILING else f"GitHub is failing (HTTP {status})"
            return RateLimited(f"{why} until {until:%H:%M:%S}", wait=wait)
        if status >= _FAILING:
            host = urlsplit(self._app.api).hostname
            return GitHubFailing(f"{host} is failing (HTTP {status})", hint="see https://www.githubstatus.com")
        if not message:
            return self._not_the_api(answer)  # whoever it was, nothing was said about app or key
        if message.startswith(_TIME_MESSAGES):
            return _clock_rejected()
        if message == _UNKNOWN_APP or message.startswith(_UNKNOWN_ISSUER):
            page = f"the app's page: {pages(self._app.host)}"
            said = "" if message == _UNKNOWN_APP else f": {message}"
            return AppRejected(f"GitHub knows no app {self._app.issuer}{said}", hint=f"compare the id with {page}")
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
        return Forbidden(f"GitHub refused (HTTP {status}): {message}", hint=self._who_can_allow(message))

    def _who_can_allow(self, message: str) -> str:
        owner = re.search(r"`([A-Za-z0-9-]+)` organization has an IP allow list", message)
        if owner:
            page = f"https://{self._app.host}/organizations/{owner[1]}/settings/security"
            return f"an owner of {owner[1]} has to allow this machine's address: {page}"
        return ""

    def _key_rejected(self, key: Key, message: str) -> AppRejected:
        return AppRejected(
            f"GitHub does not accept the key {key.fingerprint} for app {self._app.issuer}: {message}",
            hint=f"compare the fingerprint with the app's page: {pages(self._app.host)}",
        )


def _asked_to_wait(answer: Answer, now: float) -> float | None:
    """Return the seconds that GitHub wants us to stay away: by retry-after, else by reset, else a minute."""
    after, reset = answer.headers.get("retry-after", ""), answer.headers.get("x-ratelimit-reset", "")
    if answer.status == httpx.codes.SERVICE_UNAVAILABLE:  # down for so long, by its own word
        return _between(float(after), 1, 3600) if re.fullmatch(r"\d{1,9}", after) else None
    if answer.status not in {httpx.codes.FORBIDDEN, httpx.codes.TOO_MANY_REQUESTS}:
        return None
    limited = "rate limit" in answer.message or "login attempts" in answer.message
    if after:
        return _between(float(after), 1, 3600) if re.fullmatch(r"\d{1,9}", after) else 60.0
    if answer.headers.get("x-ratelimit-remaining") == "0" and re.fullmatch(r"\d{1,12}", reset):
        return _between(float(reset) - now, 1, 3600)
    return 60.0 if limited or answer.status == httpx.codes.TOO_MANY_REQUESTS else None


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


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
