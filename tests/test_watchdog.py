"""The watchdog, in a process of its own: what it does is to end it."""

import subprocess
import sys


SCRIPT = """
import asyncio, sys, time
from ghapp.watchdog import Watchdog

async def main(busy, blocked, turning):
    dog = Watchdog(lambda: busy, lambda: 2, patience=0.3, turn=0.1)
    dog.watch()
    await asyncio.sleep(turning)
    the_loop_stands_still(blocked)
    dog.stop()
    the_loop_stands_still(blocked / 2)
    print("alive")

def the_loop_stands_still(seconds):
    time.sleep(seconds)

asyncio.run(main(*eval(sys.argv[1])))
"""


def run(*, busy: bool, blocked: float, turning: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, repr((busy, blocked, turning))],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_loop_that_no_longer_turns_ends_the_process_and_the_place_is_told() -> None:
    done = run(busy=True, blocked=20, turning=0.15)

    assert done.returncode == 1
    assert "alive" not in done.stdout
    assert "the_loop_stands_still" in done.stderr


def test_a_loop_that_turns_is_left_alone_however_long_the_work_takes() -> None:
    done = run(busy=True, blocked=0, turning=1.0)

    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_nothing_is_watched_once_nothing_is_under_way_or_when_told_to_stop() -> None:
    done = run(busy=False, blocked=1.0, turning=0.25)

    assert (done.returncode, done.stdout) == (0, "alive\n")
