"""`hybridmoe inspect`: contents of a GGUF file, and its costs per token."""

from pathlib import Path

import click

from hybridmoe.cli.options import SectionedCommand, debug_option, model_argument
from hybridmoe.demo import demo_path

__all__ = ["inspect_command"]


@click.command("inspect", cls=SectionedCommand)
@model_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object")
@click.option("--tensors", "with_tensors", is_flag=True, help="List every tensor")
@click.option(
    "--check", "is_check", is_flag=True, help="Read all weights and report NaN and infinity"
)
@debug_option
def inspect_command(model: Path | None, as_json: bool, with_tensors: bool, is_check: bool) -> None:
    """Show the contents and sizes of MODEL, a GGUF file or the first part of a split one.

    Without MODEL: of the embedded model.
    """
    from hybridmoe.cli.inspect_run import inspect_file  # imports numpy, gguf, rich

    inspect_file(
        model or demo_path(), as_json=as_json, with_tensors=with_tensors, is_check=is_check
    )
