"""`hybridmoe bench cache`: expert-cache policies on a routing trace."""

from pathlib import Path

import click

from hybridmoe.cli.options import SectionedCommand, debug_option, help_without_command
from hybridmoe.errors import ConfigError
from hybridmoe.packages import missing_packages
from hybridmoe.units import parse_bytes

__all__ = ["bench_command"]

_ABOVE_0 = click.FloatRange(min=0, min_open=True)


def _size(ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else parse_bytes(text, needs_unit=True)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


@click.group("bench", invoke_without_command=True)
@click.pass_context
def bench_command(ctx: click.Context) -> None:
    """Run benchmarks of the expert cache."""
    help_without_command(ctx)


@bench_command.command("cache", cls=SectionedCommand)
@click.argument("source", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    default="cache-bench",
    show_default=True,
    help="Folder of the results",
)
@click.option(
    "--conversations",
    type=click.IntRange(2, 1000),
    metavar="N",
    default=8,
    show_default=True,
    help="Conversations of each category, if a model is recorded",
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 4096),
    metavar="N",
    default=48,
    show_default=True,
    help="Maximum tokens of a response",
)
@click.option(
    "--far-gbs",
    type=_ABOVE_0,
    metavar="X",
    default=250.0,
    show_default=True,
    help="GB/s of uncached experts, from RAM",
)
@click.option(
    "--near-gbs",
    type=_ABOVE_0,
    metavar="X",
    default=1000.0,
    show_default=True,
    help="GB/s of cached experts, from VRAM",
)
@click.option(
    "--upload-gbs",
    type=_ABOVE_0,
    metavar="X",
    default=50.0,
    show_default=True,
    help="GB/s of uploads into the cache",
)
@click.option(
    "--disk-gbs",
    type=_ABOVE_0,
    metavar="X",
    default=7.0,
    show_default=True,
    help="GB/s of the disk below RAM",
)
@click.option(
    "--vram",
    metavar="SIZE",
    callback=_size,
    help="Experts in VRAM, of three tiers [default: several]",
)
@click.option(
    "--ram", metavar="SIZE", callback=_size, help="Experts in RAM below [default: several]"
)
@click.option(
    "--seed",
    type=click.IntRange(0, 1 << 31),
    metavar="N",
    default=0,
    show_default=True,
    help="Random seed of sampling and policies",
)
@debug_option
def cache_command(
    source: str | None,
    out: Path,
    conversations: int,
    tokens: int,
    far_gbs: float,
    near_gbs: float,
    upload_gbs: float,
    disk_gbs: float,
    vram: int | None,
    ram: int | None,
    seed: int,
) -> None:
    """Replay a routing trace with every cache policy, and with VRAM and RAM over a disk.

    SOURCE: a trace, or a GGUF model to record one from [default: the embedded model].
    """
    if reason := missing_packages("numba"):
        raise ConfigError(reason)
    from hybridmoe.cli.bench_run import run_cache_bench  # numpy, numba, torch: seconds

    run_cache_bench(
        source,
        out,
        conversations=conversations,
        tokens=tokens,
        gbs=(far_gbs, near_gbs, upload_gbs, disk_gbs),
        vram=vram,
        ram=ram,
        seed=seed,
    )
