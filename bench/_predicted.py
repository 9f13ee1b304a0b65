"""Speed of a file by the planner's cost model, and by measurement."""

from dataclasses import dataclass
from pathlib import Path

from hybridmoe.config import EngineConfig
from hybridmoe.gguf.outline import read_outline
from hybridmoe.hardware import isa, topology
from hybridmoe.hardware.limits import Limits
from hybridmoe.planning.cost_model import decode, hits_of
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets
from hybridmoe.planning.prompt_cost import prompt
from hybridmoe.planning.rates import Rates, rates_of

__all__ = ["Speed", "between", "plan_of", "predict"]


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens/s."""

    prompt: float
    decode: float
    accepted: float | None = None  # share of the drafts; None: there were none


def plan_of(path: Path, context_tokens: int) -> Plan:
    """Memory plan with everything in RAM, as the engine runs it."""
    outline = read_outline(path)
    engine = EngineConfig(context_tokens=context_tokens, kv_tokens=context_tokens, max_running=1)
    available = topology.available_bytes()
    assert available is not None, "how much memory is free is unknown here"
    budgets = Budgets(ram_bytes=available)
    plan = plan_memory(outline.config, outline.tensors, engine, budgets)
    assert not plan.needs_disk, "the file does not fit into memory"
    return plan


def between(before: Limits, after: Limits) -> Rates:
    """Rates by the mean of the limits before and after a turn."""

    def mean(name: str) -> float:
        return (getattr(before, name).all + getattr(after, name).all) / 2

    return rates_of(
        isa.active(),
        dram=mean("read"),
        peak_ops=mean("prompts"),
        float_ops=mean("float32"),
        has_vbmi=isa.has_vbmi(),
    )


def predict(
    plan: Plan, rates: Rates, num_prompt: int, num_decode: int, num_chosen: float | None = None
) -> Speed:
    """Speed by the cost model.

    num_chosen: mean number of experts that a step of the prompt chooses; None: uniform routing.
    """
    hits, middle = hits_of(plan), num_prompt + num_decode // 2
    distinct = None if num_chosen is None else lambda _: num_chosen
    return Speed(
        prompt(plan, rates, hits, num_prompt, distinct).tokens_per_s,
        decode(plan, rates, hits, middle).tokens_per_s,
    )
