"""``ghapp revoke``."""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from ghapp.cli.daemon_client import ask
from ghapp.cli.output import counted, hint, json_option, print_json, say, say_error
from ghapp.credential import parse_repository
from ghapp.errors import DaemonFailed, UsageError


AT_ONCE = 10  # a request; short enough that progress is seen, and Ctrl-C leaves the rest as it is
ATTEMPTS = 3
PAUSE = 2.0  # seconds between them; what GitHub's client tries again by itself is over by then
PATIENCE = 60.0  # seconds for one request: ten calls of at most 12 s, side by side
MINT_PATIENCE = 40.0  # seconds for tokens that are being minted
LONGEST_WAIT = 120.0  # seconds; GitHub may ask for an hour, and we do not stay that long
_LEASE = re.compile(r"[0-9a-f]{12}")

Progress = Callable[[int, str], None]


@click.command(short_help="End tokens at GitHub, now.")
@click.argument("targets", nargs=-1, metavar="[LEASE|OWNER/REPO|OWNER/*]...")
@click.option("--all", "everything", is_flag=True, help="Every token that lives.")
@json_option
def revoke(*, targets: tuple[str, ...], everything: bool, as_json: bool) -> int:
    """End tokens at GitHub, now.

    OWNER/REPO means every token that reaches that repository, OWNER/* every
    token on that owner, LEASE the one that 'ghapp leases' lists. What could
    not be ended is not handed out any more, and tried again the next time.

    \b
    Examples:
      ghapp revoke acme/rocket
      ghapp revoke --all
    """
    if everything == bool(targets):
        raise click.UsageError("name what to revoke, or --all")
    chosen = [_checked(target) for target in targets]
    began = time.monotonic()
    answer = ask("retire", patience=MINT_PATIENCE, targets=chosen)  # without a daemon nobody holds a token
    leases: list[dict[str, Any]] = [] if answer is None else answer["result"]
    _check_known(chosen, leases)
    with _progress(len(leases)) as progress:
        failed = end([lease["id"] for lease in leases], progress)
    revoked = [lease for lease in leases if lease["id"] not in failed]
    if as_json:
        print_json(
            {"revoked": revoked, "failed": [lease | failed[lease["id"]] for lease in leases if lease not in revoked]}
        )
    elif revoked or not leases:
        seconds = time.monotonic() - began
        say(
            f"revoked {counted(len(revoked), 'token')} in {seconds:.1f} s"
            if revoked
            else f"no {'' if everything else 'such '}token lives"
        )
    for lease in leases:
        if lease not in revoked:
            say_error(f"{describe(lease)} could not be revoked: {failed[lease['id']]['message']}")
    if failed:
        hint(next((one["hint"] for one in failed.values() if one["hint"]), ""))
        hint("the same command tries again; GitHub ends them within the hour")
    return 1 if failed else 0


def end(leases: Sequence[str], progress: Progress) -> dict[str, dict[str, str]]:
    """End `leases`, by id; return why some of them could not be ended. Failures are tried again."""
    failed: dict[str, dict[str, str]] = {}
    pending = list(leases)
    for attempt in range(ATTEMPTS):
        if attempt and pending:
            progress(0, f"trying {counted(len(pending), 'token')} again")
            time.sleep(PAUSE)
        failed = _attempt(pending, progress)
        pending = list(failed)
        if not failed:
            break
    return failed


def _attempt(leases: Sequence[str], progress: Progress) -> dict[str, dict[str, str]]:
    """Try each lease once, and return why some live on; where all of a request fail, so would the others."""
    failed: dict[str, dict[str, str]] = {}
    pending = list(leases)
    while pending:
        batch = pending[:AT_ONCE]
        answer = ask("revoke", patience=PATIENCE, leases=batch)
        if answer is None:
            raise DaemonFailed("the daemon went away; its tokens end within the hour", hint="ghapp daemon status")
        result = answer["result"]
        done = set(result["revoked"])
        failed |= result["failed"]
        progress(len(done), "")
        pending = [lease for lease in pending if lease not in done and lease not in failed]
        if result["failed"] and not done:
            why = next(iter(result["failed"].values()))
            return failed | dict.fromkeys(pending, why)
        if result["wait"] > LONGEST_WAIT:
            why = {"code": "E26", "message": f"GitHub wants us to wait for {result['wait']:.0f} s", "hint": ""}
            return failed | dict.fromkeys(pending, why)
        if pending and not done and not result["failed"]:
            progress(0, f"GitHub takes no more for {result['wait']:.0f} s")
            time.sleep(result["wait"])
    return failed


def describe(lease: dict[str, Any]) -> str:
    """Return how a person would call the token."""
    names = lease["repositories"]
    return f"{lease['id']} ({lease['owner']}/{names[0] if names != 'all' and len(names) == 1 else '*'})"


def _checked(target: str) -> str:
    owner, _, name = target.partition("/")
    if _LEASE.fullmatch(target) or parse_repository(f"{owner}/x" if name == "*" else target):
        return target
    raise click.UsageError(f"{target!r} is no lease, no OWNER/REPO and no OWNER/*")


def _check_known(targets: Sequence[str], leases: Sequence[dict[str, Any]]) -> None:
    known = {lease["id"] for lease in leases}
    for target in targets:
        if "/" not in target and target not in known:
            raise UsageError(f"no lease {target} lives (any more)", hint="ghapp leases")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Progress]:
    """Show a bar on a terminal, and nothing in a pipe."""
    if total <= AT_ONCE or not sys.stderr.isatty():
        yield lambda _done, _text: None
        return
    # Imported here: only a terminal pays for it.
    from rich.console import Console  # noqa: PLC0415  # as said
    from rich.progress import Progress as Bars  # noqa: PLC0415  # as said

    with Bars(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("revoking", total=total)
        yield lambda done, text: bars.update(bar, advance=done, description=text or "revoking")
