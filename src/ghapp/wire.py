"""The bytes on git.sock: git's credential-cache protocol, in which every git is a client.

A request is ``action=…``, ``timeout=…``, then git's attribute lines (git-credential(1), INPUT/OUTPUT FORMAT), then
a half-close; the answer is attribute lines, then close. This module knows the form and no meaning. It works on
bytes and splits on LF only: ``splitlines``, ``strip`` and text-mode reading all take CR and worse for a line's
end, which is how credentials went to the wrong host in CVE-2024-50338 and its relatives.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ghapp.errors import GhappError, UsageError


MAX_REQUEST = 64 * 1024  # git allows 65,535 bytes a line; a real request is under 1 KiB
MAX_LINES = 256  # a real request has about ten; wwwauth[] may repeat

_ONCE = frozenset({"protocol", "host", "path", "username", "password", "url", "action", "timeout", "ghapp"})
_KEY = re.compile(rb"[!-<>-~]+")  # printable, no space, no "="
_VALUE = re.compile(r"[!-~]+")
_SENTENCE = re.compile(r"[ -~]+")
_SENTENCES = frozenset({"error", "hint"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its form checked and nothing else."""

    action: str
    attributes: Mapping[str, str] = field(repr=False)
    """Single-valued attributes; bytes that are not ASCII arrive as surrogates, so they equal nothing of ours."""
    lists: Mapping[str, tuple[str, ...]] = field(repr=False)
    """The ``key[]`` attributes, without the brackets, after resets."""

    @property
    def shows_messages(self) -> bool:
        """Tell whether a client of ours asks, one that prints `error` and `hint`."""
        return "ghapp" in self.attributes


def parse_request(data: bytes) -> Request:
    """Parse one whole request.

    Raises `UsageError` for anything git would not send: its text never repeats what was received.
    """
    if len(data) > MAX_REQUEST:
        raise UsageError(f"the request is larger than {MAX_REQUEST} bytes")
    if b"\0" in data or b"\r" in data:
        raise UsageError("the request has a NUL or a carriage return in it")
    lines = data.split(b"\n\n", 1)[0].split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if len(lines) > MAX_LINES:
        raise UsageError(f"the request has more than {MAX_LINES} lines")
    pairs = [_pair(line) for line in lines]
    if [key for key, _ in pairs[:2]] != ["action", "timeout"]:
        raise UsageError("the request does not begin with action and timeout")
    attributes: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for key, value in pairs:
        if key.endswith("[]"):
            values = lists.setdefault(key[:-2], [])
            values.append(value) if value else values.clear()
        elif key in attributes and key in _ONCE:
            raise UsageError("the request says something twice that may be said once")
        else:
            attributes[key] = value
    return Request(attributes["action"], attributes, {key: tuple(values) for key, values in lists.items()})


def _pair(line: bytes) -> tuple[str, str]:
    key, equals, value = line.partition(b"=")
    if not equals or not _KEY.fullmatch(key):
        raise UsageError("the request has a line that is not key=value")
    return key.decode("ascii"), value.decode("ascii", "surrogateescape")


def format_answer(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Build a whole answer, or raise `ValueError` if a value could be read as something else by anyone.

    The error's text does not contain the value: it may be a token.
    """
    lines = []
    for key, value in pairs:
        form = _SENTENCE if key in _SENTENCES else _VALUE
        if not form.fullmatch(value):
            raise ValueError(f"the value of {key!r} is empty or not printable ASCII")
        lines.append(f"{key}={value}\n")
    return "".join(lines).encode("ascii")


def format_refusal(sentence: str) -> bytes:
    """Build an answer that stops git and puts `sentence` on the screen, where nothing of ours can print it.

    git shows a line that it cannot read, in a warning, and reads no further: it is the last, and without ``=``.
    """
    return f"quit=1\n{printable(sentence).replace('=', ':')}\n".encode("ascii")


MAX_MESSAGE = 400  # characters of an error or a hint: a few lines of a terminal


def printable(text: str) -> str:
    """Return `text` as one bounded line of printable ASCII: part of it may come from outside."""
    clean = "".join(character if " " <= character <= "~" else "?" for character in text)
    return clean if len(clean) <= MAX_MESSAGE else clean[: MAX_MESSAGE - 3] + "..."


def error_attributes(error: GhappError, *, quit_git: bool) -> list[tuple[str, str]]:
    """Return the lines that tell a client of ours why there is no credential."""
    pairs = [("error", printable(str(error)))]
    if error.hint:
        pairs.append(("hint", printable(error.hint)))
    if quit_git:
        pairs.append(("quit", "1"))
    return pairs
