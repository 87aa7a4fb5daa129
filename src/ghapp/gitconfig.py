"""git's configuration: the file we own, and the one section of ours in a file of the user's.

git applies ``credential.*`` in file order, so ours must stand last. Every line that we put into a file of the
user's ends in `MARK`: what git or a person adds among them lacks it, and stays when ours go.

Texts and bytes are computed by pure functions (`render`, `append_block`, `remove_block`); only `apply` and
`write_owned` write. Stdlib and `git` only.
"""

import contextlib
import difflib
import enum
import errno
import fcntl
import os
import re
import shlex
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ghapp.autostart import is_throw_away
from ghapp.errors import GitConfigFailed


HELPER = "git-credential-ghapp"

MARK = b"# ghapp setup-git"
NEWLINE_ADDED = b"line break added"
FILE_CREATED = b"file created"

LOCK_PATIENCE = 1.0  # seconds; git holds its lock for milliseconds, and itself would not wait at all
LOCK_RETRY = 0.05

GIT_SECONDS = 10.0  # git answers in milliseconds; a home directory on a dead network drive never

OWNED_HEAD = """\
# Written by "ghapp setup-git" and rewritten whole: changes made here are lost.
"""

_HOST = r"[a-z0-9.-]+(:[0-9]+)?"
_NOTES = "ghapp"  # the section that is for us alone

Edit = Callable[[bytes | None], bytes | None]
"""What becomes of a file's bytes; `None` is a file that does not exist."""


class Scope(enum.Enum):
    """Whose git commands are configured, in git's words."""

    GLOBAL = "global"
    SYSTEM = "system"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Change:
    """One file as it is and as it will be: to be shown, then applied, or only shown."""

    path: Path
    before: bytes | None
    after: bytes | None
    edit: Edit | None = field(default=None, repr=False, compare=False)
    """For a file of the user's: run again under the lock, on what is there then. `None`: the file is ours."""
    new_mode: int | None = None
    """The mode of a file that does not exist yet; `None` leaves it to the umask, as git does."""

    @property
    def is_needed(self) -> bool:
        """Tell whether there is anything to do."""
        return self.before != self.after

    def diff(self) -> str:
        """Show the change as a unified diff; empty when nothing changes."""
        before, after = (os.fsdecode(side or b"").splitlines() for side in (self.before, self.after))
        old, new = ("/dev/null" if side is None else str(self.path) for side in (self.before, self.after))
        return "\n".join(difflib.unified_diff(before, after, old, new, lineterm=""))


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an app's commits are by, as GitHub links them to its bot."""

    host: str
    login: str
    """``SLUG[bot]``."""
    number: int
    """The bot user's id, which is not the app's."""

    @property
    def email(self) -> str:
        """The address that GitHub recognises."""
        return f"{self.number}+{self.login}@users.noreply.{self.host}"

    def path(self, owned: Path) -> Path:
        """Return the file for it, beside the one we own: git's conditions choose files, not sections."""
        return owned.with_name(f"{owned.name}-{self.host.replace(':', '-')}-{self.login.removesuffix('[bot]')}")

    def render(self) -> str:
        """Render its file."""
        _checked("bot", self.login, r"[A-Za-z0-9-]+\[bot\]")
        return f"{OWNED_HEAD}\n[user]\n\tname = {self.login}\n\temail = {self.email}\n"


@dataclass(frozen=True, slots=True)
class Written:
    """What an earlier run wrote, read back: what was chosen then stays until somebody says otherwise."""

    helper: str = ""
    """The script that git runs."""
    hosts: frozenset[str] = frozenset()
    """Those with one section for all owners."""
    owners: tuple[tuple[str, str], ...] = ()
    """Host and login, as GitHub spells it, of each owner with a section of any kind."""
    identities: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    """The identity's file by host and owner."""
    identity: bool = False
    """Also where no owner has one yet."""
    proactive: bool = False
    rewrite_ssh: bool = False
    left_out: frozenset[str] = frozenset()
    """Hosts that were registered, and that git was to ask others for."""

    @property
    def all_hosts(self) -> frozenset[str]:
        """Every host that git asks us for in some way."""
        return self.hosts | {host for host, _ in self.owners}


# What we write


def render(
    owners: Iterable[tuple[str, str]],
    helper: Path,
    *,
    all_owners_of: Iterable[str] = (),
    identities: Mapping[tuple[str, str], Path] | None = None,
    with_identity: bool = False,
    proactive: bool = False,
    rewrite_ssh: bool = False,
    left_out: Iterable[str] = (),
) -> str:
    """Render the file we own: a section for each (host, owner), one alone for a host in `all_owners_of`.

    `identities` (the files, by host and owner), `proactive` and `rewrite_ssh` are by owner even there: what git does
    with the repositories of others is not ours to change. `with_identity` (they are wanted, also where there is none)
    and `left_out` are notes for `read_back`; git passes by them. Equal arguments in any order give equal text. A
    helper that will be gone tomorrow is refused.
    """
    check_lasting(helper)
    hosts = {_checked("host", host.lower(), _HOST) for host in all_owners_of}
    answered = {f"https://{host}" for host in hosts}
    spelled: dict[tuple[str, str], Path | None] = {}
    for host, owner in owners:
        _checked("host", host.lower(), _HOST)
        _checked("owner", owner, r"[A-Za-z0-9_.-]+")
        # git compares paths case-sensitively; people type a login either way.
        for login in (owner, owner.lower()):
            spelled[host.lower(), login] = (identities or {}).get((host, owner))
            if host.lower() not in hosts:
                answered.add(f"https://{host.lower()}/{login}")
    command = _quoted(_escaped_for_sh(str(helper)))
    sections = [
        f'\n[credential "{url}"]\n'
        "\thelper =\n"  # resets: no other helper is asked, or gets our token to store
        f"\thelper = {command}\n"
        "\tuseHttpPath = true\n"
        "\tusername = x-access-token\n"
        for url in sorted(answered)
    ]
    for (host, login), file in sorted(spelled.items()):
        sections += _by_owner(host, login, file, proactive=proactive, rewrite_ssh=rewrite_ssh)
    notes = [f"\tleaveOut = {_checked('host', host, _HOST)}\n" for host in sorted(left_out)]
    if with_identity and not identities:  # where there is one, its section tells
        notes.append("\tidentity = true\n")
    if notes:
        sections.append("".join((f'\n[{_NOTES} "setup-git"]\n', *notes)))
    return OWNED_HEAD + "".join(sections)


def _by_owner(host: str, login: str, identity: Path | None, *, proactive: bool, rewrite_ssh: bool) -> Iterator[str]:
    over_ssh = (f"git@{host}:{login}/", f"ssh://git@{host}/{login}/")
    if proactive:
        yield f'\n[http "https://{host}/{login}"]\n\tproactiveAuth = basic\n'
    if rewrite_ssh:
        lines = "".join(f"\tinsteadOf = {prefix}\n" for prefix in over_ssh)
        yield f'\n[url "https://{host}/{login}/"]\n{lines}'
    if identity is not None:
        # The condition sees the URL as it is written; one that keeps its ssh pushes as the person, not the bot.
        for prefix in (f"https://{host}/{login}/", *(over_ssh if rewrite_ssh else ())):
            condition = f"hasconfig:remote.*.url:{prefix}**"
            yield f'\n[includeIf "{condition}"]\n\tpath = {_quoted(str(identity))}\n'


def read_back(text: str) -> Written:
    """Read what `render` wrote; what others added is passed by."""
    values: dict[str, set[str]] = {}
    spelled: dict[tuple[str, str], str] = {}
    hosts: set[str] = set()
    identities: dict[tuple[str, str], Path] = {}
    for section, name, key, value in _lines_of(text):
        if section == _NOTES:
            values.setdefault(key, set()).add(value)
            continue
        host, owner = _host_and_owner(name)
        if not host:
            continue
        if owner:
            # In either spelling; capitals, which come from GitHub, sort first.
            spelled[host, owner.lower()] = min(owner, spelled.get((host, owner.lower()), owner))
        elif section == "credential":
            hosts.add(host)
        if section == "includeIf":
            identities[host, owner.lower()] = Path(value)
        if value:
            values.setdefault(key, set()).add(value)
    helper = min(values.get("helper", {""}))
    return Written(
        helper=re.sub(r"\\(.)", r"\1", helper),
        hosts=frozenset(hosts),
        owners=tuple(sorted((host, owner) for (host, _), owner in spelled.items())),
        identities={(host, spelled[host, owner]): path for (host, owner), path in identities.items()},
        identity=bool(identities) or "identity" in values,
        proactive="proactiveAuth" in values,
        rewrite_ssh="insteadOf" in values,
        left_out=frozenset(values.get("leaveOut", ())),
    )


def _lines_of(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield section, its name, key and value of each line of a file that we wrote."""
    section = name = ""
    for line in text.splitlines():
        if header := re.fullmatch(r'\[([A-Za-z]+) "([^"]+)"\]', line):
            section, name = header[1], header[2]
        elif section and (pair := re.fullmatch(r"\t([A-Za-z]+) = ?(.*)", line)):
            value = pair[2]
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            yield section, name, pair[1], value


def _host_and_owner(name: str) -> tuple[str, str]:
    """Return whom a section of ours is for, by its name; no owner where it is for all of a host, "" for neither."""
    found = re.fullmatch(r"(?:hasconfig:remote\.\*\.url:)?https://([^/]+)(?:/([^/]+))?(?:/\**)?", name)
    return (found[1], found[2] or "") if found else ("", "")


def append_block(before: bytes | None, text: str) -> bytes:
    """Put `text` as our only block at the end of a file; the same bytes when it stands there already."""
    block = [
        os.fsencode(line) + b" " + MARK + b"\n"
        for line in text.split("\n")
        if line.strip() and not line.startswith("#")
    ]
    if before is not None and _is_last(before.splitlines(keepends=True), block):
        return before
    rest, found = _take_out(before or b"")
    notes = []
    if rest and not rest.endswith(b"\n"):
        notes.append(NEWLINE_ADDED)
        rest += b"\n"
    if before is None or FILE_CREATED in found:
        notes.append(FILE_CREATED)
    # A comment first: should the line above end in a backslash, git joins this one to it, and ignores it.
    about = b"# keep last; undo with: ghapp setup-git --undo"
    if notes:
        about += b" (" + b", ".join(notes) + b")"
    return rest + about + b" " + MARK + b"\n" + b"".join(block)


def remove_block(before: bytes | None) -> bytes | None:
    """Take out what `append_block` put in; `None` when that leaves nothing of a file that we created."""
    if before is None:
        return None
    rest, found = _take_out(before)
    return None if FILE_CREATED in found and not rest.strip() else rest


def include(owned: Path) -> str:
    """Render the section that includes the file we own."""
    return f"[include]\n\tpath = {_quoted(str(owned))}\n"


def _take_out(before: bytes) -> tuple[bytes, set[bytes]]:
    """Split a file into what is not ours and the notes on our markers."""
    kept: list[bytes] = []
    notes: set[bytes] = set()
    header: tuple[int, bytes] | None = None
    newline_is_ours = False
    for line in before.splitlines(keepends=True):
        start = line.lstrip()
        if _is_ours(line):
            if start.startswith(b"["):
                header = (len(kept), line)
            if start.startswith(b"#"):
                notes |= {note for note in (NEWLINE_ADDED, FILE_CREATED) if note in line}
                newline_is_ours = NEWLINE_ADDED in line and bool(kept)
            continue
        if start.startswith(b"["):
            header = None
        elif header and start and not start.startswith((b"#", b";")):
            # `git config --add include.path …` adds to the last such section, ours: its header has to stay.
            kept.insert(header[0], header[1].replace(b" " + MARK, b""))
            header = None
        kept.append(line)
        newline_is_ours = False
    if newline_is_ours:
        kept[-1] = kept[-1].removesuffix(b"\n")
    return b"".join(kept), notes


def _is_last(lines: list[bytes], block: list[bytes]) -> bool:
    """Tell whether our marker and exactly `block` come last in a file, and ours stand nowhere else."""
    ours = [number for number, line in enumerate(lines) if _is_ours(line)]
    if not ours:
        return False
    marker, last = ours[0], ours[-1]
    behind = (line.lstrip() for line in lines[last + 1 :])
    return lines[marker + 1 : last + 1] == block and all(not line or line.startswith((b"#", b";")) for line in behind)


def _is_ours(line: bytes) -> bool:
    return line.rstrip(b"\r\n").endswith(b" " + MARK)


def _escaped_for_sh(path: str) -> str:
    """Escape with backslashes: only what starts with a slash is a path to git, so nothing in quotes."""
    return re.sub(r"([^A-Za-z0-9_/.@%+=:,\x80-\U0010ffff-])", r"\\\1", path)


def _quoted(value: str) -> str:
    """Quote a value for git's syntax where it needs that."""
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise GitConfigFailed(f"the path {value!r} holds a control character", hint="use another directory")
    if not re.search(r'["\\#;]|^\s|\s$', value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _checked(what: str, value: str, pattern: str) -> str:
    """Refuse what would end the quoted name of a section, and whatever GitHub would not call that."""
    if not re.fullmatch(pattern, value):
        raise GitConfigFailed(f"{value!r} cannot be the name of a GitHub {what}")
    return value


# Which files


def here() -> Path:
    """Return the directory whose repository is configured, too. Raises `GitConfigFailed` where it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise GitConfigFailed("the directory that this shell is in was deleted", hint="cd") from None


def user_file(scope: Scope, env: Mapping[str, str], cwd: Path) -> Path:
    """Find the file that ``git config --SCOPE`` would write."""
    if scope is Scope.GLOBAL:
        files = _global_files(env, cwd)
        return next((file for file in files if os.access(file, os.F_OK)), files[0])
    if scope is Scope.SYSTEM:
        return cwd / _system_file(env, cwd)
    answer = _git("rev-parse", "--git-path", "config", env=env, cwd=cwd)
    if answer.returncode != 0:
        hint = "cd into a clone, or leave out --local"
        if b"safe.directory" in answer.stderr:
            hint = _first_line(answer.stderr)
        raise GitConfigFailed(f"no repository at {cwd}", hint=hint)
    return cwd / _first_line(answer.stdout)


def _global_files(env: Mapping[str, str], cwd: Path) -> list[Path]:
    """List the files that git reads as the user's: the one it would create first."""
    named = env.get("GIT_CONFIG_GLOBAL")
    if named is not None:
        if not named:
            raise GitConfigFailed("GIT_CONFIG_GLOBAL is empty: git reads no file", hint="unset GIT_CONFIG_GLOBAL")
        return [cwd / named]
    home = env.get("HOME")
    if not home:
        raise GitConfigFailed("HOME is not set", hint="name a file in GIT_CONFIG_GLOBAL")
    xdg = env.get("XDG_CONFIG_HOME") or Path(home) / ".config"
    return [Path(home) / ".gitconfig", Path(xdg) / "git" / "config"]


def _system_file(env: Mapping[str, str], cwd: Path) -> str:
    env = {name: value for name, value in env.items() if name != "GIT_CONFIG_NOSYSTEM"}
    named = env.get("GIT_CONFIG_SYSTEM")
    if named and git_version(env, cwd) >= (2, 32):  # the first that knows it
        return named  # also where there is nothing yet: the machine's own is not what was meant
    answer = _git("var", "GIT_CONFIG_SYSTEM", env=env, cwd=cwd)
    if answer.returncode != 0:
        # git before 2.40 tells where the file is only to an editor, but also when there is none yet.
        answer = _git("config", "--system", "--edit", env=env | {"GIT_EDITOR": "echo"}, cwd=cwd)
    return _first_line(answer.stdout) or "/etc/gitconfig"


def _git(*arguments: str, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(  # noqa: S603  # git, with arguments that stand in this file
            ["git", *arguments],  # noqa: S607  # the user's git, wherever it is
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise GitConfigFailed(f"git cannot be run: {exc}", hint="git --version") from exc


def _first_line(output: bytes) -> str:
    return os.fsdecode(output).partition("\n")[0]


# What to do


def setup(
    scope: Scope,
    text: str,
    owned: Path,
    *,
    env: Mapping[str, str],
    cwd: Path,
    identities: Iterable[Identity] = (),
    keep: Iterable[Path] = (),
) -> list[Change]:
    """Plan to put `text` (see `render`) to use, in the order to apply it; `keep` are identities' files as they are.

    The system's file gets it inline: an include that others cannot read breaks every git command of theirs. A
    repository's too: the file we own is the user's, and what is set up here must not change what is set up there.
    """
    path = user_file(scope, env, cwd)
    if scope is not Scope.GLOBAL:
        mode = 0o644 if scope is Scope.SYSTEM else None
        return [_edited(path, lambda before: append_block(before, text), new_mode=mode)]
    section = include(owned)
    wanted = {identity.path(owned): os.fsencode(identity.render()) for identity in identities}
    needed = {*wanted, *keep}
    return [
        *(Change(file, _read(file), data) for file, data in sorted(wanted.items())),
        Change(owned, _read(owned), os.fsencode(text)),
        _edited(path, lambda before: append_block(before, section)),
        *(Change(file, _read(file), None) for file in _beside(owned) if file not in needed),
    ]


def written(scope: Scope, owned: Path, *, env: Mapping[str, str], cwd: Path) -> Written:
    """Return what stands there from an earlier run."""
    if scope is Scope.GLOBAL:
        data = _read(owned)
        if data is None and _beside(owned):  # somebody deleted it, and what lies beside it tells of one choice
            return Written(identity=True)
        data = data or b""
        return read_back(os.fsdecode(data) if data.startswith(OWNED_HEAD.encode()) else "")
    lines = (_read(user_file(scope, env, cwd)) or b"").splitlines()
    ours = [line.rstrip(b"\r\n").removesuffix(b" " + MARK) for line in lines if _is_ours(line)]
    return read_back(os.fsdecode(b"\n".join(ours)))


@contextlib.contextmanager
def turn(directory: Path, *, wait: bool = True) -> Iterator[bool]:
    """Let those who read our files in `directory`, and write them anew, take turns; without `wait` tell if it is ours.

    The directory itself is locked, so no file of the lock's is left behind.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # nothing lies there yet, or whoever reads it says what is wrong
        yield True
        return
    try:
        is_ours = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            is_ours = False
        except OSError:  # a network file system without locks: one editor at a time is the rule
            pass
        yield is_ours
    finally:
        os.close(descriptor)


def follow(owned: Path, installed: Mapping[str, Iterable[tuple[str, str]]]) -> bool:
    """Bring the owners in the file we own up to date, and tell whether they were not; nothing else changes in it.

    `installed` are host and owner of every installation by app: of all apps, as whom it does not name is taken out.
    Where nothing stands yet nothing is written, nor for a host that was left out, or that came after ``--all``. The
    bot of a new owner is the one that the app has elsewhere; without one, the next ``setup-git`` asks for it. While a
    ``setup-git`` runs nothing is written, either: that knows what was chosen, and asks GitHub itself.
    """
    with turn(owned.parent, wait=False) as is_ours:
        return is_ours and _follow(owned, installed)


def _follow(owned: Path, installed: Mapping[str, Iterable[tuple[str, str]]]) -> bool:
    before = written(Scope.GLOBAL, owned, env={}, cwd=owned.parent)
    now = {
        (host, owner.lower()): (host, owner)
        for owners in installed.values()
        for host, owner in owners
        if host not in before.left_out and (host in before.hosts or not before.hosts)
    }
    known = {(host, owner.lower()) for host, owner in before.owners}
    if not before.helper or not now or now.keys() == known:
        return False
    files = {(host, owner.lower()): file for (host, owner), file in before.identities.items()}
    for owners in installed.values():
        keys = [(host, owner.lower()) for host, owner in owners]
        bot = next((files[key] for key in keys if key in files), None)
        files |= {key: bot for key in keys if bot is not None and key not in files}
    text = render(
        now.values(),
        Path(before.helper),
        all_owners_of=before.hosts,
        identities={owner: files[key] for key, owner in now.items() if key in files},
        with_identity=before.identity,
        proactive=before.proactive,
        rewrite_ssh=before.rewrite_ssh,
        left_out=before.left_out,
    )
    return write_owned(owned, text)


def undo(
    scope: Scope,
    owned: Path,
    *,
    env: Mapping[str, str],
    cwd: Path,
    keep_owned: bool = False,
) -> list[Change]:
    """Plan to take everything out again; `keep_owned` when another scope still includes the file."""
    # The user's file may have been the other one when we wrote: ~/.gitconfig wins as soon as it exists.
    paths = _global_files(env, cwd) if scope is Scope.GLOBAL else [user_file(scope, env, cwd)]
    # /dev/null holds nothing of ours, nor does a directory that we may not enter.
    files = filter(os.path.isfile, paths)
    changes = [_edited(path, remove_block) for path in files]
    if scope is Scope.GLOBAL and not keep_owned:
        changes += [Change(file, _read(file), None) for file in (owned, *_beside(owned))]
    return [change for change in changes if change.is_needed]


def _beside(owned: Path) -> list[Path]:
    """List the files that we wrote for identities; what a person put there is not ours."""
    head = OWNED_HEAD.encode()
    named = sorted(owned.parent.glob(f"{owned.name}-*"))
    return [file for file in named if file.is_file() and (_read(file) or b"").startswith(head)]


def git_version(env: Mapping[str, str], cwd: Path) -> tuple[int, int]:
    """Return git's major and minor version; what cannot be read counts as new."""
    numbers = re.match(rb"git version (\d+)\.(\d+)", _git("--version", env=env, cwd=cwd).stdout)
    return (int(numbers[1]), int(numbers[2])) if numbers else (99, 0)


def apply(change: Change, *, patience: float = LOCK_PATIENCE) -> bool:
    """Make the change and tell whether there was anything to do; a file is changed whole or not at all.

    A file of the user's is read again under git's lock; `patience` is for who holds that, in seconds.
    """
    if change.edit is None:
        if change.after is None:
            return _delete(change.path)
        return _write_owned(change.path, change.after)
    target = Path(os.path.realpath(change.path))  # the link stays and its target is replaced, as by git
    before = _read(target)
    if change.edit(before) == before:
        return False
    with _told_as("write", target):
        _refuse_unwritable(target)
        return _edit_under_lock(target, change.edit, new_mode=change.new_mode, patience=patience)


def write_owned(path: Path, text: str) -> bool:
    """Write a file of ours whole, and tell whether it was different."""
    return _write_owned(path, os.fsencode(text))


def _write_owned(path: Path, data: bytes) -> bool:
    path = Path(os.path.realpath(path))
    if _read(path) == data:
        return False
    with _told_as("write", path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                _write_through(file, data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    return True


def _edited(path: Path, edit: Edit, *, new_mode: int | None = None) -> Change:
    before = _read(path)
    return Change(path, before, edit(before), edit, new_mode)


def _edit_under_lock(target: Path, edit: Edit, *, new_mode: int | None, patience: float) -> bool:
    lock = target.with_name(target.name + ".lock")
    descriptor = _take_lock(lock, target, patience)
    held = True
    try:
        with os.fdopen(descriptor, "wb") as file:
            before = _read(target)
            after = edit(before)
            if after == before:
                return False
            if after is None:
                target.unlink()
            else:
                _take_after(target, file.fileno(), new_mode)
                _write_through(file, after)
                lock.replace(target)
                held = False
    finally:
        if held:
            lock.unlink(missing_ok=True)
    _sync_directory(target.parent)
    return True


def _take_lock(lock: Path, target: Path, patience: float) -> int:
    give_up = time.monotonic() + patience
    while True:
        try:
            return os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError as exc:
            if time.monotonic() >= give_up:
                message = f"another process is editing {target}"
                raise GitConfigFailed(message, hint=f"if no git is running: rm {_shown(lock)}") from exc
        time.sleep(LOCK_RETRY)


def _take_after(target: Path, descriptor: int, new_mode: int | None) -> None:
    """Give the new file the old one's owner and mode."""
    try:
        old = target.stat()
    except FileNotFoundError:
        if new_mode is not None:
            os.fchmod(descriptor, new_mode)
        return
    new = os.fstat(descriptor)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except PermissionError:
            if old.st_uid != new.st_uid:  # a group that we are not in is lost, as with git; an owner never
                raise
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _refuse_unwritable(target: Path) -> None:
    """Refuse what a rename would replace, but an editor could not write."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return
    if status.st_uid != os.geteuid() != 0:
        raise GitConfigFailed(f"{target} belongs to user {status.st_uid}", hint=f"ls -l {_shown(target)}")
    if not status.st_mode & 0o222:
        raise GitConfigFailed(
            f"{target} is read-only; what generates it, if anything does, has to add our lines",
            hint=f"chmod u+w {_shown(target)}",
        )


def _read(path: Path) -> bytes | None:
    with _told_as("read", path):
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise GitConfigFailed(f"{path} is not a regular file", hint=f"ls -ld {_shown(path)}")
        return path.read_bytes()


def _delete(path: Path) -> bool:
    with _told_as("delete", path):
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True


def _write_through(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told_as(verb: str, path: Path) -> Iterator[None]:
    """Translate what the system refuses into our error."""
    try:
        yield
    except OSError as exc:
        does = "mkdir -p" if exc.errno == errno.ENOENT else "ls -ld"
        hint = f"{does} {_shown(path.parent)}"
        raise GitConfigFailed(f"cannot {verb} {path}: {exc.strerror}", hint=hint) from exc


def _shown(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


# The helper


def check_lasting(helper: Path) -> None:
    """Refuse a helper that will be gone tomorrow, such as one that ``uvx`` runs. Raises `GitConfigFailed`."""
    if is_throw_away(str(helper)):
        raise GitConfigFailed(f"{helper} lies in a throw-away cache", hint="uv tool install ghapp")


def installed_helper(argv0: str | None = None, directories: Iterable[str] | None = None) -> Path:
    """Find the script that git is to run: beside the `ghapp` that runs now, else where scripts are installed.

    Links of pipx and uv are kept: they outlive an upgrade, what they point to may not.
    """
    running = Path(sys.argv[0] if argv0 is None else argv0)
    if directories is None:
        user = sysconfig.get_preferred_scheme("user")
        directories = (sysconfig.get_path("scripts"), sysconfig.get_path("scripts", user))
    candidates = [Path(directory) / HELPER for directory in directories]
    if running.name == "ghapp":
        candidates.insert(0, running.absolute().with_name(HELPER))
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    places = ", ".join(str(candidate.parent) for candidate in candidates)
    raise GitConfigFailed(f"no executable {HELPER} in {places}", hint="reinstall ghapp")
