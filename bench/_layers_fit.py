"""Time of a decode step by itself and of each MoE layer: a line through several depths."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from bench._harness import Row
from bench._hybrid_run import decode, opened, profiled_decode
from bench.synthetic import K2_SLICE, write_synthetic
from hybridmoe.gguf.quant_types import QuantType

__all__ = ["fit_rows", "line_through", "measure_layers", "parse_counts"]

_EXPERTS = 8  # of a layer: as many as a token uses, so that files stay small
_WARM_UP, _CONTEXT = 16, 1024
_WAYS = {"counters": "0", "host functions": "1"}  # value of HYBRIDMOE_HOST_CALLS
_NAMES = {"token_s": "decode", "neither_s": "GPU and CPU both idle in decode"}


def parse_counts(text: str) -> tuple[int, ...]:
    """Read two or more numbers of layers, such as 2,4,8. Errors: click.BadParameter."""
    counts = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if len(set(counts)) < 2 or min(counts) < 2:
        raise click.BadParameter(f"{text!r}: expected numbers of layers from 2, such as 2,4,8,16")
    return tuple(sorted(set(counts)))


def measure_layers(counts: Sequence[int], kind: QuantType, num_decode: int) -> list[dict[str, Any]]:
    """Decode without VRAM slots, with each number of MoE layers of Kimi K2's sizes.

    Both ways to the CPU and back are measured.
    """
    found = []
    for count in counts:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "k2.gguf"
            num_layers = K2_SLICE.num_dense_layers + count
            shape = replace(K2_SLICE, num_layers=num_layers, num_experts=_EXPERTS)
            write_synthetic(path, shape, expert_type=kind)
            found += [_measure(path, count, way, num_decode) for way in _WAYS]
    return found


def _measure(path: Path, count: int, way: str, num_decode: int) -> dict[str, Any]:
    options = {"device": "cuda", "place": [r"ffn_.*_exps=cpu"]}
    with environ(HYBRIDMOE_HOST_CALLS=_WAYS[way]), opened(path, _CONTEXT, **options) as llm:
        token_s = 1 / decode(llm, _WARM_UP, num_decode).tokens_per_s
        shares = profiled_decode(llm, _WARM_UP)
    return {"way": way, "layers": count, "token_s": token_s, "neither_s": shares.outside * token_s}


@contextmanager
def environ(**values: str) -> Iterator[None]:
    """Set environment variables, and restore them at the end of the block."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def line_through(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit a line by least squares; returns its value at 0 and its slope."""
    x, y = np.array(points, np.float64).T
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return float(y.mean() - slope * x.mean()), slope


def fit_rows(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Make rows of what a step takes by itself, and what each layer adds."""
    rows = []
    for way in _WAYS:
        points = [point for point in found if point["way"] == way]
        depths = ", ".join(str(point["layers"]) for point in points)
        for key, name in _NAMES.items():
            step, layer = line_through([(point["layers"], point[key]) for point in points])
            note = f"at 0 of {depths} MoE layers"
            rows.append(Row(f"{way}: {name}, a step", 1e6 * step, "us", note=note))
            rows.append(Row(f"{way}: {name}, a layer", 1e6 * layer, "us"))
    return rows
