"""Where keys, JWTs and tokens must not be: written or said, in argv and environ, in memory; whatever fails."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import DESCRIPTION
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from e2e.conftest import BIN, PERMISSIONS, Machine
from e2e.hunt import (
    found_in,
    jwt_secrets,
    key_secrets,
    needles,
    places,
    processes,
    token_secrets,
)
from fakes_process import eventually, talk
from session_bus import PASSWORD, Session, session
from standin.model import App
from standin.server import StandIn

from ghapp.private_key import encode_key


FRONT = BIN / "git-credential-ghapp"
REQUEST = "protocol=https\nhost=github.com\npath={}/rocket.git\n"
PROXY_PASSWORD = secrets.token_hex(20)
NOT_OURS = {"gone"}  # an app that is not installed is no error: git asks the next helper
MINT = r"/app/installations/{}/access_tokens$"

# The daemon as it is, except that every logger of every library says all it can, and that what they say is kept
# as it came, before our formatter has seen it.
TALKATIVE = """
import logging, sys, traceback
from ghapp import daemon

raw = open(sys.argv[1], "w", encoding="utf-8", errors="backslashreplace", buffering=1)
logging.root.setLevel(1)
logging.Logger.setLevel = lambda self, level: None
make = logging.getLogRecordFactory()

def keep(*arguments, **options):
    record = make(*arguments, **options)
    print(record.name, record.getMessage(), repr(record.args), file=raw)
    if record.exc_info and record.exc_info[1]:
        print("".join(traceback.format_exception(record.exc_info[1])), file=raw)
    return record

logging.setLogRecordFactory(keep)
sys.exit(daemon.main([]))
"""


@pytest.fixture
def github(tmp_path: Path) -> Iterator[StandIn]:
    """The stand-in, behind a proxy that wants a password."""
    description = DESCRIPTION if DESCRIPTION.exists() else None
    credentials = ("builder", PROXY_PASSWORD)
    with StandIn.start(tmp_path / "github", description=description, proxy_credentials=credentials) as standin:
        yield standin
        assert standin.violations == []


@pytest.fixture
def desktop(machine: Machine, tmp_path: Path) -> Iterator[Session]:
    """A session with an unlocked keyring, and the machine in it."""
    with session(tmp_path / "desktop") as found:
        machine.env["DBUS_SESSION_BUS_ADDRESS"] = found.address
        found.start_keyring(PASSWORD)
        yield found


@pytest.fixture
def app(machine: Machine, desktop: Session) -> App:  # noqa: ARG001  # the keyring is where the key goes
    """An app whose key is in the keyring, installed on acme."""
    app = machine.github.add_app("acme-bot", PERMISSIONS)
    machine.github.install(app, "acme", repositories=["rocket"])
    machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    machine.ghapp("app", "add", "--app-id", str(app.id), "--key", "-", input=app.private_key_pem.decode())
    machine.ghapp("setup-git")
    machine.ghapp("daemon", "stop")
    return app


@contextmanager
def talkative_daemon(machine: Machine, raw: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the daemon in the foreground; what it says on stdout and stderr goes to files beside `raw`."""
    with raw.with_suffix(".out").open("wb") as out, raw.with_suffix(".err").open("wb") as err:
        daemon = subprocess.Popen(
            [sys.executable, "-E", "-P", "-c", TALKATIVE, raw, "-m", "ghapp.daemon"],
            env=machine.env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            eventually(lambda: daemon.poll() is not None or machine.daemon_pid() == daemon.pid)
            assert daemon.poll() is None, raw.with_suffix(".err").read_text()
            yield daemon
        finally:
            daemon.terminate()
            daemon.wait(10)


@dataclass(frozen=True, eq=False)
class Trouble:
    """What goes wrong for the owner of this name; `planted` is a secret in GitHub's answer."""

    name: str
    fault: dict[str, Any]
    where: str = MINT
    planted: str = ""


def troubles() -> list[Trouble]:
    """Return the fault matrix, each with a secret of its own where the answer can hold one."""
    found = []

    def add(name: str, where: str = MINT, planted: str = "", **fault: Any) -> None:
        found.append(Trouble(name, fault, where, planted))

    def said(message: str) -> dict[str, Any]:
        return {"headers": {"content-type": "application/json"}, "body": json.dumps({"message": message})}

    def answered(name: str, body: Callable[[str], str | bytes], status: int = 201, **more: Any) -> None:
        planted = "zq" + secrets.token_hex(40)
        headers = {"content-type": "application/json"} | more.pop("headers", {})
        add(name, planted=planted, status=status, body=body(planted), headers=headers, **more)

    def minted(name: str, change: Callable[[dict[str, Any], str], dict[str, Any]]) -> None:
        planted = "zq" + secrets.token_hex(40)
        add(name, planted=planted, edit=lambda body: change(body, planted))

    installation = r"/repos/{}/rocket/installation$"
    add("suspended", status=403, **said("This installation has been suspended"))
    add("forbidden", status=403, **said("Although you appear to have the correct authorization credentials, no"))
    add("gone", status=404, **said("Not Found"))
    add("refused", status=422, **said("The permissions requested are not granted to this installation."))
    add("unknown", where=installation, status=404, **said("Not Found"))
    add("failing", status=500, **said("Server Error"))
    add("unavailable", where=installation, status=503, body="<html>Unicorn!</html>")
    add("cut", cut=True)
    add("cut-early", where=installation, cut=True)
    answered("truncated", lambda p: f'{{"token": "{p}", "expires_at": "20', content_length=4096)
    answered("broken", lambda p: f'{{"token": "{p}", "expires_at": }}')
    answered("no-text", lambda p: f'{{"token": "{p}'.encode() + b'\xff\xfe"}')
    answered("doubled", lambda p: f'{{"token": "{p}", "token": "{p}", "expires_at": "2099-01-01T00:00:00Z"}}')
    answered("html", lambda p: f"<html>{p}</html>", headers={"content-type": "text/html"})
    answered("ok-not-created", lambda p: json.dumps({"token": p, "expires_at": "2099-01-01T00:00:00Z"}), status=200)
    answered("compressed", lambda p: p, headers={"content-encoding": "gzip"})
    answered("elsewhere", lambda p: p, status=302, headers={"location": "https://evil.example/"})
    answered("quoting", lambda p: json.dumps({"errors": [p], "message": "Validation Failed"}), status=422)
    minted("with-a-newline", lambda body, p: body | {"token": f"{p}\nhost=evil.example"})
    minted("with-a-space", lambda body, p: body | {"token": f"{p} {p}"})
    minted("no-ascii", lambda body, p: body | {"token": f"{p}é"})
    minted("too-long", lambda body, p: body | {"token": p * 100})
    minted("not-a-string", lambda body, p: body | {"token": [p]})
    minted("no-end", lambda body, p: body | {"token": p, "expires_at": f"soon {p}"})
    minted("long-ended", lambda body, p: body | {"token": p, "expires_at": "2001-01-01T00:00:00Z"})
    minted("wider", lambda body, p: body | {"token": p, "permissions": {"administration": "write"}})
    minted("elsewhere-selected", lambda body, p: body | {"token": p, "repository_selection": "all"})
    return found


def ask(machine: Machine, owner: str, more: str = "") -> bytes:
    """Ask git.sock as our client does."""
    request = f"action=get\ntimeout=0\nghapp=1\n{REQUEST.format(owner)}{more}"
    return talk(machine.sockets / "git.sock", request.encode())


def call(machine: Machine, method: str) -> dict[str, Any]:
    request = {"jsonrpc": "2.0", "id": 1, "method": method}
    answer: dict[str, Any] = json.loads(talk(machine.sockets / "control.sock", json.dumps(request).encode() + b"\n"))
    return answer


def suffer(machine: Machine, app: App, trouble: Trouble) -> None:
    """Make an installation for `trouble`, in which it happens."""
    github = machine.github
    installation = github.install(app, trouble.name)
    github.add_repository(f"{trouble.name}/rocket")
    number = installation.id if trouble.where == MINT else trouble.name
    github.faults.add(trouble.where.format(number), surface="api", times=None, **trouble.fault)


def hunted_on(machine: Machine, app: App, planted: list[str]) -> set[bytes]:
    everything = key_secrets(app.private_key_pem) + token_secrets(machine.github) + jwt_secrets(machine.github)
    return needles([*everything, *(text.encode() for text in planted)])


@pytest.mark.slow
def test_whatever_fails_no_secret_is_written_or_said_anywhere(
    machine: Machine, desktop: Session, app: App, tmp_path: Path
) -> None:
    """Every library at its most talkative, and what is logged looked at before the net under it."""
    github, state = machine.github, machine.home / ".local/state"
    raw = tmp_path / "heard" / "raw"
    raw.parent.mkdir()
    matrix = troubles()
    said: list[tuple[str, bytes]] = []
    with talkative_daemon(machine, raw):
        assert b"password=" in ask(machine, "acme")  # the app's key is proven now: what follows goes side by side
        for trouble in matrix:
            suffer(machine, app, trouble)
        with ThreadPoolExecutor(8) as pool:
            answers = dict(zip(matrix, pool.map(lambda t: ask(machine, t.name), matrix), strict=True))
        for trouble, answer in answers.items():
            assert b"password=" not in answer, trouble.name
            assert (b"(E" in answer) == (trouble.name not in NOT_OURS), trouble.name
            said.append((f"the answer to {trouble.name}", answer))
            done = machine.run(FRONT, "get", input=REQUEST.format(trouble.name))
            said.append((f"the front on {trouble.name}", (done.stdout + done.stderr).encode()))
        said.append(("the front after a 429", app_is_refused(machine, 429, {"retry-after": "1"})))
        eventually(lambda: all(app["trouble"] is None for app in call(machine, "status")["result"]["apps"]))
        call(machine, "reload")
        token = github.mints[-1].token
        for request in (f"password={token}\0\n", f"{token}\n", f"url={token}\nurl={token}\n", f"password={token}x\n"):
            talk(machine.sockets / "git.sock", f"action=erase\ntimeout=0\nghapp=1\n{request}".encode())
            said.append(("a strange request", ask(machine, "nobody", request)))
        talk(machine.sockets / "control.sock", f'{{"jsonrpc": "2.0", "method": "{token}", "params": 7}}\n'.encode())
        github.settings.reject_every_post = True  # and so git brings the token back, to erase it
        done = machine.git("clone", "https://github.com/acme/rocket.git", check=False)
        assert done.returncode == 128
        github.settings.reject_every_post = False
        said += [
            (" ".join(words), machine.ghapp(*words, check=False).stdout.encode())
            for words in (("status", "--json"), ("leases", "--json"), ("leases",), ("installations", "--json"))
        ]
        machine.git("clone", "https://github.com/acme/rocket.git")
        said.append(("the front after a 401", app_is_refused(machine, 401, {})))
    for proxy in ("http://127.0.0.1:1", github.proxy_url.replace("builder:", "builder:x")):
        said.append((f"the front, with {proxy}", proxy_refuses(machine, proxy)))
    desktop.kill_keyrings()
    desktop.start_keyring(None)
    done = machine.git("ls-remote", "https://github.com/acme/rocket.git", check=False)
    assert "(E31)" in done.stderr
    said.append(("git, with a locked keyring", done.stderr.encode()))

    heard = list(places(machine, raw.parent))
    hunted = hunted_on(machine, app, [trouble.planted for trouble in matrix if trouble.planted])
    for name, content in [*said, *heard, *places(machine, machine.home, machine.runtime, machine.work)]:
        assert not found_in(content, hunted), name
    password = needles([PROXY_PASSWORD.encode()])
    for name, content in [*said, *((name, text) for name, text in heard if not name.endswith("/environ"))]:
        assert not found_in(content, password), name
    assert (state / "ghapp/daemon.log").stat().st_size
    talked = raw.read_text()
    for name in ("ghapp.server", "httpcore.http11", "httpcore.proxy", "asyncio"):
        assert f"\n{name}" in talked or talked.startswith(name), f"{name} did not say anything"
    assert talked.count("no credential: E") >= len(matrix)


def app_is_refused(machine: Machine, status: int, headers: dict[str, str]) -> bytes:
    """Let GitHub refuse the whole app, which is silent from then on."""
    headers = {"content-type": "application/json"} | headers
    body = json.dumps({"message": "A JSON web token could not be decoded"})
    fault = machine.github.faults.add("installation$", surface="api", status=status, headers=headers, body=body)
    done = machine.run(FRONT, "get", input=REQUEST.format(f"refused{status}"))
    assert fault.hits == 1
    assert "(E" in done.stderr
    return (done.stdout + done.stderr).encode()


def proxy_refuses(machine: Machine, proxy: str) -> bytes:
    """Ask a daemon that is started, detached, where the proxy does not let anybody through."""
    environment = {"HTTPS_PROXY": proxy}
    done = machine.run(FRONT, "get", input=REQUEST.format("acme"), env=environment)
    assert "(E16)" in done.stderr
    machine.ghapp("daemon", "stop", env=environment)
    return done.stderr.encode()


def test_the_hunt_finds_what_is_there(machine: Machine, app: App) -> None:
    """A hunt that cannot find anything proves nothing."""
    machine.fill()
    (jwt, *_), (mint, *_) = jwt_secrets(machine.github), machine.github.mints
    basic = subprocess.run(["base64", "-w0"], input=b"x:" + mint.token.encode(), capture_output=True, check=True).stdout
    key = load_pem_private_key(app.private_key_pem, None)
    assert isinstance(key, RSAPrivateKey)

    for secret, leaks in {
        "key": (app.private_key_pem.replace(b"\n", b""), encode_key(key)),
        "token": (mint.token.encode(), basic, mint.token[-40:].encode(), mint.token.encode().hex().encode()),
        "jwt": (b"Bearer x.y." + jwt, jwt.hex().encode()),
    }.items():
        for number, leak in enumerate(leaks):
            assert found_in(b"x" * number + leak, hunted_on(machine, app, [])), (secret, number)


def test_while_git_works_no_process_carries_a_secret_in_its_arguments_or_environment(
    machine: Machine, app: App
) -> None:
    """Looked at twice: when the token is being made, and when git uses it."""
    github, held, seen = machine.github, [threading.Event(), threading.Event()], []
    mint = github.faults.add(MINT.format(r"\d+"), hold=held[0])
    fetch = github.faults.add("git-upload-pack$", surface="git", method="POST", hold=held[1])
    with ThreadPoolExecutor(1) as pool:
        try:
            clone = pool.submit(machine.git, "clone", "https://github.com/acme/rocket.git")
            for fault, event in ((mint, held[0]), (fetch, held[1])):
                eventually(fault.reached.is_set)
                seen.append(list(processes(machine)))
                event.set()
        finally:
            github.faults.clear()
        assert clone.result().returncode == 0

    hunted = hunted_on(machine, app, [])
    for number, names in enumerate((("git-credential-ghapp", "ghapp.daemon"), ("git-remote-https", "ghapp.daemon"))):
        commands = [content.replace(b"\0", b" ").decode() for name, content in seen[number] if name.endswith("cmdline")]
        for name in names:
            assert any(name in command for command in commands), (name, commands)
        for place, content in seen[number]:
            assert not found_in(content, hunted), place


# -- the daemon's memory -------------------------------------------------------------------------------------------


def memory(pid: int) -> Iterator[bytes]:
    """Yield what the process `pid` can read and write; skips the test where we may not look."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        area, mode, *_ = line.split()
        begin, end = (int(text, 16) for text in area.split("-"))
        if mode.startswith("rw") and "[vvar" not in line:
            with Path(f"/proc/{pid}/mem").open("rb") as file:
                file.seek(begin)
                try:
                    yield file.read(end - begin)
                except OSError:
                    continue  # a mapping that has no page there


def seen_in_memory(pid: int, forms: dict[str, bytes]) -> set[str]:
    """Return the forms of which a part is there: what was freed is overwritten bit by bit."""
    parts = {name: [form[at : at + PART] for at in range(0, len(form) - PART, PART)] for name, form in forms.items()}
    seen = set()
    for content in memory(pid):
        seen |= {name for name, some in parts.items() if any(part in content for part in some)}
    return seen


def forms_of(pem: bytes) -> dict[str, bytes]:
    """Return the forms in which a key passes through our programs; of a PEM and of DER without what is public."""
    key = load_pem_private_key(pem, None)
    assert isinstance(key, RSAPrivateKey)
    numbers = key.private_numbers()
    digits = [numbers.p >> 30 * number & (2**30 - 1) for number in range(34)]  # as CPython keeps an int
    return {
        "PEM": b"".join(line[:PART] + line[-PART:] for line in pem.splitlines()[9:-2]),
        "the keyring's line": encode_key(key),
        "p as DER has it": numbers.p.to_bytes(128),
        "q as DER has it": numbers.q.to_bytes(128),
        "d as DER has it": numbers.d.to_bytes(256),
        "p as Python's int": b"".join(digit.to_bytes(4, sys.byteorder) for digit in digits),
        OPENSSLS: numbers.p.to_bytes(128, sys.byteorder),
    }


PART = 24  # bytes of a key that are looked for together
OPENSSLS = "p as OpenSSL has it"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux, to read /proc/PID/mem")
def test_of_a_key_in_the_keyring_the_daemon_holds_openssls_numbers_alone_and_not_for_long(
    machine: Machine, app: App
) -> None:
    """That OpenSSL's are found shows that the search can find something."""
    config = machine.home / ".config/ghapp/config.toml"
    config.write_text('[daemon]\nkey_ttl = "5s"\n\n' + config.read_text())
    github = machine.github
    (installation,) = github.installations.values()
    for number in range(10):
        github.select(installation, github.add_repository(f"acme/rocket{number}"))
    machine.ghapp("daemon", "start")
    pid = machine.daemon_pid()
    assert pid is not None
    forms, seen = forms_of(app.private_key_pem), []

    for number in range(10):
        request = f"action=get\ntimeout=0\nghapp=1\nprotocol=https\nhost=github.com\npath=acme/rocket{number}\n"
        assert b"password=" in talk(machine.sockets / "git.sock", request.encode())
        if number in {0, 9}:
            seen.append(seen_in_memory(pid, forms))

    assert seen == [{OPENSSLS}] * 2
    eventually(lambda: not seen_in_memory(pid, forms), 25)


# -- the system calls of a clone -----------------------------------------------------------------------------------


def traced_clone(machine: Machine) -> dict[Path, str]:
    """Clone and return what each process of git's did: the programs it ran, and what it wrote."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    record = machine.work / "trace"
    calls = "execve,write,writev,sendto,sendmsg,openat,open,creat"
    words = ("strace", "-ff", "-v", "-s", "65536", "-e", f"trace={calls}", "-o", record)
    with ThreadPoolExecutor(1) as pool:
        clone = pool.submit(machine.run, *words, "git", "clone", "https://github.com/acme/rocket.git")
        try:
            eventually(lambda: clone.done() or (machine.work / "rocket/README.md").exists(), 25)
        finally:
            machine.end()  # one that was started here is traced as well, and waited for
        clone.result()
    return {file: file.read_text(errors="replace") for file in machine.work.glob("trace.*")}


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_clone_gets_its_answer_in_one_write_and_runs_no_program_with_a_secret(ready: Machine, state: str) -> None:
    if state == "warm":
        ready.fill()
    else:
        ready.ghapp("daemon", "stop")

    record = traced_clone(ready)

    (token, *_) = {mint.token for mint in ready.github.mints}
    ours = re.compile(r'^execve\(("[^"]*git-credential-ghapp"|.*ghapp\.client import)', re.MULTILINE)
    helpers = [text for text in record.values() if ours.search(text)]
    to_git = [call for text in helpers for call in re.findall(r"^write\(1, .*", text, re.MULTILINE)]
    assert len(helpers) == (2 if state == "warm" else 3)  # get and store; client.py in between
    assert len(to_git) == 1
    assert f'"username=x-access-token\\npassword={token}\\npassword_expiry_utc=' in to_git[0]
    hunted = needles([*token_secrets(ready.github), *jwt_secrets(ready.github)])
    for text in record.values():
        for line in text.splitlines():
            if line.startswith(("execve", "open", "creat")):
                assert not found_in(line.encode(), hunted)
    assert any(found_in(text.encode(), hunted) for text in record.values())
