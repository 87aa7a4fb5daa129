"""How commands speak: results on stdout, everything else on stderr with a prefix; colour and width by rich."""

import difflib
import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource


Command = TypeVar("Command", bound=Callable[..., Any])

_WHOLE = (
    "APP",
    "ID",
    "LEASE",
    "EXPIRES",
    "FINGERPRINT",
    "HOST",
    "KEYS",
    "NAME",
    "REPOSITORY",
    "SETTINGS",
    "SIGNER",
)  # columns that people copy from
_WIDEST = 10_000


class Group(click.Group):
    """A group that prints its help when it is called alone, and knows what was nearly typed; in every click.

    `lazy` has commands by name, as ``package.module:attribute``: only the one that is called is imported.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, str] | None = None, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, sorted."""
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, name = self._lazy[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, unless there is nothing to parse: wrong usage, and the help is all there is to say."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` begin with; raises `click.UsageError`, which names the nearest."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            ctx.fail(f"no such command {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)


def counted(number: int, noun: str) -> str:
    """Return ``1 token`` or ``2 tokens``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def typed(**changes: str | bool | None) -> str:
    """Return the command line that runs now, for a shell: what was typed, and `changes` to its options.

    For hints: no secret is on a command line, so it can be repeated; only stdin has to be given again. None takes an
    option out.
    """
    ctx = click.get_current_context(silent=True)
    if ctx is None:
        return "ghapp"  # a thread beside the command's, whose hints nobody reads
    params = {str(param.name): param for param in ctx.command.params}
    given = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    words = ctx.command_path.split()
    for name in dict.fromkeys([*given, *changes]):  # as they were typed, and what is new behind them
        words += _words(params[name], changes[name] if name in changes else ctx.params[name])
    return shlex.join(words) + (" < FILE" if "-" in words else "")


def _words(param: click.Parameter, value: object) -> Iterator[str]:
    """Yield the words that give `value` to `param`."""
    option = param.opts[0] if isinstance(param, click.Option) else ""
    if value is None or (value is False and not param.secondary_opts):
        return
    if isinstance(value, bool):
        yield option if value else param.secondary_opts[0]
        return
    several = [f"{key}={level}" for key, level in value.items()] if isinstance(value, Mapping) else value
    for one in several if isinstance(several, list | tuple) else [several]:
        yield from [option] if option else []
        yield f"{one:g}s" if isinstance(one, float) else str(one)  # the only numbers with a fraction are durations


def refuse_empty(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Refuse "", as of a variable that is not set: taken for what was not given, it would widen the question."""
    if value == "":
        raise click.BadParameter("'' names nothing")
    return value


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

    # rich drops colours alone for these.
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in {"dumb", "unknown"}
    table = Table(box=None, pad_edge=False, header_style="none" if is_plain else "bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column.endswith(_WHOLE))
    for row in rows:
        table.add_row(*(printable(str(cell)) for cell in row))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=500)
    needed = console.measure(table, options=console.options.update(width=_WIDEST)).minimum
    console.width = max(console.width, needed)  # what is copied from a table is not cut: the terminal folds it
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


FIRST = "ghapp setup"
"""What registers an app, for who has none."""


def say_no_app() -> None:
    """Say that there is nothing to list, and what changes that."""
    say("no app is registered")
    hint(FIRST)


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal and go ahead without one, as the design of the commands says.

    Raises `click.ClickException` after a no, and `click.Abort` after ^C or ^D.
    """
    if yes or not sys.stdin.isatty() or not sys.stderr.isatty():
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        say("")  # what follows begins a line of its own
        raise
    if not agreed:
        raise click.ClickException("nothing was changed")
