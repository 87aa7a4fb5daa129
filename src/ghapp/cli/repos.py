"""``ghapp repos``."""

from collections.abc import Iterator
from typing import Any

import click

from ghapp import config
from ghapp.cli.daemon_client import call
from ghapp.cli.installations import ask_each
from ghapp.cli.output import (
    hint,
    json_option,
    print_json,
    print_table,
    printable,
    refuse_empty,
    say,
    say_error,
    say_no_app,
    warn,
)
from ghapp.errors import GhappError, NotInstalled


@click.command(short_help="List the repositories that the apps can reach.")
@click.argument("owner", required=False, callback=refuse_empty)
@json_option
def repos(*, owner: str | None, as_json: bool) -> int:
    """List the repositories that the apps can reach, asked of GitHub now.

    With OWNER only that user's or organization's. PERMISSIONS are those that
    the installation grants; git gets less, see "ghapp leases".

    \b
    Examples:
      ghapp repos
      ghapp repos acme --json
    """
    installations, unasked = _installations(owner)
    found, failed = _ask(installations)
    found.sort(key=lambda entry: (entry["host"], entry["repository"].lower(), entry["app"]))
    if as_json:
        print_json(found)
    elif found:
        rows = ((_name(entry), entry["app"], _state(entry), _levels(entry["permissions"])) for entry in found)
        print_table(("REPOSITORY", "APP", "STATE", "PERMISSIONS"), rows)
    elif any(not entry["suspended"] for entry in installations) and not failed:
        say("the apps are installed, and no repository is selected")
        hint(f"select some at {installations[0]['html_url']}")
    return 1 if failed or unasked else 0


def _ask(installations: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """Return the repositories, and whether one installation could not be asked; a terminal sees how far it is."""
    from rich.console import Console  # noqa: PLC0415  # costs 40 ms, which wrong usage need not pay
    from rich.progress import Progress  # noqa: PLC0415  # as above

    found: list[dict[str, Any]] = []
    problems: list[tuple[str, str]] = []
    failed = False
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for installation in installations:
            name = f"{installation['account']} through {installation['app']}"
            if installation["suspended"]:
                problems.append((f"{name} is suspended", f"unsuspend it at {installation['html_url']}"))
                continue
            task = progress.add_task(printable(installation["account"]), total=None)
            try:
                for entries, total in _pages(installation):
                    found += entries
                    progress.update(task, total=total, advance=len(entries))
            except GhappError as error:
                failed = True
                problems.append((f"{name}: {error}", error.hint))
                progress.remove_task(task)
    for problem, advice in problems:
        warn(problem)
        hint(advice)
    return found, failed


def _installations(owner: str | None) -> tuple[list[dict[str, Any]], bool]:
    """Return where to look, and whether an app could not be asked; says so where that is nowhere.

    Raises `NotInstalled` for an OWNER without the app.
    """
    if not config.load(config.config_file()).apps:
        say_no_app()
        return [], False
    everywhere, unasked = ask_each(update=True)
    for each in unasked:
        say_error(f"app {each.app} could not be asked: {each.error}")
        hint(each.error.hint)
    if owner is None:
        if not everywhere and not unasked:
            say("no app of yours is installed anywhere")
            hint("ghapp app show NAME")
        return everywhere, bool(unasked)
    there = [entry for entry in everywhere if entry["account"].lower() == owner.lower()]
    if not there and not unasked:
        raise NotInstalled(f"no app of yours is installed on {owner}", hint="ghapp installations")
    return there, bool(unasked)


def _pages(installation: dict[str, Any]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Yield the repositories of an installation page by page, each time with how many there are."""
    common = {key: installation[key] for key in ("app", "host", "permissions")}
    page: int | None = 1
    while page is not None:
        answer = call("repos", app=installation["app"], owner=installation["account"], page=page)
        yield [entry | common for entry in answer["repositories"]], answer["total"]
        page = answer["next"]


def _name(entry: dict[str, Any]) -> str:
    """Return OWNER/REPO, with the host where that is not the usual one."""
    name: str = entry["repository"]
    return name if entry["host"] == config.GITHUB else f"{entry['host']}/{name}"


def _levels(permissions: dict[str, str]) -> str:
    """Return ``write: contents, issues; read: metadata``: short, because every line repeats it."""
    by_level: dict[str, list[str]] = {}
    for name, level in permissions.items():
        by_level.setdefault(level, []).append(name)
    order = [level for level in ("admin", "write", "read") if level in by_level]
    return "; ".join(f"{level}: {', '.join(sorted(by_level[level]))}" for level in order)


def _state(entry: dict[str, Any]) -> str:
    return ", ".join(
        word for word in ("private" if entry["private"] else "public", entry["archived"] and "archived") if word
    )
