"""The form of requests and answers on git.sock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghapp.errors import NetworkFailed, UsageError
from ghapp.wire import (
    MAX_LINES,
    MAX_MESSAGE,
    MAX_REQUEST,
    Request,
    error_attributes,
    format_answer,
    parse_request,
    printable,
)


START = b"action=get\ntimeout=0\n"
BASE = {"action": "get", "timeout": "0"}


@pytest.mark.parametrize(
    ("rest", "attributes", "lists"),
    [
        (b"", {}, {}),
        (b"\n", {}, {}),
        (b"host=github.com", {"host": "github.com"}, {}),
        (b"host=github.com\n\nhost=evil.example\n", {"host": "github.com"}, {}),
        (b"path=a=b==\n", {"path": "a=b=="}, {}),
        (b"host=\n", {"host": ""}, {}),
        (b"host= github.com \n", {"host": " github.com "}, {}),
        (b"path=\x1b[2J\x0b\x0c\x1c\xc2\x85\n", {"path": "\x1b[2J\x0b\x0c\x1c\udcc2\udc85"}, {}),
        (b"ghapp=1\n", {"ghapp": "1"}, {}),
        (b"unknown=1\nunknown=2\n", {"unknown": "2"}, {}),
        (b"capability[]=authtype\ncapability[]=state\n", {}, {"capability": ("authtype", "state")}),
        (b"wwwauth[]=Basic\nwwwauth[]=\nwwwauth[]=Bearer\n", {}, {"wwwauth": ("Bearer",)}),
        (b"state[]=ghapp:1\nstate[]=\n", {}, {"state": ()}),
        (b"host[]=github.com\n", {}, {"host": ("github.com",)}),
    ],
)
def test_a_request_is_read_line_by_line(
    rest: bytes, attributes: dict[str, str], lists: dict[str, tuple[str, ...]]
) -> None:
    assert parse_request(START + rest) == Request("get", BASE | attributes, lists)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\naction=get\ntimeout=0\n",
        b"action=get\n",
        b"timeout=0\naction=get\n",
        b"action=get\nhost=x\ntimeout=0\n",
        START + b"no equals sign\n",
        START + b"=value\n",
        START + b"k y=value\n",
        START + b"k\xc3\xa9y=value\n",
        START + b"host=github.com\r\n",
        START + b"host=git\rhub.com\n",
        START + b"host=github.com\0.evil\n",
        START + b"host=github.com\n\n\0",
        START + b"a=1\n" * MAX_LINES,
        START + b"path=" + b"x" * MAX_REQUEST,
        *(START + f"{key}=1\n{key}=1\n".encode() for key in ("protocol", "host", "path", "username", "url", "ghapp")),
        START + b"password=one\npassword=one\n",
        START + b"action=get\n",
    ],
)
def test_what_git_would_not_send_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        parse_request(data)


def test_the_limits_themselves_are_allowed() -> None:
    longest = START + b"path=" + b"x" * (MAX_REQUEST - len(START) - 5)
    most = START + b"a=1\n" * (MAX_LINES - 2)

    assert len(longest) == MAX_REQUEST
    assert len(parse_request(longest).attributes["path"]) == MAX_REQUEST - len(START) - 5
    assert parse_request(most).attributes == BASE | {"a": "1"}


def test_a_refusal_does_not_repeat_what_came() -> None:
    for data in (b"ghs_secret", START + b"ghs_secret\n", START + b"password=ghs_secret\r\n"):
        with pytest.raises(UsageError) as caught:
            parse_request(data)

        assert "ghs_secret" not in str(caught.value)


def test_a_request_hides_its_values_when_printed() -> None:
    request = parse_request(START + b"password=ghs_secret\nstate[]=ghs_secret\n")

    assert repr(request) == "Request(action='get')"


@pytest.mark.parametrize(("rest", "shows"), [(b"ghapp=1\n", True), (b"ghapp[]=1\n", False), (b"", False)])
def test_only_our_client_is_shown_messages(rest: bytes, *, shows: bool) -> None:
    assert parse_request(START + rest).shows_messages is shows


LINES = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [b"action=get", b"timeout=0", b"host=github.com", b"capability[]=state", b"[]=", b"url=x", b""]
        ),
    ),
    max_size=12,
).map(b"\n".join)


@given(st.one_of(st.binary(max_size=400), LINES, LINES.map(START.__add__)))
def test_any_bytes_are_a_request_or_a_usage_error(data: bytes) -> None:
    try:
        request = parse_request(data)
    except UsageError:
        return

    texts = [*request.attributes, *request.attributes.values(), *(v for vs in request.lists.values() for v in vs)]
    assert not {"\0", "\r", "\n"} & set("".join(texts))


TEXT = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)


@given(st.dictionaries(st.sampled_from(["host", "path", "username", "password", "protocol", "x"]), TEXT))
def test_a_formatted_answer_reads_back_as_it_was(pairs: dict[str, str]) -> None:
    assert parse_request(START + format_answer(pairs.items())).attributes == BASE | pairs


def test_an_answer_is_its_lines() -> None:
    pairs = [("capability[]", "authtype"), ("password", "ghs_x.y-z"), ("error", "it failed (E11)")]

    assert format_answer(pairs) == b"capability[]=authtype\npassword=ghs_x.y-z\nerror=it failed (E11)\n"
    assert format_answer([]) == b""


@pytest.mark.parametrize(
    "value", ["", "a\nb", "a\n", "a\r", "a\0", "\x1b[2J", "a b", "é", "\x7f", "\udcff", "a\u2028b"]
)
def test_a_value_that_anybody_could_read_otherwise_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(ValueError, match="password") as caught:
        format_answer([("username", "x"), ("password", value)])

    assert value == "" or value not in str(caught.value)


@pytest.mark.parametrize("value", ["", "two\nlines", "tab\t"])
def test_a_message_may_have_spaces_and_no_more(value: str) -> None:
    with pytest.raises(ValueError, match="error"):
        format_answer([("error", value)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain (E11)", "plain (E11)"),
        ("two\nlines\x1b[2J é", "two?lines?[2J ?"),
        ("x" * MAX_MESSAGE, "x" * MAX_MESSAGE),
        ("x" * (MAX_MESSAGE + 1), "x" * (MAX_MESSAGE - 3) + "..."),
    ],
)
def test_text_from_outside_becomes_one_bounded_line(text: str, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.parametrize(
    ("hint", "quit_git", "expected"),
    [
        ("", False, [("error", "no route? (E11)")]),
        ("check\nit", True, [("error", "no route? (E11)"), ("hint", "check?it"), ("quit", "1")]),
    ],
)
def test_an_error_becomes_attributes(hint: str, *, quit_git: bool, expected: list[tuple[str, str]]) -> None:
    assert error_attributes(NetworkFailed("no route\n", hint=hint), quit_git=quit_git) == expected
