"""What curl, and so git, reads in ``~/.netrc`` before any helper is asked."""

import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ghapp.cli.checks import FAIL, WARN, Check, Ground, quoted


_DEFAULT = "default"  # netrc's word for every host without an entry


def check(ground: Ground) -> Iterator[Check]:
    """Look for entries that our hosts would get."""
    for name in (".netrc", "_netrc"):
        path = Path(os.path.realpath(Path(ground.env.get("HOME", "/")) / name))  # sed would replace a symlink
        lines = _read(path)
        named = _machines(lines)
        for host in sorted(ground.hosts & named):
            why = f"git takes what {path} says about {host}, and asks no helper"
            yield Check("netrc", FAIL, why, _mend(path, lines, host))
        if ground.hosts and _DEFAULT in named:
            why = f"git takes the default of {path} for every host without an entry there, before it asks a helper"
            yield Check("netrc", WARN, why, _mend(path, lines, _DEFAULT))


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines() if stat.S_ISREG(path.stat().st_mode) else []
    except OSError:
        return []


def _machines(lines: Iterable[str]) -> set[str]:
    """Return the hosts that are named, in lower case, as curl reads them: letters' case and line ends do not matter."""
    kept = (itertools.takewhile(lambda word: not word.startswith("#"), line.lower().split()) for line in lines)
    words = [word.strip('"') for word in itertools.chain.from_iterable(kept)]
    return {second for first, second in itertools.pairwise(words) if first == "machine"} | ({_DEFAULT} & set(words))


def _mend(path: Path, lines: list[str], host: str) -> str:
    """Return the command that renames the entry: nothing of it is lost, and no other is touched."""
    if host == _DEFAULT:
        steps, by_hand = [(f"^([[:space:]]*){_DEFAULT}", "machine default.not-used")], "machine default.not-used"
    else:
        found = (re.findall(rf"machine\s+({re.escape(host)})(?!\S)", line, re.IGNORECASE) for line in lines)
        spelt = sorted(set(itertools.chain.from_iterable(found)))
        steps = [("(machine[[:space:]]+)" + name.replace(".", r"\."), f"{name}.not-used") for name in spelt]
        by_hand = f"{host}.not-used"
    mended = lines
    for old, new in steps:
        pattern = old.replace("[[:space:]]", r"\s")
        mended = [re.sub(rf"{pattern}(\s|$)", rf"\g<1>{new}\2", line) for line in mended]
    if host in _machines(mended):
        return f"in {path}, write {by_hand} instead of {host}"
    script = " ".join(f"-e '/^[[:space:]]*#/!s/{old}([[:space:]]|$)/\\1{new}\\2/'" for old, new in steps)
    return f"sed -E -i.bak {script} {quoted(path)}"
