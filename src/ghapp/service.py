"""systemd's user units: written, enabled, taken out again.

The texts are those of ``install/systemd``; only the program's path is filled in. systemd is asked by its own
``systemctl``, which works wherever a user manager runs.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ghapp import autostart, config, paths
from ghapp.errors import DaemonFailed


SERVICE = "ghapp.service"
SOCKETS = ("ghapp.socket", "ghapp-control.socket")
UNITS = (*SOCKETS, SERVICE)
MARK = '# Written by "ghapp daemon install", which also overwrites it; "ghapp daemon uninstall" removes it.\n'
SYSTEMCTL_SECONDS = 30.0  # stopping may take the service's 10
INSTEAD = "nothing is lost: git starts the daemon by itself when it needs it"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Manager:
    """The user's systemd: where it reads units, and where it keeps its own sockets."""

    unit_dir: Path
    runtime_dir: Path

    def __call__(self, *arguments: str) -> None:
        """Run ``systemctl --user``. Raises `DaemonFailed` in systemd's words."""
        command = ["systemctl", "--user", *arguments]
        environment = os.environ | {"XDG_RUNTIME_DIR": str(self.runtime_dir)}
        try:
            done = subprocess.run(  # noqa: S603  # a fixed program, with names that stand in this file
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=environment,
                timeout=SYSTEMCTL_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise no_manager("there is no systemctl on PATH") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DaemonFailed(f"systemctl cannot be run: {error}", hint="systemctl --user status") from None
        if done.returncode != 0:
            why = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise DaemonFailed(f"{' '.join(command)}: {why}", hint=f"journalctl --user --unit {SERVICE}")


def unit_dir() -> Path:
    """Return where a user's own units are."""
    return Path(autostart.unit_file()).parent


def manager() -> Manager:
    """Return the user manager. Raises `DaemonFailed` where none runs, or where git asks elsewhere than it listens."""
    if sys.platform != "linux":
        raise no_manager("there is no systemd on this system")
    wanted = Path(paths.runtime_dir())
    base = wanted.parent
    if os.environ.get("GHAPP_RUNTIME_DIR") and wanted != Path(os.environ.get("XDG_RUNTIME_DIR") or "/", "ghapp"):
        raise DaemonFailed(
            f"GHAPP_RUNTIME_DIR puts the sockets into {wanted}, and a user unit has them in its runtime directory",
            hint="unset GHAPP_RUNTIME_DIR",
        )
    if not (base / "systemd").is_dir():
        raise no_manager(f"no systemd user manager runs for you ({base}/systemd is missing)")
    return Manager(unit_dir(), base)


def no_manager(why: str) -> DaemonFailed:
    """Say that there is nobody to give units to, and that it does not matter."""
    return DaemonFailed(why, hint=INSTEAD)


def installed() -> list[Path]:
    """Return the unit files of ours that there are."""
    return [path for path in (unit_dir() / name for name in UNITS) if _is_ours(path)]


def render(name: str, command: Sequence[str]) -> str:
    """Return the unit `name` with `command` as what it runs."""
    text = _template(name).read_text(encoding="utf-8")
    line = "ExecStart=" + " ".join(_quoted(word) for word in command)
    # The comment above the line is about the path that was there.
    return MARK + re.sub(r"(?:^#[^\n]*\n)?^ExecStart=.*$", lambda _: line, text, flags=re.MULTILINE)


def command() -> list[str]:
    """Return what the unit runs: this Python, so that an upgrade in place needs no new unit. Raises `DaemonFailed`."""
    if autostart.is_throw_away(sys.prefix):
        raise DaemonFailed(f"{sys.prefix} lies in a throw-away cache", hint="uv tool install ghapp")
    return [*autostart.interpreter(), "-m", "ghapp.daemon"]


def install(systemctl: Manager, *, now: bool, before_start: Callable[[], object], say: Say) -> None:
    """Write the units and enable them; `before_start` ends a daemon that an older unit, or git, started."""
    run = command()
    wanted = {systemctl.unit_dir / name: render(name, run) for name in UNITS}
    for path in wanted:
        if os.path.lexists(path) and not _is_ours(path):
            raise DaemonFailed(f"{path} is not ours", hint=f"move it away: mv {path} {path}.mine")
    changed = [path for path, text in wanted.items() if _read(path) != text]
    for path in changed:
        config.write_atomically(path, wanted[path].encode(), mode=0o644)
        say(f"wrote {path}")
    systemctl("daemon-reload")  # always: killed before it the last time, systemd has not seen what is written
    if now:
        if changed:
            before_start()
        systemctl("enable", "--now", *SOCKETS)
    else:
        systemctl("enable", *SOCKETS)


def uninstall(systemctl: Manager | None, *, say: Say) -> bool:
    """Disable and remove the units, and tell whether there were any; without a manager only the files are there."""
    directory = unit_dir()
    ours = installed()
    links = [
        link
        for name in UNITS
        for link in (wants / name for wants in directory.glob("*.wants"))
        if link.is_symlink() and (directory / name in ours or not link.exists())
    ]
    if not ours and not links:
        return False
    if systemctl is not None and ours:
        names = [path.name for path in ours]
        systemctl("disable", "--now", *names)
    for path in (*links, *ours):
        path.unlink(missing_ok=True)  # systemctl has removed the links
        if path in ours:
            say(f"removed {path}")
    for link in links:
        with contextlib.suppress(OSError):  # others want something too
            link.parent.rmdir()
    if systemctl is not None:
        systemctl("daemon-reload")
        with contextlib.suppress(DaemonFailed):  # it is not loaded any more, which is what we want
            systemctl("reset-failed", *UNITS)
    return True


def _template(name: str) -> Path:
    package = Path(__file__).resolve().parent
    places = (package / "units" / name, package.parents[1] / "install" / "systemd" / name)
    found = next((place for place in places if place.is_file()), None)  # the second in a checkout
    if found is None:
        raise DaemonFailed(f"ghapp is not whole: {places[0]} is missing", hint="uv tool install --force ghapp")
    return found


def _quoted(word: str) -> str:
    """Quote a word for ``ExecStart=``; systemd reads % as a specifier, also within quotes."""
    if re.search(r"""[\x00-\x1f\x7f$"'\\]""", word):  # systemd takes none of them in a program's path, however escaped
        raise DaemonFailed(f"systemd cannot run {word!r}: a quote, $, backslash or line break", hint=INSTEAD)
    word = word.replace("%", "%%")
    return word if re.fullmatch(r"[A-Za-z0-9_./%@+=:,-]+", word) else f'"{word}"'


def _is_ours(path: Path) -> bool:
    text = _read(path)
    return text is not None and text.startswith(MARK)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
