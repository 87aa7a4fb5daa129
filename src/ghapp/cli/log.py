"""``ghapp log``."""

import errno
import heapq
import os
import re
import shlex
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click

from ghapp import audit, config, errors, process
from ghapp.cli.grant import complete_names
from ghapp.cli.output import hint, json_option, printable, refuse_empty, say, warn


LOOK_AGAIN = 0.25  # seconds between two looks for new lines
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_DURATION = 1e9  # seconds; JSON knows numbers that no float is
_MAX_LINE = 1024 * 1024  # bytes; ours are a few hundred


def parse_since(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
    """Turn ``10m``, ``2h`` or a time into the trail's own form; a click callback."""
    if value is None:
        return ""
    match = re.fullmatch(r"(\d{1,9})([smhd])", value)
    if match:
        return audit.timestamp(max(0.0, time.time() - int(match[1]) * _UNITS[match[2]]))
    try:
        return audit.timestamp(datetime.fromisoformat(value.upper()).timestamp())  # without a zone: the local one
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"{value!r} is neither 10m, 2h, 1d nor a time such as 2026-11-21T14:00") from None


@click.command(short_help="Show the audit trail.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("--since", callback=parse_since, metavar="T", help="10m, 2h, 1d, or 2026-11-21T14:00.")
@click.option("--repo", "repository", callback=refuse_empty, metavar="R", help="Only OWNER/REPO, or OWNER/*.")
@click.option(
    "--grant",
    callback=refuse_empty,
    metavar="NAME",
    shell_complete=complete_names,
    help="Only what went through that grant.",
)
@json_option
def log(*, follow: bool, since: str, repository: str | None, grant: str | None, as_json: bool) -> int:
    """Show who got which token when: the whole trail, the oldest first.

    --json prints the lines as they are kept, one object each. What somebody
    in a container or on another host did is told by the grant it went through.

    \b
    Examples:
      ghapp log --since 2h --repo acme/rocket
      ghapp log -f --grant rocket
    """
    process.raise_descriptor_limit((audit.KEPT + 1) * (audit.GRANTS_KEPT + 16))
    trail = Trail(config.state_dir())
    found, told = False, set[Path]()
    while True:
        for line, entry in trail.new():
            fits = repository is None or concerns(entry, repository)
            if entry["time"] >= since and fits and (grant is None or _is_of(entry, grant)):
                found = True
                click.echo(line if as_json else readable(entry))
        for path in sorted(trail.unreadable - told):
            warn(f"{path} is not a file: nothing is recorded there")
            hint(f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.aside')}")
        told |= trail.unreadable
        if not follow:
            break
        sys.stdout.flush()
        time.sleep(LOOK_AGAIN)
    if not found and not as_json and not told:
        say("nothing was recorded" + (" that fits" if since or repository or grant else " yet"))
    return 1 if told else 0


def _is_of(entry: dict[str, Any], grant: str) -> bool:
    return str(entry.get("grant") or "").lower() == grant.lower()


class Trail:
    """The lines of all files, each once, also when files turn over meanwhile: a file is known by its inode."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[tuple[int, int], int] = {}
        self._whose: set[tuple[int, int]] = set()
        self.unreadable: set[Path] = set()
        """What is no file, where one should be."""

    def new(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the lines that came since the last time, the oldest first."""
        self._whose = set()
        yield from heapq.merge(
            *(self._of_series(files) for files in audit.all_series(self._directory)), key=lambda pair: pair[1]["time"]
        )
        self._read = {inode: offset for inode, offset in self._read.items() if inode in self._whose}

    def _of_series(self, files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        with ExitStack() as stack:
            opened: dict[tuple[int, int], BinaryIO] = {}
            for path in reversed(files):  # what turns over meanwhile comes twice then, and none is missed
                if (file := self._open(path)) is not None:
                    opened.setdefault(_inode(os.fstat(file.fileno())), stack.enter_context(file))
            for file in reversed(list(opened.values())):
                yield from self._of_file(file)
                file.close()

    def _open(self, path: Path) -> BinaryIO | None:
        """Open a file of the trail; None where there is none, or what was put there is no file."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would hold us up
        except OSError as error:
            if error.errno in {errno.ENXIO, errno.ELOOP}:  # a socket; a link to itself
                self.unreadable.add(path)
            elif error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                raise
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            self.unreadable.add(path)
            return None
        return os.fdopen(descriptor, "rb")

    def _of_file(self, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
        status = os.fstat(file.fileno())
        inode = _inode(status)
        self._whose.add(inode)
        offset = self._read.get(inode, 0)
        file.seek(offset if offset <= status.st_size else 0)
        while line := _next_line(file):
            self._read[inode] = file.tell()
            entry = audit.parse_line(line)
            if entry is not None:
                yield printable(line.decode("ascii", "replace").rstrip("\n")), entry


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _next_line(file: BinaryIO) -> bytes:
    """Return the next line, cut where it is too long to be ours; b"" where none is whole yet."""
    line = rest = file.readline(_MAX_LINE)
    while len(rest) == _MAX_LINE and not rest.endswith(b"\n"):
        rest = file.readline(_MAX_LINE)
    return line if rest.endswith(b"\n") else b""


def concerns(entry: dict[str, Any], target: str) -> bool:
    """Tell whether a line is about OWNER/REPO, or about any of OWNER/*."""
    owner, _, name = target.lower().partition("/")
    for each in _subjects(entry):
        of, _, repository = each.lower().partition("/")
        if of == owner and (name in {"*", "", repository} or repository == "*"):
            return True
    return False


def _subjects(entry: dict[str, Any]) -> list[str]:
    """Return each OWNER/REPO or OWNER/* that a line names; a token's repositories are names on its own's owner."""
    subject = str(entry.get("repository") or "")
    scope = entry.get("scope")
    names = scope.get("repositories") if isinstance(scope, dict) else None
    listed = [str(each) for each in names] if isinstance(names, list) else []
    owner = subject.partition("/")[0]
    narrowed = subject.endswith("/*") and listed  # a token for several, not for all
    own = [] if narrowed or not subject else [subject]
    return [*own, *(each if "/" in each else f"{owner}/{each}" for each in listed)]


def readable(entry: dict[str, Any]) -> str:
    """Return a line for a person; nothing in it steers a terminal."""
    peer = entry.get("peer")
    who = peer if isinstance(peer, dict) else {}
    command = who.get("command") or Path(str(who.get("exe") or "?")).name
    place = f" in {who['cwd']}" if who.get("cwd") else ""
    program = f", {who['exe']}" if who.get("exe") else ""
    outcome = str(entry.get("outcome"))
    words = [
        _local(str(entry["time"])),
        f"{entry.get('action')!s:<10}",
        str(entry.get("repository") or ", ".join(_subjects(entry)) or "-"),
        _MEANING.get(outcome, outcome),
        f"by {command} (pid {who.get('pid')}{program}){place}",
    ]
    if entry.get("grant"):
        words.append(f"through grant {entry['grant']}")
    duration = entry.get("duration")
    if isinstance(duration, int | float) and 0.001 <= duration < _MAX_DURATION:  # noqa: PLR2004  # less is nothing
        words.append(f"{duration:.3f} s")
    return printable("  ".join(words))


def _local(text: str) -> str:
    """Return a line's time as this machine's clocks show it; as it stands, where it is none."""
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromisoformat(text).replace(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return text


def _meanings(base: type[errors.GhappError] = errors.GhappError) -> dict[str, str]:
    """Return what each code means, by the words of the errors' own module."""
    found: dict[str, str] = {}
    for cls in base.__subclasses__():
        if "code" in vars(cls) and cls.__module__ == errors.__name__:
            line = (cls.__doc__ or "").partition("\n")[0].rstrip(".")
            found[cls.code] = f"{line[:1].lower()}{line[1:]} ({cls.code})"
        found |= _meanings(cls)
    return found


_MEANING = _meanings()
