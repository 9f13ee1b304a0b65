"""One token's products from the cache, of each type and instruction set, beside the int8 peak.

    python bench/bench_kernel_rates.py --out                 # a minute
    python bench/bench_kernel_rates.py --isa avx512 --types IQ1_S

One core and 512 KB of weights: memory is no bound, and the fastest of many calls counts, so that
other programs matter little. The JSON has bytes of weights for a thousand operations of the peak,
of which bench/derive_rates.py makes the planner's table.
"""

import os
import sys
import time
from pathlib import Path

os.environ["HYBRIDMOE_THREADS"] = "1"

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._expert_cases import TYPES
from bench._harness import RESULTS, Row, machine, print_report
from bench.synthetic import fill_random
from hybridmoe import _C
from hybridmoe.gguf.quant_types import QuantType, tensor_bytes
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops

COLS = 2048
SIZES = 64 << 10, 576 << 10  # bytes: their difference leaves out what each call takes besides
TURNS, TURN_S = 6, 0.015
PEAK_TRIES, PEAK_TRY_S = 16, 0.001  # shorter than a scheduler's slice


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--isa", "names", multiple=True, type=click.Choice(isa.supported()))
@click.option("--types", multiple=True, type=click.Choice([t.name for t in TYPES]))
@click.option("--out", is_flag=False, flag_value="", help="Write the JSON [default: results/]")
def main(names: tuple[str, ...], types: tuple[str, ...], out: str | None) -> None:
    rows, products = [], {}
    for name in names or isa.supported():
        with isa.forced(name):
            peak, rates = 0.0, {}
            for type in [QuantType[t] for t in types] or TYPES:
                rates[type.name] = product_rate(type)
                peak = max(peak, int8_peak())
                print(f"{name} {type.name}: {rates[type.name] / 1e9:.2f} GB/s", file=sys.stderr)
            products[name] = {t: float(f"{1e3 * rate / peak:.3g}") for t, rate in rates.items()}
            rows.append(Row(f"{name} int8 peak, one core", peak / 1e12, "TOPS"))
    target = Path(out) if out else RESULTS / f"{machine()['date']}_kernel_rates.json"
    about = {"bytes_per_kop": products}
    print_report(rows, about=about, out=None if out is None else target)


def product_rate(type: QuantType) -> float:
    """Bytes a second of one core."""
    matrices = [_matrix(type, size) for size in SIZES]
    x = torch.ones(1, COLS)
    best = [float("inf")] * len(SIZES)
    for _ in range(TURNS):
        for i, w in enumerate(matrices):
            out = torch.empty(1, w.rows)
            end = time.perf_counter() + TURN_S
            while (start := time.perf_counter()) < end:
                ops.linear(x, w, out)
                best[i] = min(best[i], time.perf_counter() - start)
    few, many = (w.rows * tensor_bytes(type, (1, COLS)) for w in matrices)
    return (many - few) / (best[1] - best[0])


def int8_peak() -> float:
    """Operations a second of one core."""
    rounds, best = 100, 0.0
    for _ in range(PEAK_TRIES):
        start = time.perf_counter()
        num_ops = _C.run_limit("int8", rounds, 1)
        taken = time.perf_counter() - start
        best = max(best, num_ops / taken)
        if taken < PEAK_TRY_S:
            rounds *= 2
    return best


def _matrix(type: QuantType, num_bytes: int) -> ops.QuantMatrix:
    rows = max(4, num_bytes // tensor_bytes(type, (1, COLS)) // 4 * 4)
    data = np.empty(tensor_bytes(type, (rows, COLS)), np.uint8)
    fill_random(data, np.random.default_rng(1), (rows, COLS), type)
    return ops.QuantMatrix(data, type, 1, rows, COLS)


if __name__ == "__main__":
    main()
