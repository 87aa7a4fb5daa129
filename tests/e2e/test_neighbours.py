"""What other processes can do to a daemon: those of other users, those of the same user, and whoever started it."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from e2e.conftest import BIN, PERMISSIONS, Machine
from fakes_process import LIMIT, eventually, listener, talk
from standin.server import StandIn


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become another user, or to look into everybody")

NOBODY = 65534
FRONT = BIN / "git-credential-ghapp"
SOCKETS = ("git.sock", "control.sock")
ATTRIBUTES = "protocol=https\nhost=github.com\npath=acme/rocket.git\n\n"
REQUESTS = {
    "git.sock": f"action=get\ntimeout=0\nghapp=1\n{ATTRIBUTES}".encode(),
    "control.sock": b'{"jsonrpc": "2.0", "id": 1, "method": "token", "params": {"repositories": ["acme/rocket"]}}\n',
}
PATIENCE = 20.0


def become(uid: int) -> tuple[str, ...]:
    """Return the words that make a command another user's; none if that is who we are."""
    if uid == os.geteuid():
        return ()
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")


# Root without a capability: for /proc, ptrace and files one user among others.
ORDINARY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()


def require(*command: str, reason: str) -> None:
    """Skip where a command that the test needs does not work."""
    if command and shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if command and subprocess.run(command, capture_output=True, check=False, cwd="/").returncode != 0:
        pytest.skip(reason)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can look into; pytest's own are closed."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        if os.geteuid() == 0:
            program = "import contextlib, os, socket, sys, threading; os.stat(sys.argv[1])"
            reason = "another user cannot reach this Python, or the directory for temporary files"
            require(*become(NOBODY), sys.executable, "-c", program, name, reason=reason)
        yield directory


class UsersMachine(Machine):
    """A machine on which everything is run by a user who may do nothing that others may not."""

    def run(self, *command: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
        return super().run(*ORDINARY, *command, **options)


@pytest.fixture
def users(tmp_path: Path, github: StandIn) -> Iterator[UsersMachine]:
    """An ordinary user's machine with an app whose key is in a file."""
    require(*ORDINARY, *(["true"] if ORDINARY else []), reason="this root cannot give its capabilities up")
    directory = tmp_path / "machine"
    directory.mkdir(mode=0o700)
    machine = UsersMachine(directory, github)
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket"])
    github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    machine.add_app(app)
    yield machine
    machine.end()


@contextlib.contextmanager
def hanging_keyring(machine: UsersMachine, env: dict[str, str] | None = None) -> Iterator[int]:
    """Have the daemon wait for a keyring that does not answer; give the pid of the child that asks it."""
    machine.ghapp("daemon", "stop")
    (number,) = machine.github.apps
    entry = f'[[app]]\nname = "acme-bot"\napp_id = {number}\nkeys = ["keyring:SHA256:{"A" * 43}="]\n'
    (machine.home / ".config/ghapp/config.toml").write_text(entry)
    asked, over = threading.Event(), threading.Event()

    def hang(client: socket.socket) -> None:
        client.recv(1)
        asked.set()
        over.wait(LIMIT)

    bus = machine.home.parent / "bus"
    with listener(bus, hang):
        machine.env["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={bus}"
        machine.run("git", "credential-ghapp", "get", input="protocol=https\nhost=example.com\n\n", env=env)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(machine.sockets / "git.sock"))
            client.sendall(REQUESTS["git.sock"])
            eventually(asked.is_set)
            try:
                (child,) = children(daemon(machine))
                yield child
            finally:
                over.set()


def daemon(machine: Machine) -> int:
    pid = machine.daemon_pid()
    assert pid is not None
    return pid


def children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if f"\nPPid:\t{parent}\n" in path.read_text():
                found.append(int(path.parent.name))
    return found


def status(machine: Machine) -> dict[str, Any]:
    answer = talk(machine.sockets / "control.sock", b'{"jsonrpc": "2.0", "id": 1, "method": "status"}\n')
    found: dict[str, Any] = json.loads(answer)["result"]
    return found


# -- another user --------------------------------------------------------------------------------------------------


INTRUDER = """
import contextlib, socket, sys
client = socket.socket(socket.AF_UNIX)
client.settimeout(20)
try:
    client.connect(sys.argv[1])
except OSError as error:
    sys.exit(type(error).__name__)
with contextlib.suppress(BrokenPipeError, ConnectionResetError):
    client.sendall(sys.argv[2].encode())
    client.shutdown(socket.SHUT_WR)
with contextlib.suppress(ConnectionResetError):
    while data := client.recv(65536):
        sys.stdout.buffer.write(data)
"""


def intrude(machine: Machine, name: str, *, uid: int = NOBODY) -> "subprocess.CompletedProcess[str]":
    """Ask for a token as that user does, and return all that came back."""
    command = [*become(uid), sys.executable, "-c", INTRUDER, str(machine.sockets / name), REQUESTS[name].decode()]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=PATIENCE)


@pytest.fixture
def exposed(public: Path, ready: Machine) -> Machine:
    """A machine without a daemon whose sockets would be in a directory that others can look into."""
    ready.ghapp("daemon", "stop")
    ready.env["GHAPP_RUNTIME_DIR"] = str(public / "run")
    return ready


@as_root
def test_another_user_cannot_come_near_the_sockets(exposed: Machine) -> None:
    exposed.fill()

    for name in SOCKETS:
        assert intrude(exposed, name).stderr.strip() == "PermissionError"
    assert status(exposed)["rejected"] == 0


@as_root
@pytest.mark.parametrize("name", SOCKETS)
def test_another_user_gets_not_a_byte_where_directory_and_socket_were_opened_by_mistake(
    exposed: Machine, name: str
) -> None:
    exposed.fill()
    exposed.sockets.chmod(0o755)
    (exposed.sockets / name).chmod(0o777)

    done = intrude(exposed, name)

    assert (done.stdout, done.stderr) == ("", "")
    assert status(exposed)["rejected"] == 1
    assert "ghs_" in intrude(exposed, name, uid=os.geteuid()).stdout  # so it asked well


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o777], ids=oct)
def test_a_runtime_directory_that_another_user_made_first_is_refused_by_all(exposed: Machine, mode: int) -> None:
    exposed.sockets.mkdir()
    exposed.sockets.chmod(mode)
    os.chown(exposed.sockets, NOBODY, NOBODY)

    for command in (
        ("git", "credential", "fill"),
        ("ghapp", "token", "acme/rocket"),
        ("ghapp", "daemon", "start"),
        ("ghapp", "daemon", "run"),
    ):
        done = exposed.run(*command, input=ATTRIBUTES, check=False)

        assert done.returncode != 0, command
        assert f"{exposed.sockets} is not owned by you (E43)" in done.stderr, command
        assert "password=" not in done.stdout
        assert list(exposed.sockets.iterdir()) == [], command


IMPOSTOR = """
import os, socket, sys, threading
directory = sys.argv[1]
answers = {
    "git.sock": b"username=eve\\npassword=of-eve\\npassword_expiry_utc=9999999999\\nghapp=1\\n",
    "control.sock": b'{"jsonrpc": "2.0", "id": 1, "result": {"token": "of-eve", "pid": 1, "running": true}}\\n',
}
def serve(name, answer):
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{directory}/{name}")
    os.chmod(f"{directory}/{name}", 0o777)
    server.listen(16)
    os.write(1, b"listens\\n")
    while True:
        client, _ = server.accept()
        with client:
            try:
                data = client.recv(65536)
                os.write(1, repr(data).encode() + b"\\n" if data else b"nothing\\n")
                client.sendall(answer)
            except OSError:
                os.write(1, b"nothing\\n")
for each in answers.items():
    threading.Thread(target=serve, args=each).start()
"""


@contextlib.contextmanager
def impostor(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a daemon of another user at our path, which prints what it gets and answers with its own token."""
    command = [*become(NOBODY), sys.executable, "-c", IMPOSTOR, str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/")
    assert process.stdout is not None
    try:
        assert [process.stdout.readline() for _ in SOCKETS] == ["listens\n"] * 2
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@as_root
@pytest.mark.parametrize("owner", [NOBODY, 0], ids=["in its own directory", "in ours, which stands open"])
def test_an_impostor_of_another_user_gets_not_a_byte_and_is_not_believed(exposed: Machine, owner: int) -> None:
    """git's own client, which the front asks first, does not look who listens."""
    exposed.sockets.mkdir()
    exposed.sockets.chmod(0o777)
    os.chown(exposed.sockets, owner, -1)
    secret = ATTRIBUTES.rstrip() + "\nusername=x-access-token\npassword=ours\n\n"

    with impostor(exposed.sockets) as process:
        filled = exposed.git("credential", "fill", input=ATTRIBUTES, check=False)
        exposed.git("credential", "reject", input=secret, check=False)
        token = exposed.ghapp("token", "acme/rocket", check=False)
        exposed.ghapp("status", check=False)
        exposed.ghapp("daemon", "stop", check=False)
        process.kill()
        assert process.stdout is not None
        got = process.stdout.read().splitlines()

    assert set(got) <= {"nothing"}
    for done in (filled, token):
        assert done.returncode != 0
        assert "of-eve" not in done.stdout
        assert "(E44)" in done.stderr or "(E43)" in done.stderr


# -- the same user -------------------------------------------------------------------------------------------------


# Prints what works. Without a pid it tries on a child of its own: where Yama guards, on others all would fail anyway.
PROBE = """
import ctypes, os, subprocess, sys
child = None
if len(sys.argv) == 1:
    child = subprocess.Popen(["sleep", "60"])
pid = child.pid if child else int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def attach():
    if libc.ptrace(16, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0x40000000)
    libc.ptrace(17, pid, 0, 0)
attempts = {
    "mem": lambda: open(f"/proc/{pid}/mem", "rb").close(),
    "environ": lambda: open(f"/proc/{pid}/environ", "rb").read(),
    "maps": lambda: open(f"/proc/{pid}/maps", "rb").read(),
    "fd": lambda: os.readlink(f"/proc/{pid}/fd/0"),
    "ptrace": attach,
    "cmdline": lambda: open(f"/proc/{pid}/cmdline", "rb").read(),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except PermissionError:
        continue
    print(name)
if child:
    child.kill()
    child.wait()
"""
EVERYTHING = ["mem", "environ", "maps", "fd", "ptrace", "cmdline"]


def yama() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except OSError:
        return 0


@pytest.mark.skipif(yama() > 1, reason="Yama denies ptrace to everybody here, so that it would prove nothing")
def test_another_program_of_the_same_user_can_neither_read_nor_trace_the_daemon_and_its_keyring_child(
    users: UsersMachine,
) -> None:
    """What is in argv remains to be seen, which is why nothing secret is there."""
    with hanging_keyring(users) as child:
        pids = {"keyring child": child, "daemon": daemon(users)}  # that first, for it has five seconds
        worked = {who: users.run(sys.executable, "-c", PROBE, str(pid)).stdout for who, pid in pids.items()}

    assert users.run(sys.executable, "-c", PROBE).stdout.split() == EVERYTHING
    assert {who: text.split() for who, text in worked.items()} == {who: ["cmdline"] for who in pids}


WITH_CORES = 'ulimit -S -c "$(ulimit -H -c)" && exec "$@"'


def crash(process: "subprocess.Popen[bytes]") -> int:
    """Let a process run into a segmentation fault; return how it ended, as siginfo_t tells."""
    process.send_signal(signal.SIGSEGV)
    info = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    process.wait()
    assert info is not None
    assert info.si_status == signal.SIGSEGV
    return info.si_code


def test_a_daemon_that_crashes_leaves_no_core_where_others_do(ready: Machine) -> None:
    """Asked of the kernel, for the file may be anywhere, or go to a program."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("core files are forbidden to us here")
    ready.ghapp("daemon", "stop")
    command, places = ["sh", "-c", WITH_CORES, "sh"], [ready.work / "sleep", ready.work / "daemon"]
    for place in places:
        place.mkdir()
    with subprocess.Popen([*command, "sleep", "60"], cwd=places[0]) as sleep:
        eventually(lambda: b"sleep" in Path(f"/proc/{sleep.pid}/cmdline").read_bytes().split(b"\0")[0])
        if crash(sleep) != os.CLD_DUMPED:
            pytest.skip("this system writes no core files")

    with subprocess.Popen([*command, "ghapp", "daemon", "run"], cwd=places[1], env=ready.env) as served:
        eventually(lambda: ready.daemon_pid() == served.pid)
        limits = Path(f"/proc/{served.pid}/limits").read_text()
        ended = crash(served)

    assert ended == os.CLD_KILLED
    assert list(places[1].iterdir()) == []
    assert re.search(r"^Max core file size +[01] +[01] ", limits, re.MULTILINE)


# -- whoever starts it ---------------------------------------------------------------------------------------------


CLOSINGS: list[tuple[int, ...]] = list(chain.from_iterable(combinations(range(3), count) for count in range(4)))


def closing(closed: Sequence[int], *command: str | Path) -> list[str | Path]:
    """Return a command that runs another with these descriptors closed."""
    redirections = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    return ["sh", "-c", f'exec "$@" {redirections}', "sh", *command]


def given(pid: int) -> list[str]:
    """Return what the first three descriptors of a process are; empty for who may not look."""
    try:
        return [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)]
    except PermissionError:
        return []


def is_written_below(directory: Path, text: str) -> bool:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return any(text.encode() in path.read_bytes() for path in files)


def test_a_front_with_descriptors_closed_starts_the_daemon_and_says_nothing_in_a_wrong_place(ready: Machine) -> None:
    """In all eight ways: a closed number is the next file's, and what is printed there goes into that."""
    for closed in CLOSINGS:
        ready.ghapp("daemon", "stop")
        minted = len(ready.github.mints)

        done = ready.run(*closing(closed, FRONT, "get"), input=ATTRIBUTES)

        new = ready.github.mints[minted:]
        assert len(new) == (0 not in closed), closed  # without a request there is nothing to answer
        if closed in {(), (2,)}:
            assert f"password={new[0].token}\n" in done.stdout, closed
        else:
            assert done.stdout == "", closed
        assert done.stderr == "", closed
        for mint in new:
            assert not is_written_below(ready.home, mint.token)
            assert not is_written_below(ready.runtime, mint.token)
            assert ready.fill()["password"] == mint.token
            assert given(daemon(ready)) in (["/dev/null"] * 3, [])


@pytest.mark.parametrize(
    "command", [("ghapp", "daemon", "run"), (sys.executable, "-m", "ghapp.daemon")], ids=["ghapp", "its module"]
)
def test_a_daemon_run_with_descriptors_closed_has_them_on_dev_null(ready: Machine, command: tuple[str, ...]) -> None:
    for closed in CLOSINGS:
        ready.ghapp("daemon", "stop")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

        with subprocess.Popen(closing(closed, *command), env=ready.env, cwd=ready.work, text=True, **pipes) as served:  # type: ignore[call-overload]  # three of its many
            eventually(lambda pid=served.pid: ready.daemon_pid() == pid)  # type: ignore[misc]  # bound now
            token = ready.fill()["password"]
            streams = given(served.pid)
            served.terminate()
            out, err = served.communicate(timeout=PATIENCE)

        assert served.returncode == 0, closed
        assert token == ready.github.mints[-1].token
        assert token not in out + err
        assert out == "", closed
        assert "Traceback" not in err
        assert (" serves, pid " in err) == (2 not in closed), closed
        for number, stream in enumerate(streams):
            assert (stream == "/dev/null") == (number in closed), closed
        assert not is_written_below(ready.home, token)
        assert not is_written_below(ready.runtime, token)


# -- what it holds -------------------------------------------------------------------------------------------------


def held(pid: int) -> set[str]:
    """Return what a process has open: paths, and sockets as socket:[inode]."""
    found = set()
    with contextlib.suppress(OSError):  # gone, or going
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(entry.readlink()))
    return found


def unix_sockets() -> list[tuple[str, str]]:
    """Return name and socket:[inode] of all Unix sockets of this network namespace that have a name."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [(row[7], f"socket:[{row[6]}]") for row in rows if len(row) > 7]


def ports(pid: int) -> list[str]:
    """Return the inet sockets at which a process waits for others, and its abstract names."""
    mine, found = held(pid), []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            row = line.split()
            listens = row[3] == ("0A" if table.startswith("tcp") else "07")
            if listens and f"socket:[{row[9]}]" in mine:
                found.append(f"{table} {row[1]}")
    return found + [name for name, inode in unix_sockets() if name.startswith("@") and inode in mine]


@as_root
def test_nobody_else_has_the_lock_or_a_socket_and_only_files_lead_to_the_daemon(users: UsersMachine) -> None:
    """Looked at while it has a child: whoever inherits the lock keeps it after the daemon's death."""
    with hanging_keyring(users) as child:
        of_child = held(child)  # first, for it has five seconds
        pid = daemon(users)
        ours = {str(users.sockets / "daemon.lock")}
        ours |= {inode for name, inode in unix_sockets() if name in {str(users.sockets / each) for each in SOCKETS}}
        assert len(ours) >= 3  # the lock and two listeners
        holders = {int(path.name) for path in Path("/proc").glob("[0-9]*") if held(int(path.name)) & ours}
        waits = ports(pid) + ports(child)

    assert holders == {pid}
    assert len(of_child) >= 3
    assert waits == []


def test_the_ports_of_a_process_are_found() -> None:
    """Else the test above would prove nothing."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        name = f"ghapp-test-{os.getpid()}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        number = tcp.getsockname()[1]

        found = ports(os.getpid())

        assert f"tcp 0100007F:{number:04X}" in found
        assert f"udp 0100007F:{udp.getsockname()[1]:04X}" in found
        assert f"@{name}" in found
        udp.close()


# -- its environment -----------------------------------------------------------------------------------------------


POISON = "/poison"
POISONED = (
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONINSPECT", "PYTHON_KEYRING_BACKEND"),
    *("LD_LIBRARY_PATH", "LD_AUDIT", "OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NETRC"),
    *("GH_TOKEN", "GITHUB_TOKEN", "GH_ENTERPRISE_TOKEN", "GIT_ASKPASS", "SSH_ASKPASS", "GIT_TRACE_CURL", "BASH_ENV"),
)
# As the documentation lists them; a name that is not here has no business in the daemon.
ALLOWED = re.compile(
    r"HOME|USER|LOGNAME|LANG|LC_\w+|XDG_\w+|GHAPP_\w+|DBUS_SESSION_BUS_ADDRESS|DISPLAY|WAYLAND_DISPLAY|XAUTHORITY|TMPDIR"
    r"|SSH_AUTH_SOCK|AWS_PROFILE|AWS_REGION|AWS_CONFIG_FILE|(?i:HTTPS_PROXY|NO_PROXY)|SSL_CERT_FILE|SSL_CERT_DIR|PATH"
)


def poison(machine: Machine) -> dict[str, str]:
    """Return an environment in which every name means harm; of LD_* those that git itself survives."""
    return dict.fromkeys(POISONED, POISON) | {"SSLKEYLOGFILE": str(machine.work / "session-keys")}


def environment(pid: int) -> dict[str, str]:
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(word.split("=", 1) for word in words if word)


def test_what_a_poisoned_environment_names_has_no_effect_on_a_daemon_started_there(ready: Machine) -> None:
    ready.ghapp("daemon", "stop")
    (ready.home / ".netrc").write_text("machine api.github.com login eve password of-eve\n")

    filled = ready.fill(env=poison(ready))

    assert filled["password"] == ready.github.mints[-1].token
    assert not (ready.work / "session-keys").exists()
    asked = [request for request in ready.github.requests if request.host == "api.github.com"]
    assert {request.scheme for request in asked} == {"bearer"}


@as_root
def test_nothing_of_a_poisoned_environment_is_in_the_daemon_and_its_keyring_child(users: UsersMachine) -> None:
    with hanging_keyring(users, poison(users)) as child:
        for pid in (child, daemon(users)):
            found = environment(pid)
            assert POISON not in "".join(found.values())
            assert [name for name in found if not ALLOWED.fullmatch(name)] == []
            assert found["HOME"] == str(users.home)


def test_a_daemon_in_the_foreground_writes_no_session_keys_either(ready: Machine) -> None:
    """There it has the whole environment of a shell, in which somebody may have looked into TLS."""
    ready.ghapp("daemon", "stop")
    keys = ready.work / "session-keys"

    with subprocess.Popen(["ghapp", "daemon", "run"], env=ready.env | poison_of_shells(keys)) as served:
        eventually(lambda: ready.daemon_pid() == served.pid)
        token = ready.fill()["password"]
        served.terminate()

    assert token == ready.github.mints[-1].token
    assert not keys.exists()


def test_session_keys_are_written_where_nobody_takes_care(tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    program = "import ssl; ssl.create_default_context()"

    subprocess.run([sys.executable, "-c", program], env=poison_of_shells(tmp_path / "keys"), check=True)

    assert (tmp_path / "keys").exists()


def poison_of_shells(keys: Path) -> dict[str, str]:
    return {"SSLKEYLOGFILE": str(keys)}
