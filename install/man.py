"""Write the manual pages and the completions from the command line itself: .venv/bin/python install/man.py."""

# ruff: noqa: INP001  # a script, of no package

import re
from collections.abc import Iterator
from pathlib import Path

import click

from ghapp.cli import cli
from ghapp.cli.completion import source


INSTALL = Path(__file__).resolve().parent
SHELLS = {"bash": "ghapp.bash", "zsh": "_ghapp", "fish": "ghapp.fish"}

_EXIT = """
.SH EXIT STATUS
0 done, 1 failed, 2 wrong usage, 130 interrupted.
.br
Of \\(lqghapp exec\\(rq: that of its command; 125 when ghapp itself fails, 126 when the command cannot be run, 127 when
there is none.
Errors are \\(lqghapp: error: ...\\(rq and \\(lqghapp: hint: ...\\(rq on stderr; the hint is the next command.
"""
_FILES = """
.SH ENVIRONMENT
.TP
.B GHAPP_RUNTIME_DIR
The directory of the sockets, instead of $XDG_RUNTIME_DIR/ghapp.
.TP
.B GHAPP_DEBUG
Where it is set when the daemon starts, its log says more; never a secret.
.TP
.B XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR
Where configuration, logs and sockets are.
.TP
.B HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE
Of whoever starts the daemon, unless the configuration says otherwise.
.TP
.B NO_COLOR
Print without colours.
.SH FILES
.TP
.I ~/.config/ghapp/config.toml
The configuration: see
.BR ghapp\\-config (5).
.TP
.I ~/.config/ghapp/gitconfig
What \\(lqghapp setup\\-git\\(rq lets git include.
.TP
.I ~/.local/state/ghapp/daemon.log
The daemon's log, unless systemd keeps it.
"""
_HELPER = """.TH GIT\\-CREDENTIAL\\-GHAPP 1 "" ghapp "ghapp manual"
.SH NAME
git\\-credential\\-ghapp \\- let git use tokens of a GitHub App
.SH SYNOPSIS
.nf
git config credential.https://github.com/OWNER.helper /PATH/git\\-credential\\-ghapp
git config credential.https://github.com/OWNER.useHttpPath true
.fi
.SH DESCRIPTION
git runs this program with
.BR get ", " store " or " erase
and the attributes of a request on its standard input; see
.BR gitcredentials (7).
.P
.B get
asks the daemon of
.BR ghapp (1)
for a token that can do what git needs, in the one repository that git names, and prints it as username and password.
If no daemon runs it is started.
If no app of yours is installed on the repository's owner, it prints nothing, and git asks the next helper.
If there should be a token and there is none, it says why on stderr, with a hint.
.P
.B store
does nothing: tokens are kept by the daemon, in memory.
.B erase
lets the daemon forget a token that GitHub rejected.
.P
\\(lqghapp setup\\-git\\(rq writes the configuration above for all owners that your apps are installed on.
.SH SEE ALSO
.BR ghapp (1),
.BR gitcredentials (7),
.BR git\\-credential (1)
"""


def pages() -> dict[str, str]:
    """Return the manual pages by file name."""
    return {"ghapp.1": _ghapp(), "git-credential-ghapp.1": _HELPER, "ghapp-config.5": _config()}


def completions() -> dict[str, str]:
    """Return the completion scripts by file name."""
    return {name: f"{source(shell, cli)}\n" for shell, name in SHELLS.items()}


def _ghapp() -> str:
    head = (
        '.TH GHAPP 1 "" ghapp "ghapp manual"\n.SH NAME\nghapp \\- ssh\\-agent for GitHub Apps\n'
        ".SH SYNOPSIS\n.B ghapp\n.I COMMAND\n[OPTIONS] [ARGUMENTS]\n.SH DESCRIPTION\n"
    )
    parts = [
        head,
        _text(cli.help or ""),
        ".P\n" + _example(cli.epilog or ""),
        ".SH COMMANDS\nEach takes \\-\\-help.\n",
        *(_command(context) for context in _contexts(click.Context(cli, info_name="ghapp", **cli.context_settings))),
        _EXIT.lstrip(),
        _FILES.lstrip(),
        ".SH SEE ALSO\n.BR git\\-credential\\-ghapp (1),\n.BR ghapp\\-config (5),\n.BR gitcredentials (7)\n",
    ]
    return "".join(parts)


def _config() -> str:
    readme = (INSTALL.parent / "README.md").read_text(encoding="utf-8")
    (sample,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    return (
        '.TH GHAPP\\-CONFIG 5 "" ghapp "ghapp manual"\n.SH NAME\nghapp\\-config \\- the configuration of ghapp\n'
        ".SH SYNOPSIS\n.I ~/.config/ghapp/config.toml\n.SH DESCRIPTION\n"
        "\\(lqghapp app add\\(rq writes it; whatever else you write there, comments included, stays.\n"
        "It may be writable by you alone. After an edit: \\(lqghapp daemon restart\\(rq.\n"
        f".SH ALL KEYS\n.nf\n{_verbatim(sample)}.fi\n.SH SEE ALSO\n.BR ghapp (1)\n"
    )


def _contexts(parent: click.Context) -> Iterator[click.Context]:
    """Yield a context for each command that does something, in the order of the help."""
    group = parent.command
    assert isinstance(group, click.Group)  # noqa: S101  # who calls this has looked
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        if command is None or command.hidden:
            continue
        context = click.Context(command, info_name=name, parent=parent)
        if isinstance(command, click.Group):
            yield from _contexts(context)
        else:
            yield context


def _command(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    records = [
        parameter.get_help_record(context) for parameter in command.params if isinstance(parameter, click.Option)
    ]
    options = "".join(
        f".TP\n.B {_roff(names)}\n{_roff(' '.join(text.split()))}\n"
        for names, text in (record for record in records if record is not None)
    )
    indented = f".RS\n{options}.RE\n" if options else ""
    return f".SS {_roff(usage)}\n{_text(command.help or '')}{indented}"


def _text(text: str) -> str:
    """Turn a command's help into paragraphs; what click is not to rewrap is an example."""
    return ".P\n".join(
        _example(paragraph) if "\b" in paragraph else _roff(" ".join(paragraph.split())) + "\n"
        for paragraph in re.split(r"\n\s*\n", _dedented(text))
    )


def _dedented(text: str) -> str:
    first, _, rest = text.strip("\n").partition("\n")
    margins = [len(line) - len(line.lstrip()) for line in rest.splitlines() if line.strip()]
    margin = min(margins, default=0)
    return "\n".join([first.strip(" "), *(line[margin:] for line in rest.splitlines())])


def _example(text: str) -> str:
    head, *lines = [line for line in text.replace("\b", "").splitlines() if line.strip()]
    return f"{_roff(head.strip())}\n.nf\n{_verbatim(chr(10).join(lines))}.fi\n"


def _verbatim(text: str) -> str:
    return "".join(_roff(line) + "\n" for line in text.splitlines())


def _roff(line: str) -> str:
    """Escape what roff would read: a minus is to be copied as one, and a line may begin with a period."""
    line = line.replace("\\", "\\e").replace("-", "\\-")
    for character, name in (("…", "..."), ("·", "\\(md"), ("→", "\\(->"), ("≥", "\\(>="), ("≤", "\\(<=")):
        line = line.replace(character, name)
    return "\\&" + line if line.startswith((".", "'")) else line


def main() -> None:
    """Write all of it, and take out what is not generated any more."""
    for name, files in (("man", pages()), ("completions", completions())):
        directory = INSTALL / name
        directory.mkdir(exist_ok=True)
        for path in directory.iterdir():
            if path.name not in files:
                path.unlink()
        for file, text in files.items():
            (directory / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
