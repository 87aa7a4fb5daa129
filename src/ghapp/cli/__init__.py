"""The command line: ``ghapp``. Commands are imported when they are called, and only then."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from ghapp.cli.output import Group, hint, say_error
from ghapp.errors import GhappError, UsageError


_COMMANDS = {
    "app": "ghapp.cli.app:app",
    "completion": "ghapp.cli.completion:completion",
    "daemon": "ghapp.cli.daemon:daemon",
    "doctor": "ghapp.cli.doctor:doctor",
    "exec": "ghapp.cli.exec:execute",
    "grant": "ghapp.cli.grant:grant",
    "installations": "ghapp.cli.installations:installations",
    "key": "ghapp.cli.key:key",
    "leases": "ghapp.cli.leases:leases",
    "lock": "ghapp.cli.lock:lock",
    "log": "ghapp.cli.log:log",
    "repos": "ghapp.cli.repos:repos",
    "revoke": "ghapp.cli.revoke:revoke",
    "setup": "ghapp.cli.setup:setup",
    "setup-git": "ghapp.cli.setup_git:setup_git",
    "status": "ghapp.cli.status:status",
    "token": "ghapp.cli.token:token",
    "uninstall": "ghapp.cli.uninstall:uninstall",
    "unlock": "ghapp.cli.unlock:unlock",
}


@click.group(
    cls=Group,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="\b\nBegin with:\n  ghapp setup",
)
@click.version_option(package_name="ghapp", message="%(prog)s %(version)s")
def cli() -> None:
    """ssh-agent for GitHub Apps: git on https://github.com as a bot.

    A small daemon holds the app's private key, mints one-hour tokens and hands
    them to git. It starts by itself when git first needs it.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code: 0 done, 1 failed, 2 wrong usage."""
    try:
        result: Any = cli.main(arguments, prog_name="ghapp", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "ghapp"
        say_error(_in_our_form(error.format_message()))
        hint(f"{command} --help")
        return 2
    except click.ClickException as error:
        say_error(_in_our_form(error.format_message()))
        return 1
    except (click.Abort, KeyboardInterrupt):
        say_error("interrupted; nothing more was changed")
        return 130
    except GhappError as error:
        say_error(str(error))
        hint(error.hint)
        return 2 if error.code == UsageError.code else 1  # also one that the daemon found
    except BrokenPipeError:
        _drop_stdout()  # whoever read our output has seen enough
        return 1
    except OSError as error:
        _drop_stdout()
        say_error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        return 1
    return result if isinstance(result, int) else 0


def _in_our_form(message: str) -> str:
    """Return click's sentence as ours are: one line, no capital, no period."""
    line = " ".join(message.split())
    return line[:1].lower() + line[1:].removesuffix(".")


def _drop_stdout() -> None:
    """Let what is still buffered go nowhere: the flush at the interpreter's end must not complain once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command line of this process; a closed descriptor does not become a socket's number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004  # stderr
        pass
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # for the life of the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # as above
    sys.exit(run())
