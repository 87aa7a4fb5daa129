"""What git runs, fed with what no git sends: it ends in time, is silent or right, and prints text only."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e.conftest import BIN, Machine


FRONT = BIN / "git-credential-ghapp"
ROCKET = b"protocol=https\nhost=github.com\npath=acme/rocket.git\n"
ELSEWHERE = b"protocol=https\nhost=evil.example\npath=acme/rocket.git\n"
IN_TIME = 8.0  # seconds on a busy machine; what is measured on an idle one is under a second
MOST_MEMORY = 128 * 1024  # KiB; a shell holds a line of 10 MiB some times over
CLIENT: list[str | Path] = [sys.executable, "-E", "-P", "-c", "from ghapp.client import main\nmain()"]
SAID = re.compile(rb"(?:ghapp: (?:error|hint): [ -~]{1,400}\n)*")
MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print("memory", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
def warm(ready: Machine) -> Machine:
    """A machine whose daemon holds a token for acme/rocket."""
    assert ready.fill()["password"]
    return ready


class Done:
    """How a run of the helper ended, and what the largest of its processes needed."""

    def __init__(self, process: "subprocess.Popen[bytes]", out: bytes, err: bytes) -> None:
        self.status = process.returncode
        self.out = out
        self.err, _, memory = err.rpartition(b"memory ")
        self.memory = int(memory) if sys.platform == "linux" else int(memory) // 1024


def start(machine: Machine, stdin: int = subprocess.PIPE) -> "subprocess.Popen[bytes]":
    # A small process in between: a child's peak begins with what its parent had when it was forked.
    command = [sys.executable, "-I", "-S", "-c", MEASURE, str(FRONT), "get"]
    return subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=machine.work, env=machine.env
    )


def feed(machine: Machine, data: bytes, limit: float = IN_TIME) -> Done:
    process = start(machine)
    try:
        out, err = process.communicate(data, timeout=limit)
    finally:
        process.kill()
    return Done(process, out, err)


def is_right(out: bytes) -> bool:
    return re.fullmatch(rb"username=x-access-token\npassword=ghs_[!-~]+\npassword_expiry_utc=\d+\n", out) is not None


HOSTILE = {
    "a NUL behind the host": ROCKET.replace(b"github.com", b"github.com\0.evil.example"),
    "a NUL for a line's end": b"protocol=https\0host=github.com\npath=acme/rocket\n",
    "a CR behind the host": ROCKET.replace(b"github.com", b"github.com\r"),
    "a CR in the host": ROCKET.replace(b"github.com", b"evil.example\rhost=github.com"),
    "CRLF": ROCKET.replace(b"\n", b"\r\n"),
    "an ESC in the path": ROCKET.replace(b"acme", b"acme\x1b[2J"),
    "an ESC in a line without =": ROCKET + b"\x1b]0;title\x07\n",
    "an ESC in a key": ROCKET + b"\x1b[2J=1\n",
    "bytes that are no text": ROCKET.replace(b"acme", b"\xff\xfe\x80"),
    "a line separator of Unicode": ROCKET.replace(b"github.com", "evil.example\u2028host=github.com".encode()),
    "next line": ROCKET.replace(b"github.com", "evil.example\u0085host=github.com".encode()),
    "two hosts": ROCKET + b"host=evil.example\n",
    "two hosts, ours last": ELSEWHERE + b"host=github.com\n",
    "no host": ROCKET.replace(b"host=github.com\n", b""),
    "an empty host": ROCKET.replace(b"github.com", b""),
    "a url": ROCKET + b"url=https://github.com/acme/rocket\n",
    "a command": ROCKET.replace(b"acme", b"$(echo acme)"),
    "quotes": ROCKET.replace(b"acme", b"'\"`echo acme`\\"),
    "a pattern": ROCKET.replace(b"acme", b"*"),
    "a format": ROCKET.replace(b"acme", b"%s%n\\n\\c"),
    "a request of the daemon": b"action=get\ntimeout=0\n" + ROCKET,
    "300 lines": ROCKET + b"a=1\n" * 300,
    "nothing": b"",
    "a blank line first": b"\n" + ROCKET,
    "the other host": ELSEWHERE,
}


ODD = {
    "to its end": ROCKET,
    "a blank line": ROCKET + b"\n",
    "no newline": ROCKET[:-1],
    "more behind the blank line": ROCKET + b"\nhost=evil.example\n",
    "escapes where they do not count": ROCKET + b"wwwauth[]=\x1b[2J\\c%s\xff\n",
}


def test_what_no_git_sends_is_not_answered(warm: Machine) -> None:
    for what, data in HOSTILE.items():
        done = feed(warm, data)

        assert (done.status, done.out) == (0, b""), what
        assert SAID.fullmatch(done.err), (what, done.err)
        assert done.memory < MOST_MEMORY, what
    assert is_right(feed(warm, ROCKET).out)


def test_what_is_only_odd_is_answered_right(warm: Machine) -> None:
    for what, data in ODD.items():
        done = feed(warm, data)

        assert is_right(done.out), what
        assert done.err == b"", what


@pytest.mark.parametrize("data", [ROCKET, ELSEWHERE], ids=["ours", "not ours"])
def test_nobody_waits_for_what_comes_behind_the_blank_line(warm: Machine, data: bytes) -> None:
    """The writer keeps its end open."""
    reader, writer = os.pipe()
    process = start(warm, reader)
    os.close(reader)
    os.write(writer, data + b"\n")
    try:
        done = Done(process, *process.communicate(timeout=IN_TIME))
    finally:
        process.kill()
        os.close(writer)
    assert is_right(done.out) is (data == ROCKET)
    assert SAID.fullmatch(done.err)


@pytest.mark.slow
def test_a_line_of_10_mib_is_not_answered(warm: Machine) -> None:
    """A shell reads byte by byte, so this takes its seconds; git's lines are under 64 KiB."""
    done = feed(warm, ROCKET + b"x=" + b"y" * (10 << 20) + b"\n", limit=50)

    assert (done.status, done.out) == (0, b"")
    assert SAID.fullmatch(done.err)
    assert done.memory < MOST_MEMORY


def test_zeros_without_end_fill_no_memory_and_are_not_answered(warm: Machine) -> None:
    """As long as they come they are read; the figure is what that costs."""
    process = start(warm)
    assert process.stdin is not None
    end = time.monotonic() + 2
    with process.stdin as sink:
        while time.monotonic() < end:
            sink.write(bytes(4096))
    process.stdin = None
    try:
        out, err = process.communicate(timeout=IN_TIME)
    finally:
        process.kill()

    done = Done(process, out, err)
    assert done.out == b""
    assert SAID.fullmatch(done.err)
    assert done.memory < MOST_MEMORY


@pytest.mark.parametrize("command", [[FRONT, "get"], CLIENT], ids=["sh", "python"])
def test_an_answer_is_written_at_once(warm: Machine, command: list[str | Path]) -> None:
    """git takes what it got, also from a helper that died in the middle of a line."""
    lines = traced(warm, "write,writev,sendfile,splice,dup2,dup3", ROCKET, command)

    first = lines[0].partition(": ")[0]
    (written,) = [line for line in lines if line.startswith(f"{first}: ") and "(1," in line and "dup" not in line]
    assert re.search(r'write\(1, "username=x-access-token\\npassword=ghs_[^"]+\\npassword_expiry_utc=\d+\\n"', written)


# -- what strangers' repositories and environments can change ------------------------------------------------------


WIDER = """[credential]
    helper =
    helper = "!echo username=u; echo password=from-the-repository; :"
    useHttpPath = false
[credential "https://evil.example"]
    helper = {front}
    username = x-access-token
[url "https://evil.example/"]
    insteadOf = https://github.com/
[ghapp]
    host = evil.example
[github]
    host = evil.example
"""
ENVIRONMENT = {
    "CODESPACES": "true",
    "GH_HOST": "evil.example",
    "GH_ENTERPRISE_TOKEN": "x",
    "GITHUB_TOKEN": "x",
    "GITHUB_API_URL": "https://evil.example",
    "GITHUB_SERVER_URL": "https://evil.example",
    "GHAPP_HOST": "evil.example",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "ghapp.host",
    "GIT_CONFIG_VALUE_0": "evil.example",
    "GIT_CONFIG_KEY_1": "credential.helper",
    "GIT_CONFIG_VALUE_1": "cache",
    "GIT_CONFIG_PARAMETERS": "'ghapp.host=evil.example' 'alias.credential-cache=!echo password=alias'",
}


@pytest.fixture
def hostile(warm: Machine) -> Machine:
    """The same, inside a repository and an environment that would make more of the world ours."""
    repository = warm.work / "hostile"
    warm.git("init", "-q", repository)
    (repository / ".git" / "config").write_text(WIDER.format(front=FRONT))
    warm.work = repository
    warm.env |= ENVIRONMENT
    return warm


def test_no_repository_and_no_environment_makes_a_host_ours(hostile: Machine) -> None:
    for state in ("warm", "cold"):
        if state == "cold":
            hostile.ghapp("daemon", "stop")
        for host in ("evil.example", "github.com.evil.example", "gist.github.com", "github.evil.example"):
            done = feed(hostile, ELSEWHERE.replace(b"evil.example", host.encode()))

            assert (done.out, done.err) == (b"", b""), (state, host)
        assert is_right(feed(hostile, ROCKET).out), state


@pytest.mark.parametrize("request_", [ROCKET, ELSEWHERE], ids=["ours", "not ours"])
def test_no_git_is_run_but_the_relay_and_nothing_of_the_repository_is_read(hostile: Machine, request_: bytes) -> None:
    """The one git that is run is told the socket and no more; it reads the person's own configuration, as every git."""
    looked = looks_into(hostile, ["git", "config", "--list"])
    assert [line for line in looked if "/config" in line]  # so what follows would be seen

    lines = traced(hostile, LOOKS, request_, [FRONT, "get"])

    ran = [line for line in lines if re.search(r"execve\(.* = 0$", line)]
    gits = [line for line in ran if line.startswith("git: ")]
    assert {line.partition(": ")[0] for line in ran} <= {"git-credential-ghapp", "git", "python"}
    assert len(gits) == 1
    assert '["git", "credential-cache", "--timeout=0", "--socket=' in gits[0]
    assert looks_into(hostile, [FRONT, "get"], request_) == []


LOOKS = "open,openat,openat2,readlink,stat,lstat,newfstatat,access,faccessat,faccessat2,chdir"


def looks_into(machine: Machine, command: list[str | Path], request: bytes = b"") -> list[str]:
    """Return the calls that name a file of the repository's .git, by its whole name or as one beside."""
    directory = re.escape(str(machine.work))
    return [
        line for line in traced(machine, LOOKS, request, command) if re.search(rf'"(?:{directory}/)?\.git[/"]', line)
    ]


def traced(machine: Machine, calls: str, request: bytes, command: list[str | Path]) -> list[str]:
    """Return the system calls of a command and of all that it runs, each behind the name of the program."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    record = machine.home / "trace"
    for old in machine.home.glob("trace.*"):
        old.unlink()
    # A file for each process (-ff): in a common one, calls are cut in two by those of others.
    strace = ["strace", "-ff", "-s", "4096", "-e", f"trace=execve,{calls}", "-o", record, *command]
    subprocess.run(
        strace, input=request, cwd=machine.work, env=machine.env, capture_output=True, check=True, timeout=50
    )
    lines = []
    for file in sorted(machine.home.glob("trace.*"), key=lambda path: int(path.suffix[1:])):
        program = "a fork"
        for line in file.read_text(errors="replace").splitlines():
            if match := re.match(r'execve\("([^"]+)".* = 0$', line):
                program = Path(match[1]).name
            lines.append(f"{program}: {line}")
    return lines
