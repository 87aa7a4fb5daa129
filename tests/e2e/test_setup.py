"""`ghapp setup` as a newcomer meets it: in a real terminal, with a real keyring, up to the first push."""

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.conftest import Machine
from session_bus import PASSWORD, Session, session
from test_app_create import Person


LIMIT = 30.0
COLUMNS = 100
_LEAD = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A program on a terminal of its own: what it shows, and what a person types."""

    def __init__(self, machine: Machine, *command: str, env: dict[str, str] | None = None) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LEAD, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=machine.work,
            env=machine.env | {"TERM": "xterm"} | (env or {}),
            start_new_session=True,
        )
        os.close(slave)
        self._bytes = b""
        self._seen = 0

    @property
    def text(self) -> str:
        """All that was shown, without what moves the cursor."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._bytes.decode())
        return plain.replace("\r\n", "\n")

    def expect(self, pattern: str) -> str:
        """Return what `pattern` matches, once it is shown after what was matched before."""
        end = time.monotonic() + LIMIT
        while not (found := re.compile(pattern).search(self.text, self._seen)):
            assert self._read(end), f"{pattern!r} was not shown; there is:\n{self.text}"
        self._seen = found.end()
        return found[0]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def done(self) -> int:
        """Return the exit code, once the program has ended."""
        end = time.monotonic() + LIMIT
        while self._read(end):
            pass
        os.close(self._master)
        return self._process.wait(LIMIT)

    def _read(self, end: float) -> bool:
        """Take in what is shown next; False when nothing more comes."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"nothing more was shown in time; there is:\n{self.text}"
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has it open any more
            return False
        self._bytes += chunk
        return bool(chunk)


@pytest.fixture
def desktop(machine: Machine, tmp_path: Path) -> Iterator[Session]:
    """A session with an unlocked keyring, and the machine in it."""
    with session(tmp_path / "desktop") as found:
        machine.env["DBUS_SESSION_BUS_ADDRESS"] = found.address
        found.start_keyring(PASSWORD)
        yield found


class Browser:
    """A browser that notes what it is to open."""

    def __init__(self, machine: Machine) -> None:
        self._told = machine.home.parent / "told"
        script = machine.home.parent / "browser"
        script.write_text(f'#!/bin/sh\necho "$1" >> {self._told}\n')
        script.chmod(0o700)
        machine.env["BROWSER"] = str(script)

    def opened(self, number: int) -> str:
        end = time.monotonic() + LIMIT
        pause = 0.01
        while len(urls := self._urls()) < number:
            assert time.monotonic() < end, "no browser was started"
            select.select([], [], [], pause)
        return urls[number - 1]

    def _urls(self) -> list[str]:
        return self._told.read_text().splitlines() if self._told.exists() else []


def as_a_newcomer(machine: Machine) -> None:
    """Nobody has told git who commits here."""
    for name in ("AUTHOR", "COMMITTER"):
        del machine.env[f"GIT_{name}_NAME"], machine.env[f"GIT_{name}_EMAIL"]


def test_a_newcomer_gets_to_the_first_push_by_the_prompts_alone(machine: Machine, desktop: Session) -> None:
    as_a_newcomer(machine)
    repository = machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    browser, person = Browser(machine), Person(machine.github)

    terminal = Terminal(machine, "ghapp", "setup")
    terminal.expect(r"\[create\]: ")
    terminal.type("\n")
    terminal.expect("organisation's name: ")
    terminal.type("acme\n")
    assert "created" in person.go(browser.opened(1)).text
    person.install(browser.opened(2))
    terminal.expect(r"\[owners\]: ")
    terminal.type("\n")
    terminal.expect(r"\[yes\]: ")
    terminal.type("\n")
    code = terminal.done()
    print(terminal.text)
    assert code == 0
