"""Choice of some of several GPUs that is faster than all of them, planned and predicted.

A token visits one GPU after the other. So a slow one costs the time of its layers, and may cost the
others the length of a prompt's steps; its expert slots are not always worth that.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from hybridmoe.errors import ConfigError
from hybridmoe.planning.conversation import Conversation, Speed, speed_of
from hybridmoe.planning.cost_model import HitCurve
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets, GpuBudget
from hybridmoe.planning.rates import GpuRates, Rates
from hybridmoe.planning.stage_cost import StagedCost

__all__ = ["FewerGpus", "fewer_gpus"]

_MOST_GPUS = 6  # of more, only one alone and all but one are compared
_LEAST_GAIN = 1.02  # within that, predictions do not tell


class FewerGpus(NamedTuple):
    """GPUs that are predicted to be faster than all of them together."""

    numbers: tuple[int, ...]  # positions among all
    names: tuple[str, ...]  # of these
    speed: Speed
    of_all: Speed

    def line(self, numbers: Sequence[int]) -> str:
        """Line for people. numbers: of all GPUs, as `--device` names them."""
        named = zip(self.numbers, self.names, strict=True)
        which = " + ".join(f"cuda:{numbers[i]} ({name})" for i, name in named)
        alone = " alone" if len(self.names) == 1 else ""
        return (
            f"Fewer GPUs are predicted to be faster: {which}{alone}, prompts"
            f" {self.speed.prompt:.0f} tokens/s instead of {self.of_all.prompt:.0f}, decoding"
            f" {self.speed.decode:.1f} instead of {self.of_all.decode:.1f}."
        )


def fewer_gpus(
    plan: Plan,
    plan_within: Callable[[Budgets], Plan],
    rates: Rates,
    gpus: Sequence[GpuRates],
    conversation: Conversation,
    curve: HitCurve | None = None,
) -> FewerGpus | None:
    """Find the fastest choice of a plan's GPUs; None if it is all of them, or nearly as fast.

    plan_within: plans the same model with other budgets. rates: of the CPU. gpus, curve: as
    `StagedCost` takes them. What does not fit is left out.
    """
    budgets = plan.problem.budgets
    of_all = best = speed_of(StagedCost(plan, rates, gpus, curve), conversation)
    found: tuple[int, ...] = ()
    for numbers in _choices(budgets.gpus):
        try:
            other = plan_within(budgets.with_gpus(*(budgets.gpus[i] for i in numbers)))
        except ConfigError:
            continue
        own = [gpus[i] for i in numbers]
        speed = speed_of(StagedCost(other, replace(rates, gpu=own[0]), own, curve), conversation)
        if speed.seconds < best.seconds:
            found, best = numbers, speed
    if of_all.seconds < best.seconds * _LEAST_GAIN:
        return None
    return FewerGpus(found, tuple(budgets.gpus[i].name for i in found), best, of_all)


def _choices(gpus: Sequence[GpuBudget]) -> Iterator[tuple[int, ...]]:
    """Positions of some of the GPUs, in order; of equal choices the first."""
    num = len(gpus)
    seen = set()
    for size in range(1, num) if num <= _MOST_GPUS else (1, num - 1):
        for numbers in combinations(range(num), size):
            key = tuple(gpus[i] for i in numbers)
            if key not in seen:
                seen.add(key)
                yield numbers
