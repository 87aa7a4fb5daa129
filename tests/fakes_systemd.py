"""systemctl as the edge to a user manager, which no test can run: it writes down what it was asked, and refuses what
systemd's own program does not know."""

import os
import stat
from pathlib import Path


VERBS = {"daemon-reload", "enable", "disable", "start", "stop", "reset-failed"}
SCRIPT = """#!/bin/sh
printf '%s\\n' "$*" >>"{log}"
[ "$1" = --user ] || exit 1
[ "$XDG_RUNTIME_DIR" = "{runtime}" ] || {{ echo "asked of $XDG_RUNTIME_DIR" >&2; exit 1; }}
units="${{XDG_CONFIG_HOME:-$HOME/.config}}/systemd/user"
wants="$units/sockets.target.wants"
case $2 in
enable) mkdir -p "$wants"; for unit; do case $unit in *.socket) ln -sf "../$unit" "$wants/$unit";; esac; done;;
disable) for unit; do rm -f "$wants/$unit"; done; rmdir "$wants" 2>/dev/null;;
esac
{then}
"""


class Systemctl:
    """A user manager in `runtime`, and a systemctl in `binaries` that keeps what it is asked."""

    def __init__(self, runtime: Path, binaries: Path) -> None:
        self.runtime = runtime
        self.binaries = binaries
        self.log = binaries / "systemctl.log"
        (runtime / "systemd").mkdir(mode=0o700)
        (runtime / "systemd" / "private").touch()
        self.then("exit 0")

    def then(self, program: str) -> None:
        """Let it end with `program`, in sh; $2 is the verb."""
        path = self.binaries / "systemctl"
        path.write_text(SCRIPT.format(log=self.log, runtime=self.runtime, then=program))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def fail(self, verb: str, message: str = "Failed.") -> None:
        self.then(f'[ "$2" = {verb} ] && {{ echo "{message}" >&2; exit 1; }}; exit 0')

    @property
    def path(self) -> str:
        return f"{self.binaries}:{os.environ['PATH']}"

    @property
    def asked(self) -> list[str]:
        """What it was asked, behind ``--user``."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        assert all(line.startswith("--user ") and line.split()[1] in VERBS for line in lines), lines
        return [line.removeprefix("--user ") for line in lines]
