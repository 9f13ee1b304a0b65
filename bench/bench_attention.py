"""MLA by the type of the KV cache: one decode token and a prompt.

    python bench/bench_attention.py
    python bench/bench_attention.py --isa avx2

K2's heads over its KV cache, one thread, its own CPU time. Runs in rounds, one of each type, so
that other load affects all types. `value` is millions of positions a second, each for 64 heads of a
token; `peer` is bf16's.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import Row, print_report
from hybridmoe.config import KV_TYPES
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops
from hybridmoe.kernels.paged_mla import (
    PAGE_TOKENS,
    BlockTables,
    KvPages,
    Span,
    latent_attention,
    row_bytes,
    store_kv,
)

HEADS, LATENT, ROPE = 64, 512, 64
CASES = ((1, 512), (1, 4096), (128, 1024))  # tokens, positions


@click.command()
@click.option("--isa", "isa_name", type=click.Choice(isa.supported()), help="Kernels.")
@click.option("--turns", type=int, default=9, show_default=True)
def main(isa_name: str | None, turns: int) -> None:
    """Print each type's pace beside bf16's, and that of storing a prompt's rows."""
    ops.set_num_threads(1)
    rows = []
    with isa.forced(isa_name) if isa_name else nullcontext():
        for tokens, positions in CASES:
            seconds = _turns({t: _attention(t, tokens, positions) for t in KV_TYPES}, turns)
            name = f"attention, {tokens} of {positions}"
            pairs = tokens * (positions - (tokens - 1) / 2)
            rows += _rows(name, seconds, pairs / 1e6, "M/s")
        stores = {t: _store(t, 1024) for t in KV_TYPES}
        rows += _rows("store, 1024 tokens", _turns(stores, turns), 1024 / 1e6, "M/s")
        print_report(rows)


def _turns(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns + 1):  # the first warms up
        for name, call in calls.items():
            start = time.thread_time()
            call()
            seconds[name].append(time.thread_time() - start)
    return {name: times[1:] for name, times in seconds.items()}


def _rows(name: str, seconds: dict[str, list[float]], amount: float, unit: str) -> list[Row]:
    peer = amount / float(np.median(seconds["bf16"]))
    rows = []
    for kv_type, times in seconds.items():
        ratio = np.median(np.array(seconds["bf16"]) / np.array(times))
        note = f"median of the turns' ratios {ratio:.2f}"
        value = amount / float(np.median(times))
        rows.append(Row(f"{name}, {kv_type}", value, unit, peer=peer, note=note))
    return rows


def _pages(kv_type: str, positions: int) -> tuple[KvPages, torch.Tensor]:
    dim = LATENT + ROPE
    shape = (-(-positions // PAGE_TOKENS), PAGE_TOKENS, row_bytes(kv_type, dim))
    pages = KvPages(torch.zeros(shape, dtype=torch.uint8), kv_type, dim)
    rows = torch.randn((positions, dim), generator=torch.Generator().manual_seed(1))
    store_kv(rows, pages, BlockTables([Span(positions, 0, range(shape[0]))]))
    return pages, rows


def _attention(kv_type: str, tokens: int, positions: int) -> Callable[[], object]:
    pages, _ = _pages(kv_type, positions)
    table = BlockTables([Span(tokens, positions - tokens, range(len(pages.data)))])
    generator = torch.Generator().manual_seed(2)
    a = torch.randn((HEADS, tokens, LATENT), generator=generator)
    b = torch.randn((tokens, HEADS, ROPE), generator=generator)
    return lambda: latent_attention(a, b, pages, table, 0.1)


def _store(kv_type: str, tokens: int) -> Callable[[], object]:
    pages, rows = _pages(kv_type, tokens)
    table = BlockTables([Span(tokens, 0, range(len(pages.data)))])
    return lambda: store_kv(rows, pages, table)


if __name__ == "__main__":
    main()
