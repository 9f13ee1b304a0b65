"""Memory plans of sums of tensors, which need no file."""

from dataclasses import replace
from typing import Any

from hybridmoe.config import EngineConfig
from hybridmoe.planning.kv_plan import plan_kv
from hybridmoe.planning.memory_plan import solve
from hybridmoe.planning.model_sizes import ModelSizes
from hybridmoe.planning.placement_rules import ExpertLayers
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets, Problem

GIB = 1 << 30


def plan_of(
    sizes: ModelSizes,
    ram_gib: float,
    vram_gib: float = 0,
    tokens: int = 32768,
    *,
    step_tokens: int = 512,
    layers: ExpertLayers | None = None,
    **budgets: Any,
) -> Plan:
    """Plan for one context of `tokens`, in f16. budgets: further fields of `Budgets`."""
    engine = EngineConfig(context_tokens=tokens, kv_tokens=tokens, chunk_tokens=step_tokens)
    memory = {"ram_bytes": int(ram_gib * GIB), "vram_bytes": int(vram_gib * GIB)}
    return solve(
        Problem(
            budgets=Budgets(**memory, **budgets),
            sizes=sizes,
            engine=engine,
            kv=plan_kv(sizes.config, engine, 0),
            layers=layers or ExpertLayers(),
        )
    )


def with_staging(plan: Plan, count: int) -> Plan:
    """Return the plan with `count` buffers for a layer's streamed experts."""
    assert plan.disk_cache is not None
    pools = tuple(pool._replace(num_staging=count) for pool in plan.disk_cache.pools)
    return replace(plan, disk_cache=plan.disk_cache._replace(pools=pools))
