"""`hybridmoe bench cache`: expert-cache policies on a routing trace."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from hybridmoe.cachebench.record import record
from hybridmoe.cachebench.study import Speeds, study
from hybridmoe.cachebench.workloads import workloads
from hybridmoe.cachebench.write import recall_table, table, tier_table, write_study
from hybridmoe.cli.options import debug_option, help_without_command
from hybridmoe.errors import ConfigError
from hybridmoe.experts.routing_trace import Trace, read_trace, write_trace
from hybridmoe.llm.load import load
from hybridmoe.units import parse_bytes

__all__ = ["bench_command"]

_ABOVE_0 = click.FloatRange(min=0, min_open=True)
_CONTEXT = 2048


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


@bench_command.command("cache")
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
    trace, predictions = _trace(source, out, conversations, tokens, seed)
    gbs = (far_gbs, near_gbs, upload_gbs, disk_gbs)
    largest = max(trace.header["expert_bytes"])
    vram_slots, ram_slots = (None if size is None else [size // largest] for size in (vram, ram))
    found = study(
        trace,
        predictions,
        Speeds(*(rate * 1e9 for rate in gbs)),
        seed=seed,
        vram_slots=vram_slots,
        ram_slots=ram_slots,
    )
    try:
        written = write_study(found, out)
        if find_spec("matplotlib") is None:
            click.echo("no plots: pip install 'hybridmoe[bench]'", err=True)
        else:
            from hybridmoe.cachebench.plots import write_plots

            written += write_plots(found, out)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    click.echo(f"Source: {trace.header.get('source', 'unknown')}\n")
    click.echo(table(found))
    click.echo("\n" + tier_table(found))
    if found.recalls:
        click.echo("\n" + recall_table(found))
    click.echo(f"{len(written)} files in {out}", err=True)


def _read(path: Path) -> Trace:
    trace = read_trace(path)
    if trace.is_complete:
        return trace
    cut = f"cut off after {trace.num_tokens} tokens"
    click.echo(f"hybridmoe: {path.name}: {cut}, {len(trace.steps)} steps: these are used", err=True)
    named = f"{trace.header.get('source', 'unknown')}, {cut}"
    return replace(trace, header={**trace.header, "source": named})


def _trace(
    source: str | None, out: Path, conversations: int, tokens: int, seed: int
) -> tuple[Trace, NDArray[np.int16] | None]:
    if source is not None:
        with open(source, "rb") as file:
            is_model = file.read(4) == b"GGUF"
        if not is_model:
            return _read(Path(source)), None
    with load(source, context_tokens=None if source is None else _CONTEXT) as llm:
        recording = record(llm, workloads(conversations, seed), tokens, seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_trace(out / "routing.trace", recording.trace)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    return recording.trace, recording.predictions
