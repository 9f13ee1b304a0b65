"""`hybridmoe list` and `hybridmoe rm`: the models in the models folder.

What they need is imported when they run (model_table.py).
"""

import click

from hybridmoe.cli.options import SectionedCommand, debug_option

__all__ = ["list_command", "rm_command"]


@click.command("list", cls=SectionedCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object")
@debug_option
def list_command(as_json: bool) -> None:
    """List the models in the models folder.

    The folder is $HYBRIDMOE_MODELS, or $XDG_DATA_HOME/hybridmoe/models
    [default: ~/.local/share/hybridmoe/models].
    """
    from hybridmoe.cli.model_table import list_models

    list_models(as_json=as_json)


@click.command("rm", cls=SectionedCommand)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask")
@debug_option
def rm_command(names: tuple[str, ...], yes: bool) -> None:
    """Remove models, with all of their parts, from the models folder."""
    from hybridmoe.cli.model_table import remove_models

    remove_models(names, must_ask=not yes)
