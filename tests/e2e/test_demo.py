"""install/demo.sh after its installing: tests/standin/demo.py."""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from e2e.conftest import BIN


SCRIPT = ROOT / "tests" / "standin" / "demo.py"
LIMIT = 40.0  # seconds; 2 on an idle machine


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory whose path is longer than a socket's may be, and has a space."""
    if not (BIN / "git-credential-ghapp").exists():
        pytest.skip("ghapp is not installed in this environment")
    directory = tmp_path / ("far down " * 12)
    directory.mkdir()
    return directory


@pytest.fixture
def orphanage() -> Iterator[None]:
    """Make what the demo leaves behind our children, where we see it: a daemon's arguments name no directory."""
    if sys.platform != "linux":
        pytest.skip("only Linux lets us adopt")
    set_subreaper = 36
    libc = ctypes.CDLL(None)
    libc.prctl(set_subreaper, 1, 0, 0, 0)
    yield
    libc.prctl(set_subreaper, 0, 0, 0, 0)


def left_behind(place: Path) -> list[str]:
    """Return the files in `place`, and our children."""
    done = subprocess.run(["ps", "-A", "-o", "ppid=,pid=,args="], capture_output=True, text=True, check=True)
    processes = [line for line in done.stdout.splitlines() if line.split()[0] == str(os.getpid())]
    return [*(path.name for path in place.iterdir()), *(line for line in processes if " ps -A" not in line)]


@pytest.fixture
def demo(place: Path, orphanage: None) -> Iterator[subprocess.Popen[str]]:  # noqa: ARG001  # wanted for what it does
    command = [sys.executable, "-P", str(SCRIPT), str(place)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_it_shows_the_main_job_and_leaves_nothing(demo: subprocess.Popen[str], place: Path) -> None:
    out, err = demo.communicate(timeout=LIMIT)

    assert (demo.returncode, err) == (0, "")
    assert re.findall(r" s  \$ git (clone|commit|push)", out) == ["clone", "commit", "push"]
    assert "token for acme/rocket (" in out
    assert "token on disk: none" in out
    assert "asked to revoke 1 of 1" in out
    ids = re.findall(r"commit .*: +([0-9a-f]{40})$", out, re.MULTILINE)
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert "ghs_" not in out
    assert left_behind(place) == []


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("python -m standin", signal.SIGINT),
        ("ghapp app add", signal.SIGTERM),
        ("git clone", signal.SIGHUP),
        ("git push", signal.SIGINT),
    ],
)
def test_interrupted_it_leaves_nothing_either(
    demo: subprocess.Popen[str], place: Path, moment: str, number: signal.Signals
) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if f"$ {moment}" in line:
            break

    demo.send_signal(number)
    _, err = demo.communicate(timeout=LIMIT)

    assert demo.returncode == 130
    assert err == "\nghapp: error: interrupted; nothing was left behind\n"
    assert left_behind(place) == []


@pytest.mark.usefixtures("orphanage")
def test_a_git_that_cannot_push_makes_it_fail_with_what_git_said(place: Path) -> None:
    tools = place.parent / "tools"
    tools.mkdir()
    git = shutil.which("git")
    script = f'#!/bin/sh\n[ "$1" != push ] || {{ echo "no push today" >&2; exit 1; }}\nexec "{git}" "$@"\n'
    (tools / "git").write_text(script)
    (tools / "git").chmod(0o755)
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PATH": f"{tools}:{os.environ['PATH']}"}

    done = subprocess.run(
        [sys.executable, "-P", SCRIPT, place], env=env, capture_output=True, text=True, check=False, timeout=LIMIT
    )

    assert done.returncode == 1
    assert "git push failed with status 1\nno push today" in done.stderr
    assert left_behind(place) == []
