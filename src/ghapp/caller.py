"""Who called: what the kernel says about the process at the other end of a socket, and about those above it.

Nothing here waits: of a process of ours the kernel's answers need no page of its memory. Its command line would, and
a sandbox could let that page never come; so that is read only where the caller could end us anyway.
"""

import os
import re
import sys
from collections import OrderedDict
from dataclasses import dataclass


GENERATIONS = 6  # above the socket's client; between it and git stand our front and git's remote helper
REMEMBERED = 1024  # processes whose chain was told once
FRONT = "git-credential-"  # git-credential-ghapp, as far as the kernel keeps a name
_MAX_COMMAND_LINE = 4096  # bytes
_WITH_VALUE = frozenset(
    {"-C", "-c", "--git-dir", "--work-tree", "--namespace", "--super-prefix", "--config-env", "--attr-source"}
)
_SUBCOMMAND = re.compile(r"[a-z][a-z-]{0,30}")


@dataclass(frozen=True, slots=True)
class Process:
    """One process; a pid alone is used again and again."""

    pid: int
    started: int
    """In the kernel's ticks since boot; 0 where it cannot be told."""
    parent: int
    name: str
    """The first 15 characters of its program's name, as the process may set it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the git command behind the client of git.sock; else the client itself."""

    pid: int
    uid: int
    exe: str | None = None
    cwd: str | None = None
    command: str | None = None
    """Such as ``git push``, without anything else of the command line: that may hold a password."""
    chain: tuple[tuple[int, str | None], ...] = ()
    """Pid and program, from the socket's client up to what called git."""
    key: tuple[int, int] = (0, 0)


class Callers:
    """Looks callers up; remembers those whose chain was told."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[int, int], None] = OrderedDict()

    def is_first(self, caller: Caller) -> bool:
        """Tell whether this process is seen for the first time, and remember it."""
        known = caller.key in self._told
        self._told[caller.key] = None
        self._told.move_to_end(caller.key)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        return not known

    def look(self, pid: int, uid: int, *, of_git: bool, in_sandbox: bool = False) -> Caller:
        """Return who is behind the client `pid`: while it waits for its answer, it is there."""
        if sys.platform != "linux" or pid <= 0:
            return Caller(pid, uid, key=(pid, 0))
        line = _ancestry(pid)
        top = _git_in(line) if of_git else 0
        who = line[top] if line else Process(pid, 0, 0, "")
        # Ours, and not in a sandbox: who could end us anyway.
        ours = uid == os.geteuid() and not in_sandbox
        command = None
        if ours and of_git and _is_git(who.name):
            command = _subcommand(_words(who.pid))
        elif ours and not of_git:
            command = _own_command(_words(who.pid))
        return Caller(
            who.pid,
            uid,
            exe=_link(who.pid, "exe"),
            cwd=_link(who.pid, "cwd"),
            command=command,
            chain=tuple((each.pid, _link(each.pid, "exe")) for each in line[: top + 2]),
            key=(who.pid, who.started),
        )


def _ancestry(pid: int) -> list[Process]:
    """Return the process and those above it, as far as they can be seen."""
    found: list[Process] = []
    while pid > 1 and len(found) < GENERATIONS + 2:
        process = _read(pid)
        if process is None:
            break
        found.append(process)
        pid = process.parent
    return found


def _read(pid: int) -> Process | None:
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, 1024)
        finally:
            os.close(descriptor)
        name, _, rest = text.partition(b"(")[2].rpartition(b")")  # the name may hold brackets
        fields = rest.split()
        return Process(pid, int(fields[19]), int(fields[1]), os.fsdecode(name))
    except (OSError, ValueError, IndexError):
        return None


def _git_in(line: list[Process]) -> int:
    """Return the place of the git command that asks: the first git above our front, and above it as long as it is git.

    A hook's shell ends it: the git in the hook is another command. Where there is none, as with libgit2, it is
    who runs our front.
    """
    first = next((place for place, process in enumerate(line[1:], 1) if _is_git(process.name)), 0)
    fronts = [place for place, process in enumerate(line) if process.name == FRONT]
    if not first and fronts and fronts[-1] + 1 < len(line):
        return fronts[-1] + 1
    while first and first + 1 < len(line) and _is_git(line[first + 1].name):
        first += 1
    return first


def _is_git(name: str) -> bool:
    """Tell git and its parts from our front, which is named git-credential-ghapp."""
    return name == "git" or (name.startswith("git-") and not name.startswith("git-credential"))


def _link(pid: int, name: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/{name}")  # noqa: PTH115  # bytes of any kind, as they are
    except OSError:
        return None


def _words(pid: int) -> list[str]:
    """Return the command line; nothing for a process that has gone."""
    try:
        descriptor = os.open(f"/proc/{pid}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return [os.fsdecode(word) for word in os.read(descriptor, _MAX_COMMAND_LINE).split(b"\0")]
        finally:
            os.close(descriptor)
    except OSError:
        return []


def _own_command(words: list[str]) -> str | None:
    """Return ``ghapp grant`` where our command line runs, as a script of Python's; None for anything else."""
    for place, word in enumerate(words[:3]):
        if word.rpartition("/")[2] == "ghapp":
            following = words[place + 1] if place + 1 < len(words) else ""
            return f"ghapp {following}" if _SUBCOMMAND.fullmatch(following) else "ghapp"
    return None


def _subcommand(words: list[str]) -> str:
    """Return ``git push`` for ``git -C dir push --force``: the first word that is no option."""
    skip = False
    for word in words[1:]:
        if not skip and not word.startswith("-"):
            return f"git {word}" if _SUBCOMMAND.fullmatch(word) else "git"
        skip = not skip and word in _WITH_VALUE
    return "git"
