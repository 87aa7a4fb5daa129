"""``ghapp completion``."""

import click
from click.shell_completion import BashComplete, get_completion_class


class Bash(BashComplete):
    """click's, with words that hold a colon or an equals sign: bash parts them there, and replaces the last part."""

    source_template = r"""
%(complete_func)s() {
    local IFS=$'\n'
    local rest=$COMP_LINE word words=() current response completion type value

    for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        if [[ ${#words[@]} -gt 0 && -n $word && $rest == "$word"* ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
        rest=${rest#*"$word"}
    done
    current=${words[${#words[@]}-1]}

    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) %(complete_var)s=bash_complete "$1")

    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"

        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            if [[ $current == -*=* && $value != -* ]]; then
                value=${current%%%%=*}=$value
            fi
            COMPREPLY+=("${value#"${current%%"$2"}"}")
        fi
    done

    return 0
}

%(complete_func)s_setup() {
    complete -o nosort -F %(complete_func)s %(prog_name)s
}

%(complete_func)s_setup;
"""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Examples:
      eval "$(ghapp completion bash)"          # in ~/.bashrc
      eval "$(ghapp completion zsh)"           # in ~/.zshrc
      ghapp completion fish | source           # in config.fish
    """
    click.echo(source(shell, ctx.find_root().command))


def source(shell: str, command: click.Command) -> str:
    """Return the script by which `shell` completes `command`."""
    kind = Bash if shell == "bash" else get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    return kind(command, {}, "ghapp", "_GHAPP_COMPLETE").source()
