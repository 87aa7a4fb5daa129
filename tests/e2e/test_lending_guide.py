"""docs/lending.md, typed as it stands: what it tells to do does, and what it shows is what is printed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from e2e.conftest import Machine
from e2e.test_git_versions import Chroot, chroot  # noqa: F401  # a fixture
from e2e.test_grants import set_up, sshd  # noqa: F401  # a fixture


GUIDE = (ROOT / "docs/lending.md").read_text()
PODMAN = os.environ.get("GHAPP_TEST_PODMAN", "podman")  # now: tests do not see the tester's variables
RUSTUP_HOME = os.environ.get("RUSTUP_HOME", str(Path.home() / ".rustup"))  # as above; a test's home has none
SOCKETS = "/run/user/1000/ghapp"  # as the guide shows them
RUN_HERE = {
    ("In short", "console"),
    ("A command", "console"),
    ("A coding agent in a sandbox", "sh"),
    ("A container", "sh"),
    ("A container", "console"),
    ("A dev container", "json"),
    ("A remote host", "console"),
    ("A CI host", "console"),
    ("An Actions runner of your own", "sh"),
    ("An Actions runner of your own", "ini"),
    ("Private dependencies", "sh"),
}
CANNOT_MOUNT = 97


def sections() -> dict[str, str]:
    title, *rest = re.split(r"^## (.+)\n", GUIDE, flags=re.MULTILINE)
    assert title.startswith("# ")
    return dict(zip(rest[::2], rest[1::2], strict=True))


def block(title: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", sections()[title], re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture
def able(machine: Machine) -> Machine:
    """A machine with an app, and a git that knows nothing of us."""
    set_up(machine)
    return machine


@dataclass(frozen=True)
class Step:
    command: str
    shown: str
    printed: str
    status: int


def play(machine: Machine, session: str, *, env: dict[str, str] | None = None) -> list[Step]:
    """Type a terminal session into one shell, and hold what is printed against what is shown, where anything is."""
    typed = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert "".join(f"$ {command}\n{shown}" for command, shown in typed) == session
    script = "exec 2>&1\n" + "".join(f"{command}\nprintf '\\036%s\\036' $?\n" for command, _ in typed)
    done = machine.run("sh", "-c", script, env=env)
    pieces = done.stdout.split("\036")
    steps = [
        Step(command, shown, printed, int(status))
        for (command, shown), printed, status in zip(typed, pieces[::2], pieces[1::2], strict=False)
    ]
    assert len(steps) == len(typed), done.stdout
    for step in steps:
        assert not step.shown or re.fullmatch(as_pattern(step.shown, machine), step.printed), step
    return steps


def as_pattern(shown: str, machine: Machine) -> str:
    pattern = re.escape(shown).replace(re.escape(SOCKETS), re.escape(str(machine.sockets))).replace("…", "[^\n]*")
    return re.sub(r"\d{4}\\-\d\d\\-\d\d\\ \d\d:\d\d:\d\d", r"\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d", pattern)


def test_every_block_of_the_guide_is_run() -> None:
    found = {
        (title, language)
        for title, text in sections().items()
        for language in re.findall(r"^```(\w+)\n", text, re.MULTILINE)
    }

    assert found == RUN_HERE


# -- on this machine ---------------------------------------------------------------------------------------------


def test_the_guide_in_short(able: Machine) -> None:
    steps = play(able, block("In short", "console"))

    assert [step.status for step in steps] == [0, 0, 0, 128, 0, 0, 128], steps
    assert all(able.github.live_token(mint.token) is None for mint in able.github.mints)


def test_a_command_has_access_and_leaves_none(able: Machine) -> None:
    steps = play(able, block("A command", "console"))

    assert [step.status for step in steps] == [0] * 4, steps
    assert all(able.github.live_token(mint.token) is None for mint in able.github.mints)


@pytest.fixture
def sandboxed(machine: Machine) -> Iterator[Machine]:
    """A machine with an app, and a home outside of /tmp: as a person's, and where the sandbox hides it by itself."""
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed (apt install bubblewrap)")
    probe = machine.run("bwrap", "--unshare-all", "--ro-bind", "/", "/", "true", check=False)
    if probe.returncode != 0:
        pytest.skip(f"bwrap does not run here: {probe.stderr.strip()}")
    machine.home = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="ghapp-"))
    machine.env |= {"HOME": str(machine.home), "GHAPP_RUNTIME_DIR": f"{machine.home}/run"}
    set_up(machine)
    # What the sandbox is to reach of the test itself.
    machine.env["GIT_SSL_CAINFO"] = str(shutil.copy(machine.github.ca_file, machine.work / "ca.pem"))
    yield machine
    machine.end()
    shutil.rmtree(machine.home)


def test_an_agent_in_a_sandbox_sees_its_socket_and_its_directory_alone(sandboxed: Machine) -> None:
    guide = block("A coding agent in a sandbox", "sh")
    agent = "- git clone https://github.com/acme/rocket"
    assert agent in guide
    files = r'find "$HOME" /tmp /run ! -path "$PWD/*" ! -path "/run/systemd/resolve/*" \( -type s -o -type f \)'
    look = f'{files}; rm -f "$GHAPP_GRANT_SOCKET"; touch left-behind'

    sandboxed.run("sh", "-c", guide)
    looked = sandboxed.run("sh", "-c", guide.replace(agent, f"- sh -c {shlex.quote(look)}"))
    refused = sandboxed.run("sh", "-c", guide.replace(agent, agent.replace("rocket", "probe")), check=False)

    assert (sandboxed.work / "rocket/README.md").exists()
    assert re.fullmatch(rf"{sandboxed.home}/run/grants/exec-\w+/git\.sock\n", looked.stdout), looked
    assert looked.stderr.count("git.sock': Read-only file system") == 1, looked
    assert (sandboxed.work / "left-behind").exists()
    assert "acme/probe is not in grant exec-" in refused.stderr
    github = sandboxed.github
    assert all(github.live_token(mint.token) is None for mint in github.mints)


def test_a_host_for_builds_serves_every_tool(machine: Machine) -> None:
    app = machine.github.add_app("acme-bot", {"contents": "write", "metadata": "read"})
    machine.github.install(app, "acme", repositories=["rocket"])
    machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    key = machine.home / "acme-bot.pem"
    key.touch(mode=0o600)
    key.write_bytes(app.private_key_pem)
    del machine.env["GIT_CONFIG_NOSYSTEM"]
    machine.env["GIT_CONFIG_SYSTEM"] = str(machine.home / "etc-gitconfig")
    (machine.home / "etc-gitconfig").touch()

    steps = play(machine, block("A CI host", "console").replace("4242", str(app.id)))

    assert [step.status for step in steps] == [0, 0, 0], steps
    assert "git-credential-ghapp" in (machine.home / "etc-gitconfig").read_text()
    machine.git("clone", "https://github.com/acme/rocket")


PACKAGE = {
    "package.json": '{"name": "rocket", "version": "1.0.0"}',
    "go.mod": "module github.com/acme/rocket\n\ngo 1.19\n",
    "rocket.go": "package rocket\n",
    "Cargo.toml": '[package]\nname = "rocket"\nversion = "1.0.0"\nedition = "2021"\n',
    "src/lib.rs": "",
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    "backend.py": """
import zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(f"{directory}/rocket-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("rocket.py", "")
        wheel.writestr("rocket-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: rocket\\nVersion: 1.0\\n")
        wheel.writestr("rocket-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("rocket-1.0.dist-info/RECORD", "")
    return "rocket-1.0-py3-none-any.whl"
""",
}
USES_IT = {
    "go.mod": "module x\n\ngo 1.19\n\nrequire github.com/acme/rocket v1.0.0\n",
    "Cargo.toml": '[package]\nname = "x"\nversion = "0.1.0"\nedition = "2021"\n'
    '[dependencies]\nrocket = { git = "https://github.com/acme/rocket" }\n',
    "src/lib.rs": "",
}
BROUGHT = {"go": "go/pkg/mod/github.com/acme/rocket*", "pip": "target/rocket.py", "npm": "node_modules/rocket"}
BROUGHT["cargo"] = "cargo/git/checkouts/rocket-*/*/Cargo.toml"


@pytest.mark.slow
@pytest.mark.parametrize("client", ["go", "pip", "npm", "cargo"])
def test_private_dependencies_are_fetched_by_those_who_want_them(machine: Machine, client: str) -> None:
    (line,) = (line for line in block("Private dependencies", "sh").splitlines() if f" {client} " in f" {line}")
    github = machine.github
    github.install(app := github.add_app("acme-bot", {"contents": "write"}), "acme", repositories=["rocket"])
    rocket = github.add_repository("acme/rocket", files=PACKAGE)
    machine.git("--git-dir", rocket.bare_path, "tag", "v1.0.0")
    machine.add_app(app)
    machine.env |= {
        "RUSTUP_HOME": RUSTUP_HOME,
        "CARGO_HOME": f"{machine.work}/cargo",
        "GOPATH": f"{machine.work}/go",
        "GOFLAGS": "-mod=mod -modcacherw",
        "PIP_TARGET": f"{machine.work}/target",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "npm_config_cafile": str(github.ca_file),
        "npm_config_update_notifier": "false",
    }
    works = machine.run("sh", "-c", f"{client} version || {client} --version", check=False)
    if works.returncode != 0:
        pytest.skip(f"{client} is not here: {works.stderr.strip()[:100]}")
    for name, content in USES_IT.items():
        (machine.work / name).parent.mkdir(exist_ok=True)
        (machine.work / name).write_text(content)

    machine.ghapp("exec", "acme/rocket", "--", "sh", "-ec", line, timeout=50)

    assert list(machine.work.glob(BROUGHT[client]))
    assert [mint.repositories for mint in github.mints] == [("acme/rocket",)]


# -- in a container: a mount namespace of its own, this machine's stock git, and nothing of ours ---------------------


def contained(
    machine: Machine, source: str, target: str, environment: dict[str, str], *command: str, uid: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `command` where `source` is mounted at `target`, read-only, and of the machine's only where it works."""
    assert Path(source).is_dir()
    script = """
        mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/project "$TARGET" && mount --bind "$WORK" /run/project &&
            mount --bind "$SOURCE" "$TARGET" && mount -o remount,bind,ro "$TARGET" || exit $CANNOT_MOUNT
        cp "$CA" /run/ca.pem && chmod 644 /run/ca.pem
        cd /run/project && mount -t tmpfs tmpfs "$HIDDEN" || exit $CANNOT_MOUNT
        exec "$@"
    """
    given = {"PATH": "/usr/bin:/bin", "HOME": "/run/project", "GIT_TERMINAL_PROMPT": "0"}
    given["GIT_SSL_CAINFO"] = "/run/ca.pem"
    given |= {"HTTPS_PROXY": machine.env["HTTPS_PROXY"], **environment}
    become = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups") if uid is not None else ()
    done = machine.run(
        *("unshare", "--mount", *(("--map-root-user",) if os.geteuid() else ()), "sh", "-c", script, "sh"),
        *(*become, "env", "-i", *(f"{name}={value}" for name, value in given.items()), *command),
        env={
            "SOURCE": source,
            "TARGET": target,
            "CA": str(machine.github.ca_file),
            "HIDDEN": str(machine.home.parent),
            "WORK": str(machine.work),
            "CANNOT_MOUNT": str(CANNOT_MOUNT),
        },
        check=False,
    )
    if done.returncode == CANNOT_MOUNT or done.stderr.startswith("unshare: "):
        pytest.skip(f"a mount namespace cannot be had here: {done.stderr.strip()}")
    return done


def bind(mount: str) -> tuple[str, str]:
    """Return source and target of a mount as docker is told of it; it has to be read-only."""
    parts = dict(part.partition("=")[::2] for part in mount.split(","))
    assert parts.keys() == {"type", "source", "target", "readonly"}
    assert parts["type"] == "bind"
    return parts["source"], parts["target"]


def heard_by(name: str, machine: Machine, script: str) -> list[str]:
    """Run `script` and return the arguments that the program `name` is started with."""
    program = machine.work / name
    program.write_text('#!/bin/sh\nprintf "%s\\036" "$@"\n')
    program.chmod(0o755)
    path = f"{machine.work}:{machine.env['PATH']}"
    return machine.run("sh", "-ec", script, env={"PATH": path}).stdout.rpartition("\036")[0].split("\036")


def test_what_docker_is_told_lends_to_a_container(able: Machine) -> None:
    guide = block("A container", "sh")
    create, run = guide.splitlines()
    able.run("sh", "-ec", create)
    words = heard_by("docker", able, run)

    assert words[:5] == ["run", "--rm", "-v", f"{able.work}:/git", "--mount"]
    source, target = bind(words[5])
    last = max(at for at, word in enumerate(words) if word == "--env") + 1
    environment = dict(word.split("=", 1) for word in words[7 : last + 1 : 2])
    assert words[last + 1 :] == ["alpine/git", "clone", "https://github.com/acme/rocket"]
    clone = ("git", *words[last + 2 :])
    cloned = contained(able, source, target, environment, *clone)
    other = contained(able, source, target, environment, "git", "ls-remote", "https://github.com/acme/probe")
    squat = contained(able, source, target, environment, "rm", "-f", f"{target}/git.sock")
    able.ghapp("grant", "revoke", "rocket")
    late = contained(able, source, target, environment, *clone, "again")

    assert (cloned.returncode, len(able.github.mints)) == (0, 1), cloned.stderr
    assert (able.work / "rocket/README.md").exists()
    assert "acme/probe is not in grant rocket" in other.stderr
    assert "Read-only file system" in squat.stderr
    assert "grant rocket ended at " in late.stderr


def test_the_readme_lends_in_the_same_way(able: Machine) -> None:
    (session,) = re.findall(
        r"^## Lend it\n.*?```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    lines = [line.removeprefix("$ ") for line in session.splitlines()]

    words = heard_by("docker", able, "\n".join(lines))

    assert lines[2] == block("A container", "sh").splitlines()[1]
    assert words[-3:] == ["alpine/git", "clone", "https://github.com/acme/rocket"]
    assert (able.work / "rocket/README.md").exists()
    assert json.loads(able.ghapp("grant", "list", "--json").stdout) == []


def test_the_configuration_that_the_guide_shows_is_what_is_printed(able: Machine) -> None:
    able.ghapp("grant", "create", "acme/rocket", "--name", "rocket")

    (step,) = play(able, block("A container", "console"))

    assert step.printed == step.shown


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chroot", ["bullseye", "sid"], indirect=True)
def test_podman_takes_what_is_printed_for_it(able: Machine, chroot: Chroot) -> None:  # noqa: F811  # the fixture
    engine = shlex.split(PODMAN)
    if shutil.which(engine[0]) is None:
        pytest.skip("podman is not here; GHAPP_TEST_PODMAN names one elsewhere, with its own options")
    create, run = block("A container", "sh").splitlines()
    ours = [
        "--network=host",
        "--workdir=/git",
        f"--volume={able.github.ca_file}:/ca.pem:ro",
        "--env=GIT_SSL_CAINFO=/ca.pem",
    ]
    words = shlex.join([*engine, "run", "--rm", *ours, f"--env=HTTPS_PROXY={able.env['HTTPS_PROXY']}"])
    run = run.replace("docker run --rm", words).replace(" docker)", " podman)")
    run = run.replace("alpine/git clone", f"--rootfs {chroot.path}:O git clone")
    able.run("sh", "-ec", create)

    able.run("sh", "-ec", run)
    refused = able.run("sh", "-ec", run.replace("/acme/rocket", "/acme/probe"), check=False)

    assert (able.work / "rocket/README.md").exists()
    assert "acme/probe is not in grant rocket" in refused.stderr
    assert len(able.github.mints) == 1


def test_a_dev_container_is_lent_to_each_time_it_starts(able: Machine) -> None:
    guide = json.loads(block("A dev container", "json"))
    for _ in range(2):
        able.run("sh", "-c", guide["initializeCommand"])
    printed = json.loads(able.ghapp("grant", "run-args", "rocket", "devcontainer").stdout)
    (mount,) = (each.replace("${localEnv:XDG_RUNTIME_DIR}", able.env["XDG_RUNTIME_DIR"]) for each in guide["mounts"])

    cloned = contained(able, *bind(mount), guide["containerEnv"], "git", "clone", "https://github.com/acme/rocket")

    assert cloned.returncode == 0, cloned.stderr
    assert printed["mounts"] == [mount]
    for_old_git = printed["containerEnv"].pop("GIT_CONFIG_PARAMETERS")
    assert "credential.https://github.com.helper=" in for_old_git
    assert printed["containerEnv"] == guide["containerEnv"]


def test_a_runner_of_another_user_reads_what_was_lent_and_nothing_else(able: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    uid = 12345
    create, show = block("An Actions runner of your own", "sh").replace("--uid runner", f"--uid {uid}").splitlines()
    able.run("sh", "-ec", create)
    configuration = able.run("sh", "-ec", show).stdout
    (mount,) = re.findall(r"^BindReadOnlyPaths=(.+)$", block("An Actions runner of your own", "ini"), re.MULTILINE)
    source, target = mount.replace("/run/user/997/ghapp", str(able.sockets)).split(":")
    write = f"printf '%s' {shlex.quote(configuration)} > ~/.gitconfig"
    push = "cd rocket && git commit -q --allow-empty -m x && git push"
    runner = f"{write}; git clone -q https://github.com/acme/rocket && {push}"
    names = {"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@x", "GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@x"}

    able.work.chmod(0o1777)
    done = contained(able, source, target, names, "sh", "-c", runner, uid=uid)
    other = ("git", "ls-remote", "https://github.com/acme/probe")
    outside = contained(able, source, target, names, *other, uid=uid)
    stranger = contained(able, source, target, names, "git", "ls-remote", "https://github.com/acme/rocket", uid=uid + 1)

    assert "error: 403" in done.stderr
    assert [dict(mint.asked["permissions"]) for mint in able.github.mints] == [{"contents": "read"}]
    assert "acme/probe is not in grant runner" in outside.stderr
    assert stranger.returncode == 128
    assert "could not read Password for 'https://x-access-token@github.com/" in stranger.stderr


def test_what_git_says_is_what_the_guide_explains(able: Machine) -> None:
    rows = re.findall(r"^\| `(.+?)`.*? \| .+ \| .* \|$", sections()["When it does not work"], re.MULTILINE)
    source = str(Path(able.ghapp("grant", "create", "acme/rocket", "--name", "rocket").stdout).parent)
    settings = {"GIT_CONFIG_GLOBAL": "/run/project/gitconfig"}
    (able.work / "gitconfig").write_text(able.ghapp("grant", "run-args", "rocket", "gitconfig").stdout)
    able.work.chmod(0o755)
    said: list[str] = []

    def ask(repository: str = "acme/rocket", environment: dict[str, str] = settings, uid: int | None = None) -> None:
        url = f"https://github.com/{repository}"
        done = contained(able, source, "/run/ghapp", environment, "git", "ls-remote", url, uid=uid)
        said.append(done.stderr.partition("\n")[0])

    ask("acme/probe")
    able.ghapp("lock")
    ask()
    able.ghapp("unlock")
    if os.geteuid() == 0:
        ask(uid=12345)
    else:
        rows = [row for row in rows if "Permission denied" not in row]
    able.ghapp("grant", "revoke", "rocket")
    ask()
    able.ghapp("grant", "create", "acme/rocket", "--name", "rocket")
    able.ghapp("daemon", "stop")
    ask()
    ask(environment={})

    rows = [row for row in rows if "403" not in row]  # a push to a read-only grant, as above
    assert len(rows) in {5, 6}
    found = {row: [bool(re.search(as_pattern(row, able), text)) for text in said] for row in rows}
    assert all(sum(matches) == 1 for matches in found.values()), (found, said)


# -- on another host: a real sshd on this one's loopback -------------------------------------------------------------


def test_a_remote_host_has_what_was_lent_while_we_are_connected(able: Machine, sshd: Sequence[str]) -> None:  # noqa: F811  # the fixture
    able.end()
    short = tempfile.mkdtemp(prefix="ghapp-")  # ssh takes no path as long as a test's may be
    able.env["GHAPP_RUNTIME_DIR"] = short
    session = block("A remote host", "console")
    reach = f"ssh {shlex.join([*sshd, '-o', 'HostName=127.0.0.1'])} "
    assert session.count('"ssh ') == 1
    remote = able.home / "remote"
    remote.mkdir()
    socket = ""
    try:
        _, connect = play(able, session.replace("ssh ", reach, 1))
        (forget,) = re.findall(r"(rm -f (/tmp/ghapp-build-\S+))$", connect.printed.rstrip())
        socket = forget[1]
        typed = [line.strip() for line in connect.printed.splitlines() if line.startswith("  ")]
        environment = [f"{name}={shlex.quote(able.env[name])}" for name in ("HTTPS_PROXY", "GIT_SSL_CAINFO", "PATH")]
        there = "\n".join(
            [
                f"export HOME={remote} GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1 {' '.join(environment)}; cd",
                *typed,
                "git clone -q https://github.com/acme/rocket && cat rocket/README.md",
                "git clone -q https://github.com/acme/probe",
            ]
        )
        again = connect.command
        in_the_way = able.run("sh", "-c", again, input=there, check=False)
        able.run("sh", "-c", forget[0])
        done = able.run("sh", "-c", again, input=there, check=False)
        trail = able.ghapp("log", "--grant", "build").stdout
    finally:
        if socket:
            Path(socket).unlink(missing_ok=True)
        able.end()
        shutil.rmtree(short)

    assert len(typed) == 4
    assert in_the_way.returncode == 255
    assert "# rocket" in done.stdout, done.stderr
    assert "acme/probe is not in grant build" in done.stderr
    assert re.search(r"  answer +acme/rocket  ok  by ssh ", trail)
