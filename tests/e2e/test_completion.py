"""bash completes fingerprints and names, with real keys pressed in a real terminal."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from e2e.conftest import BIN, Machine
from e2e.test_setup import Terminal


SETTINGS = "bind 'set bell-style none'; bind 'set enable-bracketed-paste off'"
RECORDER = 'ghapp() { echo "ran: $*."; }'  # what is completed asks the program itself


@pytest.fixture
def bash(ready: Machine) -> Iterator[Terminal]:
    """A bash that has read our completion."""
    if shutil.which("bash") is None or not _is_new_enough():
        pytest.skip("no bash 4.4 or newer is here")
    ready.env["PATH"] = f"{BIN}:/usr/bin:/bin"
    terminal = Terminal(ready, "bash", "--norc", "--noprofile", "-i", env={"HISTFILE": ""})
    terminal.type(f"{SETTINGS}; eval \"$(ghapp completion bash)\"; {RECORDER}; echo re''ady\n")
    terminal.expect("ready\n")
    yield terminal
    terminal.type("\x15 exit\n")
    terminal.done()


def _is_new_enough() -> bool:
    done = subprocess.run(["bash", "-c", "((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404))"], check=False)
    return done.returncode == 0


def fingerprints(machine: Machine) -> list[str]:
    """Return those of two keys of the app."""
    app = next(iter(machine.github.apps.values()))
    path = machine.home / "fresh.pem"
    path.touch(mode=0o600)
    path.write_bytes(app.add_key())
    machine.ghapp("key", "add", "--signer", f"file:{path}")
    return [entry["fingerprint"] for entry in json.loads(machine.ghapp("key", "list", "--json").stdout)]


def test_of_two_fingerprints_each_is_completed_with_and_without_what_they_begin_with(
    ready: Machine, bash: Terminal
) -> None:
    names = [name.removeprefix("SHA256:") for name in fingerprints(ready)]
    pieces = [name[: next(n for n in range(1, 40) if names[0][:n] != names[1][:n])] for name in names]

    bash.type("ghapp key remove \t\t")
    for name in sorted(names):
        bash.expect(re.escape(name))
    bash.type("\x15")
    for name, piece in zip(names, pieces, strict=True):
        for begin in ("", "SHA256:"):
            bash.type(f"ghapp key verify {begin}{piece}\t\n")
            bash.expect(rf"ran: key verify {begin}{re.escape(name)}\.")
    bash.type(f"ghapp key verify SHA256:\t{pieces[0]}\tagain\n")
    bash.expect(rf"ran: key verify SHA256:{re.escape(names[0])} again\.")


def test_the_value_of_an_option_behind_an_equals_sign_is_completed(bash: Terminal) -> None:
    for number, typed in enumerate(("--app=ac", "--app=", "--app ac")):
        bash.type(f"ghapp key list {typed}\t{number}\n")
        bash.expect(rf"ran: key list --app[= ]acme-bot {number}\.")
    bash.type("COMP_WORDBREAKS=' '\nghapp key list --app=a\t\n")
    bash.expect(r"ran: key list --app=acme-bot\.")
