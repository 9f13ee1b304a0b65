"""Layers over several GPUs: contiguous ranges in the order of the GPUs, the head with the last.

Each range is planned as a model of one GPU. GPUs get ranges so that the share of its layers'
experts that a GPU's slots hold is the same on all, as far as layers are whole. Where that leaves a
choice, a faster GPU takes as many layers as it can; equally fast ones share by VRAM.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

from hybridmoe.errors import ConfigError
from hybridmoe.planning.gpu_specs import spec_like
from hybridmoe.planning.plan import Plan, Tier
from hybridmoe.planning.problem import GpuBudget, Problem, span_of
from hybridmoe.planning.vram_plan import plan_vram

__all__ = ["Stage", "plan_stages", "split_layers", "stage_plan", "total_vram"]


class Stage(NamedTuple):
    """Layers of one GPU, as a problem of their own, and the plan of its VRAM."""

    problem: Problem
    vram: Tier


def plan_stages(problem: Problem, reason: str | None) -> list[Stage]:
    """Plan the VRAM of the GPU, or of each of several. Errors: ConfigError.

    reason: why there are no expert slots.
    """
    gpus = problem.budgets.gpus
    if not gpus:
        return [Stage(problem, plan_vram(problem, reason))]
    num_layers = len(problem.sizes.layers)
    if len(gpus) > num_layers:
        raise ConfigError(
            f"device: {len(gpus)} GPUs for a model of {num_layers} layers: name at most"
            f" {num_layers}"
        )
    stages = []
    for gpu, layers in zip(gpus, split_layers(problem, reason), strict=True):
        own = problem.of_stage(gpu, layers)
        try:
            stages.append(Stage(own, plan_vram(own, reason)))
        except ConfigError as error:
            raise ConfigError(f"{gpu.name}, layers {span_of(layers)}: {error}") from None
    return stages


def stage_plan(plan: Plan, stage: Stage) -> Plan:
    """Plan of one GPU's layers, with their share of RAM and of the experts on disk."""
    vram = stage.vram
    rest = stage.problem.sizes.num_experts - vram.num_experts
    on_disk = plan.num_disk_experts * rest // max(1, plan.num_experts - plan.num_vram_slots)
    in_ram = rest - on_disk
    expert_bytes = plan.ram.expert_bytes * in_ram // max(1, plan.num_ram_experts)
    ram = replace(plan.ram, num_experts=in_ram, expert_bytes=expert_bytes)
    return replace(plan, problem=stage.problem, vram=vram, ram=ram, num_disk_experts=on_disk)


def total_vram(stages: Sequence[Stage]) -> Tier | None:
    """Sum up the VRAM of all GPUs; None without one."""
    if not stages:
        return None
    parts: dict[str, int] = {}
    for stage in stages:
        for name, size in stage.vram.parts:
            parts[name] = parts.get(name, 0) + size
    tiers = [stage.vram for stage in stages]
    return Tier(
        "VRAM",
        sum(tier.budget_bytes for tier in tiers),
        tuple(parts.items()),
        sum(tier.num_experts for tier in tiers),
        sum(tier.expert_bytes for tier in tiers),
    )


def split_layers(problem: Problem, reason: str | None) -> list[range]:
    """Split the layers. Where they fit in no way, by VRAM alone: one of the ranges is too large."""
    gpus = problem.budgets.gpus
    ends = [_by_share(gpus, k, len(problem.sizes.layers)) for k in range(len(gpus))]
    low, high = 0, 1000
    while low <= high:  # what fits with a share of the experts, fits with a smaller one
        permille = (low + high) // 2
        found = _Split(problem, reason, permille).ends()
        if found is None:
            high = permille - 1
        else:
            ends, low = found, permille + 1
    return [range(*pair) for pair in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True)
class _Split:
    """Search of ranges in which every GPU's slots hold `permille` of its layers' experts."""

    problem: Problem
    reason: str | None
    permille: int

    def ends(self) -> list[int] | None:
        """Find the end of each GPU's range; None if nothing fits."""
        gpus, num_layers = self.problem.budgets.gpus, len(self.problem.sizes.layers)
        least = self._least_ends()
        if least is None:
            return None
        ends, start = [], 0
        for k in range(len(gpus) - 1):
            # What fits, fits with fewer layers: any end between these leaves an end for the others.
            most = min(self._longest(k, start), num_layers - (len(gpus) - 1 - k))
            if most < (first := max(least[k], start + 1)):
                return None
            ends.append(min(max(self._wanted(k, num_layers), first), most))
            start = ends[-1]
        return [*ends, num_layers]

    def _least_ends(self) -> list[int] | None:
        """Find the least end of each GPU's range: the GPUs behind it take all they can."""
        num_gpus = len(self.problem.budgets.gpus)
        ends = [len(self.problem.sizes.layers)]
        for k in range(num_gpus - 1, 0, -1):
            start = self._earliest(k, ends[0])
            if start == ends[0]:
                return None
            ends.insert(0, max(start, k))  # every GPU has a layer
        return ends if self._fits(0, range(ends[0])) else None

    def _wanted(self, k: int, num_layers: int) -> int:
        """End of a GPU's range that its speed or its VRAM would choose."""
        gpus = self.problem.budgets.gpus
        own, others = _speed(gpus[k]), max(map(_speed, gpus[k + 1 :]))
        if own != others:
            return num_layers if own > others else 0
        return _by_share(gpus, k, num_layers)

    def _longest(self, k: int, start: int) -> int:
        """Greatest end of a range of this GPU."""
        low, high = start, len(self.problem.sizes.layers)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(k, range(start, middle)) else (low, middle - 1)
        return low

    def _earliest(self, k: int, end: int) -> int:
        """Least start of a range of this GPU."""
        low, high = 0, end
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(k, range(middle, end)) else (middle + 1, high)
        return low

    def _fits(self, k: int, layers: range) -> bool:
        if not layers:
            return False
        own = self.problem.of_stage(self.problem.budgets.gpus[k], layers)
        try:
            slots = plan_vram(own, self.reason).num_experts
        except ConfigError:
            return False
        welcome = 0 if self.reason else own.sizes.num_experts - own.num_cpu_pinned
        return 1000 * slots >= self.permille * welcome


def _by_share(gpus: Sequence[GpuBudget], k: int, num_layers: int) -> int:
    """End of a GPU's range if VRAM alone decided; every GPU has a layer."""
    sums = list(accumulate(gpu.vram_bytes for gpu in gpus))
    end = round(num_layers * sums[k] / max(1, sums[-1]))
    return min(max(end, k + 1), num_layers - (len(gpus) - 1 - k))


def _speed(gpu: GpuBudget) -> float:
    """Read rate of a data sheet; GPUs that are not known are taken to be equal."""
    spec = spec_like(gpu.name)
    return spec.vram_gbs if spec else 0.0
