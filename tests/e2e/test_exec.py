"""`ghapp exec`: a command with access, which ends when the command does, or we do, however that comes about."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e.conftest import PERMISSIONS, Machine
from e2e.test_git_versions import Chroot, chroot  # noqa: F401  # a fixture
from e2e.test_grants import use
from e2e.test_setup import Terminal
from fakes_process import eventually, remove_signal_handlers
from standin.server import StandIn

from ghapp.clock import SystemClock
from ghapp.daemon import Daemon
from ghapp.process import wait_for_end


ROCKET = "https://github.com/acme/rocket.git"
PROBE = "https://github.com/acme/probe.git"

Begin = Callable[..., "subprocess.Popen[str]"]


def set_up(machine: Machine) -> None:
    github = machine.github
    app = github.add_app("acme-bot", PERMISSIONS)
    github.install(app, "acme", repositories=["rocket", "probe"])
    for name in ("rocket", "probe"):
        github.add_repository(f"acme/{name}", files={"README.md": f"# {name}\n"})
    machine.add_app(app)


@pytest.fixture
def able(machine: Machine) -> Machine:
    """A machine with an app, and a git that knows nothing of us."""
    set_up(machine)
    return machine


def alive(github: StandIn) -> list[str]:
    return [mint.token for mint in github.mints if github.live_token(mint.token) is not None]


@pytest.fixture
def begin(able: Machine) -> Iterator[Begin]:
    """Start `ghapp exec` with a command that talks to the test; what still runs is killed."""
    with contextlib.ExitStack() as stack:

        def started(*command: str) -> "subprocess.Popen[str]":
            process = stack.enter_context(
                subprocess.Popen(
                    ["ghapp", "exec", "acme/rocket", "--", *command],
                    env=able.env,
                    cwd=able.work,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield started


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# -- what CMD gets -----------------------------------------------------------------------------------------------


def test_git_and_other_tools_have_one_token_which_is_dead_afterwards(able: Machine) -> None:
    script = f'git clone -q {ROCKET} && printf "%s\\n" "$GH_TOKEN" "$GITHUB_TOKEN" && env | grep -c GIT_CONFIG_COUNT'
    done = able.ghapp("exec", "acme/rocket", "--", "sh", "-c", script, check=False)

    (mint,) = able.github.mints
    assert done.stdout.splitlines() == [mint.token, mint.token, "1"], done.stderr
    assert mint.repositories == ("acme/rocket",)
    assert {"contents", "issues"} <= mint.permissions.keys()
    assert alive(able.github) == []
    assert done.stderr == ""
    assert list((able.sockets / "grants").iterdir())  # for a while it says that it has ended


def test_less_is_less_for_both(able: Machine) -> None:
    script = f"git clone -q {ROCKET} && cd rocket && git commit -q --allow-empty -m x && git push -q"
    done = able.ghapp("exec", "acme/rocket", "--read-only", "--", "sh", "-c", script, check=False)

    assert "error: 403" in done.stderr
    assert set(able.github.mints[0].permissions.values()) == {"read"}
    able.ghapp("exec", "acme/rocket", "--permission", "contents=read", "--", "git", "ls-remote", ROCKET)
    assert able.github.mints[-1].asked["permissions"] == {"contents": "read"}


def test_without_a_name_it_is_for_the_remote_origin(able: Machine) -> None:
    able.ghapp("exec", "acme/rocket", "--", "git", "clone", "-q", ROCKET)

    able.ghapp("exec", "--", "git", "fetch", cwd=able.work / "rocket")

    lost = able.ghapp("exec", "--", "true", check=False)
    assert lost.returncode == 125
    assert "there is no remote 'origin' on https here" in lost.stderr
    assert "ghapp exec OWNER/REPO -- CMD" in lost.stderr


def test_nobody_else_answers_for_its_owner_and_everybody_for_others(able: Machine) -> None:
    """Not a helper for everything, not one for the owner, not one that a wrapper of ours put on its command line."""
    wide = "!f() { echo username=x; echo password=ghs_somebody_elses; }; f"
    able.git("config", "--global", "credential.helper", wide)
    able.git("config", "--global", "credential.https://github.com/acme.helper", wide)
    given = {"GIT_CONFIG_PARAMETERS": f"'credential.helper={wide}'"}
    given |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "credential.helper", "GIT_CONFIG_VALUE_0": wide}

    def filled(owner: str) -> subprocess.CompletedProcess[str]:
        request = f"protocol=https\nhost=github.com\npath={owner}.git\n\n"
        command = ("exec", "acme/rocket", "--", "git", "credential", "fill")
        return able.ghapp(*command, input=request, env=given, check=False)

    assert "password=ghs_somebody_elses" in filled("other/thing").stdout
    for spelling in ("acme/rocket", "acme/Rocket"):
        assert f"password={able.github.mints[-1].token}" not in (done := filled(spelling)).stdout
        assert f"password={able.github.mints[-1].token}" in done.stdout
    refused = filled("acme/probe")
    assert "acme/probe is not in grant exec-" in refused.stderr
    assert "password" not in refused.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chroot", ["bullseye", "sid"], indirect=True)
def test_an_old_git_and_todays_ask_nobody_else_either(chroot: Chroot, machine: Machine) -> None:  # noqa: F811  # a fixture
    machine.env["GHAPP_RUNTIME_DIR"] = str(chroot.inside / "sockets")
    set_up(machine)
    shutil.copy(machine.github.ca_file, chroot.inside / "ca.pem")
    wide = "!f() { echo username=x; echo password=ghs_somebody_elses; }; f"
    (chroot.inside / ".gitconfig").write_text(f'[credential]\n\thelper = "{wide}"\n')
    # The socket has the same path inside as outside, as in a container that has the runtime directory mounted.
    (chroot.path / chroot.inside.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
    seen = chroot.path / chroot.inside.relative_to("/")
    seen.symlink_to(chroot.seen)
    inside = (
        *("chroot", str(chroot.path), "/usr/bin/env", f"--chdir={chroot.seen}", f"HOME={chroot.seen}"),
        *("PATH=/usr/bin:/bin", f"GIT_SSL_CAINFO={chroot.seen}/ca.pem", "git"),
    )
    try:
        cloned = machine.ghapp("exec", "acme/rocket", "--", *inside, "clone", ROCKET, check=False)
        other = machine.ghapp("exec", "acme/rocket", "--", *inside, "clone", PROBE, check=False)
    finally:
        seen.unlink()

    assert cloned.returncode == 0, cloned.stderr
    assert (chroot.inside / "rocket/README.md").exists()
    assert other.returncode == 128
    assert "acme/probe is not in grant exec-" in other.stderr
    assert alive(machine.github) == []
    machine.end()


def test_githubs_own_command_line_uses_the_token(able: Machine) -> None:
    if shutil.which("gh") is None:
        pytest.skip("gh is not installed")

    printed = able.ghapp("exec", "acme/rocket", "--", "gh", "auth", "token").stdout.strip()
    asked = able.ghapp("exec", "acme/rocket", "--", "gh", "api", "/installation/repositories", check=False)

    assert printed == able.github.mints[0].token
    assert [entry["full_name"] for entry in json.loads(asked.stdout)["repositories"]] == ["acme/rocket"], asked.stderr


# -- how it ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -TERM $$"), 128 + 15),
        (("sh", "-c", "kill -9 $$"), 128 + 9),
        (("/nonexistent/program",), 127),
        (("no-such-program-anywhere",), 127),
        (("/etc/passwd",), 126),
        (("/",), 126),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_status_is_that_of_the_command(able: Machine, command: tuple[str, ...], status: int) -> None:
    assert able.ghapp("exec", "acme/rocket", "--", *command, check=False).returncode == status
    assert len(able.github.mints) == 1
    assert alive(able.github) == []


def test_the_status_is_the_commands_also_where_the_end_of_children_is_ignored(able: Machine) -> None:
    """As some daemons start what they start: the kernel reaps the children then, and tells nobody."""
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    script = "sh -c 'exit 3'; exit $(($? + 4))"

    done = able.run(
        sys.executable, "-c", ignoring, "ghapp", "exec", "acme/rocket", "--", "sh", "-c", script, check=False
    )

    assert done.returncode == 7, done.stderr
    assert alive(able.github) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("acme/rocket", "true"), "the command stands behind --"),
        (("acme/rocket", "--"), "there is no command"),
        (("--nonsense", "--", "true"), "no such option"),
        (("rocket", "--", "true"), "is not OWNER/REPO"),
        (("acme/*", "--", "true"), "is not OWNER/REPO"),
        (("acme/rocket", "other/thing", "--", "true"), "repositories of one owner"),
        (("acme/nowhere", "--", "true"), "(E20)"),
        (("acme/rocket", "--permission", "contents=admin", "--", "true"), "has not granted"),
        (("acme/rocket", "--read-only", "--permission", "contents=write", "--", "true"), "contradicts"),
    ],
    ids=" ".join,
)
def test_our_own_failures_have_a_status_of_their_own(able: Machine, arguments: tuple[str, ...], says: str) -> None:
    done = able.ghapp("exec", *arguments, check=False)

    assert done.returncode == 125
    assert says in done.stderr
    assert done.stderr.startswith("ghapp: error: ")
    assert alive(able.github) == []


def test_a_git_that_does_not_take_our_settings_is_a_failure_of_ours(able: Machine) -> None:
    done = able.ghapp("exec", "acme/rocket", "--", "true", env={"GIT_CONFIG_PARAMETERS": "nonsense"}, check=False)
    assert done.returncode == 125
    assert "git here does not take our settings" in done.stderr

    elsewhere = able.home / "bin"
    elsewhere.mkdir()
    wrapper = elsewhere / "git"
    wrapper.write_text(f'#!/bin/sh\nunset GIT_CONFIG_COUNT GIT_CONFIG_PARAMETERS\nexec {shutil.which("git")} "$@"\n')
    wrapper.chmod(0o755)
    done = able.ghapp("exec", "acme/rocket", "--", "true", env={"PATH": f"{elsewhere}:{able.env['PATH']}"}, check=False)
    assert done.returncode == 125
    assert "nothing comes last" in done.stderr
    assert alive(able.github) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(able: Machine, begin: Begin, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    process = begin("sh", "-c", f"trap 'echo got {name}; exit 5' {name}; echo ready; while read x; do :; done")
    assert first_line(process) == "ready"

    process.send_signal(number)

    assert first_line(process) == f"got {name}"
    assert process.wait(20) == 5
    assert alive(able.github) == []


def test_a_terminal_that_hangs_up_ends_the_command_also_where_we_lead_its_session(able: Machine) -> None:
    """As `ssh -t HOST ghapp exec ...` does: the kernel tells the session's leader, and nobody else."""
    terminal = Terminal(able, "ghapp", "exec", "acme/rocket", "--", "sh", "-c", "echo pid $$.; exec sleep 600")
    pid = int(terminal.expect(r"pid \d+\.")[4:-1])
    assert len(alive(able.github)) == 1

    assert terminal.hang_up() == 128 + signal.SIGHUP

    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert alive(able.github) == []


def test_a_command_that_is_killed_leaves_no_token(able: Machine, begin: Begin) -> None:
    process = begin("sh", "-c", "echo $$; read x")
    pid = int(first_line(process))
    assert len(alive(able.github)) == 1

    os.kill(pid, signal.SIGKILL)

    assert process.wait(20) == 128 + 9
    assert alive(able.github) == []


def test_one_that_is_killed_itself_leaves_no_token_and_what_it_started_no_access(able: Machine, begin: Begin) -> None:
    """The daemon ends the grant: it sees the connection close, whatever closes it."""
    script = f"echo ready; read x; git ls-remote {ROCKET} 2>&1; echo status $?"
    process = begin("sh", "-c", script)
    assert first_line(process) == "ready"
    assert len(alive(able.github)) == 1

    process.kill()
    process.wait(20)
    eventually(lambda: not alive(able.github))
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()

    assert process.stdout is not None
    said = process.stdout.read()
    assert "ghapp: error: grant exec-" in said
    assert "status 128" in said


def test_what_a_command_leaves_running_has_no_access_afterwards(able: Machine) -> None:
    """It inherits nothing that would keep the grant."""
    late = able.work / "late"
    os.mkfifo(able.work / "go")
    left = f"(read x < go; git ls-remote {ROCKET} > late 2>&1; echo done >> late) > /dev/null 2>&1 < /dev/null"
    script = f"{left} & exit 3"

    done = able.ghapp("exec", "acme/rocket", "--", "sh", "-c", script, check=False)

    assert done.returncode == 3
    assert alive(able.github) == []
    (able.work / "go").write_text("\n")
    eventually(lambda: late.exists() and "done" in late.read_text(), 20)
    assert "ghapp: error: grant exec-" in late.read_text()


def restart(able: Machine) -> None:
    able.ghapp("daemon", "restart")


def kill_the_daemon(able: Machine) -> None:
    pid = able.daemon_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid, 10)
    able.ghapp("daemon", "start")


@pytest.mark.parametrize("replace", [restart, kill_the_daemon])
def test_a_daemon_that_is_replaced_meanwhile_lends_again_and_ends_the_token_of_the_one_before(
    able: Machine, begin: Begin, replace: Callable[[Machine], None]
) -> None:
    script = f"git ls-remote {ROCKET} && echo ready && read x && git ls-remote {ROCKET} && echo ready && read x"
    child = begin("sh", "-c", script)
    assert "refs/heads/main" in " ".join(iter(lambda: first_line(child), "ready"))
    (first,) = alive(able.github)  # which CMD has in GH_TOKEN, and no daemon that follows was told by the one before

    for minted in (2, 3):
        replace(able)
        eventually(lambda minted=minted: len(able.github.mints) == minted, 20)  # type: ignore[misc]  # bound now
        eventually(lambda: json.loads(able.ghapp("grant", "list", "--json").stdout), 20)
    assert first in alive(able.github)
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert "refs/heads/main" in " ".join(iter(lambda: first_line(child), "ready"))
    assert len(able.github.mints) == 3  # and git has that of the last
    child.stdin.write("\n")
    child.stdin.flush()

    assert child.wait(20) == 0
    assert alive(able.github) == []
    assert json.loads(able.ghapp("leases", "--json").stdout) == []


def test_the_end_of_a_command_is_not_that_of_another_grant_of_its_name(able: Machine) -> None:
    script = (
        'name=$(basename "$(dirname "$GHAPP_GRANT_SOCKET")"); echo "$name"; '
        'ghapp grant revoke "$name" && ghapp grant create acme/probe --name "$name" --json'
    )
    done = able.ghapp("exec", "acme/rocket", "--", "sh", "-c", script)

    name, _, made = done.stdout.partition("\n")
    (lent,) = json.loads(able.ghapp("grant", "list", "--json").stdout)
    assert (lent["name"], lent["repositories"]) == (name, ["acme/probe"])
    assert "refs/heads/main" in able.git(*use(json.loads(made)["socket"]), "ls-remote", PROBE).stdout


# -- the second hour ---------------------------------------------------------------------------------------------


class ShiftedClock(SystemClock):
    """The real clocks, ahead by what a test says."""

    ahead = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead

    def boot(self) -> float:
        return super().boot() + self.ahead


@pytest.fixture
def fifos(able: Machine) -> tuple[Path, Path]:
    paths = able.work / "go", able.work / "done"
    for path in paths:
        os.mkfifo(path)
    return paths


async def test_the_same_command_fetches_in_its_second_hour(
    able: Machine, begin: Begin, fifos: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    able.end()
    for name in ("HOME", "XDG_RUNTIME_DIR", "HTTPS_PROXY", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, able.env[name])
    clock, github = ShiftedClock(), able.github
    daemon = Daemon(str(able.sockets), clock)
    listens = asyncio.Event()
    serving = asyncio.create_task(daemon.run(listens.set))
    await asyncio.wait_for(listens.wait(), 20)
    go, done = fifos
    script = (
        f"git clone -q {ROCKET} && cd rocket && git fetch; echo $? > {done}; read x < {go};"
        f" git -c credential.interactive=false fetch; echo $? > {done}"
    )
    child = await asyncio.to_thread(begin, "sh", "-c", script)
    try:
        assert await asyncio.to_thread(done.read_text) == "0\n"
        clock.ahead += 70 * 60
        github.clock.advance(70 * 60)
        await asyncio.to_thread(go.write_text, "\n")
        assert await asyncio.to_thread(done.read_text) == "0\n"
        assert await asyncio.to_thread(child.wait, 20) == 0
    finally:
        child.kill()
        daemon._ending.set()
        await asyncio.wait_for(serving, 20)
        remove_signal_handlers()

    first, second = github.mints
    assert github.live_token(first.token) is None
    assert github.live_token(second.token) is None
    assert second.time - first.time > 60 * 60
