"""What git would do for a URL: which helpers it asks, in which order, and what keeps it from asking.

git reads ``credential.*`` in file order and takes every section whose URL matches, however specific (credential.c,
gitcredentials(7)); an empty helper drops those collected so far. `git config --get-urlmatch` answers differently.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from ghapp.errors import GitConfigFailed


GIT_SECONDS = 10.0
_DEFAULT_PORTS = {"https": 443, "http": 80}
_OF_A_REPOSITORY = {".git/config", ".git/config.worktree"}  # as git tells them, from the top on


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of git's configuration, as `git config --list` tells it."""

    scope: str
    """``system``, ``global``, ``local``, ``worktree`` or ``command``."""
    origin: str
    section: str
    subsection: str
    name: str
    value: str

    @property
    def key(self) -> str:
        """The key as `git config` takes it."""
        return ".".join(part for part in (self.section, self.subsection, self.name) if part)

    @property
    def file(self) -> str:
        """The file it stands in, "" for the command line and the environment."""
        return self.origin.removeprefix("file:") if self.origin.startswith("file:") else ""


@dataclass(frozen=True, slots=True)
class Helper:
    """One helper that git would ask."""

    command: str
    entry: Entry

    @property
    def is_ours(self) -> bool:
        """Whether this is ghapp, by whatever way it is configured."""
        return bool(re.search(r"(?:^|[\s/!'\"])(?:git-credential-ghapp|ghapp/git\.sock)\b|^ghapp\b", self.command))

    @property
    def name(self) -> str:
        """What a person calls it, such as ``gh``, ``store`` or ``osxkeychain``."""
        if re.search(r"\bgh(?:\.exe)?['\"]? auth git-credential", self.command):
            return "gh"
        word = self.program or (self.command.lstrip("!").split() or [self.command])[0]
        return Path(word.strip("'\"")).name.removeprefix("git-credential-").removesuffix(".exe")

    @property
    def program(self) -> str:
        """The absolute path it names, unescaped, or ""."""
        if not self.command.startswith("/"):
            return ""
        match = re.match(r"(?:[^\\\s]|\\.)+", self.command)
        return re.sub(r"\\(.)", r"\1", match[0]) if match else ""


class GitConfig:
    """git's whole configuration in one directory."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)

    def helpers(self, url: str) -> list[Helper]:
        """Return the helpers that git asks for `url`, in its order."""
        found: list[Helper] = []
        for entry in self.helper_entries(url):
            found = [*found, Helper(entry.value, entry)] if entry.value else []
        return found

    def helper_entries(self, url: str) -> list[Entry]:
        """Return what is said of helpers for `url`, the resets included."""
        return list(self._for_url("credential", "helper", url))

    def sections_below(self, url: str) -> list[str]:
        """Return the URLs of sections that name helpers for something below `url`, such as one repository."""
        named = {entry.subsection for entry in self.entries if (entry.section, entry.name) == ("credential", "helper")}
        return sorted(name for name in named if name.startswith(url) and name != url)

    def last(self, section: str, name: str, url: str) -> Entry | None:
        """Return the entry that wins for `url` where git takes the last one, as in ``credential.*``."""
        return next(reversed([*self._for_url(section, name, url)]), None)

    def headers(self, url: str) -> list[Entry]:
        """Return the ``http.extraHeader`` entries for `url` that carry a credential of their own."""
        found: list[Entry] = []
        for entry in self._for_url("http", "extraheader", url):
            found = [*found, entry] if entry.value else []
        return [entry for entry in found if entry.value.lower().startswith("authorization:")]

    def rewritten(self, url: str, *, push: bool = False) -> tuple[str, Entry | None]:
        """Return what ``url.*.insteadOf``, or pushInsteadOf, makes of `url`, by the longest match, and which entry."""
        name = "pushinsteadof" if push else "insteadof"
        matching = [
            entry
            for entry in self.entries
            if (entry.section, entry.name) == ("url", name) and url.startswith(entry.value) and entry.value
        ]
        if not matching:
            return url, None
        entry = max(matching, key=lambda found: len(found.value))
        return entry.subsection + url[len(entry.value) :], entry

    def _for_url(self, section: str, name: str, url: str) -> Iterator[Entry]:
        for entry in self.entries:
            same = (entry.section, entry.name) == (section, name)
            if same and (not entry.subsection or matches(entry.subsection, url)):
                yield entry


def read(env: Mapping[str, str], cwd: Path) -> GitConfig:
    """Read git's configuration as git itself would, in `cwd`; raises `GitConfigFailed` with git's own words."""
    command = ("git", "config", "--list", "--includes", "--show-scope", "--show-origin", "-z")
    try:
        done = subprocess.run(  # noqa: S603  # git, with arguments that stand here
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitConfigFailed(f"git cannot be run: {error}", hint="git --version") from None
    if done.returncode != 0:
        message = os.fsdecode(done.stderr).strip().partition("\n")[0]
        # git names the line and the file; no command of its own opens a file that it cannot read.
        broken = re.search(r" line \d+ in file (.+)", message)
        raise GitConfigFailed(
            message, hint=f"${{EDITOR:-vi}} {shlex.quote(broken[1])}" if broken else "git config --list"
        )
    return GitConfig([_located(entry, cwd) for entry in parse(os.fsdecode(done.stdout))])


def _located(entry: Entry, cwd: Path) -> Entry:
    """Return `entry` with the whole path of a file that a repository's own includes: git tells it from the top on."""
    if not entry.file or Path(entry.file).is_absolute() or entry.file in _OF_A_REPOSITORY:
        return entry
    above = (directory / entry.file for directory in (cwd, *cwd.parents))
    return next((replace(entry, origin=f"file:{path}") for path in above if path.is_file()), entry)


def parse(text: str) -> list[Entry]:
    """Read what ``git config --list --show-scope --show-origin -z`` prints."""
    fields = text.split("\0")[:-1]
    entries = []
    for scope, origin, line in zip(fields[0::3], fields[1::3], fields[2::3], strict=True):
        key, _, value = line.partition("\n")
        section, _, rest = key.partition(".")
        subsection, _, name = rest.rpartition(".")
        entries.append(Entry(scope, origin, section.lower(), subsection, name.lower(), value))
    return entries


def matches(pattern: str, url: str) -> bool:
    """Tell whether a section named `pattern` is for `url`: equal scheme, host and port, a prefix of whole segments.

    A pattern may leave out the scheme, or the host (credential.c's partial URLs).
    """
    if "://" not in pattern:
        pattern = f"{urlsplit(url).scheme}://{pattern}"
    wanted, given = urlsplit(pattern), urlsplit(url)
    try:
        ports = [part.port or _DEFAULT_PORTS.get(part.scheme.lower()) for part in (wanted, given)]
    except ValueError:
        return False
    if wanted.scheme.lower() != given.scheme.lower():
        return False
    if wanted.netloc and not (_same_host(wanted.hostname or "", given.hostname or "") and ports[0] == ports[1]):
        return False
    if wanted.username is not None and wanted.username != given.username:
        return False
    path = wanted.path.rstrip("/")
    return given.path == path or given.path.startswith(path + "/")


def _same_host(pattern: str, host: str) -> bool:
    ours, theirs = pattern.split("."), host.split(".")
    return len(ours) == len(theirs) and all(one in {"*", other} for one, other in zip(ours, theirs, strict=True))
