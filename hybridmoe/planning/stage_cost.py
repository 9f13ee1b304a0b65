"""Cost of tokens whose layers several GPUs share: their times in order, and the crossings.

A token visits one GPU after the other, so nothing of it overlaps. Each GPU's part is predicted as a
model of its own (cost_model.py). With one GPU, or none, it is that prediction.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from hybridmoe.planning.cost_model import HitCurve, Hits, Step, decode, hits_of
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.prompt_cost import prompt
from hybridmoe.planning.rates import GpuRates, Rates

__all__ = ["StagedCost"]

CROSSING = "between GPUs"  # cause of a step's seconds
_CROSSING_S = 30e-6  # of a copy that waits for one stream and is waited for by another: assumed


class StagedCost:
    """Cost model of a plan on a machine with as many GPUs as the plan has stages."""

    def __init__(
        self,
        plan: Plan,
        rates: Rates,
        gpus: Sequence[GpuRates],
        curve: HitCurve | None = None,
        *,
        vram_rate: float | None = None,
        hit_rate: float | None = None,
    ) -> None:
        """rates: of the CPU, or of the CPU and the one GPU. gpus: of each stage.

        curve, vram_rate, hit_rate: as `hits_of`, of the whole model.
        """
        self._hidden = plan.problem.sizes.config.hidden
        self._gpus = gpus if plan.split else ()
        self._stages: list[tuple[Plan, Rates, Hits]] = []
        for k, stage in enumerate(plan.stages):
            own, share = rates, stage.num_experts / max(1, plan.num_experts)
            if plan.split:  # the step's time in Python is the first one's
                own = replace(rates, gpu=gpus[k], step_s=rates.step_s if k == 0 else 0.0)
            part = None if curve is None else _scaled(curve, share)
            hits = hits_of(stage, part, vram_rate=vram_rate, hit_rate=hit_rate)
            self._stages.append((_network_of(stage), own, hits))
        self.hits = hits_of(plan, curve, vram_rate=vram_rate, hit_rate=hit_rate)

    def decode(self, position: int) -> Step:
        """Cost of one token, as `cost_model.decode`."""
        return self._sum([decode(*stage, position) for stage in self._stages], 1)

    def prompt(self, num_tokens: int) -> Step:
        """Cost of a prompt."""
        steps = [prompt(*stage, num_tokens) for stage in self._stages]
        return self._sum(steps, -(-num_tokens // self._stages[0][0].step_tokens))

    def _sum(self, steps: Sequence[Step], num_steps: int) -> Step:
        if len(steps) == 1:
            return steps[0]
        num_tokens = steps[0].num_tokens
        num_bytes = 4 * self._hidden * num_tokens
        crossing = sum(
            num_steps * _CROSSING_S + num_bytes / min(one.pcie, two.pcie)
            for one, two in pairwise(self._gpus)
        )
        seconds = {key: sum(s.seconds[key] for s in steps) for key in steps[0].seconds}
        read = {key: sum(s.read_bytes[key] for s in steps) for key in steps[0].read_bytes}
        return Step(num_tokens, seconds | {CROSSING: crossing}, read)


def _network_of(plan: Plan) -> Plan:
    """Leave out the layer that drafts: it is loaded, but computes no token of a response."""
    problem = plan.problem
    return replace(plan, problem=replace(problem, sizes=problem.sizes.network))


def _scaled(curve: HitCurve, share: float) -> Callable[[int], float]:
    """Hit rate of slots that a share of the layers has for itself."""
    return lambda slots: curve(round(slots / share)) if share else 0.0
