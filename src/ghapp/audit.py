"""The audit trail: who got which token when, one JSON line each, in ``audit.jsonl`` of the state directory.

Lines are made on the loop, in order, and written by a thread of our own: a disk that is full or does not answer
stops nobody. A token is named by its SHA-256, as in GitHub's audit log, and nothing else of it is written.
"""

import contextlib
import errno
import json
import logging
import os
import queue
import re
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ghapp.caller import Caller, Callers
from ghapp.grant import Grant, name_of
from ghapp.installation import ALL, Scope
from ghapp.lease import Lease, token_sha256
from ghapp.listener import Peer
from ghapp.logs import redacted
from ghapp.protocols import Clock


NAME = "audit"
MAX_FILE = 8 * 1024 * 1024  # bytes: some 10,000 lines
MAX_GRANT_FILE = 1024 * 1024  # bytes: a sandbox writes as much as it likes, and only over its own lines
KEPT = 3  # older files beside the one that is written
GRANTS_KEPT = 1000  # grants whose files are kept; each `ghapp exec` whose command runs git has one
MAX_GRANTS_SIZE = 256 * 1024 * 1024  # bytes of them all: 64 sandboxes that write as much as they can
MAX_WAITING = 10_000  # lines not yet written, a few megabytes; a disk that hangs must not fill the memory
SHARE_OF_GRANTS = 1 / 2  # of those that wait: a sandbox that floods a slow disk leaves room for the others' lines
FLUSH_LIMIT = 2.0  # seconds for the last lines when we end
MAX_TEXT = 4096  # characters of a path; the kernel's own limit
_GRANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GRANT_FILE = re.compile(rf"({NAME}-grant-.+\.jsonl)(?:\.[1-{KEPT}])?")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Call:
    """What is going on for whom; looked up once, when somebody is to be named."""

    peer: Peer
    of_git: bool
    grant: str | None
    caller: Caller | None = None


_call: ContextVar[_Call | None] = ContextVar("call", default=None)


class Audit:
    """The broker's `Recorder`, for everything that this process does."""

    def __init__(self, directory: Path, clock: Clock, *, write: Callable[[int, bytes], int] = os.write) -> None:
        self._clock = clock
        self._callers = Callers()
        self._writer = Writer(directory, write=write)

    @contextlib.contextmanager
    def called_by(self, peer: Peer | None, *, of_git: bool = False, grant: str | None = None) -> Iterator[None]:
        """Name `peer` in all that is recorded in this block, and in what is begun there; without one, ourselves."""
        token = _call.set(None if peer is None else _Call(peer, of_git, grant))
        try:
            yield
        finally:
            _call.reset(token)

    def look(self) -> None:
        """Look at the caller now: while it waits for us, it is there."""
        call = _call.get()
        if call is not None and call.caller is None:
            pid, uid = call.peer.pid, call.peer.uid
            call.caller = self._callers.look(pid, uid, of_git=call.of_git, in_sandbox=call.grant is not None)

    def record(
        self,
        action: str,
        outcome: str,
        *,
        repository: str = "",
        scope: Scope | None = None,
        lease: Lease | None = None,
        grant: Grant | None = None,
        seconds: float | None = None,
    ) -> None:
        """Note that something was done, and for whom; `outcome` is ``ok`` or an error's code."""
        call = _call.get()
        self.look()
        scope = lease.scope if lease is not None else scope
        through = call.grant if call is not None else None
        # What a timer of ours does for a grant's token is that grant's too: a sandbox decides how many there are.
        home = through if call is not None or scope is None else name_of(scope.grant) or None
        named = grant.name if grant is not None else name_of(scope.grant) if scope is not None else ""
        entry: dict[str, object] = {
            "time": timestamp(self._clock.wall()),
            "action": action,
            "repository": (repository or _repository_of(lease, grant)) or None,
            "outcome": outcome,
            "app": lease.app if lease is not None else None,
            "scope": _describe(scope, lease, grant),
            "lease": lease.id if lease is not None else None,
            "token_sha256": token_sha256(lease.token) if lease is not None else None,
            "duration": None if seconds is None else round(max(0.0, seconds), 6),
            "grant": through or named or None,
            "peer": self._peer(call, always_chain=action in {"mint", "renewal", "refusal", "grant"}),
        }
        self._writer.put(format_line(entry), home)

    def _peer(self, call: _Call | None, *, always_chain: bool) -> dict[str, object]:
        if call is None or call.caller is None:  # nobody: a timer of ours
            return {"pid": os.getpid(), "uid": os.geteuid(), "exe": None, "cwd": None, "command": "ghapp daemon"}
        caller = call.caller
        peer: dict[str, object] = {
            "pid": caller.pid,
            "uid": caller.uid,
            "exe": _text(caller.exe),
            "cwd": _text(caller.cwd),
        }
        if caller.command is not None:
            peer["command"] = caller.command
        if (self._callers.is_first(caller) or always_chain) and caller.chain:
            peer["chain"] = [{"pid": pid, "exe": _text(exe)} for pid, exe in caller.chain]
        return peer

    def close(self) -> None:
        """Write what waits, for as long as that may take."""
        self._writer.close()


def timestamp(seconds: float) -> str:
    """Return Unix time in RFC 3339's form, UTC with milliseconds: such texts sort as the times do."""
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def format_line(entry: dict[str, object]) -> bytes:
    """Return one line: printable ASCII, whatever the values hold."""
    return json.dumps(entry, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _text(value: str | None) -> str | None:
    """Return what others named, without what looks like a secret."""
    return None if value is None else redacted(value[:MAX_TEXT])


def _describe(scope: Scope | None, lease: Lease | None, grant: Grant | None) -> dict[str, object] | None:
    if grant is not None:
        named = [str(repository) for repository in grant.repositories]
        return {"repositories": named, "permissions": dict(grant.permissions), "uids": list(grant.uids)}
    if scope is None:
        return None
    names: object = "all"
    if scope.repositories is not ALL:
        names = list(lease.repositories or ()) if lease is not None else list(scope.repositories)
    return {
        "installation": scope.installation,
        "repositories": names,
        "permissions": dict(lease.permissions if lease is not None else scope.permissions),
    }


def _repository_of(lease: Lease | None, grant: Grant | None) -> str:
    """Return what a line is about, where that is one thing."""
    if grant is not None:
        return str(grant.repositories[0]) if len(grant.repositories) == 1 else ""
    if lease is None:
        return ""
    names = lease.repositories or ()
    return f"{lease.owner}/{names[0] if len(names) == 1 else '*'}"


# -- files ---------------------------------------------------------------------------------------------------------


class Writer:
    """Writes lines to the end of files that turn over; from a thread of its own, begun with the first line."""

    def __init__(self, directory: Path, *, write: Callable[[int, bytes], int] = os.write) -> None:
        self._directory = directory
        self._write = write
        self._queue: queue.SimpleQueue[tuple[bytes, str | None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lost: Counter[str | None] = Counter()
        """How many lines of which file; a gap is told where it is, so that a sandbox fills no other file with gaps."""
        self._complained = False

    def put(self, line: bytes, grant: str | None = None) -> None:
        """Let `line` be written after those before it; blocks nobody."""
        if self._queue.qsize() >= MAX_WAITING * (1 if grant is None else SHARE_OF_GRANTS):
            self._lost[grant] += 1
            return
        self._queue.put((line, grant))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what waits, for as long as that may take."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(FLUSH_LIMIT)
            self._thread = None

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            line, grant = item
            try:
                if lost := self._lost[grant]:
                    self._append(self._gap(lost, grant), grant)
                    self._lost[grant] -= lost
                self._append(line, grant)
                self._complained = False
            except (OSError, ValueError) as error:
                self._lost[grant] += 1
                self._complain(error)

    @staticmethod
    def _gap(lost: int, grant: str | None) -> bytes:
        now = timestamp(datetime.now(tz=UTC).timestamp())
        return format_line(
            {
                "time": now,
                "action": "gap",
                "repository": None,
                "outcome": f"{lost} lines were lost",
                "token_sha256": None,
                "grant": grant,
                "peer": {"pid": os.getpid(), "uid": os.geteuid(), "exe": None, "cwd": None, "command": "ghapp daemon"},
            }
        )

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.error("the audit trail cannot be written: %s", getattr(error, "strerror", None) or "no place for it")

    def _append(self, line: bytes, grant: str | None) -> None:
        """Add one line whole, or nothing. Raises OSError."""
        path = file_of(self._directory, grant)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        limit = MAX_FILE if grant is None else MAX_GRANT_FILE
        descriptor = self._open(path)
        try:
            size = os.fstat(descriptor).st_size
            if size and size + len(line) >= limit:
                turn_over(path)
                full, descriptor = descriptor, self._open(path)
                os.close(full)
                size = 0
            if grant is not None and size == 0:
                _drop_oldest_grants(self._directory, path)
            data = line + b"\n"
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # whoever wrote it was killed
                data = b"\n" + data
            written = self._write(descriptor, data)
            if written != len(data):
                os.ftruncate(descriptor, size)
                raise OSError(0, "a line did not fit")
        finally:
            os.close(descriptor)

    @staticmethod
    def _open(path: Path) -> int:
        """Open for adding. Raises OSError, also for what is no file: a pipe that nobody reads would hold us up."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file")


def file_of(directory: Path, grant: str | None) -> Path:
    """Return the file that lines are added to; of each grant another. Raises `ValueError` for a name of no grant."""
    if grant is None:
        return directory / f"{NAME}.jsonl"
    if not _GRANT_NAME.fullmatch(grant):
        raise ValueError("not a grant's name")
    return directory / f"{NAME}-grant-{grant}.jsonl"


def turn_over(path: Path) -> None:
    """Make room: ``audit.jsonl`` becomes ``audit.jsonl.1``, that ``.2``, and the oldest goes."""
    for number in range(KEPT, 0, -1):
        older = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        with contextlib.suppress(FileNotFoundError):
            older.replace(path.with_name(f"{path.name}.{number}"))


def _drop_oldest_grants(directory: Path, begun: Path) -> None:
    """Keep the files of so many grants, and of so many bytes: those that were written last, and the one begun now."""
    found: dict[Path, tuple[float, int]] = {}  # when it was written, and how much there is
    for path in _files_of_grants(directory):
        whole = [status for each in series(path) if (status := _status(each)) is not None]
        found[path] = (max((each.st_mtime for each in whole), default=0.0), sum(each.st_size for each in whole))
    size = 0
    newest_first = sorted(found, key=lambda path: (path != begun, -found[path][0]))
    for number, path in enumerate(newest_first):
        size += found[path][1]
        if number >= GRANTS_KEPT or size > MAX_GRANTS_SIZE:
            for each in series(path):
                with contextlib.suppress(OSError):  # not there, or no file
                    each.unlink()


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def series(path: Path) -> list[Path]:
    """Return a file and its predecessors, the oldest first, whether they exist or not."""
    return [*(path.with_name(f"{path.name}.{number}") for number in range(KEPT, 0, -1)), path]


def all_series(directory: Path) -> list[list[Path]]:
    """Return the files of the trail, and of each grant's."""
    return [series(path) for path in (file_of(directory, None), *_files_of_grants(directory))]


def _files_of_grants(directory: Path) -> list[Path]:
    """Return the file of each grant, also where only its predecessors are there: whoever turned it over was killed."""
    found = directory.glob(f"{NAME}-grant-*.jsonl*")
    return sorted({path.with_name(match[1]) for path in found if (match := _GRANT_FILE.fullmatch(path.name))})


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return a line's object; None for one that was cut off or is not ours."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("time"), str):
        return None
    return entry
