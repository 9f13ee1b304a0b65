"""Run of `hybridmoe bench cache`: replay a trace, or record one first."""

import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from hybridmoe.cachebench.policies.registry import POLICIES
from hybridmoe.cachebench.record import record
from hybridmoe.cachebench.study import Speeds, study
from hybridmoe.cachebench.workloads import workloads
from hybridmoe.cachebench.write import advice, recall_table, table, tier_table, write_study
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.cli.tables import Section, print_sections
from hybridmoe.errors import ConfigError
from hybridmoe.experts.routing_trace import Trace, read_trace, write_trace
from hybridmoe.llm.load import load
from hybridmoe.packages import missing_packages

__all__ = ["run_cache_bench", "section_of"]

_CONTEXT = 2048


def run_cache_bench(
    source: str | None,
    out: Path,
    *,
    conversations: int,
    tokens: int,
    gbs: tuple[float, float, float, float],
    vram: int | None,
    ram: int | None,
    seed: int,
) -> None:
    """Run the benchmark. gbs: GB/s of RAM, VRAM, uploads and disk. Errors: ConfigError."""
    trace, predictions = _trace(source, out, conversations, tokens, seed)
    largest = max(trace.header["expert_bytes"])
    vram_slots, ram_slots = (None if size is None else [size // largest] for size in (vram, ram))
    _say(f"replaying {trace.num_tokens} tokens with {len(POLICIES)} policies at several sizes")
    with ProgressBar() as bar:
        found = study(
            trace,
            predictions,
            Speeds(*(rate * 1e9 for rate in gbs)),
            seed=seed,
            vram_slots=vram_slots,
            ram_slots=ram_slots,
            progress=bar,
        )
    try:
        written = write_study(found, out)
        if reason := missing_packages("matplotlib"):
            _say(f"no plots: {reason}")
        else:
            from hybridmoe.cachebench.plots import write_plots

            written += write_plots(found, out)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    click.echo(f"Source: {trace.header.get('source', 'unknown')}\n")
    tables = [table(found), tier_table(found), *([recall_table(found)] if found.recalls else [])]
    if sys.stdout.isatty():
        print_sections([section_of(text) for text in tables])
    else:
        click.echo("\n\n".join(tables))
    click.echo(f"\n{advice(found)}".rstrip())
    _say(f"{len(written)} files in {out}; hybridmoe plan --hit-curve {out / 'hit_curve.json'}")


def section_of(markdown: str) -> Section:
    """Read a title and a Markdown table below it, for a terminal."""
    title, _, *lines = markdown.splitlines()
    rows = [[_cell(cell) for cell in line[1:-1].split("|")] for line in lines]
    return Section(title, rows[0], rows[2:])


def _cell(text: str) -> str:
    text = text.strip().strip("*")
    return "" if text == "-" else text


def _say(message: str) -> None:
    click.echo(f"hybridmoe: {message}", err=True)


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
        asked = workloads(conversations, seed)
        _say(f"recording {len(asked)} responses of {llm.config.name}, at most {tokens} tokens each")
        with ProgressBar() as bar:
            recording = record(llm, asked, tokens, seed, bar)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_trace(out / "routing.trace", recording.trace)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    return recording.trace, recording.predictions
