"""Marginal gains: the speed with one more GiB of RAM or of VRAM, or a disk faster by 1 GB/s.

Each is the prediction for a plan of its own, made as the plan itself was: what `load` would do with
the larger budget. What cannot help is left out, and what is not known: a hit rate that was given
holds for the plan's slots alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from hybridmoe.errors import ConfigError
from hybridmoe.planning.conversation import Conversation, Speed, speed_of
from hybridmoe.planning.cost_model import HitCurve
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets, GpuBudget
from hybridmoe.planning.rates import GpuRates, Rates
from hybridmoe.planning.stage_cost import StagedCost
from hybridmoe.units import GIB

__all__ = ["Gain", "gains"]

_DISK_STEP = 1e9  # bytes/s


class Gain(NamedTuple):
    """Speed with more of one thing."""

    more: str  # `1 GiB of RAM`
    speed: Speed


def gains(
    plan: Plan,
    plan_within: Callable[[Budgets], Plan],
    rates: Rates,
    gpus: Sequence[GpuRates],
    conversation: Conversation,
    curve: HitCurve | None = None,
    *,
    vram_rate: float | None = None,
    hit_rate: float | None = None,
) -> list[Gain]:
    """Predict the speed with more RAM, VRAM and disk, one at a time.

    plan_within: plans the same model with other budgets; what it refuses is left out. Rates, curve
    and hit rates: as `StagedCost` takes them.
    """

    def speed(plan: Plan, rates: Rates) -> Speed:
        cost = StagedCost(plan, rates, gpus, curve, vram_rate=vram_rate, hit_rate=hit_rate)
        return speed_of(cost, conversation)

    found = []
    for more, budgets in _larger(plan, vram_rate is None) if hit_rate is None else ():
        with suppress(ConfigError):
            found.append(Gain(more, speed(plan_within(budgets), rates)))
    if plan.needs_disk and rates.disk is not None:
        found.append(
            Gain("1 GB/s of disk", speed(plan, replace(rates, disk=rates.disk + _DISK_STEP)))
        )
    return found


def _larger(plan: Plan, has_vram: bool) -> Iterator[tuple[str, Budgets]]:
    """List larger budgets, each with what it has more of."""
    budgets = plan.problem.budgets
    if plan.needs_disk:
        given = budgets.expert_ram_bytes
        yield (
            "1 GiB of RAM",
            replace(
                budgets,
                ram_bytes=budgets.ram_bytes + GIB,
                expert_ram_bytes=None if given is None else given + GIB,
            ),
        )
    if not has_vram or plan.vram is None or plan.cpu_reason is not None:
        return
    if plan.num_vram_slots < plan.num_experts - plan.problem.num_cpu_pinned:
        gpus = budgets.gpus or (GpuBudget(budgets.gpu_name, budgets.vram_bytes),)
        larger = (gpu._replace(vram_bytes=gpu.vram_bytes + GIB) for gpu in gpus)
        each = "1 GiB of VRAM, each GPU" if len(gpus) > 1 else "1 GiB of VRAM"
        yield each, budgets.with_gpus(*larger)
