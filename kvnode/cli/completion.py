"""``kvnode completion SHELL``: the script that teaches a shell to complete kvnode's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from kvnode.cli.main import cli


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Examples:
      source <(kvnode completion bash)
      kvnode completion zsh > ~/.zfunc/_kvnode
      kvnode completion fish > ~/.config/fish/completions/kvnode.fish
    """
    script = get_completion_class(shell)
    assert script is not None, shell
    click.echo(script(cli, {}, "kvnode", "_KVNODE_COMPLETE").source())
