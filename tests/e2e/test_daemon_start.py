"""One daemon, however many ask for it at once."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e.conftest import Machine


ROUNDS = int(os.environ.get("GHAPP_TEST_ROUNDS", "5"))  # 20 take more than a minute; read here: tests see none of ours


@pytest.mark.parametrize("rounds", [2, pytest.param(ROUNDS, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_a_hundred_fills_at_once_without_a_daemon_are_answered_by_one_daemon_with_one_mint(
    ready: Machine, rounds: int
) -> None:
    log = ready.home / ".local/state/ghapp/daemon.log"
    ready.ghapp("daemon", "start")
    for _ in range(rounds):
        ready.ghapp("daemon", "stop")
        started, minted = log.read_text().count(" serves, pid "), len(ready.github.mints)

        with ThreadPoolExecutor(100) as threads:
            answers = list(threads.map(lambda _: ready.fill(timeout=60), range(100)))

        (mint,) = ready.github.mints[minted:]
        assert {answer["password"] for answer in answers} == {mint.token}
        assert log.read_text().count(" serves, pid ") == started + 1


def test_whoever_reads_the_stderr_of_the_git_that_started_the_daemon_is_not_left_waiting(ready: Machine) -> None:
    """A daemon that keeps its starter's pipe open hangs every program that captures git's output."""
    ready.ghapp("daemon", "stop")

    done = subprocess.run(
        ["git", "credential", "fill"],
        input=b"protocol=https\nhost=github.com\npath=acme/rocket.git\n\n",
        env=ready.env,
        cwd=ready.work,
        capture_output=True,
        timeout=10,
        check=True,
    )

    assert b"password=" in done.stdout
    assert ready.daemon_pid() is not None
