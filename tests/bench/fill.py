"""How long git waits for a credential it has had before: ours against git's own cache and a helper in Python.

Run: .venv/bin/python tests/bench/fill.py [ROUNDS]

A round runs each helper once, in changing order, as `git credential fill` and `approve`, which is what every fetch
costs; ratios are taken within a round, so that a machine whose speed drifts does not matter.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
URL = "protocol=https\nhost=github.com\npath=acme/rocket.git\n"
PYTHON_HELPER = """import sys, json, socket, urllib.parse
if sys.argv[1:] == ["get"]:
    sys.stdin.read()
    print("username=x-access-token\\npassword=" + "x" * 500)
"""


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        environment = {
            "HOME": name,
            "XDG_RUNTIME_DIR": name,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
        }
        standin, facts = start_standin(directory)
        environment |= {"HTTPS_PROXY": facts["proxy"], "SSL_CERT_FILE": facts["ca_file"]}
        try:
            key = f"file:{facts['key_file']}"
            run(environment, "ghapp", "app", "add", "--app-id", facts["app_id"], "--signer", key)
            measure(rounds, helpers(directory, environment), environment)
        finally:
            run(environment, "ghapp", "daemon", "stop")
            run(environment, "git", "credential-cache", f"--socket={directory}/cache.sock", "exit")
            standin.terminate()
            standin.wait()


def start_standin(directory: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "standin", "--directory", str(directory / "github")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, {key: str(value) for key, value in json.loads(process.stdout.readline()).items()}


def helpers(directory: Path, environment: dict[str, str]) -> dict[str, str]:
    script = directory / "helper.py"
    script.write_text(PYTHON_HELPER)
    own_cache = f"cache --socket={directory}/cache.sock"
    found = {
        "git's own cache": own_cache,
        "ghapp": str(BIN / "git-credential-ghapp"),
        "ghapp's socket, git's client alone": f"cache --timeout=0 --socket={directory}/ghapp/git.sock",
        "a helper in Python, no daemon": f"!{sys.executable} {script}",
    }
    stored = URL + "username=x-access-token\npassword=" + "x" * 500 + "\n\n"
    run(environment, "git", "-c", f"credential.helper={own_cache}", *PATH_ON, "credential", "approve", input=stored)
    for helper in found.values():
        once(helper, environment)
    return found


PATH_ON = ("-c", "credential.useHttpPath=true")


def once(helper: str, environment: dict[str, str]) -> float:
    """Return the seconds that fill and approve take."""
    git = ("git", "-c", f"credential.helper={helper}", *PATH_ON, "credential")
    began = time.perf_counter()
    answer = run(environment, *git, "fill", input=URL + "\n")
    run(environment, *git, "approve", input=answer + "\n")
    spent = time.perf_counter() - began
    assert "password=" in answer
    return spent


def measure(rounds: int, found: dict[str, str], environment: dict[str, str]) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in found}
    order = list(found)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            seconds[name].append(once(found[name], environment))
    first, *_ = found
    print(f"{'fill + approve':40} {'median':>9} {'ratio to ' + first:>26}")
    for name, spent in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(spent, seconds[first], strict=True)]
        print(f"{name:40} {statistics.median(spent) * 1000:6.1f} ms {statistics.median(ratios):26.2f}")


def run(environment: dict[str, str], *command: str, input: str = "") -> str:  # noqa: A002  # as subprocess calls it
    done = subprocess.run(command, env=environment, input=input, capture_output=True, text=True, check=False)
    return done.stdout


if __name__ == "__main__":
    main()
