"""The scripts of install/ and .ci/, and what the wheel carries."""

import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


INSTALL = ROOT / "install"
SCRIPTS = sorted([*INSTALL.glob("*.sh"), INSTALL / "git-credential-ghapp"])
COMMANDS = ("demo.sh", "lock.sh", "test.sh")
LIMIT = 30.0


def run(
    *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )


@pytest.mark.parametrize("shell", ["sh", "dash", "bash --posix", "busybox sh"])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_shell_can_read_it(script: Path, shell: str) -> None:
    words = shell.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")

    assert run(*words, "-n", script).stderr == ""


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")

    assert run("shellcheck", *SCRIPTS, ROOT / ".ci" / "run", cwd=ROOT).stdout == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_the_command_line_and_changes_nothing(tmp_path: Path, name: str) -> None:
    shutil.copytree(INSTALL, tmp_path / "install")
    before = sorted(tmp_path.rglob("*"))

    done = run("sh", tmp_path / "install" / name, "--help", cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})

    assert done.returncode == 0
    assert done.stderr == ""
    assert f"sh install/{name}" in done.stdout
    assert "set -eu" not in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["demo.sh", "lock.sh"])
def test_an_unknown_argument_is_wrong_usage(name: str) -> None:
    assert run("sh", INSTALL / name, "--frobnicate").returncode == 2


def fake(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout on a machine with the tools of sh, a git, and no Python yet: tests put what they need in bin."""
    root = tmp_path / "check out"
    shutil.copytree(INSTALL, root / "install")
    shutil.copy2(ROOT / "pyproject.toml", root)
    tools = root / "bin"
    tools.mkdir()
    for name in ("sh", "sed", "dirname", "basename", "mkdir", "mktemp", "rm", "cat", "cksum", "grep", "date", "id"):
        path = shutil.which(name)
        assert path is not None
        (tools / name).symlink_to(path)
    fake(tools, "git", "exit 0")
    return root


def start(checkout: Path, name: str) -> subprocess.CompletedProcess[str]:
    return run("sh", checkout / "install" / name, env={"PATH": str(checkout / "bin"), "HOME": str(checkout)})


@pytest.mark.parametrize("name", ["demo.sh", "test.sh"])
def test_without_git_it_says_what_to_install(checkout: Path, name: str) -> None:
    (checkout / "bin" / "git").unlink()

    done = start(checkout, name)

    assert done.returncode == 1
    assert "ghapp: error: git is not on PATH\nghapp: hint: " in done.stderr


@pytest.mark.parametrize("name", ["demo.sh", "test.sh"])
@pytest.mark.parametrize("python", [None, "exit 1", "exit 127"])
def test_without_a_new_enough_python_it_says_what_to_install(checkout: Path, name: str, python: str | None) -> None:
    if python is not None:
        fake(checkout / "bin", "python3", python)

    done = start(checkout, name)

    assert done.returncode == 1
    assert "ghapp: error: no Python 3.11 or newer on PATH\nghapp: hint: install one: apt install python3" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("name", ["demo.sh", "test.sh"])
def test_a_python_without_ensurepip_is_named_with_what_it_lacks(checkout: Path, name: str) -> None:
    """As Debian's is without python3-venv."""
    fake(checkout / "bin", "python3", f'case $* in *ensurepip*) exit 1;; esac\nexec "{sys.executable}" "$@"')

    done = start(checkout, name)

    assert done.returncode == 1
    assert "bin/python3 cannot make virtual environments" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_newer_python_by_another_name_is_taken_instead(checkout: Path) -> None:
    fake(checkout / "bin", "python3", "exit 1")
    fake(checkout / "bin", "python3.12", f'echo "$@" >>"{checkout}/asked"\nexec "{sys.executable}" "$@"')

    done = run(
        "sh", "-c", '. install/venv.sh; find_python; echo "$python"', cwd=checkout, env={"PATH": str(checkout / "bin")}
    )

    assert done.stdout.strip().endswith("bin/python3.12")


def test_a_half_made_environment_is_made_again(checkout: Path) -> None:
    """`python -m venv` without ensurepip leaves a directory that looks like an environment and has no pip."""
    half = checkout / ".venv"
    run(sys.executable, "-m", "venv", "--without-pip", half)
    (half / "left over").touch()
    (checkout / "pins").write_text("")
    program = f'. install/venv.sh; python="{sys.executable}"; pip_in() {{ :; }}; make_venv .venv pins'

    done = run("sh", "-euc", program, cwd=checkout, env={"PATH": "/usr/bin:/bin"})

    assert "making .venv" in done.stdout
    assert not (half / "left over").exists()
    assert run(half / "bin" / "python", "-m", "pip", "--version").returncode == 0


def test_ci_runs_what_a_person_runs() -> None:
    script = ROOT / ".ci" / "run"

    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_text().splitlines()[-1] == "exec sh install/test.sh"
    assert "install/test.sh" in [str(path.relative_to(ROOT)) for path in SCRIPTS]


def test_ci_fails_when_a_check_fails(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / "install").mkdir()
    shutil.copy2(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "install" / "test.sh").write_text('echo "in $PWD"; exit 3\n')

    done = run("bash", ".ci/run", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (3, f"in {tmp_path}\n")


def pins(name: str) -> dict[str, int]:
    """Return what a constraints file pins, with how many hashes."""
    found: dict[str, int] = {}
    current = ""
    for line in (INSTALL / name).read_text().splitlines():
        if line.startswith("    --hash=sha256:"):
            found[current] += 1
        elif not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9.-]+)(\[[a-z, ]+\])?==[^ ]+( ; [^\\]+)? \\", line)
            assert match, f"{name}: {line}"
            current = match[1]
            found[current] = 0
    return found


def normal(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def wanted(*groups: str) -> set[str]:
    description = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {normal(requirement) for requirement in description["project"]["dependencies"]}
    pending = list(groups)
    while pending:
        for entry in description["dependency-groups"][pending.pop()]:
            if isinstance(entry, dict):
                pending.append(entry["include-group"])
            else:
                names.add(normal(entry))
    return names


@pytest.mark.parametrize(
    ("name", "groups"), [("constraints.txt", ("build", "standin")), ("constraints-dev.txt", ("dev",))]
)
def test_everything_that_is_installed_is_pinned_with_its_hash(name: str, groups: tuple[str, ...]) -> None:
    """When this fails: sh install/lock.sh."""
    pinned = pins(name)

    assert wanted(*groups) - pinned.keys() == set()
    assert [package for package, hashes in pinned.items() if not hashes] == []


def test_the_demo_installs_what_the_tests_ran_with() -> None:
    lines = [
        {line for line in (INSTALL / name).read_text().splitlines() if "==" in line}
        for name in ("constraints.txt", "constraints-dev.txt")
    ]

    assert lines[0] <= lines[1]


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-dev.txt"])
def test_pins_name_no_place_to_download_from(name: str) -> None:
    text = (INSTALL / name).read_text()

    assert "sh install/lock.sh" in text.splitlines()[1]
    assert not re.search(r"://|^-|@ |index|find-links|file:", text, re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    directory = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (path,) = directory.glob("*.whl")
    return zipfile.ZipFile(path)


def modes(wheel: zipfile.ZipFile) -> dict[str, int]:
    return {entry.filename: entry.external_attr >> 16 for entry in wheel.infolist()}


def test_the_wheel_carries_what_git_runs_with_its_run_bit(wheel: zipfile.ZipFile) -> None:
    (front,) = [name for name in wheel.namelist() if name.endswith("/scripts/git-credential-ghapp")]

    assert modes(wheel)[front] & 0o777 == 0o755
    assert wheel.read(front) == (INSTALL / "git-credential-ghapp").read_bytes()


def test_nothing_in_the_wheel_can_be_written_by_others(wheel: zipfile.ZipFile) -> None:
    assert [name for name, mode in modes(wheel).items() if mode & 0o022] == []


def test_the_wheel_carries_the_package_and_no_more(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/", 1)[0] for name in wheel.namelist()}

    assert {re.sub(r"-.*(?=\.)", "-*", top) for top in tops} == {"ghapp", "ghapp-*.data", "ghapp-*.dist-info"}
    assert "ghapp/py.typed" in wheel.namelist()
    assert not [name for name in wheel.namelist() if "test" in name or "standin" in name]
