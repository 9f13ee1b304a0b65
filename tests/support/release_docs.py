"""Tables of the published models, from the planner; run it to rewrite the pages of `BLOCKS`."""

from functools import cache
from math import prod
from pathlib import Path
from typing import NamedTuple

from page_blocks import Block, rewrite, table

from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import Outline, outline_of
from hybridmoe.placement.budgets import plan_within
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.gpu_specs import GPUS
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets, GpuBudget
from hybridmoe.planning.rates import GpuRates, rates_of
from hybridmoe.planning.releases import RELEASES, Release
from hybridmoe.planning.stage_cost import StagedCost
from hybridmoe.units import GIB

__all__ = ["BLOCKS"]

ROOT = Path(__file__).parents[2]
CONTEXT_TOKENS, PROMPT_TOKENS = 32768, 1024
QUANTS = ("Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M", "Q2_K")
SHOWN = ("Q8_0", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ2_XXS", "IQ1_S")
ON_DISK = "Q2_K"  # where none of these fits into memory


class Machine(NamedTuple):
    """Machine that a table predicts for; AVX-512, and an RTX 4090 on PCIe 4.0."""

    name: str
    ram_gib: int  # that the system leaves
    dram: float  # bytes/s
    ops: float


MACHINES = (
    Machine("64 GB desktop", 56, 80e9, 20e12),
    Machine("256 GB desktop", 244, 80e9, 20e12),
    Machine("768 GB server", 740, 380e9, 30e12),
)
DISK = 7e9
CARD = GPUS["rtx-4090"]


class Row(NamedTuple):
    """Releases of one size."""

    releases: tuple[Release, ...]
    billions: float
    gib: dict[str, float]  # of files, by quantization
    predicted: tuple[str, ...]  # on each machine
    ram_gib: float  # that all of a Q4_K_M takes, without a GPU


@cache
def rows() -> tuple[Row, ...]:
    """Make a row for all releases whose files have the same size."""
    groups: dict[int, list[Release]] = {}
    for release in RELEASES:
        groups.setdefault(_num_bytes(outline_of(release.metadata, "Q4_K_M")), []).append(release)
    found = []
    for releases in groups.values():
        outlines = {quant: outline_of(releases[0].metadata, quant) for quant in {*QUANTS, *SHOWN}}
        row = Row(
            tuple(releases),
            sum(prod(tensor.shape) for tensor in outlines["Q8_0"].tensors) / 1e9,
            {quant: _num_bytes(outline) / GIB for quant, outline in outlines.items()},
            tuple(_prediction(outlines, machine) for machine in MACHINES),
            _ram_bytes(outlines["Q4_K_M"]) / GIB,
        )
        found.append(row)
    return tuple(found)


def sizes_table() -> str:
    """Write the table of docs/models.md."""
    heads = ("release", "parameters", *SHOWN, "RAM for Q4_K_M")
    lines = [
        (
            ", ".join(r.name for r in row.releases),
            f"{row.billions:.0f} B",
            *(f"{row.gib[quant]:.0f}" for quant in SHOWN),
            f"{row.ram_gib:.0f}",
        )
        for row in rows()
    ]
    return table(heads, lines)


def speeds_table() -> str:
    """Write the table of README.md."""
    heads = ("release", "Q4_K_M, GiB", *(f"{m.name}, RTX 4090" for m in MACHINES))
    lines = [
        (", ".join(r.name for r in row.releases), f"{row.gib['Q4_K_M']:.0f}", *row.predicted)
        for row in rows()
    ]
    return table(heads, lines)


def _prediction(outlines: dict[str, Outline], machine: Machine) -> str:
    """Predict the largest quantization that stays in memory, or `ON_DISK` where none does."""
    for quant in QUANTS:
        plan = _plan(outlines[quant], machine)
        if plan is not None and not plan.needs_disk:
            return f"{quant}: {_tokens_per_s(plan, machine)}"
    plan = _plan(outlines[ON_DISK], machine)
    return f"{ON_DISK} from disk: {_tokens_per_s(plan, machine)}" if plan is not None else "-"


def _plan(outline: Outline, machine: Machine | None) -> Plan | None:
    """Plan one conversation; machine: None = as much RAM as is wanted. None = it does not run."""
    context = min(CONTEXT_TOKENS, outline.config.context_tokens)
    options = LoadOptions(context_tokens=context, max_running=1)
    budgets = Budgets(
        ram_bytes=(4096 if machine is None else machine.ram_gib) * GIB, is_gpu_optional=True
    )
    if machine is not None:
        budgets = budgets.with_gpus(GpuBudget("rtx-4090", CARD.vram_gib * GIB))
    try:
        plan = plan_within(outline.config, outline.tensors, options, budgets)
    except ConfigError:
        return None
    return None if plan.shortage is not None else plan


def _tokens_per_s(plan: Plan, machine: Machine) -> str:
    gpu = GpuRates.assumed(CARD.vram_gbs, CARD.tflops, CARD.pcie_gbs)
    rates = rates_of("avx512", dram=machine.dram, peak_ops=machine.ops, disk=DISK, gpu=gpu)
    speed = StagedCost(plan, rates, (gpu,)).decode(PROMPT_TOKENS).tokens_per_s
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"


def _ram_bytes(outline: Outline) -> int:
    plan = _plan(outline, None)
    assert plan is not None
    return plan.ram.used_bytes


def _num_bytes(outline: Outline) -> int:
    return sum(tensor.num_bytes for tensor in outline.tensors)


_SOURCE = "tests/support/release_docs.py"
BLOCKS = (
    Block(ROOT / "README.md", _SOURCE, speeds_table),
    Block(ROOT / "docs" / "models.md", _SOURCE, sizes_table),
)

if __name__ == "__main__":
    rewrite(BLOCKS)
