"""`hybridmoe inspect --check`: read all weights of a file and name the damaged tensors."""

import json
from dataclasses import asdict

import click

from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.errors import GGUFError
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.finite import Damage, find_damage, is_checkable
from hybridmoe.llm.progress import Progress

__all__ = ["check_weights"]

_MOST_LINES = 20


def check_weights(file: GGUFFile, *, as_json: bool = False) -> None:
    """Print the damaged tensors. Errors: GGUFError if any is damaged; DiskError."""
    tensors = list(file.tensors.values())
    found: list[Damage] = []
    unknown = [tensor for tensor in tensors if not is_checkable(tensor)]
    done, total = 0, sum(tensor.num_bytes for tensor in tensors)
    with ProgressBar() as bar:
        for tensor in tensors:
            bar(Progress("check", done, total, "bytes"))
            found += find_damage(file, tensor)
            done += tensor.num_bytes
    num_damaged = len({damage.tensor for damage in found})
    if as_json:
        summary = {
            "num_tensors": len(tensors),
            "num_damaged": num_damaged,
            "damage": [asdict(damage) for damage in found],
            "not_checked": [tensor.name for tensor in unknown],
        }
        click.echo(json.dumps(summary))
    else:
        _print(found, [f"{printable(t.name)} ({t.type.name})" for t in unknown])
    if found:
        raise GGUFError(
            f"{printable(file.path.name)}: {num_damaged} of {len(tensors)} tensors are damaged: get"
            " the file again, or convert it again"
        )
    if not as_json:
        click.echo(f"{len(tensors) - len(unknown)} tensors: all numbers and scales are finite")


def _print(found: list[Damage], unknown: list[str]) -> None:
    for damage in found[:_MOST_LINES]:
        click.echo(str(damage))
    if len(found) > _MOST_LINES:
        click.echo(f"... and {len(found) - _MOST_LINES} more (--json lists all)")
    for name in unknown:
        click.echo(f"{name}: not checked, no kernel for its type")
