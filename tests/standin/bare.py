"""Bare repositories on disk, filled without a work tree."""

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path


Files = Mapping[str, str | bytes]
BOT = "A Person <person@example.com>"
CONFIG = {
    "http.receivepack": "true",
    "uploadpack.allowFilter": "true",
    "uploadpack.allowAnySHA1InWant": "true",
    "receive.autogc": "false",  # would leave a child behind
    "safe.directory": "*",  # the demo may run as another user than the one who owns the folder
}


def environment(config: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return all that a git of the stand-in may see: nobody's configuration."""
    pairs = list((CONFIG | dict(config or {})).items())
    numbered = {f"GIT_CONFIG_KEY_{index}": key for index, (key, _) in enumerate(pairs)}
    numbered |= {f"GIT_CONFIG_VALUE_{index}": value for index, (_, value) in enumerate(pairs)}
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": str(len(pairs)),
        **numbered,
    }


def create(path: Path, files: Files) -> None:
    """Make a bare repository whose branch `main` holds `files`; without files it is empty."""
    command = ["git", "init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(path)]
    subprocess.run(command, check=True, env=environment())
    if files:
        commit(path, files, message="Initial commit")


def commit(path: Path, files: Files, *, message: str, branch: str = "main") -> None:
    """Add one commit, as if somebody else had pushed it."""
    ref = f"refs/heads/{branch}"
    parent = f"from {ref}^0\n" if (path / ref).exists() else ""
    stream = [f"commit {ref}\ncommitter {BOT} {int(time.time())} +0000\n".encode(), _data(message)]
    stream.append(parent.encode())
    for name, content in files.items():
        stream += [f"M 100644 inline {name}\n".encode(), _data(content)]
    command = ["git", "-C", str(path), "fast-import", "--quiet"]
    subprocess.run(command, check=True, env=environment(), input=b"".join(stream))


def _data(content: str | bytes) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return b"data %d\n%s\n" % (len(raw), raw)
