"""`streamcore completion`: scripts that complete commands, options and topics in a shell."""

from __future__ import annotations

import click


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that lets a shell complete commands, options and the names of topics.

    \b
    Examples:
      eval "$(streamcore completion bash)"                                        # in ~/.bashrc
      eval "$(streamcore completion zsh)"                                         # in ~/.zshrc, after compinit
      streamcore completion fish > ~/.config/fish/completions/streamcore.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    group = ctx.find_root().command
    click.echo(script(group, {}, "streamcore", "_STREAMCORE_COMPLETE").source())
