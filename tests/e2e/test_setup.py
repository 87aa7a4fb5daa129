"""`ghapp setup` as a newcomer meets it: in a real terminal, with a real keyring, up to the first push."""

import fcntl
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import ROOT
from e2e.conftest import BIN, PERMISSIONS, Machine
from session_bus import PASSWORD, Session, session
from test_app_create import Person


LIMIT = 30.0
COLUMNS = 100
_LEAD = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


def shown(stream: str) -> str:
    """Return what a terminal shows after `stream`, as far as our progress moves the cursor; nothing is folded."""
    rows, row, column = [""], 0, 0
    for number, order, control, text in re.findall(r"\x1b\[([\d;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)", stream):
        if control == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif control == "\r":
            column = 0
        elif order == "A":
            row -= int(number or 1)
        elif order == "K":
            rows[row] = "" if number == "2" else rows[row][:column]
        elif text:
            rows[row] = rows[row][:column].ljust(column) + text + rows[row][column + len(text) :]
            column += len(text)
    return "\n".join(rows)


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

    @property
    def text(self) -> str:
        """All that is shown, as it stands there in the end."""
        return shown(self._bytes.decode(errors="ignore"))

    def expect(self, pattern: str) -> str:
        """Return what `pattern` matches, once it is shown after what was matched before."""
        end = time.monotonic() + LIMIT
        while not (found := re.compile(pattern).search(self.text)):
            assert self._read(end), f"{pattern!r} was not shown; there is:\n{self.text}"
        return found[0]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Press ctrl-c, once the program waits: a signal just before Python reads would wait for the next key."""
        end = time.monotonic() + LIMIT
        stat = Path(f"/proc/{self._process.pid}/stat")
        while stat.exists() and stat.read_text().rpartition(") ")[2][0] != "S":
            assert time.monotonic() < end, "it does not wait"
            select.select([], [], [], 0.01)
        self.type("\x03")

    def hang_up(self) -> int:
        """Close the terminal, as a lost connection does; return the exit code, once the program has ended."""
        os.close(self._master)
        try:
            return self._process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

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


@pytest.fixture(autouse=True)
def _newcomer(machine: Machine) -> None:
    """Nobody has told git who commits here, and no other program of a developer is in the way."""
    for name in ("AUTHOR", "COMMITTER"):
        del machine.env[f"GIT_{name}_NAME"], machine.env[f"GIT_{name}_EMAIL"]
    machine.env["PATH"] = os.pathsep.join([str(BIN), "/usr/bin", "/bin"])


def reach_github_without_variables(machine: Machine) -> None:
    """Let proxy and CA be configured, as where there is none of both setup has nothing to say about them."""
    network = (machine.github.proxy_url, machine.github.ca_file)
    for name in machine.github.environment:
        del machine.env[name]
    directory = machine.home / ".config/ghapp"
    directory.mkdir(parents=True)
    path = directory / "config.toml"
    path.touch(mode=0o600)
    path.write_text('[network]\nproxy = "{}"\nca_file = "{}"\n'.format(*network))
    (machine.home / ".gitconfig").write_text(f"[http]\n\tproxy = {network[0]}\n")


def plain(text: str, home: Path) -> list[str]:
    """Return the lines of a transcript without what is another each time."""
    text = text.replace(str(home), "/home/you")
    for pattern, instead in (
        (r"http://127\.0\.0\.1:\d+/[\w-]+", "http://127.0.0.1:PORT/PATH"),
        (r"acme-ghapp-[0-9a-f]{4}", "acme-ghapp-ID"),
        (r"SHA256:[\w+/]{43}=", "SHA256:FINGERPRINT"),
        (r"<\d+\+", "<NUMBER+"),
        (r"git \d[\w. ()-]*", "git VERSION"),
        (r"pid \d+", "pid PID"),
    ):
        text = re.sub(pattern, instead, text)
    return [line.rstrip() for line in text.rstrip().splitlines()]


def fits(wanted: Sequence[str], there: Sequence[str]) -> bool:
    """Tell whether the lines are those that are there; a line of dots stands for any number of them."""
    if not wanted:
        return not there
    if wanted[0] == "…":
        return any(fits(wanted[1:], there[start:]) for start in range(len(there) + 1))
    return bool(there) and wanted[0] == there[0] and fits(wanted[1:], there[1:])


def transcript() -> tuple[str, list[str]]:
    """Return what the README shows of `ghapp setup`, and the commands that it goes on with."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if block.startswith("$ ghapp setup\n"))
    assert max(map(len, block.splitlines())) <= COLUMNS
    _, first, rest = re.split(r"^\$ (?=ghapp setup\n|git clone)", block, maxsplit=2, flags=re.MULTILINE)
    commands = ("git clone" + rest.removeprefix("git clone")).splitlines()
    return first.removeprefix("ghapp setup\n"), [command.removeprefix("$ ") for command in commands]


def push(machine: Machine, commands: Sequence[str]) -> str:
    """Clone, commit and push; return the author."""
    repository = machine.github.named("acme", "rocket")
    assert repository is not None
    before = repository.revision()
    machine.run("sh", "-c", "set -e\n" + "\n".join(commands))
    checkout = machine.work / "rocket"
    assert repository.revision() != before
    assert repository.revision() == machine.git("rev-parse", "HEAD", cwd=checkout).stdout.strip()
    return machine.git("log", "-1", "--format=%an", cwd=checkout).stdout.strip()


def test_a_newcomer_gets_to_the_first_push_by_the_prompts_alone_as_the_readme_shows(
    machine: Machine, desktop: Session
) -> None:
    reach_github_without_variables(machine)
    machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    browser, person = Browser(machine), Person(machine.github)
    wanted, commands = transcript()

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

    assert terminal.done() == 0, terminal.text
    there = plain(terminal.text, machine.home)
    assert fits(plain(wanted, Path("/home/you")), there), "the README shows another run than:\n" + terminal.text
    assert len(desktop.usernames()) == 1
    assert re.fullmatch(r"acme-ghapp-[0-9a-f]{4}\[bot\]", push(machine, commands))


def with_an_app(machine: Machine) -> tuple[str, Path]:
    """Let there be an app on acme; return its ID and the key as it was downloaded."""
    app = machine.github.add_app("acme-bot", PERMISSIONS)
    machine.github.install(app, "acme", repositories=["rocket"])
    machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    key = machine.home / "acme-bot.private-key.pem"
    key.touch(mode=0o600)
    key.write_bytes(app.private_key_pem)
    return str(app.id), key


def files(machine: Machine) -> dict[Path, bytes]:
    paths = [machine.home / ".gitconfig", *(machine.home / ".config").rglob("*")]
    return {path: path.read_bytes() for path in paths if path.is_file()}


def test_it_runs_unattended_and_the_second_time_changes_nothing(machine: Machine, desktop: Session) -> None:
    app_id, key = with_an_app(machine)
    command = ("setup", "--yes", "--app-id", app_id, "--key", str(key), "--delete-key-file")

    machine.ghapp(*command)
    before = files(machine)
    again = machine.ghapp(*command)

    assert not key.exists()
    assert len(desktop.usernames()) == 1
    assert files(machine) == before
    assert "1. The app: acme-bot is registered, and GitHub accepts its key\n" in again.stderr
    assert "3. git: it asks ghapp for acme\n" in again.stderr
    _, commands = transcript()
    assert push(machine, commands) == "acme-bot[bot]"
    machine.end()
    for name in machine.github.environment:  # the daemon is started where nobody has set them
        if name != "HTTPS_PROXY":
            del machine.env[name]
    machine.git("fetch", cwd=machine.work / "rocket")


def test_setup_git_from_a_throw_away_cache_is_refused_first_of_all_and_writes_nothing(machine: Machine) -> None:
    """What ``uvx ghapp setup-git`` runs: scripts in uv's cache, which uv clears when it likes."""
    cache = machine.home / ".cache/uv/archive-v0/Xy1/bin"
    cache.mkdir(parents=True)
    for name in ("ghapp", "git-credential-ghapp"):
        shutil.copy2(BIN / name, cache / name)

    done = machine.run(cache / "ghapp", "setup-git", check=False)

    assert done.returncode == 1
    assert "lies in a throw-away cache (E52)\nghapp: hint: uv tool install ghapp\n" in done.stderr
    assert not files(machine)


@pytest.mark.usefixtures("desktop")
def test_ctrl_c_at_a_question_keeps_what_is_done_and_the_next_run_goes_on(machine: Machine) -> None:
    app_id, key = with_an_app(machine)

    first = Terminal(machine, "ghapp", "setup")
    first.expect(r"\[create\]: ")
    first.interrupt()
    assert first.done() == 130
    second = Terminal(machine, "ghapp", "setup")
    second.expect(r"\[create\]: ")
    second.type("import\n")
    second.expect("App ID or client ID.*: ")
    second.type(f"{app_id}\n")
    second.expect("private key.*: ")
    second.type(f"{key}\n")
    second.expect(r"\[owners\]: ")
    second.interrupt()
    assert second.done() == 130
    third = Terminal(machine, "ghapp", "setup")
    third.expect(r"\[owners\]: ")
    third.type("all\n")
    third.expect(r"\[yes\]: ")
    third.type("n\n")
    assert third.done() == 0, third.text

    for stopped in (first, second):
        assert stopped.text.endswith(
            "\nghapp: error: interrupted; what is done stays\nghapp: hint: to go on from here: ghapp setup\n"
        )
    assert "1. The app: acme-bot is registered, and GitHub accepts its key\n" in third.text
    machine.git("ls-remote", "https://github.com/acme/rocket")


@pytest.mark.usefixtures("desktop")
def test_ctrl_c_while_it_waits_for_the_installation_ends_it_and_the_hint_goes_on(machine: Machine) -> None:
    machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    browser, person = Browser(machine), Person(machine.github)

    first = Terminal(machine, "ghapp", "setup", "--create", "--org", "acme")
    person.go(browser.opened(1))
    first.expect("waiting for the installation")
    first.interrupt()
    assert first.done() == 130
    (mend,) = re.findall("^ghapp: hint: to go on from here: (.*)$", first.text, re.MULTILINE)
    person.install(browser.opened(2))
    second = Terminal(machine, "sh", "-c", f"{mend} --yes")

    assert second.done() == 0, second.text
    assert mend == "ghapp setup --create --org acme"
    assert len(machine.github.apps) == 1
    machine.git("ls-remote", "https://github.com/acme/rocket")


def test_the_address_that_is_pasted_after_a_browser_that_failed_stays_visible(machine: Machine) -> None:
    machine.env["BROWSER"] = "false"
    person = Person(machine.github)
    key = f"file:{machine.home}/bot.pem"
    terminal = Terminal(machine, "ghapp", "app", "create", "--no-install-wait", "--signer", key)
    url = terminal.expect(r"on this machine: (http://\S+)\n").split()[-1]
    terminal.expect("press Enter\n")

    address = person.press(url)
    terminal.type(address[:20])
    terminal.expect(re.escape(address[:20]) + "$")
    terminal.type(f"{address[20:]}\n")

    assert terminal.done() == 0, terminal.text
    assert f"press Enter\n{address}\n" in terminal.text
