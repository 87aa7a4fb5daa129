"""The hook that judges each ref of a push by an app without `workflows: write`.

git runs it instead of updating the refs itself, and passes on its text for each ref: so a client sees exactly
what GitHub says. Run as a program; it imports only the standard library.
"""

import subprocess
import sys
from collections.abc import Iterator


NOTHING = "0" * 40
WORKFLOWS = ".github/workflows/"


def read_lines() -> Iterator[bytes]:
    """Read pkt-lines up to the flush."""
    stream = sys.stdin.buffer
    while (size := int(stream.read(4), 16)) != 0:
        yield stream.read(size - 4).rstrip(b"\n")


def write_lines(*lines: bytes) -> None:
    for line in lines:
        sys.stdout.buffer.write(b"%04x%s" % (len(line) + 4, line))
    sys.stdout.buffer.write(b"0000")
    sys.stdout.buffer.flush()


def git(*arguments: str) -> str:
    # The child must not read our stdin: the rest of the conversation is there.
    return subprocess.run(
        ["git", *arguments],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    ).stdout


def changed_workflow(new: str) -> str | None:
    """Name a workflow that the new commits of a ref create or change."""
    names = git("log", "--format=", "--name-only", "-m", new, "--not", "--all", "--", WORKFLOWS)
    return next((name for name in names.splitlines() if name), None)


def judge(command: str) -> str:
    """Update one ref, or say why not."""
    old, new, ref = command.split(" ", 2)
    if new == NOTHING:
        git("update-ref", "-d", ref, old)
        return f"ok {ref}"
    name = changed_workflow(new)
    if name is not None:
        return (
            f"ng {ref} refusing to allow a GitHub App to create or update workflow `{name}` "
            "without `workflows` permission"
        )
    git("update-ref", ref, new, old)
    return f"ok {ref}"


def main() -> None:
    list(read_lines())  # the version and what git can do
    write_lines(b"version=1\0atomic")
    commands = [line.decode() for line in read_lines()]
    write_lines(*(judge(command).encode() for command in commands))


if __name__ == "__main__":
    main()
