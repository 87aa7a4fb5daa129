"""What `ghapp doctor` looks at; each module one part of the way from git to GitHub, each check one line."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghapp import gitconfig
from ghapp.config import Config
from ghapp.errors import GhappError


OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"
NOT_REACHED = "GitHub was not reached"
Answer = dict[str, Any] | GhappError


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: str
    message: str
    hint: str = ""
    """What mends it: a command as `sh` takes it, or a page."""
    safe: bool = False
    """Whether `doctor --fix` may run the hint: it changes nothing but what is ghapp's own."""

    def as_json(self) -> dict[str, str]:
        """Return the check as ``doctor --json`` shows it."""
        return {"name": self.name, "status": self.status, "message": self.message, "hint": self.hint}


@dataclass(slots=True)
class Ground:
    """What the checks stand on, and what the earlier ones found out for the later."""

    env: Mapping[str, str]
    cwd: Path
    config: Config = field(default_factory=Config)
    repository: tuple[str, str] | None = None
    """Host and OWNER/REPO to try end to end."""
    status: Mapping[str, Any] | None = None
    """The daemon's, once it answers."""
    owners: list[tuple[str, str]] = field(default_factory=list)
    """Host and owner of every installation that can be used."""
    pages: dict[tuple[str, str], str] = field(default_factory=dict)
    """Where each installation is changed, by host and owner in lower case."""
    answers: dict[str, dict[str, Answer]] = field(default_factory=dict)
    """What GitHub said to each key, by app and key, until that is told."""
    unreached: dict[str, GhappError] = field(default_factory=dict)
    """Why a host could not be reached."""

    @property
    def is_cut_off(self) -> bool:
        """Whether no host of any app was reached."""
        return bool(self.unreached) and self.hosts <= self.unreached.keys()

    @property
    def hosts(self) -> set[str]:
        """The hosts that apps are configured for."""
        return {app.host for app in self.config.apps}


def here() -> Ground:
    """Return the ground of this process. Raises `GitConfigFailed` where its directory was deleted."""
    return Ground(dict(os.environ), gitconfig.here())


def quoted(text: object) -> str:
    """Return `text` as one word of a shell's command line."""
    return shlex.quote(str(text))
