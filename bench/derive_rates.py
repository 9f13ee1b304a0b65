"""Write hybridmoe/planning/kernel_rates.py, the planner's table, from the newest results.

python bench/derive_rates.py
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._experts import HIDDEN, INTER
from bench._harness import RESULTS
from hybridmoe.planning.rates import ROW_COLS

__all__ = ["TARGET", "derived"]

TARGET = Path(__file__).parents[1] / "hybridmoe" / "planning" / "kernel_rates.py"
WITHOUT_VBMI = "avx512_without_vbmi"
PROMPTS = ("avx512", "avx_vnni", "avx2")  # the table of AMX is older than its kernels: rates.py
LINE = 96


class Results(NamedTuple):
    """Rows of one file."""

    name: str
    machine: Mapping[str, Any]
    values: Mapping[str, float]  # by name; those that were run


def derived() -> str:
    """Text of the module."""
    rates = newest("kernel_rates")
    plain = newest("kernel_rates_without_vbmi")
    prompts = newest("expert_forward")
    sources = "\n".join(f"    {r.name}: {r.machine['cpu']}" for r in (rates, plain, prompts))
    return "\n".join((
        '"""Rates of the CPU\'s kernels over the machine\'s int8 peak, by instruction set.',
        "",
        "Written by bench/derive_rates.py from these files of bench/results:",
        "",
        f"{sources}",
        '"""',
        "",
        "from collections.abc import Mapping",
        "from types import MappingProxyType",
        "",
        "from hybridmoe.gguf.quant_types import QuantType as Q",
        "",
        '__all__ = ["MEASURED_ON", "PRODUCT_BYTES", "PROMPT_PRODUCTS"]',
        "",
        f'MEASURED_ON = "{rates.machine["cpu"]}, {rates.machine["date"]}"',
        "",
        "# One token, weights in the cache: bytes of them for a thousand operations of the peak.",
        "PRODUCT_BYTES: Mapping[str, Mapping[Q, float]] = MappingProxyType({",
        *product_lines(rates, ""),
        *product_lines(plain, WITHOUT_VBMI),
        "})  # fmt: skip",
        "",
        "# Many tokens of an expert, weights from memory: share of the peak once weights are",
        "# unpacked, tokens whose products take as long as unpacking, and float32 over that peak.",
        "PROMPT_PRODUCTS: Mapping[str, tuple[float, float, float]] = MappingProxyType({",
        *(f'    "{isa}": ({prompt_fit(prompts, isa)}),' for isa in PROMPTS),
        "})  # fmt: skip",
        "",
    ))  # fmt: skip


def newest(kind: str) -> Results:
    path = max(RESULTS.glob(f"????-??-??_{kind}.json"))
    found = json.loads(path.read_text(encoding="utf-8"))
    values = {row["name"]: row["value"] for row in found["rows"] if row["value"] is not None}
    return Results(path.name, found["machine"], values)


def product_lines(results: Results, rename: str) -> Iterator[str]:
    for isa, found in results.machine["bytes_per_kop"].items():
        cells = [f"Q.{type}: {value:g}," for type, value in found.items()]
        yield f'    "{rename or isa}": MappingProxyType({{'
        yield from filled(cells, 8)
        yield "    }),"


def filled(cells: list[str], indent: int) -> Iterator[str]:
    line = " " * indent
    for cell in cells:
        if len(line) + len(cell) >= LINE:
            yield line.rstrip()
            line = " " * indent
        line += f"{cell} "
    yield line.rstrip()


def prompt_fit(results: Results, isa: str) -> str:
    """Fit 1 / rate = (1 + unpack / tokens) / (share x peak) to the mean of all types.

    Rows take ROW_COLS columns besides their own.
    """
    inverse: dict[int, list[float]] = {}
    for name, value in results.values.items():
        if match := re.fullmatch(rf"{isa} \w+ prefill, (\d+) tokens an expert", name):
            inverse.setdefault(int(match[1]), []).append(1 / (1e12 * value))
    tokens = sorted(inverse)
    means = [float(np.mean(inverse[t])) for t in tokens]
    slope, at_many = np.polyfit([1 / t for t in tokens], means, 1)
    limits = results.machine["limits"][isa]
    peak = limits["int8"]["all"]
    rows = 1 + ROW_COLS * (2 * INTER + HIDDEN) / (3 * INTER * HIDDEN)
    figures = rows / (at_many * peak), slope / at_many, limits["float32"]["all"] / peak
    return ", ".join(map(number, figures))


def number(value: float) -> str:
    """Write three digits."""
    return f"{float(f'{value:.3g}'):g}"


if __name__ == "__main__":
    TARGET.write_text(derived(), encoding="utf-8")
