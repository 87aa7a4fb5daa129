"""What is ours, and how git is answered; test_hostile_input.py holds it against a second opinion."""

import pytest

from ghapp.credential import (
    Credential,
    Query,
    Repository,
    answer_attributes,
    normal_host,
    parse_repository,
    read_query,
)
from ghapp.wire import Request, parse_request


START = b"action=get\ntimeout=0\n"
HOSTS = frozenset({"github.com", "ghe.example:8443"})


def read(*lines: str | bytes) -> Query | None:
    data = START + b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    return read_query(parse_request(data), HOSTS)


def ours(host: str = "github.com", path: str = "o/r.git", *more: str) -> Query | None:
    return read("protocol=https", f"host={host}", f"path={path}", *more)


# -- hosts and protocols -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "normal"),
    [
        ("github.com", "github.com"),
        ("GitHub.COM", "github.com"),
        ("github.com:443", "github.com"),
        ("GITHUB.com:443", "github.com"),
        ("ghe.example:8443", "ghe.example:8443"),
    ],
)
def test_a_configured_host_is_ours_in_any_case_and_with_its_port(host: str, normal: str) -> None:
    assert ours(host) == Query(normal, Repository("o", "r"))


@pytest.mark.parametrize(
    "host",
    [
        "",
        "foogithub.com",
        "api.github.com",
        "gist.github.com",
        "raw.githubusercontent.com",
        "github.con",
        "github.com.",
        "github.com.evil.example",
        "github.com:22",
        "github.com:0443",
        "github.com:8443",
        "github.com:",
        "github.com:443:443",
        "github.com@evil.example",
        "user@github.com",
        " github.com",
        "github.com ",
        "github.com\x1f",
        "github.com\x0b",
        "github.com%00.x",
        "github.com/evil",
        "github.com\\",
        "[::1]",
        "xn--github-abc.com",
        "g\u0456thub.com",
        "\uff27ithub.com",
        "github。com",
        "ﬁle.github.com",
        "GİTHUB.com",
        "ghe.example",
        "ghe.example:443",
        "ghe.example:8443:443",
        "ghcr.io",
        "npm.pkg.github.com",
    ],
)
def test_any_other_host_is_foreign(host: str) -> None:
    assert ours(host) is None


def test_a_letter_that_only_looks_ascii_in_lower_case_is_foreign() -> None:
    kelvin = Request("get", {"protocol": "https", "host": "\u212a.example", "path": "o/r"}, {})

    assert kelvin.attributes["host"].lower() == "k.example"
    assert read_query(kelvin, {"k.example"}) is None


@pytest.mark.parametrize("protocol", ["", "http", "HTTPS", "https ", "ssh", "git", "https:"])
def test_any_other_protocol_is_foreign(protocol: str) -> None:
    assert read(f"protocol={protocol}", "host=github.com", "path=o/r") is None


def test_what_is_missing_or_never_sent_by_git_is_foreign() -> None:
    assert read("host=github.com", "path=o/r") is None
    assert read("protocol=https", "path=o/r") is None
    assert ours("github.com", "o/r", "url=https://github.com/o/r") is None
    assert read("protocol[]=https", "host[]=github.com", "path=o/r") is None


@pytest.mark.parametrize(
    ("host", "normal"),
    [("GitHub.com:443", "github.com"), ("h:443:443", "h:443:443"), ("h:8443:443", "h:8443:443"), ("h:8443", "h:8443")],
)
def test_hosts_are_compared_in_one_form(host: str, normal: str) -> None:
    assert normal_host(host) == normal


# -- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("o/r", "r"),
        ("o/r.git", "r"),
        ("/o/r.git", "r"),
        ("o/r/", "r"),
        ("o/r.git//", "r"),
        ("o/r.wiki.git", "r"),
        ("o/r.wiki", "r"),
        ("o/r.git/info/lfs", "r"),
        ("o/r.git/info/lfs/objects/batch", "r"),
        ("o/r/info/lfs/", "r"),
        ("o/r.git.git", "r.git"),
        ("o/.github", ".github"),
        ("o/a.b-c_D", "a.b-c_D"),
        ("o/" + "n" * 100 + ".wiki.git", "n" * 100),
        ("o/-", "-"),
        ("o/...", "..."),
    ],
)
def test_a_path_names_its_repository(path: str, name: str) -> None:
    assert parse_repository(path) == Repository("o", name)


@pytest.mark.parametrize(
    "path",
    [
        "o",
        "o/",
        "/",
        "//",
        "//o/r",
        "o//r",
        "/o//r",
        "o/../x/r",
        "../o/r",
        "o/..",
        "./r",
        "o/.",
        "o/./r",
        "o/.git",
        "o/.wiki.git",
        "o/...git/..",
        "o/...git/info/lfs/..",
        "o/..git",
        "o/%2e%2e/x",
        "o%2fr",
        "o/r%0a",
        "o/r?x",
        "o/r#x",
        "?x",
        "o/r/tree/main",
        "o/r/info/lfsx",
        "o/r/info/refs",
        "o/r.git/info/lfs//x",
        "o/r.git/info/lfs/a b",
        "o/r\n",
        "o/r\t",
        "o/r\x1b[2J",
        "o/r ",
        "ö/r",
        "o/r\udcff",
        "o/r\\x",
        "o/" + "n" * 101,
        "o/" + "n" * 102 + ".wiki.git",
        "o" * 101 + "/r",
        "o/r/info/lfs" + "/x" * 2100,
    ],
)
def test_any_other_path_is_no_repository(path: str) -> None:
    assert parse_repository(path) is None
    if "\n" not in path:
        assert read("protocol=https", "host=github.com", b"path=" + path.encode("utf-8", "surrogateescape")) is None


@pytest.mark.parametrize("lines", [[], ["path="]])
def test_without_a_path_the_query_names_no_repository(lines: list[str]) -> None:
    assert read("protocol=https", "host=github.com", *lines) == Query("github.com", None)


def test_a_repository_is_the_same_in_any_case() -> None:
    assert Repository("Acme", "Tools").key == Repository("aCME", "tOOLS").key
    assert str(Repository("Acme", "Tools")) == "Acme/Tools"


# -- the rest of a query -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("username", "is_ours"),
    [("", True), ("x-access-token", True), ("git", True), ("alice", False), ("X-Access-Token", False), ("git ", False)],
)
def test_a_username_of_ours_or_none(username: str, *, is_ours: bool) -> None:
    query = ours("github.com", "o/r", f"username={username}")

    assert query is not None
    assert query.our_username is is_ours


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], {}),
        (["capability[]=authtype"], {"announces_authtype": True}),
        (["capability[]=authtype", "capability[]=state"], {"announces_authtype": True, "announces_state": True}),
        (["capability[]=state", "capability[]="], {}),
        (["capability=state"], {}),
        (["state[]=ghapp:abc"], {"rejected": "abc", "comes_back": True}),
        (["state[]=other:abc"], {}),
        (["state[]=other:1", "state[]=ghapp:a", "state[]=ghapp:b"], {"rejected": "b", "comes_back": True}),
        (["state[]=ghapp:"], {"comes_back": True}),
        (["state[]=ghapp:abc", "state[]="], {}),
        (['wwwauth[]=Basic realm="ghapp:abc"', "password=x", "oauth_refresh_token=y"], {}),
    ],
)
def test_what_git_can_do_is_read(lines: list[str], expected: dict[str, object]) -> None:
    assert ours("github.com", "o/r", *lines) == Query("github.com", Repository("o", "r"), **expected)  # type: ignore[arg-type]


# -- answers -------------------------------------------------------------------------------------------------------


PLAIN = [("username", "x-access-token"), ("password", "ghs_t"), ("password_expiry_utc", "99")]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, PLAIN),
        ({"announces_authtype": True}, [("capability[]", "authtype"), *PLAIN, ("ephemeral", "1")]),
        ({"announces_state": True}, [("capability[]", "state"), *PLAIN, ("state[]", "ghapp:l1"), ("continue", "1")]),
        ({"announces_state": True, "comes_back": True, "rejected": "l0"}, PLAIN),
        ({"announces_state": True, "comes_back": True}, PLAIN),
        (
            {"announces_authtype": True, "announces_state": True},
            [
                ("capability[]", "authtype"),
                ("capability[]", "state"),
                *PLAIN,
                ("ephemeral", "1"),
                ("state[]", "ghapp:l1"),
                ("continue", "1"),
            ],
        ),
    ],
)
def test_git_is_handed_the_token_and_only_what_it_announced(
    changes: dict[str, object], expected: list[tuple[str, str]]
) -> None:
    query = Query("github.com", None, **changes)  # type: ignore[arg-type]  # a table of fields

    assert answer_attributes(Credential("l1", "ghs_t", 99), query) == expected


def test_a_credential_hides_its_token_when_printed() -> None:
    assert "ghs_t" not in repr(Credential("l1", "ghs_t", 99))
