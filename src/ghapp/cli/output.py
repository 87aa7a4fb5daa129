"""How commands speak: results on stdout, everything else on stderr with a prefix; colour and width by rich."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click


Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Add ``--json`` to a command that reads."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def print_json(value: object) -> None:
    """Print `value` as JSON: indented for a person's terminal, one line in a pipe."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table as wide as it needs to be; in a pipe no line is folded or cut."""
    # Imported here: a command that prints JSON or one line does not pay 40 ms for it.
    from rich.console import Console  # noqa: PLC0415  # as said
    from rich.table import Table  # noqa: PLC0415  # as said

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(printable(str(cell)) for cell in row))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=500)
    console.print(table)


def printable(text: str) -> str:
    """Return `text` without what could steer a terminal: names come from others."""
    return "".join(character if character.isprintable() else "?" for character in text)


def say(text: str) -> None:
    """Print one line for a person, who may not be there: on stderr, so that a pipe gets only results."""
    click.echo(printable(text), err=True)


def say_error(text: str) -> None:
    """Print ``ghapp: error: …`` on stderr."""
    say(f"ghapp: error: {text}")


def hint(text: str) -> None:
    """Print ``ghapp: hint: …`` on stderr: the next command or link."""
    if text:
        say(f"ghapp: hint: {text}")


def warn(text: str) -> None:
    """Print ``ghapp: warning: …`` on stderr."""
    say(f"ghapp: warning: {text}")


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal and go ahead without one, as the design of the commands says; raises `click.Abort`."""
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        click.confirm(question, abort=True, err=True)
