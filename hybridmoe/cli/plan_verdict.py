"""Verdict of `hybridmoe plan` in one sentence, and its table of quantizations by RAM."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from hybridmoe.cli.plan_report import Report
from hybridmoe.cli.tables import Section
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import outline_of
from hybridmoe.placement.budgets import plan_within
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.gpu_specs import GPUS
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets, GpuBudget
from hybridmoe.planning.rates import GpuRates
from hybridmoe.planning.releases import Release
from hybridmoe.planning.stage_cost import StagedCost
from hybridmoe.units import GIB, format_bytes

__all__ = ["quant_section", "verdict"]

_CARD = "rtx-4090"  # of the sentence on one card
_QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ2_XXS", "IQ1_S")
_RAM_GIB = (32, 64, 128, 192, 256, 384, 512, 768, 1024)
_MAX_COLUMNS = 5


def verdict(report: Report, within: Callable[[Budgets], Plan], *, may_add_gpu: bool) -> str:
    """Say in one sentence whether the model runs, and how fast; with a card, if it has none.

    within: plans the same model with other budgets.
    """
    said = "runs: " + _speed(report.decode.tokens_per_s, report.prompt.total_s, report)
    if report.plan.needs_disk:
        sizes = report.plan.problem.sizes
        disk = sizes.all_expert_bytes * report.plan.num_disk_experts // report.plan.num_experts
        said += f"; {format_bytes(disk)} of experts stay on disk"
    if report.plan.vram or not may_add_gpu or report.are_hits_given:
        return said
    spec = GPUS[_CARD]
    gpu = GpuRates.assumed(spec.vram_gbs, spec.tflops, spec.pcie_gbs)
    budgets = replace(report.plan.problem.budgets, no_gpu_note="")
    with suppress(ConfigError):
        plan = within(budgets.with_gpus(GpuBudget(_CARD, spec.vram_gib << 30)))
        if plan.vram and plan.shortage is None:
            cost = StagedCost(plan, replace(report.rates, gpu=gpu), (gpu,))
            speed = _speed(
                cost.decode(report.prompt.num_tokens + report.answer_tokens // 2).tokens_per_s,
                cost.prompt(report.prompt.num_tokens).total_s,
                report,
            )
            return f"{said}; with one {_CARD} of {spec.vram_gib} GB: {speed}"
    return said


def quant_section(
    release: Release, report: Report, options: LoadOptions, quant: str | None
) -> Section:
    """Compare a release's quantizations: answers in tokens/s with this machine's RAM, and others.

    Other RAM is taken to be as fast. The plan's own disk rate and GPU hold for all.
    """
    here = report.plan.problem.budgets
    chosen = (quant or release.quant).upper()
    quants = _QUANTS if chosen in _QUANTS else (chosen, *_QUANTS)
    sizes = {
        name: sum(tensor.num_bytes for tensor in outline_of(release.metadata, name).tensors)
        for name in quants
    }
    largest = max(sizes.values())
    rams = [gib * GIB for gib in _RAM_GIB if gib * GIB <= 2 * largest][-_MAX_COLUMNS:]
    rams = [ram for ram in rams if ram != here.ram_bytes]
    rows = []
    for name in sorted(quants, key=sizes.__getitem__, reverse=True):
        outline = outline_of(release.metadata, name)

        def speed(ram_bytes: int, outline=outline) -> str:  # type: ignore[no-untyped-def]
            budgets = replace(here, ram_bytes=ram_bytes)
            with suppress(ConfigError):
                plan = plan_within(outline.config, outline.tensors, options, budgets)
                if plan.shortage is None:
                    cost = StagedCost(plan, report.rates, report.gpu_rates)
                    position = report.prompt.num_tokens + report.answer_tokens // 2
                    return _number(cost.decode(position).tokens_per_s)
            return "-"

        mark = "*" if name == chosen else ""
        cells = [speed(here.ram_bytes), *(map(speed, rams))]
        rows.append((f"{name}{mark}", format_bytes(sizes[name]), *cells))
    heads = [f"{ram // GIB} GiB" for ram in rams]
    return Section(
        "Answers in tokens/s, by quantization and RAM",
        ("quant, *: this plan", "size", f"{format_bytes(here.ram_bytes)} here", *heads),
        rows,
    )


def _speed(tokens_per_s: float, first_s: float, report: Report) -> str:
    return (
        f"{_number(tokens_per_s)} tokens/s, first word of a {report.prompt.num_tokens}-token prompt"
        f" after {_time(first_s)}"
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _time(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
