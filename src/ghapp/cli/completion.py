"""``ghapp completion``."""

import click
from click.shell_completion import get_completion_class


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
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "ghapp", "_GHAPP_COMPLETE").source())
