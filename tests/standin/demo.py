"""`python tests/standin/demo.py DIRECTORY`: the main job, shown step by step; what install/demo.sh runs.

Everything happens below one temporary directory in DIRECTORY, which goes at the end, as does every process.
"""

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from session_bus import Session, missing


BIN = Path(sys.executable).parent
LIMIT = 30.0  # seconds for any one step; each takes less than one
GRACE = 5.0  # seconds for a process to end when asked
_PR_SET_CHILD_SUBREAPER = 36
# Of the caller's environment: what programs need to be found, and what the terminal can show.
INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TERM", "NO_COLOR")


class StepFailed(Exception):
    """A command of the demo did not do what it should."""


class Terminal:
    """Numbered steps with their commands and times; in colour where a person looks."""

    def __init__(self) -> None:
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._bold, self._dim, self._end = ("\033[1m", "\033[2m", "\033[0m") if colours else ("", "", "")
        self._steps = 0

    def step(self, title: str) -> None:
        self._steps += 1
        self.line(f"\n{self._bold}{self._steps}. {title}{self._end}")

    def command(self, words: tuple[str, ...], seconds: float) -> None:
        self.line(f"   {self._dim}{seconds:5.2f} s{self._end}  $ {shlex.join(words)}")

    def detail(self, text: str) -> None:
        for line in text.splitlines():
            self.line(f"            {self._dim}{line}{self._end}")

    def line(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


class World:
    """A user's machine below one directory: a home, a proxy and a CA; nothing of the caller's own."""

    def __init__(self, directory: Path, terminal: Terminal) -> None:
        self.terminal = terminal
        self.home = directory / "home"
        self.run_directory = directory / "run"
        self.work = self.home / "work"
        self.work.mkdir(parents=True)
        self.run_directory.mkdir(mode=0o700)
        (directory / "tmp").mkdir()
        self.env = {name: os.environ[name] for name in INHERITED if name in os.environ} | {
            "PATH": f"{BIN}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self.home),
            "TMPDIR": str(directory / "tmp"),
            "XDG_RUNTIME_DIR": str(self.run_directory),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "XDG_STATE_HOME": str(self.home / ".local" / "state"),
            "XDG_DATA_HOME": str(self.home / ".local" / "share"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "Demo",
            "GIT_AUTHOR_EMAIL": "demo@example.invalid",
            "GIT_COMMITTER_NAME": "Demo",
            "GIT_COMMITTER_EMAIL": "demo@example.invalid",
        }

    def show(self, *words: str, cwd: Path | None = None) -> str:
        """Run a command, show it with its time, and return what it printed."""
        begin = time.monotonic()
        output = self.run(*words, cwd=cwd)
        self.terminal.command(words, time.monotonic() - begin)
        return output

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """Run a command and return what it printed; raise `StepFailed` with all of that if it failed."""
        try:
            done = subprocess.run(  # the demo's own words
                words,
                cwd=cwd or self.work,
                env=self.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"{shlex.join(words)} did not end within {LIMIT:.0f} s") from error
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()
            raise StepFailed(f"{shlex.join(words)} failed with status {done.returncode}\n{said}")
        return done.stdout.strip()


class GitHub:
    """The stand-in as a process of its own, as GitHub is; it ends with us, whatever ends us."""

    def __init__(self, directory: Path) -> None:
        self._journal = directory / "journal.json"
        self._process = subprocess.Popen(  # our own module
            [
                *(sys.executable, "-P", "-m", "standin", "--directory", str(directory / "github")),
                *("--journal", str(self._journal)),
            ],
            stdin=subprocess.PIPE,  # its end is the signal that outlives even SIGKILL of this process
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
            | {"TMPDIR": str(directory / "tmp"), "HOME": str(directory / "home")},
            start_new_session=True,  # Ctrl-C is for us to handle
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StepFailed("the stand-in for GitHub did not start")
        self.facts: Mapping[str, Any] = json.loads(line)

    def end(self) -> Mapping[str, Any]:
        """Let it write its journal and end; return the journal."""
        self._process.terminate()
        self._process.communicate(timeout=GRACE)
        journal: Mapping[str, Any] = json.loads(self._journal.read_bytes())
        return journal


def main() -> None:
    """Run the demo in the directory that the command line names; exit 1 if any of it went wrong."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    adopt_orphans()
    terminal = Terminal()
    begin = time.monotonic()
    try:
        with temporary_directory(Path(sys.argv[1])) as directory, no_process_left():
            demonstrate(directory, terminal)
    except StepFailed as failure:
        sys.stderr.write(f"ghapp: error: {failure}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("\nghapp: error: interrupted; nothing was left behind\n")
        sys.exit(130)
    terminal.line(f"\nDone in {time.monotonic() - begin:.1f} s. No process is left, and no file but .venv and .cache.")


def demonstrate(directory: Path, terminal: Terminal) -> None:
    """Set up, clone, commit, push; then hold what the stand-in has against what git and ghapp say."""
    world = World(directory, terminal)
    keyring = open_keyring(directory, world)
    try:
        terminal.step("A stand-in for GitHub, behind a proxy: https://github.com never leaves this machine")
        github = timed_start(directory, terminal)
        facts = github.facts
        # Debian's git is built with GnuTLS, which does not read SSL_CERT_FILE.
        ca_file = str(facts["ca_file"])
        world.env |= {"HTTPS_PROXY": str(facts["proxy"]), "SSL_CERT_FILE": ca_file, "GIT_SSL_CAINFO": ca_file}
        terminal.detail(f"HTTPS_PROXY={facts['proxy']}\napp {facts['slug']}, installed on acme for acme/rocket alone")

        terminal.step("Register the app, and let git ask ghapp for acme's repositories")
        key = str(facts["key_file"])
        where = ("--key", key, "--delete-key-file") if keyring is not None else ("--signer", f"file:{key}")
        terminal.detail(world.show("ghapp", "app", "add", "--app-id", str(facts["app_id"]), *where))
        terminal.detail(f"the key is in {signer_used(world)}")
        bury_when_it_ends(json.loads(world.run("ghapp", "status", "--json"))["pid"])
        terminal.detail(world.show("ghapp", "setup-git"))
        terminal.detail(world.show("git", "config", "--get-urlmatch", "credential", "https://github.com/acme/rocket"))

        terminal.step("Clone, commit, push: plain git, no password, no token in sight")
        head = clone_commit_push(world)

        terminal.step("What lives now")
        terminal.detail(world.show("ghapp", "leases"))
        (lease,) = json.loads(world.run("ghapp", "leases", "--json"))
        report_secrets(directory, terminal)

        terminal.step("The end: the daemon revokes its token")
        terminal.detail(world.show("ghapp", "daemon", "stop"))
        journal = github.end()
        report_mints(journal, lease, terminal)

        terminal.step("Did the push arrive?")
        check_arrival(world, str(facts["bare_repository"]), head)
    finally:
        if keyring is not None:
            keyring.end()
        if sys.platform != "linux" and (world.run_directory / "ghapp").exists():  # there we find it ourselves
            with contextlib.suppress(StepFailed):
                world.run("ghapp", "daemon", "stop")


def open_keyring(directory: Path, world: World) -> Session | None:
    """Give the demo a desktop session of its own with a real keyring, where the programs for one are installed."""
    if missing():
        return None
    session = Session(directory / "desktop")
    session.start_keyring(b"of the demo alone")
    world.env["DBUS_SESSION_BUS_ADDRESS"] = session.address
    return session


def signer_used(world: World) -> str:
    """Say where the registered key is, by ghapp's own word."""
    ((reference,),) = (app["keys"] for app in json.loads(world.run("ghapp", "app", "list", "--json")))
    kind = str(reference).partition(":")[0]
    return {"keyring": "a real keyring (gnome-keyring), and nowhere else"}.get(kind, "a file, readable by you alone")


def timed_start(directory: Path, terminal: Terminal) -> GitHub:
    """Start the stand-in and show how long that took."""
    begin = time.monotonic()
    github = GitHub(directory)
    terminal.command(("python", "-m", "standin"), time.monotonic() - begin)
    return github


def clone_commit_push(world: World) -> str:
    """Do what a person does, and return the commit's id."""
    world.show("git", "clone", "https://github.com/acme/rocket.git")
    clone = world.work / "rocket"
    (clone / "src" / "engine.py").write_text("THRUST = 3\n")
    world.terminal.detail("src/engine.py: THRUST = 3")
    world.show("git", "commit", "-am", "More thrust", cwd=clone)
    world.show("git", "push", cwd=clone)
    return world.run("git", "rev-parse", "HEAD", cwd=clone)


def report_secrets(directory: Path, terminal: Terminal) -> None:
    """Say whether a token lies anywhere in the user's files; fail if one does."""
    found = [path for path in (directory / "home").rglob("*") if path.is_file() and b"ghs_" in path.read_bytes()]
    if found:
        raise StepFailed(f"a token was written to {found[0]}")
    terminal.detail("token on disk: none (every file of this home was searched)")


def report_mints(journal: Mapping[str, Any], lease: Mapping[str, Any], terminal: Terminal) -> None:
    """Say what GitHub gave, by its own record; fail unless that is one token, for that one repository."""
    for mint in journal["mints"]:
        permissions = ", ".join(f"{name}: {level}" for name, level in mint["permissions"].items())
        terminal.detail(
            f"GitHub minted a token for {', '.join(mint['repositories'])} ({permissions}), "
            f"for {(mint['expires_at'] - mint['time']) / 60:.0f} minutes, SHA-256 {mint['token_sha256'][:12]}…"
        )
    hashes = [mint["token_sha256"] for mint in journal["mints"]]
    if lease["token_sha256"] not in hashes:
        raise StepFailed("the token that ghapp lists is not one that GitHub minted")
    if any(mint["repositories"] != ["acme/rocket"] for mint in journal["mints"]):
        raise StepFailed("a token was minted for more than acme/rocket")
    revoked = [request for request in journal["requests"] if request["method"] == "DELETE"]
    terminal.detail(f"GitHub was asked to revoke {len(revoked)} of {len(hashes)}")


def check_arrival(world: World, bare_repository: str, head: str) -> None:
    """Read the pushed commit back from the served repository itself."""
    arrived = world.run("git", "--git-dir", bare_repository, "rev-parse", "HEAD")
    world.terminal.detail(f"commit pushed by git:          {head}\ncommit in GitHub's repository: {arrived}")
    if arrived != head:
        raise StepFailed("the served repository does not have the commit that was pushed")


@contextlib.contextmanager
def temporary_directory(parent: Path) -> Iterator[Path]:
    """Give a private directory, which goes whatever happens."""
    parent.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="demo.", dir=parent.resolve()))
    try:
        yield directory
    finally:
        end = time.monotonic() + GRACE
        while directory.exists() and time.monotonic() < end:  # something may still be writing
            shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            shutil.rmtree(directory)


@contextlib.contextmanager
def no_process_left() -> Iterator[None]:
    """End whatever was started in between and still runs, such as a daemon that began as we were interrupted."""
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # this is short, and has to be whole
        for pid in children():
            os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + GRACE
        while (left := children()) and time.monotonic() < end:
            _reap()
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        _reap()


def adopt_orphans() -> None:
    """Make detached grandchildren ours on Linux, so that none escapes; elsewhere `ghapp daemon stop` has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def bury_when_it_ends(pid: int) -> None:
    """Wait for an adopted process in the background: unburied, it would look alive to whoever stops it."""

    def bury() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)

    threading.Thread(target=bury, daemon=True).start()


def children() -> list[int]:
    """Return the processes whose parent we are, ended ones too."""
    done = subprocess.run(  # fixed words; ps is POSIX
        ["/bin/ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    pairs = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    return [pid for pid, parent in pairs if parent == os.getpid() and _is_running(pid)]


def _is_running(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
