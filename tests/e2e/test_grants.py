"""Grants, as whoever borrows one sees them: stock git, a directory mounted read-only, and nothing of ours."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket as client_socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from e2e.conftest import PERMISSIONS, Machine
from e2e.test_git_versions import Chroot, chroot  # noqa: F401  # a fixture
from fakes_process import closed_port, eventually, talk

from ghapp import process


ROCKET = "https://github.com/acme/rocket.git"
PROBE = "https://github.com/acme/probe.git"
SSHD = os.environ.get("GHAPP_TEST_SSHD")  # now: tests do not see the tester's variables
OLD_AND_NEW = pytest.mark.parametrize("chroot", ["bullseye", "sid"], indirect=True)
IDENTITY = ("-c", "user.name=Tester", "-c", "user.email=tester@example.invalid")


def set_up(machine: Machine) -> None:
    """Register an app on acme with two repositories; git itself is not set up for it."""
    github = machine.github
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket", "probe"])
    for name in ("rocket", "probe"):
        github.add_repository(f"acme/{name}", files={"README.md": f"# {name}\n"})
    machine.add_app(app)


def lend(machine: Machine, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.ghapp("grant", "create", *arguments, "--json").stdout)
    return found


@contextlib.contextmanager
def mounted_read_only(source: Path, target: Path) -> Iterator[None]:
    """Show the directory `source` at `target`, as a container does with a volume that is read-only."""
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "--bind", source, target], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", target], check=True)
        yield
    finally:
        subprocess.run(["umount", target], check=True)


@dataclass(frozen=True)
class Container:
    """A root directory with stock git alone, a CA, a git configuration, and what was lent to it."""

    chroot: Chroot
    machine: Machine
    user: str = "0"

    def configure(self) -> None:
        """Write the configuration that README shows, for the socket as it is seen inside."""
        socket = f"{self.chroot.seen}/lent/git.sock"
        helper = f"!f() {{ [ $1 = store ] || exec git credential-cache --timeout=0 --socket={socket} $1; }}; f"
        text = f'[credential "https://github.com"]\n\thelper =\n\thelper = "{helper}"\n\tuseHttpPath = true\n'
        (self.chroot.inside / ".gitconfig").write_text(text)
        shutil.copy(self.machine.github.ca_file, self.chroot.inside / "ca.pem")
        (self.chroot.inside / "work").mkdir()
        for path in (self.chroot.inside, self.chroot.inside / "work"):
            os.chown(path, int(self.user), int(self.user))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        seen = self.chroot.seen
        environment = {
            "HOME": seen,
            "HTTPS_PROXY": self.machine.env["HTTPS_PROXY"],
            "GIT_SSL_CAINFO": f"{seen}/ca.pem",
            "GIT_TERMINAL_PROMPT": "0",
            "PATH": "/usr/bin:/bin",
        }
        return self.machine.run(
            *("chroot", f"--userspec={self.user}:{self.user}", self.chroot.path, "/usr/bin/env", "-i"),
            *(f"--chdir={seen}/work", *(f"{name}={value}" for name, value in environment.items())),
            *command,
            check=False,
        )

    def git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("git", *IDENTITY, *arguments)


@pytest.fixture
def container(chroot: Chroot, machine: Machine) -> Iterator[Container]:  # noqa: F811  # the fixture
    set_up(machine)
    found = Container(chroot, machine)
    found.configure()
    yield found
    machine.end()


def commit(container: Container) -> None:
    (container.chroot.inside / "work/rocket/engine.txt").write_text("on\n")
    assert container.git("-C", "rocket", "add", "engine.txt").returncode == 0
    assert container.git("-C", "rocket", "commit", "-m", "Start the engine").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@OLD_AND_NEW
def test_a_container_with_stock_git_reaches_what_was_lent_and_nothing_else_until_it_is_revoked(
    container: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, github = container.machine, container.machine.github
    socket = Path(lend(machine, "acme/rocket", "--name", "rocket")["socket"])
    inside = container.chroot.inside / "lent"
    with mounted_read_only(socket.parent, inside):
        cloned = container.git("clone", ROCKET)
        assert cloned.returncode == 0, cloned.stderr
        commit(container)
        pushed = container.git("-C", "rocket", "push")
        assert pushed.returncode == 0, pushed.stderr

        if "sid" in str(container.chroot.path):  # git comes back with a state where its token is rejected
            github.revoke(github.mints[-1].token)
            assert container.git("-C", "rocket", "fetch").returncode == 0
            assert len(github.mints) == 2

        other = container.git("clone", PROBE)
        assert other.returncode == 128
        assert "ghapp: error: acme/probe is not in grant rocket (E71)" in other.stderr
        assert "told us to quit" in other.stderr

        for command in (("rm", "-f", "git.sock"), ("mv", "git.sock", "other"), ("touch", "new"), ("chmod", "0", ".")):
            assert container.run("env", f"--chdir={container.chroot.seen}/lent", *command).returncode != 0, command
        assert inside.joinpath("git.sock").is_socket()

        revoked = machine.ghapp("grant", "revoke", "rocket")
        late = container.git("-C", "rocket", "fetch")

    mint = github.mints[-1]
    assert mint.repositories == ("acme/rocket",)
    assert "revoked 1 token" in revoked.stderr
    assert github.live_token(mint.token) is None
    assert late.returncode == 128
    assert "warning: invalid credential line: ghapp: error: grant rocket ended at " in late.stderr
    with capsys.disabled():
        print(f"\n{container.git('--version').stdout.strip()}: {late.stderr.splitlines()[0]}")  # noqa: T201  # asked for


@pytest.mark.slow
@pytest.mark.timeout(600)
@OLD_AND_NEW
@pytest.mark.parametrize("uid", ["1000", None])
def test_another_user_in_a_container_is_served_where_the_grant_says_so(container: Container, uid: str | None) -> None:
    machine = container.machine
    guest = Container(container.chroot, machine, "1000")
    for path in (container.chroot.inside, container.chroot.inside / "work"):
        os.chown(path, 1000, 1000)
    (container.chroot.inside / ".gitconfig").chmod(0o644)
    (container.chroot.inside / "ca.pem").chmod(0o644)
    socket = Path(lend(machine, "acme/rocket", *(("--uid", uid) if uid else ()))["socket"])

    with mounted_read_only(socket.parent, container.chroot.inside / "lent"):
        cloned = guest.git("clone", ROCKET)

    assert (cloned.returncode == 0) is bool(uid), cloned.stderr
    assert len(machine.github.mints) == bool(uid)


def use(socket: str, *, host: str = "https://github.com") -> tuple[str, ...]:
    """Return the settings of run-args as options of git."""
    helper = f"!f() {{ [ $1 = store ] || exec git credential-cache --timeout=0 --socket={socket} $1; }}; f"
    section = f"credential.{host}"
    return ("-c", f"{section}.helper=", "-c", f"{section}.helper={helper}", "-c", f"{section}.useHttpPath=true")


def test_a_grant_that_is_read_only_fetches_and_its_push_is_refused(machine: Machine) -> None:
    set_up(machine)
    socket = lend(machine, "acme/rocket", "--read-only")["socket"]

    machine.git(*use(socket), "clone", ROCKET)
    machine.run("sh", "-c", "echo on > rocket/engine.txt")
    machine.git("-C", "rocket", "add", "engine.txt")
    machine.git("-C", "rocket", "commit", "-m", "Start the engine")
    pushed = machine.git(*use(socket), "-C", "rocket", "push", check=False)

    assert pushed.returncode == 128
    assert "error: 403" in pushed.stderr
    assert dict(machine.github.mints[-1].asked["permissions"]) == {"contents": "read"}


def test_a_daemon_that_is_killed_lends_again_what_was_named(machine: Machine) -> None:
    set_up(machine)
    socket = lend(machine, "acme/rocket", "--name", "rocket", "--for", "1h")["socket"]
    machine.git(*use(socket), "ls-remote", ROCKET)
    pid = machine.daemon_pid()
    assert pid is not None
    os.kill(pid, 9)
    assert process.wait_for_end(pid, 10)

    machine.ghapp("daemon", "start")

    assert "refs/heads/main" in machine.git(*use(socket), "ls-remote", ROCKET).stdout
    (named,) = json.loads(machine.ghapp("grant", "list", "--json").stdout)
    assert named["name"] == "rocket"


def test_what_run_args_prints_for_a_shell_works_when_it_is_pasted(machine: Machine) -> None:
    machine.env["GHAPP_RUNTIME_DIR"] = str(machine.home / "a path with 'quotes' in it")
    set_up(machine)
    lend(machine, "acme/rocket", "--name", "rocket")
    paste = 'eval "$(ghapp grant run-args rocket env)" && '

    assert "refs/heads/main" in machine.run("sh", "-c", f"{paste} git ls-remote {ROCKET}").stdout
    refused = machine.run("sh", "-c", f"{paste} git ls-remote {PROBE}", check=False)
    assert "acme/probe is not in grant rocket" in refused.stderr


# -- a sandbox that means harm ----------------------------------------------------------------------------------


OURS_ALONE = ("acme/rocket.git", "ACME/Rocket", "/acme/rocket.git/", "acme/rocket.wiki.git", "acme/rocket.git/info/lfs")
NOT_OURS = (
    *("acme/probe", "ACME/PROBE.git", "acme/probe.wiki.git", "acme/rocket.git.git", "acme/rocket.wiki.wiki"),
    *("acme/rocket/../probe.git", "acme/../acme/probe", "../acme/probe", "./acme/probe", "acme//probe", "acme/./probe"),
    *("acme%2Fprobe", "acme/%70robe", "acme/rocket%2f..%2fprobe", "acme/rocket.git/info/lfs/../../probe", "acme/*"),
    *(
        "acme/rocket\x00/probe",
        "acme/rocket\r",
        "acme/rocket /probe",
        "acme/r\u043ecket",
        "rocket",
        "/",
        "acme/",
        ".git",
        "*",
    ),
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("named", [("--name", "box"), ()], ids=["named", "unnamed"])
def test_who_is_gone_before_the_grant_is_there_leaves_none(
    machine: Machine, number: signal.Signals, named: tuple[str, ...]
) -> None:
    """Nobody would know of it, nor end it."""
    set_up(machine)
    machine.ghapp("daemon", "start")
    go = threading.Event()
    held = machine.github.faults.add("/installation$", hold=go)
    with subprocess.Popen(
        ["ghapp", "grant", "create", "acme/rocket", *named],
        env=machine.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as asking:
        assert held.reached.wait(20)
        asking.send_signal(number)
        said, _ = asking.communicate(timeout=20)
    go.set()

    def noted() -> list[str]:
        lines = machine.ghapp("log", "--json").stdout.splitlines()
        return [line["action"] for line in map(json.loads, lines) if line["action"].startswith("grant")]

    eventually(lambda: noted() == ["grant", "grant-end"])
    assert said == b""
    assert json.loads(machine.ghapp("grant", "list", "--json").stdout) == []
    assert not list((machine.home / ".local/state/ghapp").glob("grants/*/*.json"))
    machine.ghapp("daemon", "restart")
    assert json.loads(machine.ghapp("grant", "list", "--json").stdout) == []
    assert machine.github.mints == []


def said_by(socket: str, request: bytes) -> bytes:
    """Return what is answered; nothing where we are thrown out."""
    with contextlib.suppress(ConnectionError):
        return talk(socket, request)
    return b""


def attack(socket: str, stop: threading.Event) -> int:
    """Ask for what is not lent, send what no git sends, hold what can be held; return how often."""
    silent: list[client_socket.socket] = []
    begun = 0
    requests = [
        *(b"action=get\ntimeout=0\nprotocol=https\nhost=github.com\npath=acme/x%d.git\n" % n for n in range(20)),
        *(b"action=exit\ntimeout=0\n", b"action=store\ntimeout=9\nprotocol=https\nhost=github.com\n", b"\xff" * 999),
        *(b"", b"\0", b"action=get\n" * 9000, b"GET / HTTP/1.1\r\n\r\n", b'{"jsonrpc": "2.0", "method": "stop"}\n'),
        *(b"action=erase\ntimeout=0\npassword=%s\n" % (b"x" * 60_000), b"action=hello\ntimeout=0\nghapp=1\n"),
    ]
    while not stop.is_set():
        for request in requests:
            begun += 1
            assert b"password=" not in said_by(socket, request)
        for _ in range(50):
            one = client_socket.socket(client_socket.AF_UNIX)
            one.settimeout(5)
            with contextlib.suppress(OSError):
                one.connect(socket)
                one.sendall(b"action=get\n")  # and no more
            silent.append(one)
        while len(silent) > 200:
            silent.pop(0).close()
    for one in silent:
        one.close()
    return begun


@pytest.fixture
def near(machine: Machine) -> Iterator[Machine]:
    """A machine whose sockets have paths that Python's clients can connect to, however long a test's directory is."""
    machine.env["GHAPP_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="ghapp-")
    yield machine
    machine.end()
    shutil.rmtree(machine.env["GHAPP_RUNTIME_DIR"])


def test_a_sandbox_that_means_harm_gets_what_was_lent_and_delays_nobody_else(near: Machine) -> None:
    machine = near
    del machine.env["GHAPP_DEBUG"]
    set_up(machine)
    socket = lend(machine, "acme/rocket", "--name", "box")["socket"]
    pid = machine.daemon_pid()

    def ask(path: str, more: str = "") -> bytes:
        attributes = f"{more}protocol=https\nhost=github.com\npath={path}\n"
        return said_by(socket, f"action=get\ntimeout=0\n{attributes}".encode())

    for path in NOT_OURS:
        for more in ("", "ghapp=1\n", "username=x-access-token\nstate[]=ghapp:0123456789ab\ncapability[]=state\n"):
            assert b"password" not in ask(path, more), (path, more)
    assert machine.github.mints == []
    for path in OURS_ALONE:
        assert b"\npassword=" in ask(path), path
    assert [mint.repositories for mint in machine.github.mints] == [("acme/rocket",)]

    stop = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        attackers = [pool.submit(attack, socket, stop) for _ in range(3)]
        took = []
        try:
            for _ in range(20):
                began = time.monotonic()
                assert b"\npassword=" in talk(
                    machine.sockets / "git.sock",
                    b"action=get\ntimeout=0\nprotocol=https\nhost=github.com\npath=acme/probe.git\n",
                )
                took.append(time.monotonic() - began)
        finally:
            stop.set()
        begun = sum(attacker.result(30) for attacker in attackers)

    assert begun > 30
    assert max(took) < 10, took  # git waits for it, however long
    assert len(machine.github.mints) == 2
    eventually(lambda: b"\npassword=" in ask("acme/rocket"), 20)
    assert machine.daemon_pid() == pid
    trail = machine.home / ".local/state/ghapp/audit.jsonl"
    eventually(lambda: trail.read_bytes().count(b'"action":"answer"') == 20, 20)
    lines = [json.loads(line) for line in trail.read_bytes().splitlines()]
    assert {line["action"] for line in lines} == {"grant", "mint", "answer"}
    # Nor are other lines of the log gone.
    assert "no credential" not in (machine.home / ".local/state/ghapp/daemon.log").read_text()


def test_a_sandbox_has_thirty_two_places_and_who_asks_among_the_silent_has_an_answer(near: Machine) -> None:
    set_up(near)
    socket = lend(near, "acme/rocket")["socket"]
    request = b"action=get\ntimeout=0\nprotocol=https\nhost=github.com\npath=acme/rocket.git\n"
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            silent = stack.enter_context(client_socket.socket(client_socket.AF_UNIX))
            silent.settimeout(20)
            silent.connect(socket)

        assert b"\npassword=" in talk(socket, request)  # who is served in order, so that all before were let in

        peak = json.loads(near.ghapp("status", "--json").stdout)["connections_peak"]
    assert 20 < peak <= 32


# -- another host: a real sshd on this one's loopback ------------------------------------------------------------


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The arguments by which ssh reaches an sshd of this test's own."""
    program = SSHD or shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("ssh and sshd (openssh-server) are not installed; GHAPP_TEST_SSHD names one elsewhere")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    port = closed_port()
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\nUsePAM no\nAllowStreamLocalForwarding yes\n"
    )
    with (tmp_path / "sshd.log").open("wb") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=log)
    try:
        eventually(lambda: server.poll() is not None or b"listening on" in (tmp_path / "sshd.log").read_bytes())
        if server.poll() is not None:
            pytest.skip(f"sshd does not run here: {(tmp_path / 'sshd.log').read_text()[-200:]}")
        options = ("StrictHostKeyChecking=no", f"UserKnownHostsFile={tmp_path}/known", "LogLevel=ERROR")
        yield (
            *(part for option in options for part in ("-o", option)),
            *("-F", "none", "-i", str(tmp_path / "user"), "-p", str(port)),
        )
    finally:
        server.terminate()
        server.wait(10)


def test_a_remote_host_uses_a_grant_through_ssh(machine: Machine, sshd: tuple[str, ...]) -> None:
    short = tempfile.mkdtemp(prefix="ghapp-")  # ssh takes no path as long as a test's may be
    machine.env["GHAPP_RUNTIME_DIR"] = short
    set_up(machine)
    lend(machine, "acme/rocket", "--name", "rocket")
    printed = machine.ghapp("grant", "run-args", "rocket", "ssh")
    arguments = shlex.split(printed.stdout)
    remote = machine.home / "remote"
    remote.mkdir()
    settings = "\n".join(line.strip() for line in printed.stderr.splitlines() if line.startswith("  git config"))
    environment = " ".join(
        f"{name}={shlex.quote(machine.env[name])}" for name in ("HTTPS_PROXY", "GIT_SSL_CAINFO", "PATH")
    )
    script = (
        f"cd {remote}; export HOME={remote} GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1 {environment}\n{settings}\n"
        f"git clone -q {ROCKET} && cat rocket/README.md; git clone -q {PROBE}; echo status $?\n"
    )
    here = Path(arguments[-1].partition(":")[0])
    try:
        done = machine.run("ssh", *sshd, *arguments, "127.0.0.1", "sh", input=script, check=False)
    finally:
        here.unlink(missing_ok=True)
        machine.end()
        shutil.rmtree(short)

    assert "# rocket" in done.stdout, done.stderr
    assert "status 128" in done.stdout
    assert "acme/probe is not in grant rocket" in done.stderr
    assert len(machine.github.mints) == 1
