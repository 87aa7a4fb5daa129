"""``ghapp installations``, and asking each app where it is installed."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from ghapp import config
from ghapp.cli.daemon_client import call
from ghapp.cli.output import hint, json_option, print_json, print_table, say, say_error, say_no_app
from ghapp.errors import (
    ConfigError,
    DaemonFailed,
    GhappError,
    Locked,
    NetworkFailed,
    NotTheApi,
    ProxyFailed,
    RuntimeDirectoryRefused,
    TlsFailed,
)
from ghapp.routing import App


UNREACHED = frozenset(error.code for error in (NetworkFailed, ProxyFailed, TlsFailed, NotTheApi))
"""Of errors for which it does not matter which app asks."""
EDIT = "${{EDITOR:-vi}} {} && ghapp daemon restart"  # the configuration, as `sh` takes its path
_NOT_THE_APPS = frozenset(error.code for error in (ConfigError, DaemonFailed, Locked, RuntimeDirectoryRefused))


@dataclass(frozen=True, slots=True)
class Unasked:
    """An app that could not be asked where it is installed."""

    app: str
    host: str
    error: GhappError


def ask_each(*, update: bool) -> tuple[list[dict[str, Any]], list[Unasked]]:
    """Return the installations of every app that can be asked, and the apps that cannot.

    With `update` the daemon lets git ask for these owners from now on, if `setup-git` was run before.
    Raises `GhappError` if it is not an app's fault.
    """
    found: list[dict[str, Any]] = []
    unasked: list[Unasked] = []
    for app in call("status")["apps"]:
        # Another app would wait as long for the same.
        down = [each.error for each in unasked if each.host == app["host"] and each.error.code in UNREACHED]
        try:
            if down:
                raise down[0]
            found += call("installations", app=app["name"], update=update)
        except GhappError as error:
            if error.code in _NOT_THE_APPS:
                raise
            unasked.append(Unasked(app["name"], app["host"], error))
    return found, unasked


def left_out(app: App, accounts: Sequence[str]) -> ConfigError:
    """Return what is wrong where the configured owners keep `app` from all `accounts` that it is installed on."""
    path = config.config_file()
    return ConfigError(
        f"{app.name} is installed on {', '.join(accounts)}, but its owners in {path} are {', '.join(app.owners)}",
        hint=EDIT.format(shlex.quote(str(path))),
    )


@click.command()
@json_option
def installations(*, as_json: bool) -> int:
    """List where the apps are installed, asked of GitHub now.

    Once "ghapp setup-git" was run, git asks ghapp for owners that are new here,
    too. Exits 1 if an app could not be asked; those of the others are listed.

    \b
    Example:
      ghapp installations
    """
    found, unasked = ask_each(update=True)
    if as_json:
        print_json(found)
    elif found:
        _print(found)
    elif not config.load(config.config_file()).apps:
        say_no_app()
    elif not unasked:
        say("no app of yours is installed anywhere")
    for error, advice in dict.fromkeys((str(each.error), each.error.hint) for each in unasked):
        names = ", ".join(each.app for each in unasked if str(each.error) == error)
        say_error(f"{names}: {error}")
        hint(advice)
    return 1 if unasked else 0


def _print(found: list[dict[str, Any]]) -> None:
    columns = [
        ("OWNER", [entry["account"] for entry in found]),
        ("APP", [entry["app"] for entry in found]),
        ("HOST", [entry["host"] for entry in found]),
        ("REPOSITORIES", [entry["repository_selection"] for entry in found]),
        ("STATE", ["suspended" if entry["suspended"] else "active" for entry in found]),
        ("SETTINGS", [entry["html_url"] for entry in found]),
    ]
    if all(entry["host"] == config.GITHUB for entry in found):
        columns = [column for column in columns if column[0] != "HOST"]  # the links need the room
    print_table([title for title, _ in columns], zip(*(cells for _, cells in columns), strict=True))
