"""`python -m standin`: the stand-in as a process, with one throw-away app, for the demo."""

import argparse
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from standin.journal import summary
from standin.model import App, Repository
from standin.server import StandIn


HISTORY = (
    ("Initial commit", {"README.md": "# Rocket\n"}),
    ("Add the engine", {"src/engine.py": "THRUST = 1\n"}),
    ("Fix the thrust", {"src/engine.py": "THRUST = 2\n"}),
)
PERMISSIONS = {"contents": "write", "workflows": "write", "metadata": "read"}


def main() -> None:
    """Print one line of JSON when ready, serve until SIGTERM, SIGINT or the end of stdin."""
    arguments = _parser().parse_args()
    with _end_of_service() as wait, StandIn.start(arguments.directory) as github:
        app = github.add_app(arguments.slug, PERMISSIONS)
        github.install(app, "acme", repositories=["rocket"])
        repository = github.add_repository("acme/rocket", files={})
        for message, files in HISTORY:
            github.commit(repository, files, message)
        key = arguments.directory / f"{app.slug}.private-key.pem"
        _write_private(key, app.private_key_pem)
        line = json.dumps(_announcement(github, app, repository, key)) + "\n"
        os.write(arguments.ready_fd, line.encode())
        wait()
        if arguments.journal is not None:
            _write_private(arguments.journal, json.dumps(_summary(github), indent=2).encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m standin", description=main.__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="for the CA, the key and repositories")
    parser.add_argument("--ready-fd", type=int, default=1, help="where the line goes; stdout by default")
    parser.add_argument("--json", action="store_true", help="the only format there is")
    parser.add_argument("--journal", type=Path, help="write a summary, without tokens, at the end")
    parser.add_argument("--slug", default="acme-bot", help="of the throw-away app")
    return parser


def _announcement(github: StandIn, app: App, repository: Repository, key: Path) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "proxy": github.proxy_url,
        "ca_file": str(github.ca_file),
        "app_id": app.id,
        "client_id": app.client_id,
        "slug": app.slug,
        "key_file": str(key),
        "repository": repository.full_name,
        "bare_repository": str(repository.bare_path),
        "head": repository.revision(),
    }


def _summary(github: StandIn) -> dict[str, Any]:
    connections = dict(github.proxy.targets)
    return summary(github.requests, github.mints) | {
        "connections": connections,
        "refused_connections": dict(github.proxy.refused),
    }


def _write_private(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


@contextmanager
def _end_of_service() -> Iterator[Any]:
    """Give a function that returns at SIGTERM, at SIGINT or at the end of stdin, whichever comes first."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003  # its only argument
    before = signal.set_wakeup_fd(theirs.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the byte on the wake-up descriptor is all we need
    try:
        with selectors.DefaultSelector() as selector, ours, theirs:
            selector.register(ours, selectors.EVENT_READ)
            with suppress(OSError, ValueError):  # a regular file or a closed stdin has no end to wait for
                selector.register(sys.stdin, selectors.EVENT_READ)
            yield lambda: _wait(selector, ours)
    finally:
        signal.set_wakeup_fd(before)


def _wait(selector: selectors.BaseSelector, signals: socket.socket) -> None:
    while True:
        for key, _ in selector.select():
            if key.fileobj is signals or not os.read(sys.stdin.fileno(), 1024):
                return


if __name__ == "__main__":
    main()
