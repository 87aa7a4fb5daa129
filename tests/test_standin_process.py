"""The stand-in as a process, as the demo runs it."""

import json
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from standin.client import PATIENCE


def run(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    tests = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-m", "standin", "--directory", str(directory), *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tests)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def announced(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_it_leaves_a_summary(tmp_path: Path, number: signal.Signals) -> None:
    journal = tmp_path / "journal.json"
    with run(tmp_path / "github", "--json", "--journal", str(journal)) as process:
        ready = announced(process)
        assert ready["pid"] == process.pid
        key = Path(ready["key_file"])
        assert key.stat().st_mode & 0o777 == 0o600
        assert load_pem_private_key(key.read_bytes(), password=None).key_size == 2048  # type: ignore[union-attr]
        assert (Path(ready["bare_repository"]) / "HEAD").exists()
        context = ssl.create_default_context(cafile=ready["ca_file"])
        with httpx.Client(proxy=ready["proxy"], verify=context, trust_env=False, timeout=PATIENCE) as client:
            assert client.get("https://api.github.com/versions").status_code == 200

        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)

    assert (process.returncode, rest, errors) == (0, "", "")
    summary = json.loads(journal.read_text())
    assert summary["counts"] == {"api.github.com GET 200": 1}
    assert summary["mints"] == []
    assert summary["connections"] == {"api.github.com:443": 1}


def test_the_end_of_stdin_ends_it(tmp_path: Path) -> None:
    with run(tmp_path) as process:
        announced(process)

        _, errors = process.communicate(timeout=20)

    assert (process.returncode, errors) == (0, "")
