"""What git asks for, whether that is ours, and what we answer; pure values (gitcredentials(7), git-credential(1))."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from ghapp.wire import Request


USERNAME = "x-access-token"
"""What GitHub documents as the username beside an installation token."""

_OUR_USERNAMES = frozenset({"", USERNAME, "git"})  # https://git@github.com/… sends "git"
_STATE = "ghapp:"
_MAX_PATH = 4096
_MAX_NAME = 100  # GitHub's own limit, without ".wiki.git"
_PATH = re.compile(
    r"/?(?P<owner>[A-Za-z0-9._-]{1,100})/(?P<name>[A-Za-z0-9._-]{1,110})"
    r"(?:/info/lfs(?:/[A-Za-z0-9._-]+)*)?/*"
)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as a URL names it; GitHub compares both parts without regard to case."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def key(self) -> tuple[str, str]:
        """The same for every spelling of the same repository."""
        return self.owner.lower(), self.name.lower()


@dataclass(frozen=True, slots=True)
class Query:
    """A request for one of our hosts."""

    host: str
    """As configured: lower case, without ``:443``."""
    repository: Repository | None
    """None when git sent no path (``useHttpPath`` is off)."""
    our_username: bool = True
    announces_authtype: bool = False
    announces_state: bool = False
    rejected: str = ""
    """The lease that git comes back with after a 401, from ``state[]=ghapp:…``."""
    comes_back: bool = False
    """Whether any ``state[]=ghapp:`` was sent, known or not."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A token on its way to git."""

    lease: str
    token: str = field(repr=False)
    expires_at: int
    """Unix time in the clock of this machine: git compares it with that clock (git ≥ 2.40)."""


def parse_repository(path: str) -> Repository | None:
    """Return the repository that a URL's path belongs to, or None if it is not a repository's path.

    A wiki and LFS belong to their repository. Nothing is decoded: git has decoded once already.
    """
    if len(path) > _MAX_PATH:
        return None
    match = _PATH.fullmatch(path)
    if match is None or {".", ".."} & set(path.split("/")):
        return None
    name = match["name"].removesuffix(".git").removesuffix(".wiki")
    if name in {"", ".", ".."} or len(name) > _MAX_NAME:
        return None
    return Repository(match["owner"], name)


def normal_host(host: str) -> str:
    """Return `host` in the form that hosts are compared in."""
    host = host.lower()
    name, _, port = host.partition(":")
    return name if port == "443" else host  # of two ports neither is the default one


def read_query(request: Request, hosts: Collection[str]) -> Query | None:
    """Return what a `get` asks for, or None if that is not ours by protocol, host or path.

    `hosts` are in normal form. There is no matching but equality: anything looser has leaked tokens before.
    """
    attributes = request.attributes
    host = attributes.get("host", "")
    if attributes.get("protocol") != "https" or not host.isascii() or "url" in attributes:
        return None
    host = normal_host(host)
    if host not in hosts:
        return None
    path = attributes.get("path", "")
    repository = parse_repository(path) if path else None
    if path and repository is None:
        return None
    capabilities = request.lists.get("capability", ())
    states = [value for value in request.lists.get("state", ()) if value.startswith(_STATE)]
    return Query(
        host=host,
        repository=repository,
        our_username=attributes.get("username", "") in _OUR_USERNAMES,
        announces_authtype="authtype" in capabilities,
        announces_state="state" in capabilities,
        rejected=states[-1].removeprefix(_STATE) if states else "",
        comes_back=bool(states),
    )


def answer_attributes(credential: Credential, query: Query) -> list[tuple[str, str]]:
    """Return the attributes that hand `credential` to git, in the order that the protocol wants.

    `password` is never the last line: an answer cut off after it can be told from a whole one.
    ``continue=1`` makes git ≥ 2.46 ask again in the same command after a 401; answered to a request that already
    carries our state it would make git repeat a rejected POST without end.
    """
    may_continue = query.announces_state and not query.comes_back
    pairs = []
    if query.announces_authtype:
        pairs.append(("capability[]", "authtype"))
    if may_continue:
        pairs.append(("capability[]", "state"))
    pairs += [("username", USERNAME), ("password", credential.token)]
    pairs.append(("password_expiry_utc", str(credential.expires_at)))
    if query.announces_authtype:
        pairs.append(("ephemeral", "1"))
    if may_continue:
        pairs += [("state[]", _STATE + credential.lease), ("continue", "1")]
    return pairs
