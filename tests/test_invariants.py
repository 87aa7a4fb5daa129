"""What must hold whatever happens: a machine that does anything to the real broker, in any order.

The world is GitHub, three clocks and an event loop in which waiting takes no time. Every token handed out and every
mint is judged at that moment; a refusal must have a reason that is younger than the time it may be remembered for.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from fakes import GRANTED, make_app, make_installation
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ghapp.broker import Broker
from ghapp.credential import Credential, Query, Repository
from ghapp.errors import (
    AppRejected,
    BadAnswer,
    Declined,
    Failed,
    GhappError,
    GitHubFailing,
    KeyUnavailable,
    NetworkFailed,
    NotInstalled,
    NotSelected,
    PermissionMissing,
    RateLimited,
    Suspended,
)
from ghapp.github import Answer as Response
from ghapp.github import AppClient
from ghapp.github import GitHub as Api
from ghapp.installation import ALL, Installation, Permissions, Scope, exceeds
from ghapp.minting import PROBE_PAUSES
from ghapp.network import Network
from ghapp.protocols import IssuedToken
from ghapp.routing import App, Place


HOUR = 3600.0
NEVER = float("-inf")
ALWAYS = float("inf")
HANG = 12.0  # seconds after which a call without an answer is given up
APPS = (make_app("acme-bot"), make_app("whole-bot", owners=("gamma",), whole_installation=True))
OWNERS = {"acme": 0, "beta": 0, "gamma": 1}
"""And the app that may be installed there."""
REPOSITORIES = {"one": "acme", "two": "acme", "three": "acme", "four": "beta", "five": "gamma", "six": "nobody"}
TROUBLES: dict[str, tuple[type[Failed], float]] = {
    # What goes wrong, as which error, and for how long that may be told after it was mended.
    "network": (NetworkFailed, 3 + HANG + 1),
    "failing": (GitHubFailing, 3 + 1),
    "wider": (BadAnswer, 3 + 1),
    "rejected": (AppRejected, 60 + 1),
    "locked": (KeyUnavailable, 3 + 1),
    "limited": (RateLimited, 1),
}
MENDED = 62.0  # seconds after which nothing that was mended may be told any more

Answer = TypeVar("Answer")


class World(asyncio.BaseEventLoop):
    """Three clocks, and the loop whose timers follow them: waiting moves them all, suspend moves all but the timers.

    All times are multiples of 1/64 second, which keeps sums of them exact. GitHub's clock may be set too; what it
    issued lives for as long as it was to live, whatever that clock says in the meantime.
    """

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self.awake = 0.0
        self.asleep = 5_000.0
        self.wall_minus_boot = 1_800_000_000.0
        self.server_minus_boot = 1_800_086_400.0

    def time(self) -> float:
        return self.awake

    def boot(self) -> float:
        return self.awake + self.asleep

    def wall(self) -> float:
        return self.boot() + self.wall_minus_boot

    def server(self) -> float:
        return self.boot() + self.server_minus_boot

    def select(self, timeout: float | None) -> list[object]:
        assert timeout is not None, "somebody waits for what will never happen"
        self.awake += timeout
        return []

    def _process_events(self, events: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


@dataclass(eq=False)
class Repo:
    """A repository at GitHub; every name it ever had leads to it."""

    id: int
    owner: str
    name: str
    names: dict[str, float]
    """And since when."""
    selected: bool = True
    selected_since: float = NEVER

    def reachable_since(self, name: str) -> float:
        """Return since when `name` leads to it."""
        return max(self.selected_since, self.names[name]) if self.selected and name in self.names else ALWAYS


@dataclass(eq=False)
class Account:
    """An owner at GitHub, and the installation there."""

    name: str
    number: int | None
    suspended: bool = False
    workflows: bool = True
    installed_since: float = NEVER
    unsuspended_since: float = NEVER

    @property
    def granted(self) -> Permissions:
        return GRANTED if self.workflows else tuple(pair for pair in GRANTED if pair[0] != "workflows")

    def installation(self) -> Installation | None:
        if self.number is None:
            return None
        return make_installation(self.number, self.name, permissions=self.granted, suspended=self.suspended)


@dataclass(eq=False)
class Token:
    """A token as GitHub knows it."""

    text: str
    scope: Scope
    account: Account
    repositories: frozenset[int] | None
    permissions: Permissions
    dies: float
    """In the boot clock, as are the next two."""
    born: float
    ends: float = 0.0
    """What the broker was told."""
    revoked: bool = False


@dataclass(eq=False)
class GitHub:
    """All that is common to the apps."""

    world: World
    accounts: dict[str, Account]
    repos: dict[str, Repo]
    """By every name that is ever asked for."""
    keys: list[int]
    """By app: how often the key was replaced."""
    until: dict[tuple[str, int], float] = field(default_factory=lambda: defaultdict(lambda: NEVER))
    """By trouble and app: when it ends."""
    installed: int = 0
    wrong: list[str] = field(default_factory=list)
    """What the broker did wrong: nobody may have waited for a mint in the background."""
    hangs: bool = False
    latency: float = 0.0
    lag: float = 0.0
    long_lives: bool = False
    lid: tuple[str, str, float] | None = None
    """The lid is closed during the next call of that method, before or after GitHub acts, for so many seconds."""
    lid_opened_at: float = NEVER
    tokens: dict[str, Token] = field(default_factory=dict)
    current: dict[Scope, Token] = field(default_factory=dict)
    """The last one that the broker could keep and had no reason to forget."""
    minting: set[Scope] = field(default_factory=set)
    mints: dict[Scope, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=6)))
    failed_at: dict[Scope, float] = field(default_factory=dict)
    """Where the last mint failed."""
    unasked_at: dict[tuple[int, str], float] = field(default_factory=dict)
    """By app and owner: when the last look-up failed."""

    def troubled(self, kind: str, app: int, since: float) -> bool:
        """Tell whether `kind` may still be told to who asked `since` then."""
        return self.until[kind, app] + TROUBLES[kind][1] > since

    def token_lives(self, token: Token) -> bool:
        """Tell whether GitHub accepts `token`."""
        account = token.account
        return (
            not token.revoked
            and token.dies > self.world.boot()
            and account.number == token.scope.installation
            and not account.suspended
        )

    def often_minted(self, account: Account, since: float) -> bool:
        """Tell whether tokens for `account` were minted so often that the broker may refuse to."""
        numbers = {token.scope.installation for token in self.tokens.values() if token.account is account}
        return any(
            len(times) == 6 and times[0] > since - 60 - 30 - HANG
            for scope, times in self.mints.items()
            if scope.installation in numbers or scope.installation == account.number
        )

    def could_mint(self, scope: Scope, since: float) -> bool:
        """Tell whether nothing stood in the way of a mint for `scope`, for the broker either."""
        app = next(number for number, app in enumerate(APPS) if app.issuer == scope.issuer)
        account = next((it for it in self.accounts.values() if it.number == scope.installation), None)
        times = self.mints[scope]
        return not (
            account is None
            or account.suspended
            or exceeds(scope.permissions, account.granted)
            or any(self.troubled(kind, app, since) for kind in TROUBLES)
            or (len(times) == 6 and times[0] > since - 60 - HANG)
            or self.failed_at.get(scope, NEVER) > since - 60 - HANG
            or self.unasked_at.get((app, account.name), NEVER) > since - 60 - HANG
        )


class NoKey:
    """A signer that is never asked."""

    def fingerprint(self) -> str:
        raise NotImplementedError

    def sign(self, message: bytes) -> bytes:
        raise NotImplementedError

    def forget(self) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class Issuer:
    """GitHub for one app: a `TokenIssuer`."""

    github: GitHub
    number: int
    _reader: AppClient = field(init=False)
    """What reads the answer to a mint."""

    def __post_init__(self) -> None:
        api = Api(self.app.api, Network(), self.github.world)
        self._reader = AppClient(self.app, [NoKey()] * len(self.app.keys), api, ThreadPoolExecutor(1))

    @property
    def app(self) -> App:
        return APPS[self.number]

    async def fingerprint(self) -> str:
        return f"SHA256:{self.github.keys[self.number]}"

    def _account(self, owner: str) -> Account | None:
        return self.github.accounts.get(owner) if OWNERS.get(owner) == self.number else None

    async def find_by_repository(self, repository: Repository) -> Place | None:
        def act() -> Place | None:
            account, repo = self._account(repository.owner), self.github.repos[repository.name]
            installation = account.installation() if account else None
            if installation is None or not repo.selected or repository.name not in repo.names:
                return None
            return Place(installation, repo.name if repo.name == repository.name else repo.id)

        return await self._look_up(repository.owner, "find_by_repository", act)

    async def find_by_owner(self, owner: str) -> Installation | None:
        def act() -> Installation | None:
            account = self._account(owner)
            return account.installation() if account else None

        return await self._look_up(owner, "find_by_owner", act)

    async def _look_up(self, owner: str, method: str, act: Callable[[], Answer]) -> Answer:
        try:
            return await self._call(method, act)
        except (GhappError, asyncio.CancelledError):  # time may be out
            self.github.unasked_at[self.number, owner] = self.github.world.boot()
            raise

    async def list_installations(self) -> list[Installation]:
        raise NotImplementedError

    async def create_token(self, scope: Scope) -> IssuedToken:
        github, boot = self.github, self.github.world.boot
        sent = boot()
        held = github.current.get(scope)
        if scope in github.minting:
            github.wrong.append("two mints of one scope at the same time")
        if held is not None and held.ends - sent > 600:
            github.wrong.append("a mint without a reason")
        times = github.mints[scope]
        if len(times) == 6 and times[0] > sent - 60 + HANG:
            github.wrong.append("a seventh mint within a minute")
        github.minting.add(scope)
        times.append(sent)
        try:
            token, issued = await self._call("create_token", lambda: self._mint(scope, sent))
        except GhappError:
            github.failed_at[scope] = boot()
            raise
        finally:
            github.minting.discard(scope)
        if not exceeds(token.permissions, scope.permissions) and token.ends - boot() >= 60:
            github.failed_at.pop(scope, None)
            github.current[scope] = token
        else:
            github.failed_at[scope] = boot()
        return issued

    def _mint(self, scope: Scope, sent: float) -> tuple[Token, IssuedToken]:
        github = self.github
        account = next((it for it in github.accounts.values() if it.number == scope.installation), None)
        if account is None or OWNERS[account.name] != self.number:
            raise NotInstalled("the installation is gone")
        if account.suspended:
            raise Suspended("the installation is suspended")
        if exceeds(scope.permissions, account.granted):
            raise PermissionMissing("the permissions requested are not granted")
        there = [repo for repo in set(github.repos.values()) if repo.owner == account.name and repo.selected]
        repos: list[Repo] = []
        if scope.repositories is not ALL:
            repos = [repo for repo in there if {repo.id, repo.name} & set(scope.repositories)]
            if set(scope.repositories) - {name for repo in repos for name in (repo.id, repo.name)}:  # one may be both
                raise NotSelected("there is at least one repository that does not exist")
        extra = {("administration", "write")} if github.until["wider", self.number] > sent else set()
        life = 3900.0 if github.long_lives else 3600.0
        token = Token(
            text=f"ghs_{len(github.tokens)}",
            scope=scope,
            account=account,
            repositories=None if scope.repositories is ALL else frozenset(repo.id for repo in repos),
            permissions=tuple(sorted({*scope.permissions, ("metadata", "read"), *extra})),
            dies=github.world.boot() + life,
            born=github.world.boot(),
            ends=sent + life,
        )
        github.tokens[token.text] = token
        now = int(github.world.server())
        body = {
            "token": token.text,
            "expires_at": f"{datetime.fromtimestamp(now + (86_400 if github.long_lives else int(life)), UTC):%FT%TZ}",
            "permissions": dict(token.permissions),
            "repository_selection": "all" if scope.repositories is ALL else "selected",
            "repositories": [{"id": repo.id, "name": repo.name} for repo in repos],
        }
        return token, self._reader._issued(Response(201, {}, body, sent, float(now)))

    async def revoke_token(self, token: str) -> None:
        def act() -> None:
            ended = self.github.tokens[token]
            ended.revoked = True
            if self.github.current.get(ended.scope) is ended:
                del self.github.current[ended.scope]

        await self._call("revoke_token", act)

    async def approach(self) -> None:
        pass

    async def sees(self, repository: Repository, token: str) -> bool:
        github = self.github
        assert repository.name in github.repos
        if github.lid is not None and github.lid[0] == "sees":
            self._close_lid()
        return github.world.boot() - github.tokens[token].born >= github.lag

    async def _call(self, method: str, act: Callable[[], Answer]) -> Answer:
        github = self.github
        if github.lid is not None and github.lid[:2] == (method, "before"):
            self._close_lid()
        await asyncio.sleep(github.latency)
        boot, until = github.world.boot(), github.until
        if until["network", self.number] > boot:
            await asyncio.sleep(HANG if github.hangs else 0)
            raise NetworkFailed("no route")
        if until["failing", self.number] > boot:
            raise GitHubFailing("HTTP 502")
        if method != "revoke_token":
            if until["locked", self.number] > boot:
                raise KeyUnavailable("the key is locked")
            if until["rejected", self.number] > boot:
                raise AppRejected("wrong key")
            if until["limited", self.number] > boot:
                raise RateLimited("too many requests", wait=until["limited", self.number] - boot)
        answer = act()
        if github.lid is not None and github.lid[:2] == (method, "after") and not github.long_lives:
            self._close_lid()
        return answer

    def _close_lid(self) -> None:
        assert self.github.lid is not None
        self.github.world.asleep += self.github.lid[2]
        self.github.lid_opened_at = self.github.world.boot()
        self.github.lid = None


NAMES = [name + suffix for name in REPOSITORIES for suffix in ("", "-new")]
LIKELY = st.sampled_from([*REPOSITORIES] * 3 + NAMES + ["one"] * 6)
WANTED: list[Permissions | None] = [None, (("contents", "read"),), (("issues", "write"),), (("workflows", "write"),)]
SECONDS = st.sampled_from(
    [0.25, 2.5, 5.0, 15.0, 31.0, 61.0, 95.0, 250.0, 600.0, 1500.0, 2950.0, 3200.0, 3450.0, 3590.0]
)
APP = st.sampled_from([0, 0, 0, 1])
ACCOUNT = st.sampled_from(["acme", "acme", "beta", "gamma"])
CALLS = ["find_by_repository before", "create_token before", "create_token after", "sees before"]


class Machine(RuleBasedStateMachine):
    """Anything that may happen to a broker."""

    steps = 0
    handed_out = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.github = GitHub(
            world=self.world,
            accounts={name: Account(name, 7 + number) for number, name in enumerate(OWNERS)},
            repos={},
            keys=[1] * len(APPS),
        )
        for number, (name, owner) in enumerate(REPOSITORIES.items()):
            repo = Repo(700 + number, owner, name, {name: NEVER})
            self.github.repos |= {name: repo, f"{name}-new": repo}
        self.broker = Broker(self.world)
        self._configure()
        self.handed: list[tuple[str, str]] = []
        """Lease and token, in the order they came to git."""
        self.gone: set[str] = set()
        """Tokens that may not come back."""

    def teardown(self) -> None:
        tasks = asyncio.all_tasks(self.world)
        for task in tasks:
            task.cancel()
        if tasks:
            self.world.run_until_complete(asyncio.wait(tasks))
        self.world.close()

    def _configure(self) -> None:
        self.broker.configure([Issuer(self.github, number) for number in range(len(APPS))])

    @invariant()
    def nothing_is_left_behind(self) -> None:
        type(self).steps += 1
        assert self.github.wrong == []
        timers: list[Any] = [timer for timer in self.world._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]  # the loop's own
        scopes = [timer._args[0].scope for timer in timers if timer._callback == self.broker._minting._renew_ahead]
        assert len(scopes) == len(set(scopes)), "two timers for one scope"
        book = self.broker._book
        assert all(book._leases[lease.id] is lease for lease in book._current.values())
        assert set(book._uses) <= set(book._leases)

    # -- whoever asks ----------------------------------------------------------------------------------------------

    @rule(names=st.lists(LIKELY, min_size=1, max_size=5), settle=st.booleans())
    def get(self, names: list[str], *, settle: bool) -> None:
        self._run([self._get(name) for name in names], settle=settle)

    @rule(name=LIKELY, other=LIKELY, back=st.integers(1, 4))
    def get_after_a_rejection(self, name: str, other: str, back: int) -> None:
        lease = self.handed[-back][0] if len(self.handed) >= back else "unknown"
        self._run([self._get(name, lease), self._get(other)])

    @rule(name=LIKELY, erases=st.booleans())
    def run_git(self, name: str, *, erases: bool) -> None:
        self._run([self._git(name, erases=erases)])

    @rule(names=st.lists(LIKELY, min_size=1, max_size=3), permissions=st.sampled_from(WANTED), read_only=st.booleans())
    def token_for_a_tool(self, names: list[str], permissions: Permissions | None, *, read_only: bool) -> None:
        owner = REPOSITORIES[names[0].removesuffix("-new")]
        names = [name for name in names if REPOSITORIES[name.removesuffix("-new")] == owner]
        if permissions == (("workflows", "write"),):
            read_only = False
        self._run([self._token(owner, names, permissions, read_only=read_only)])

    @rule(back=st.integers(1, 6))
    def erase(self, back: int) -> None:
        if len(self.handed) >= back:
            self._erase(self.handed[-back][1])

    @rule(text=st.sampled_from(["", "ghs_", "ghs_1x", "secret", "ghs_\udcff"]))
    def erase_a_password_of_somebody_else(self, text: str) -> None:
        assert self.broker.erase(text) is False

    # -- time ------------------------------------------------------------------------------------------------------

    @rule(seconds=SECONDS)
    def advance(self, seconds: float) -> None:
        self._advance(seconds)

    @rule(minutes=st.sampled_from([5, 10, 50, 58, 120]))
    def keep_using(self, minutes: int) -> None:
        """Keep one lease in use, so that it is renewed by its timer."""
        for _ in range(0, minutes * 60, 1200):
            self._run([self._get("one")], settle=False)
            self._advance(min(1200.0, minutes * 60.0))

    @precondition(lambda self: self.handed)
    @rule(left=st.sampled_from([45, 61, 150, 299, 301, 599, 601, 900]), cut_off=st.booleans())
    def use_near_the_end(self, left: int, *, cut_off: bool) -> None:
        """Wake up when the last token has so many seconds left, perhaps without a network."""
        token = self.github.tokens[self.handed[-1][1]]
        self.world.asleep += max(0.0, token.dies - self.world.boot() - left)
        if cut_off:
            self.trouble_for_all("network", hangs=False)
        self._run([self._get(name) for name in REPOSITORIES])

    @rule(hours=st.integers(1, 12))
    def suspend(self, hours: int) -> None:
        self.world.asleep += hours * HOUR

    @rule(call=st.sampled_from(CALLS), hours=st.integers(1, 12))
    def suspend_during_a_call(self, call: str, hours: int) -> None:
        method, moment = call.split()
        self.github.lid = (method, moment, hours * HOUR)

    @rule(hours=st.integers(-24, 24))
    def set_the_wall_clock(self, hours: int) -> None:
        self.world.wall_minus_boot += hours * HOUR

    @rule()
    def set_the_wall_clock_to_1970(self) -> None:
        self.world.wall_minus_boot = -self.world.boot()

    @rule(seconds=st.sampled_from([-86_400, -7200, -59, 1, 600, 7200, 86_400]))
    def set_the_clock_of_github(self, seconds: int) -> None:
        self.world.server_minus_boot += seconds

    # -- GitHub ----------------------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(["network", "failing", "wider"]), hangs=st.booleans())
    def trouble_for_all(self, kind: str, *, hangs: bool) -> None:
        self.github.hangs = hangs
        for app in range(len(APPS)):
            self.github.until[kind, app] = ALWAYS

    @rule(kind=st.sampled_from(["rejected", "locked"]), app=APP)
    def trouble_for_one(self, kind: str, app: int) -> None:
        self.github.until[kind, app] = ALWAYS

    @rule(app=APP, seconds=st.sampled_from([5.0, 60.0, 300.0, 900.0, 3600.0]))
    def limit(self, app: int, seconds: float) -> None:
        boot, known = self.world.boot(), self.github.until["limited", app]
        self.github.until["limited", app] = known if known > boot else boot + seconds

    @rule()
    def mend(self) -> None:
        boot = self.world.boot()
        for key, until in self.github.until.items():
            if until == ALWAYS:
                self.github.until[key] = boot
        self.github.latency = self.github.lag = 0.0

    @rule()
    def mend_and_find_all_well(self) -> None:
        self.mend()
        boot = self.world.boot()
        for account in self.github.accounts.values():
            self._install(account, again=False)
            self._suspend(account, suspended=False)
        for repo in self.github.repos.values():
            self._select(repo, selected=True)
        self._advance(max(0.0, *(until - boot for until in self.github.until.values()), 0.0) + MENDED + 40)
        self.github.lid = None
        self._run([self._git(name, must=True) for name, owner in REPOSITORIES.items() if owner in OWNERS])

    @rule(
        kind=st.sampled_from(list(TROUBLES)),
        names=st.lists(LIKELY, min_size=2, max_size=8),
        gap=st.sampled_from([0.25, 2.0, 4.0, 15.0, 55.0]),
    )
    def work_through_trouble(self, kind: str, names: list[str], gap: float) -> None:
        """Ask again and again, and once more as soon as no refusal may be remembered any more."""
        boot = self.world.boot()
        for app in range(len(APPS)):
            self.github.until[kind, app] = max(self.github.until[kind, app], boot + gap * len(names))
        for name in names:
            self._run([self._get(name)], settle=False)
            self._advance(gap)
        self._advance(TROUBLES[kind][1])
        self._run([self._get(name) for name in names])

    @rule(latency=st.sampled_from([0.0, 0.25, 0.75]), lag=st.sampled_from([0.0, 1.0, 5.0, 60.0]))
    def slow(self, latency: float, lag: float) -> None:
        self.github.latency, self.github.lag = latency, lag

    @rule(yes=st.booleans())
    def long_lives(self, *, yes: bool) -> None:
        """GitHub says that tokens live for a day, and ends them after 65 minutes."""
        self.github.long_lives = yes

    @rule(back=st.integers(1, 4))
    def revoke_behind_our_back(self, back: int) -> None:
        if len(self.handed) >= back:
            self.github.tokens[self.handed[-back][1]].revoked = True

    @rule(name=ACCOUNT)
    def install_anew(self, name: str) -> None:
        self._install(self.github.accounts[name], again=True)

    @rule(name=ACCOUNT)
    def uninstall(self, name: str) -> None:
        self.github.accounts[name].number = None

    @rule(name=ACCOUNT, suspended=st.booleans())
    def suspend_installation(self, name: str, *, suspended: bool) -> None:
        self._suspend(self.github.accounts[name], suspended=suspended)

    @rule(name=ACCOUNT, workflows=st.booleans())
    def grant(self, name: str, *, workflows: bool) -> None:
        self.github.accounts[name].workflows = workflows

    @rule(name=LIKELY, selected=st.booleans())
    def select(self, name: str, *, selected: bool) -> None:
        self._select(self.github.repos[name], selected=selected)

    @rule(name=LIKELY)
    def rename(self, name: str) -> None:
        repo = self.github.repos[name]
        repo.name = name
        repo.names.setdefault(name, self.world.boot())

    # -- the owner of the machine ----------------------------------------------------------------------------------

    @rule()
    def reload(self) -> None:
        self._configure()

    @rule(app=APP)
    def replace_the_key(self, app: int) -> None:
        self.github.keys[app] += 1
        self._configure()

    @precondition(lambda self: self.handed)
    @rule()
    def revoke_all(self) -> None:
        before = {lease.token for lease, _ in self.broker.leases()}
        self.world.run_until_complete(self.broker.revoke_all())
        after = {lease.token for lease, _ in self.broker.leases()}  # one that was being minted may have come too
        for text in (
            before | after
        ):  # also one that could not be ended: it is held for another try, and handed out no more
            self._forgotten(text)

    @precondition(lambda self: self.handed)
    @rule()
    def revoke_all_in_vain(self) -> None:
        """What could not be ended does not come back when the network does."""
        self.trouble_for_all("network", hangs=False)
        self.revoke_all()
        self.mend()
        self._advance(MENDED)
        self._run([self._get(name) for name in REPOSITORIES])

    # -- how it is done --------------------------------------------------------------------------------------------

    def _run(self, requests: Iterable[Any], *, settle: bool = True) -> None:
        async def run() -> None:
            await asyncio.gather(*requests)
            while settle and self.broker._flights._flights:
                await asyncio.gather(*self.broker._flights._flights.values(), return_exceptions=True)
                # A finished flight is removed by its callback; from Python 3.12 on, waiting for it gives that no turn.
                await asyncio.sleep(0)

        self.world.run_until_complete(run())

    def _advance(self, seconds: float) -> None:
        self.world.run_until_complete(asyncio.sleep(seconds))

    def _install(self, account: Account, *, again: bool) -> None:
        if account.number is None:
            account.installed_since = self.world.boot()
        if account.number is None or again:
            self.github.installed += 1
            account.number = 100 + self.github.installed
            self._suspend(account, suspended=False)

    def _suspend(self, account: Account, *, suspended: bool) -> None:
        if account.suspended and not suspended:
            account.unsuspended_since = self.world.boot()
        account.suspended = suspended

    def _select(self, repo: Repo, *, selected: bool) -> None:
        if selected and not repo.selected:
            repo.selected_since = self.world.boot()
        repo.selected = selected

    def _erase(self, text: str) -> None:
        if self.broker.erase(text):
            self._forgotten(text)
        else:
            assert all(lease.token != text for lease, _ in self.broker.leases())
        self.gone.add(text)

    def _forgotten(self, text: str) -> None:
        self.gone.add(text)
        token = self.github.tokens[text]
        if self.github.current.get(token.scope) is token:
            del self.github.current[token.scope]

    async def _get(self, name: str, rejected: str = "") -> Credential | None:
        """Do what git's first or second request does."""
        repo, began = self.github.repos[name], self.world.boot()
        text = dict(self.handed).get(rejected, "")
        if text:  # mints are free from here on; whether it was dropped is known when a credential comes
            token = self.github.tokens[text]
            if self.github.current.get(token.scope) is token:
                del self.github.current[token.scope]
        query = Query("github.com", Repository(repo.owner, name), rejected=rejected, comes_back=bool(rejected))
        try:
            credential = await self.broker.fill(query)
        except GhappError as error:
            self._judge_refusal(error, repo.owner, [name], began)
            return None
        if credential is None:
            self._judge_none(repo.owner, began)
            return None
        if text:
            self.gone.add(text)
        token = self.github.tokens[credential.token]
        assert not exceeds(token.permissions, (("contents", "write"), ("workflows", "write")))
        assert "contents" in dict(token.permissions)
        wanted = None if APPS[OWNERS[repo.owner]].whole_installation else {repo.id}
        self._judge(token, repo.owner, wanted, began)
        true = self.world.wall() + token.dies - self.world.boot()
        assert abs(credential.expires_at - true) <= 2, "git is told another end"
        self.handed.append((credential.lease, credential.token))
        return credential

    async def _git(self, name: str, *, erases: bool = False, must: bool = False) -> None:
        """Do what git does: come back once when the token turns out to be dead."""
        credential = await self._get(name)
        if credential is not None and not self.github.token_lives(self.github.tokens[credential.token]):
            if erases:
                self._erase(credential.token)
            credential = await self._get(name, credential.lease)
            assert credential is None or self.github.token_lives(self.github.tokens[credential.token])
        assert credential is not None or not must

    async def _token(
        self, owner: str, names: Sequence[str], permissions: Permissions | None, *, read_only: bool
    ) -> None:
        began = self.world.boot()
        repositories = [Repository(owner, name) for name in names]
        try:
            lease = await self.broker.token("github.com", repositories, permissions, read_only=read_only)
        except NotInstalled:
            self._judge_none(owner, began)
            return
        except GhappError as error:
            self._judge_refusal(error, owner, names, began, permissions)
            return
        token = self.github.tokens[lease.token]
        wanted = GRANTED if permissions is None else permissions
        wanted = tuple((key, "read") for key, _ in wanted) if read_only else wanted
        assert not exceeds(token.permissions, wanted)
        self._judge(token, owner, {self.github.repos[name].id for name in names}, began)
        self.handed.append((lease.id, lease.token))

    # -- what is right ---------------------------------------------------------------------------------------------

    def _judge(self, token: Token, owner: str, repositories: set[int] | None, began: float) -> None:
        """Judge a token at the moment it is handed out."""
        type(self).handed_out += 1
        left = token.dies - self.world.boot()
        assert left >= 60, "a token that dies under the first request"
        assert left >= 300 or not self.github.could_mint(token.scope, began), "an old token while mints work"
        assert token.text not in self.gone, "a token that was forgotten"
        assert token.account.name == owner
        assert token.repositories == repositories
        assert token.scope.key == f"SHA256:{self.github.keys[OWNERS[owner]]}"

    def _judge_none(self, owner: str, began: float) -> None:
        """Judge that no app of ours is responsible."""
        account = self.github.accounts.get(owner)
        assert account is None or account.number is None or account.installed_since + 61 > began

    def _judge_refusal(
        self, error: GhappError, owner: str, names: Sequence[str], began: float, wanted: Permissions | None = None
    ) -> None:
        """Judge why there is no token: the reason exists, or did so lately."""
        account, github = self.github.accounts.get(owner), self.github
        reasons: list[type[GhappError]] = []
        if any(github.repos[name].reachable_since(name) + 61 > began for name in names):
            reasons.append(NotSelected)
        if account is None or account.number is None or account.installed_since + 61 > began:
            reasons.append(NotInstalled)
        if account is not None and (account.suspended or account.unsuspended_since + 31 > began):
            reasons.append(Suspended)
        if account is not None and github.often_minted(account, began):
            reasons += [Failed, Declined]
        if account is not None and exceeds(wanted or (), account.granted):
            reasons.append(PermissionMissing)
        if github.lid_opened_at + 3 + sum(PROBE_PAUSES) + 1 > began:
            reasons.append(BadAnswer)
        own = [kind for kind in TROUBLES if owner in OWNERS and github.troubled(kind, OWNERS[owner], began)]
        if own or reasons:  # then the trouble of another app may be told as well
            reasons += [
                what
                for kind, (what, _) in TROUBLES.items()
                for number in range(len(APPS))
                if github.troubled(kind, number, began)
            ]
        assert isinstance(error, tuple(reasons)), f"{error!r}: there is no reason for it"


def explore(steps: int, *, derandomize: bool) -> None:
    Machine.steps = 0
    per_run = 50
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=steps // (per_run - 10),  # some runs end early
            stateful_step_count=per_run,
            deadline=None,
            derandomize=derandomize,
            database=None,
            phases=[Phase.generate],  # shrinking takes minutes; add Phase.shrink to understand a failure
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_invariants_hold() -> None:
    explore(3_000, derandomize=True)

    assert Machine.steps >= 3_000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_invariants_hold_for_20000_steps() -> None:
    explore(20_000, derandomize=False)

    assert Machine.steps >= 20_000
