"""What strangers can put into a request, by way of a URL: git's own spellings, and bytes that no git would send.

The broker behind the server is the real one, with an app that is installed everywhere: whatever is ours gets a token.
"""

import ast
import asyncio
import os
import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from fakes import FakeClock, ScriptedIssuer, make_app
from hypothesis import given, settings
from hypothesis import strategies as st

from ghapp import credential, wire
from ghapp.broker import Broker
from ghapp.credential import Repository
from ghapp.protocols import IssuedToken
from ghapp.routing import Place
from ghapp.server import GitServer
from ghapp.wire import MAX_LINES, MAX_REQUEST, format_answer


START = b"action=get\ntimeout=0\n"
HOSTS = ("github.com", "ghe.example:8443")
ANSWER = re.compile(rb"(?:[a-z_]+(?:\[\])?=[ -~]+\n)*")


class Everywhere(ScriptedIssuer):
    """An app that is installed on every owner, with every repository."""

    async def find_by_repository(self, repository: Repository) -> Place | None:
        return Place(self.installations["acme"], repository.name.lower())


def serve(clock: FakeClock, token: str | None = None) -> GitServer:
    issuers = []
    for number, host in enumerate(HOSTS):
        issuer = Everywhere(make_app(f"bot{number}", host=host, whole_installation=True), clock)
        issuer.install("one")
        if token is not None:
            issuer.edit = lambda issued: _with_token(issued, token)
        issuers.append(issuer)
    broker = Broker(clock)
    broker.configure(issuers, probe=False)

    async def ready() -> None:
        pass

    return GitServer(
        broker, hosts=lambda: broker.hosts, ready=ready, quit_on_error=lambda: True, on_error=lambda _: None
    )


def _with_token(issued: IssuedToken, token: str) -> IssuedToken:
    return IssuedToken(
        token=token,
        ends=issued.ends,
        permissions=issued.permissions,
        repository_selection=issued.repository_selection,
        repositories=issued.repositories,
    )


class Asker:
    """The server, asked from a test that is not asynchronous."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.server = serve(FakeClock())

    def ask(self, data: bytes) -> bytes:
        return self._runner.run(self.server.respond(data))

    def close(self) -> None:
        self._runner.close()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Asker]:
    """One server for all: it keeps nothing of a request that a stranger could make count."""
    asker = Asker()
    yield asker
    asker.close()


def has_token(answer: bytes) -> bool:
    return b"\npassword=ghs_" in answer


# -- the second opinion --------------------------------------------------------------------------------------------


ONCE = b"action timeout ghapp protocol host path username password url".split()
WORD = set(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-._")


def is_ours(data: bytes) -> bool:
    """Tell whether a request gets a token: from the specification, by hand, sharing nothing with the product."""
    said = attributes_of(data)
    if said is None or said[b"action"] != b"get" or said.get(b"protocol") != b"https" or b"url" in said:
        return False
    host = bytes(byte | 0x20 if 0x41 <= byte <= 0x5A else byte for byte in said.get(b"host", b""))
    if host not in (b"github.com", b"github.com:443", b"ghe.example:8443"):
        return False
    if said.get(b"username", b"") not in (b"", b"git", b"x-access-token"):
        return False
    path = said.get(b"path", b"")
    return path == b"" or is_repository(path)  # this app is installed once on a host, so there is nothing to choose


def attributes_of(data: bytes) -> dict[bytes, bytes] | None:
    lines = data.split(b"\n\n", 1)[0].removesuffix(b"\n").split(b"\n")
    said: dict[bytes, bytes] = {}
    for line in lines:
        at = line.find(b"=")
        key, value = line[: max(at, 0)], line[at + 1 :]
        if not key or not set(key) <= set(range(0x21, 0x7F)) or (key in said and key in ONCE):
            return None
        if key[-2:] != b"[]":
            said[key] = value
    starts = len(lines) > 1 and lines[0].startswith(b"action=") and lines[1].startswith(b"timeout=")
    return said if starts and len(lines) <= 256 and len(data) <= 65536 and not {0, 13} & set(data) else None


def is_repository(path: bytes) -> bool:
    owner, *rest = path.removeprefix(b"/").rstrip(b"/").split(b"/")
    if len(path) > 4096 or not rest or any(p in (b"", b".", b"..") or not set(p) <= WORD for p in [owner, *rest]):
        return False
    name = rest[0].removesuffix(b".git").removesuffix(b".wiki")
    lfs = rest[1:] == [] or rest[1:3] == [b"info", b"lfs"]
    return lfs and len(owner) <= 100 and 1 <= len(name) <= 100 and name not in (b".", b"..")


# -- what git hands the helper -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A URL, what git makes of it, and whether that is ours."""

    url: str
    host: bytes
    path: bytes | None = b"o/r"
    username: bytes | None = None
    ours: bool = False

    @property
    def attributes(self) -> bytes:
        path = b"" if self.path is None else b"path=" + self.path + b"\n"
        username = b"" if self.username is None else b"username=" + self.username + b"\n"
        return b"protocol=https\nhost=" + self.host + b"\n" + path + username


ROWS = [
    Row("https://github.com/o/r.git", b"github.com", b"o/r.git", ours=True),
    Row("https://github.com//o//r.git", b"github.com", b"o//r.git"),
    # The HTTP request keeps the %2f, and goes to github.com all the same.
    Row("https://github.com/o%2fr.git", b"github.com", b"o/r.git", ours=True),
    Row("https://github.com/good/../evil/r.git", b"github.com", b"good/../evil/r.git"),
    Row("https://GitHub.COM/o/r", b"GitHub.COM", ours=True),
    Row("https://github.com./o/r", b"github.com."),
    Row("https://github.com:443/o/r", b"github.com:443", ours=True),
    Row("https://github.com:8443/o/r", b"github.com:8443"),
    Row("https://user@github.com/o/r", b"github.com", username=b"user"),
    Row("https://git@github.com/o/r", b"github.com", username=b"git", ours=True),
    Row("https://x-access-token@github.com/o/r", b"github.com", username=b"x-access-token", ours=True),
    Row("https://github.com\\@evil.example/o/r", b"evil.example", username=b"github.com\\"),
    Row("https://github.com%2fevil/o/r", b"github.com/evil"),
    Row("https://github.com%2eevil.example/o/r", b"github.com.evil.example"),
    Row("https://github.com%00.x/o/r", b"github.com%00.x"),
    Row("https://g\u0456thub.com/o/r", "g\u0456thub.com".encode()),
    Row("https://\uff27ithub.com/o/r", "\uff27ithub.com".encode()),
    Row("https://github\u3002com/o/r", "github\u3002com".encode()),
    Row("https://github.com/o%1b[2J/r", b"github.com", b"o\x1b[2J/r"),
    Row("https://github.com/o/%ff", b"github.com", b"o/\xff"),
    Row("https://github.com/o/r.wiki.git", b"github.com", b"o/r.wiki.git", ours=True),
    Row("https://github.com/o/r.git/info/lfs", b"github.com", b"o/r.git/info/lfs", ours=True),
    Row("https://github.com/o/r/tree/main", b"github.com", b"o/r/tree/main"),
    Row("https://github.com/o", b"github.com", b"o"),
    Row("https://github.com", b"github.com", None, ours=True),
    Row("https:///o/r", b""),
    Row("https://gist.github.com/o/r", b"gist.github.com"),
    Row("https://ghe.example:8443/o/r", b"ghe.example:8443", ours=True),
    Row("https://ghe.example/o/r", b"ghe.example"),
]
REDIRECTED = Row("the address that https://github.com/o/r redirected to", b"evil.example", b"x/y")


@pytest.mark.parametrize("row", [*ROWS, REDIRECTED], ids=lambda row: ascii(row.url))
def test_what_git_makes_of_a_url_is_answered_only_where_it_is_ours(daemon: Asker, row: Row) -> None:
    answer = daemon.ask(START + row.attributes)

    assert has_token(answer) is row.ours
    assert row.ours or answer == b""
    assert is_ours(START + row.attributes) is row.ours


def test_real_git_makes_of_each_url_what_the_table_says(tmp_path: Path) -> None:
    """Newer and older gits may refuse some of them by themselves, which is as good."""
    record = tmp_path / "record"
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\n[ \"$1\" != get ] || cat >>'{record}'\n")
    helper.chmod(0o755)
    seen = 0
    for row in ROWS:
        record.write_bytes(b"")
        done = fill(f"url={row.url}\n\n".encode(), str(helper), tmp_path)
        sent = b"".join(
            line + b"\n" for line in record.read_bytes().split(b"\n") if line and not line.startswith(b"capability[]=")
        )
        refused = b"terminal prompts disabled" not in done.stderr and sent == b""
        assert refused or sent == row.attributes, row.url
        seen += not refused

    assert seen > len(ROWS) * 3 // 4


def fill(request: bytes, helper: str, cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    """Ask git for a credential with one helper and nothing else configured."""
    command = ["git", "-c", "credential.helper=", "-c", f"credential.helper={helper}"]
    return subprocess.run(
        [*command, "-c", "credential.useHttpPath=true", "credential", "fill"],
        input=request,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.endswith("_ASKPASS")},
        capture_output=True,
        check=False,
        timeout=20,
    )


# -- hosts and paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        (b"github.com", True),
        (b"GITHUB.COM", True),
        (b"gItHuB.cOm", True),
        (b"github.com:443", True),
        (b"GitHub.com:443", True),
        # GCM's list
        (b"github.con", False),
        (b"foogithub.com", False),
        (b"foo.github.com", False),
        (b"api.github.com", False),
        (b"gist.github.com", False),
        (b"raw.github.com", False),
        (b"www.github.com", False),
        (b"github.company.com", False),
        (b"github.example.com", False),
        (b"example.com", False),
        (b"gitlab.com", False),
        (b"ghe.example", False),
        (b"subdomain.ghe.com", False),
        (b"ghe.com", False),
        # what others took for github.com
        (b"", False),
        (b"github", False),
        (b"com", False),
        (b"github.com.", False),
        (b".github.com", False),
        (b"github..com", False),
        (b"github.com.evil.example", False),
        (b"evil.example.github.com", False),
        (b"evil-github.com", False),
        (b"github-com", False),
        (b"githubXcom", False),
        (b"github.com:22", False),
        (b"github.com:80", False),
        (b"github.com:0443", False),
        (b"github.com:4430", False),
        (b"github.com: 443", False),
        (b"github.com:+443", False),
        (b"github.com:443 ", False),
        (b"github.com:443:443", False),
        (b"ghe.example:8443:443", False),
        (b"github.com:", False),
        (b":443", False),
        (b"[::1]", False),
        (b"[github.com]", False),
        (b"127.0.0.1", False),
        (b"github.com%00.x", False),
        (b"github.com%", False),
        (b"github%2ecom", False),
        (b"github.com/evil", False),
        (b"github.com/", False),
        (b"github.com#evil", False),
        (b"github.com?evil", False),
        (b"github.com\\", False),
        (b"github.com@evil.example", False),
        (b"user@github.com", False),
        (b"//github.com", False),
        (b"https://github.com", False),
        (b"github.com\r", False),
        (b"evil.example\rhost=github.com", False),
        (b"github.com\0", False),
        (b"github.com\x1f", False),
        (b"github.com\x0b", False),
        (b"github.com\x0c", False),
        (b"github.com\x1c", False),
        (b"github.com\x7f", False),
        (b"github.com\t", False),
        (b" github.com", False),
        (b"github.com ", False),
        (b"github.com\xa0", False),
        ("github.com\u0085".encode(), False),
        ("github.com\u2028".encode(), False),
        ("github.com\u200b".encode(), False),
        ("\ufeffgithub.com".encode(), False),
        ("g\u0456thub.com".encode(), False),
        (b"xn--gthub-n4a.com", False),
        ("\uff27ithub.com".encode(), False),
        ("github\u3002com".encode(), False),
        ("github\uff0ecom".encode(), False),
        ("G\u0130THUB.com".encode(), False),
        ("g\u0131thub.com".encode(), False),
        (b"g\xefthub.com", False),
    ],
)
def test_a_host_is_ours_by_equality_alone(daemon: Asker, host: bytes, *, ours: bool) -> None:
    data = START + b"protocol=https\nhost=" + host + b"\npath=o/r.git\n"

    assert has_token(daemon.ask(data)) is ours
    assert is_ours(data) is ours


def test_a_host_with_a_line_feed_is_two_lines_and_refused(daemon: Asker) -> None:
    """As in CVE-2020-5260, in both orders."""
    for first, second in ((b"github.com", b"evil.example"), (b"evil.example", b"github.com"), (b"github.com",) * 2):
        data = START + b"protocol=https\nhost=" + first + b"\nhost=" + second + b"\npath=o/r\n"
        assert daemon.ask(data) == b""
    assert daemon.ask(START + b"protocol=https\nhost=github.com\n\nhost=evil.example\npath=o/r\n") != b""


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        (b"o/r", True),
        (b"o/r.git", True),
        (b"/o/r", True),
        (b"o/r.git/", True),
        (b"o/r//", True),
        (b"o/r.wiki.git", True),
        (b"o/r.wiki", True),
        (b"o/r.git.git", True),
        (b"o/r.git/info/lfs", True),
        (b"o/r/info/lfs/objects/batch", True),
        (b"o/r.git/info/lfs/locks/verify", True),
        (b"o/.github", True),
        (b"O-o/R_r.x", True),
        (b"o/" + b"r" * 100 + b".git", True),
        (b"o" * 100 + b"/r", True),
        (b"o", False),
        (b"o/", False),
        (b"/", False),
        (b"//", False),
        (b"//o/r", False),
        (b"o//r", False),
        (b"o/../x/r", False),
        (b"../o/r", False),
        (b"o/..", False),
        (b"o/.", False),
        (b"./r", False),
        (b"o/r/..", False),
        (b"o/r/../../evil/r", False),
        (b"o/r.git/info/lfs/../../../x/y", False),
        (b"o/.git", False),
        (b"o/.wiki.git", False),
        (b"o/...git", False),
        (b"o/%2e%2e/x", False),
        (b"o%2fr", False),
        (b"o/r%0a", False),
        (b"o/r%00", False),
        (b"?x", False),
        (b"#x", False),
        (b"o/r?x=y", False),
        (b"o/r#x", False),
        (b"o/r;x", False),
        (b"o/r@x", False),
        (b"o/r:x", False),
        (b"o\\r", False),
        (b"o/r r", False),
        (b"o/r\t", False),
        (b"o/r\x1b[2J", False),
        (b"o/r\x7f", False),
        (b"o/\xff", False),
        ("ö/r".encode(), False),
        ("o\uff0fr".encode(), False),
        (b"o/r/tree/main", False),
        (b"o/r/info/lfs2", False),
        (b"o/r/info", False),
        (b"o/r/info/refs", False),
        (b"o/r.git/info/lfs//x", False),
        (b"v2/o/r", False),
        (b"o/" + b"r" * 101, False),
        (b"o" * 101 + b"/r", False),
        (b"o/r/info/lfs/" + b"x/" * 2500, False),
        (b"x" * 5120, False),
    ],
    ids=lambda value: ascii(value[:40]) if isinstance(value, bytes) else None,
)
def test_a_path_is_ours_where_it_names_a_repository_and_nothing_else(daemon: Asker, path: bytes, *, ours: bool) -> None:
    data = START + b"protocol=https\nhost=github.com\npath=" + path + b"\n"

    assert has_token(daemon.ask(data)) is ours
    assert is_ours(data) is ours


# -- the documented limits -----------------------------------------------------------------------------------------


ROCKET = b"protocol=https\nhost=github.com\npath=acme/rocket.git\n"


@pytest.mark.parametrize(
    ("rest", "ours"),
    [
        (b"", True),
        (b"\n", True),
        (b"unheard-of=1\nunheard-of=2\n", True),
        (b'capability[]=authtype\nwwwauth[]=Basic realm="https://evil.example"\nwwwauth[]=\n', True),
        (b"wwwauth[]=\x1b[2J\xff\xfe\n", True),
        (b"host[]=evil.example\npath[]=x\n", True),
        (b"a=1\n" * (MAX_LINES - 5), True),
        (b"a=1\n" * (MAX_LINES - 4), False),
        (b"a=" + b"x" * 65_000 + b"\n", True),
        (b"a=" + b"x" * 65_533 + b"\n", False),  # git's longest line, in a request that is too large with it
        (b"a=" + b"x" * (MAX_REQUEST - len(START + ROCKET) - 3) + b"\n", True),
        (b"a=" + b"x" * (MAX_REQUEST - len(START + ROCKET) - 2) + b"\n", False),
        (b"no equals sign\n", False),
        (b"=no key\n", False),
        (b"a b=1\n", False),
        (b"a\x1b=1\n", False),
        (b"a=1\r\n", False),
        (b"a=\0\n", False),
        (b"\nafter the end\r\0\n", False),
        (b"\nhost=evil.example\nno equals sign\n", True),
        (b"url=https://github.com/acme/rocket\n", False),
        (b"url=https://evil.example/acme/rocket\n", False),
        *[(key + b"=\n" + key + b"=\n", False) for key in (b"username", b"password", b"ghapp", b"url")],
        (b"protocol=https\n", False),
        (b"host=github.com\n", False),
        (b"path=acme/rocket.git\n", False),
        (b"action=get\n", False),
        (b"timeout=0\n", False),
    ],
    ids=lambda value: ascii(value[:40]) if isinstance(value, bytes) else None,
)
def test_what_git_would_not_send_has_no_answer(daemon: Asker, rest: bytes, *, ours: bool) -> None:
    data = START + ROCKET + rest

    answer = daemon.ask(data)

    assert has_token(answer) is ours
    assert ours or answer == b""
    assert is_ours(data) is ours


@pytest.mark.parametrize("missing", [b"protocol=https\n", b"host=github.com\n"])
@pytest.mark.parametrize("instead", ["nothing", "empty", "a list"])
def test_what_is_missing_is_not_whatever_you_like(daemon: Asker, missing: bytes, instead: str) -> None:
    """As it was in CVE-2020-11008."""
    key, _, value = missing.partition(b"=")
    line = {"nothing": b"", "empty": key + b"=\n", "a list": key + b"[]=" + value}[instead]

    assert daemon.ask(START + ROCKET.replace(missing, line)) == b""


LENIENT = {
    *("splitlines", "strip", "lstrip", "rstrip", "casefold", "expandtabs", "normalize", "search"),
    *("idna", "urlsplit", "urlparse", "unquote", "unquote_plus", "unicodedata", "urllib", "stdin"),
}


@pytest.mark.parametrize("module", [wire, credential], ids=lambda module: module.__name__)
def test_nothing_lenient_is_used_on_a_request(module: ModuleType) -> None:
    """Each of these takes something for equal, or for a line's end, that is not; a table cannot show them all."""
    assert module.__file__ is not None
    nodes = list(ast.walk(ast.parse(Path(module.__file__).read_text())))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    used |= {part for node in nodes if isinstance(node, ast.Import) for part in [alias.name for alias in node.names]}
    used |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}

    assert "fullmatch" in used
    assert LENIENT & {part for name in used for part in name.split(".")} == set()


# -- mutations -----------------------------------------------------------------------------------------------------


def seed(host: bytes, path: bytes, more: bytes = b"", start: bytes = START) -> bytes:
    return start + b"protocol=https\nhost=" + host + b"\npath=" + path + b"\n" + more


SEEDS = [
    *[START + row.attributes for row in [*ROWS, REDIRECTED]],
    seed(b"github.com:0443", b"o/r"),
    seed(b"github.com:", b"o/r"),
    seed(b"[::1]", b"o/r"),
    seed(b"ghe.example:8443:443", b"o/r"),
    seed(b"github.com", b"o/r.git/info/lfs/objects/batch"),
    seed(b"github.com", b"o/r.git/"),
    seed(b"github.com", b"o/r.git.git"),
    seed(b"github.com", b"o/.git"),
    seed(b"github.com", b"o/..git"),
    seed(b"github.com", b"/"),
    seed(b"github.com", b"o/" + b"n" * 100),
    seed(b"github.com", b"o" * 100 + b"/" + b"n" * 101),
    seed(b"github.com", b"o/r/info/lfs" + b"/x" * 2042),
    seed(b"github.com", b"o/r", b"url=https://github.com/o/r\n"),
    seed(b"github.com", b"o/r", b"host=github.com\n"),
    seed(b"evil.example", b"o/r", b"host=github.com\n"),
    seed(b"evil.example\rhost=github.com", b"o/r"),
    seed(b"github.com", b"o/r", b"wwwauth[]=Basic\nstate[]=ghapp:1\ncapability[]=state\ncapability[]=authtype\n"),
    seed(b"github.com", b"o/r", b"\nhost=evil.example\n"),
    seed(b"github.com", b"o/r", b"password=ghs_x\noauth_refresh_token=y\npassword_expiry_utc=1\n"),
    seed(b"github.com", b"o/r", b"a=1\n" * 250),
    seed(b"github.com", b"o/r", start=START + b"ghapp=1\n"),
    seed(b"evil.example", b"o/r", start=START + b"ghapp=1\n"),
    seed(b"github.com", b"o/r", start=b"action=erase\ntimeout=0\n"),
    seed(b"github.com", b"o/r", start=b"timeout=0\naction=get\n"),
    START + b"protocol=http\nhost=github.com\npath=o/r\n",
    START + b"protocol=https\npath=o/r\n",
]
OURS = [data for data in SEEDS if is_ours(data)]  # half of the mutants: most changes make them foreign
PIECES = [bytes([byte]) for byte in range(256)] + [
    *(b"\n", b"\r", b"\0", b"=", b"/", b".", b":", b"%", b"@") * 8,
    *(b"..", b"/../", b"%2f", b"%2e", b"%00", b".git", b".wiki", b"/info/lfs", b":443", b":8443", b"[]", b"\n\n"),
    *(b"github.com", b"evil.example", b"https", b"host=", b"path=", b"username=git\n", b"\nhost=github.com\n"),
    *("\u0456".encode(), "\u2028".encode(), b"\xc2\x85", b"a=1\n", b"x" * 100, b"ghapp=1\n", b"username="),
]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Change a request in one to three places."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        to = min(len(data), at + chance.choice((0, 0, 1, 1, 2, 8)))
        match chance.randrange(8):
            case 0 | 1 | 2:
                data = data[:at] + chance.choice(PIECES) + data[to:]
            case 3:
                data = data[:at] + data[to:]
            case 4:
                data = data[:at] + data[at:to].swapcase() + data[to:]
            case 5:
                data += chance.choice(PIECES)
            case 6:
                lines = data.split(b"\n")
                first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
                lines[first], lines[second] = lines[second], lines[first]
                data = b"\n".join(lines)
            case _:
                data = data[:at] + chance.choice(SEEDS)[at:]
    return data


async def judge(count: int, chance: random.Random) -> tuple[int, int]:
    """Ask for `count` mutants and compare; return how many were ours, and how many differ from every seed."""
    server = serve(FakeClock())
    ours = changed = 0
    for number in range(count):
        data = mutate(chance.choice(OURS if number % 2 else SEEDS), chance)
        answer = await server.respond(data)
        expected = is_ours(data)
        assert has_token(answer) is expected, data
        assert ANSWER.fullmatch(answer), data
        if not expected and data.startswith(START) and b"\nghapp=" not in data:
            assert answer == b"", data
        ours += expected
        changed += data not in SEEDS
    return ours, changed


@pytest.mark.parametrize("count", [10_000, pytest.param(200_000, marks=[pytest.mark.slow, pytest.mark.timeout(280)])])
async def test_mutants_of_requests_are_answered_exactly_where_a_second_opinion_says_ours(count: int) -> None:
    """The many are other ones each time; a mutant that fails is in the message."""
    chance = random.Random(2020_5260 if count == 10_000 else None)  # noqa: S311  # not a secret

    ours, changed = await judge(count, chance)

    assert len(SEEDS) >= 40
    assert changed > count * 0.8
    assert count * 0.1 < ours < count * 0.9


NAMES = st.one_of(
    st.sampled_from([b"o", b"r", b"r.git", b"r.wiki.git", b"..", b".", b"", b".git", b"info", b"lfs", b"-", b"a_b"]),
    st.binary(max_size=4),
    st.from_regex(rb"[A-Za-z0-9._-]{1,8}", fullmatch=True),
)
PATHS = st.one_of(
    st.sampled_from([b"o/r", b"o/r.git", b"o/r.git/info/lfs", b"/o/r"]), st.lists(NAMES, max_size=5).map(b"/".join)
)
HOST = st.one_of(
    st.sampled_from([b"github.com", b"GitHub.com", b"github.com:443", b"ghe.example:8443", b"github.com.", b"evil"]),
    st.text(st.sampled_from("gGiItThHuUbB.cComM:4\u0130\u0456"), max_size=14).map(str.encode),
    st.sampled_from(range(10)).map(
        lambda at: b"github.com"[:at] + b"GITHUB.COM"[at : at + 1] + b"github.com"[at + 1 :]
    ),
)
LINES = st.one_of(
    *(HOST.map(b"host=".__add__), PATHS.map(b"path=".__add__)),
    st.sampled_from([b"protocol=https", b"protocol=http", b"username=git", b"username=alice", b"ghapp=1", b"url=x"]),
    st.sampled_from([b"capability[]=state", b"state[]=ghapp:x", b"wwwauth[]=", b"x=y", b"", b"host[]=github.com"]),
    st.binary(max_size=12),
)
WHOLE = st.builds(
    lambda host, path, more: b"\n".join([b"protocol=https", b"host=" + host, b"path=" + path, *more]),
    *(HOST, PATHS, st.lists(LINES, max_size=3)),
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.one_of(WHOLE, WHOLE, st.lists(LINES, max_size=8).map(b"\n".join)))
def test_requests_of_any_make_are_answered_exactly_where_a_second_opinion_says_ours(
    daemon: Asker, attributes: bytes
) -> None:
    data = START + attributes

    answer = daemon.ask(data)

    assert has_token(answer) is is_ours(data)
    assert ANSWER.fullmatch(answer)


# -- what git does with an answer, and why ours never looks like that ----------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a helper might print, what git makes of it, and the pairs of ours that would print it."""

    printed: str
    """As a format of printf."""
    password: bytes | None
    stderr: bytes = b""
    pairs: tuple[tuple[str, str], ...] | None = None


EVIL = [
    Said("username=u\\npassword=tok\\r\\n", b"tok", pairs=(("password", "tok\r"),)),
    Said("username=u\\npassword=tok\\0junk\\n", b"tok", pairs=(("password", "tok\0junk"),)),
    Said("username=u\\npassword=t\\033[2Jk\\n", b"t\x1b[2Jk", pairs=(("password", "t\x1b[2Jk"),)),
    Said("username=u\\npassword=tok\\nhalf-a-token\\n", b"tok", b"half-a-token", (("password", "tok\nhalf-a-token"),)),
    Said("username=u\\npassword=a\\npassword=b\\n", b"b"),
    Said("username=u\\npassword=cut", b"cut"),
    Said("quit=1\\n", None, b"told us to quit"),
    Said("", None, b"terminal prompts disabled"),
]


@pytest.mark.parametrize("said", EVIL, ids=lambda said: said.printed)
def test_git_takes_what_we_refuse_to_say(tmp_path: Path, said: Said) -> None:
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\nprintf '{said.printed}'\nexit 1\n")  # git does not look at the status either
    helper.chmod(0o755)

    done = fill(ROCKET + b"\n", str(helper), tmp_path)

    taken = next((line for line in done.stdout.split(b"\n") if line.startswith(b"password=")), None)
    assert taken == (None if said.password is None else b"password=" + said.password)
    assert said.stderr in done.stderr
    if said.pairs is not None:
        with pytest.raises(ValueError, match="password"):
            format_answer(said.pairs)


def test_git_follows_an_answer_to_another_host(tmp_path: Path) -> None:
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\nprintf 'host=evil.example\\nusername=u\\npassword=tok\\n'\n")
    helper.chmod(0o755)

    assert b"host=evil.example\n" in fill(ROCKET + b"\n", str(helper), tmp_path).stdout


BAD_TOKENS = ["", "tok\r", "tok\0junk", "t\x1b[2Jk", "tok\nhost=evil.example", "tok\n", "to k", "tök", "tok\x7f"]


@pytest.mark.parametrize("token", BAD_TOKENS, ids=ascii)
async def test_a_token_that_git_would_read_otherwise_is_never_in_an_answer(token: str) -> None:
    """GitHub's answers are checked when they come; this is the last door, and it says nothing of the token."""
    server = serve(FakeClock(), token)

    with pytest.raises(ValueError, match="password") as caught:
        await server.respond(START + ROCKET)

    assert token == "" or token not in str(caught.value)


@pytest.mark.parametrize("capabilities", [b"", b"capability[]=authtype\ncapability[]=state\n"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.ours], ids=lambda row: row.url)
def test_an_answer_says_a_token_once_and_nothing_of_the_host(daemon: Asker, row: Row, capabilities: bytes) -> None:
    answer = daemon.ask(START + capabilities + row.attributes)

    keys = [line.split(b"=")[0] for line in answer.removesuffix(b"\n").split(b"\n")]
    more = {b"capability[]", b"ephemeral", b"state[]", b"continue"} if capabilities else set()
    assert set(keys) == {b"username", b"password", b"password_expiry_utc"} | more
    assert [key for key in keys if keys.count(key) > 1 and key != b"capability[]"] == []
    assert (b"password", b"password_expiry_utc") in list(pairwise(keys))
    assert answer.endswith(b"\n")
