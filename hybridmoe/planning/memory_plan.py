"""Memory plan: a model's parts and its routed experts over VRAM, RAM and disk, decided once.

`plan_memory` takes the model's tensors, the engine's configuration and budgets, and returns a
`Plan`, or one line that says what to lower and by how much. With a GPU, the weights that every
token uses and the KV cache go to VRAM, and the rest of VRAM becomes expert slots. Without one, they
go to RAM (ram_plan.py). An expert in VRAM is not kept in RAM too. The embedding stays in RAM, since
a token reads one row of it. Experts that fit nowhere are read from the file. Speed: cost_model.py.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from hybridmoe.config import EngineConfig, ModelConfig, check_gpu_kv_type
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.accounting import TensorLike
from hybridmoe.planning.kv_plan import plan_kv
from hybridmoe.planning.model_sizes import sizes_of
from hybridmoe.planning.placement_rules import ExpertLayers, PlacementRules
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import NO_RULES, Budgets, Problem
from hybridmoe.planning.ram_plan import RAM_RESERVE_BYTES, RamPlan, plan_ram
from hybridmoe.planning.stages import Stage, plan_stages, stage_plan, total_vram
from hybridmoe.planning.step_plan import (
    activation_bytes,
    disk_step_tokens,
    gpu_step_tokens,
    quick_step_tokens,
)
from hybridmoe.planning.vram_plan import kv_part

__all__ = ["RAM_RESERVE_BYTES", "plan_memory", "solve"]


def plan_memory(
    config: ModelConfig,
    tensors: Iterable[TensorLike],
    engine: EngineConfig,
    budgets: Budgets,
    rules: PlacementRules = NO_RULES,
) -> Plan:
    """Decide on KV cache, steps, and the place of every weight.

    engine: its kv_tokens and chunk_tokens are replaced in `Plan.engine`.
    Errors: ConfigError, one line, where VRAM is too small and the GPU is not optional, where an
    explicit budget cannot be met, or for a KV cache type that the GPU does not have. Where RAM is
    too small and no budget was given, the plan has a `shortage`.
    """
    model = _Model(config, list(tensors), rules)
    unused = rules.unused(tensor.name for tensor in model.tensors)
    notes = [f"place: {text!r} matches no tensor" for text in unused]
    if budgets.vram_bytes:
        check_gpu_kv_type(engine.kv_type)
        try:
            plan = _solve_with_kv(model, engine, replace(budgets, num_ahead=0))
            if budgets.num_ahead and plan.disk_cache is not None:
                notes.append("expert_prefetch has no effect beside a GPU")
            return replace(plan, notes=tuple(notes))
        except ConfigError as error:
            if not budgets.is_gpu_optional:
                raise
            budgets = budgets.without_gpu(str(error))
    if budgets.no_gpu_note:
        notes.append(budgets.no_gpu_note)
    return replace(_solve_with_kv(model, engine, budgets), notes=tuple(notes))


class _Model(NamedTuple):
    config: ModelConfig
    tensors: list[TensorLike]
    rules: PlacementRules


def _solve_with_kv(model: _Model, engine: EngineConfig, budgets: Budgets) -> Plan:
    """Solve with the KV cache asked for; a default that does not fit is cut to one context."""
    least = replace(engine, kv_tokens=engine.context_tokens)
    try:
        plan = solve(_problem(model, engine, budgets))
    except ConfigError:
        if engine.kv_tokens is not None:
            raise
        return solve(_problem(model, least, budgets))
    if plan.shortage is not None and engine.kv_tokens is None:
        return solve(_problem(model, least, budgets))
    return plan


def _problem(model: _Model, engine: EngineConfig, budgets: Budgets) -> Problem:
    """Plan KV cache and steps, and sum up the tensors. Errors: ConfigError, GGUFError."""
    config, tensors, rules = model
    kv = plan_kv(config, engine, budgets.vram_bytes or budgets.ram_bytes)
    chunk_tokens, layers = engine.chunk_tokens, ExpertLayers()
    if budgets.vram_bytes:
        chunk_tokens = gpu_step_tokens(config, budgets.least_vram_bytes, engine.context_tokens)
        names = (tensor.name for tensor in tensors)
        layers = rules.expert_layers(names, config.num_loaded_layers)
    return Problem(
        budgets=budgets,
        sizes=sizes_of(tensors, config, rules.is_on_cpu),
        engine=replace(engine, kv_tokens=kv.num_tokens, chunk_tokens=chunk_tokens),
        kv=kv,
        layers=layers,
        rules=rules,
    )


def solve(problem: Problem) -> Plan:
    """Place everything. Errors: as `plan_memory`, without a GPU that is optional."""
    solver = _solve_with_gpu if problem.budgets.vram_bytes else _solve_without_gpu
    plan = solver(problem)
    if plan.disk_cache is not None:
        return _with_long_steps(plan, solver)
    return plan if problem.budgets.vram_bytes else _with_quick_steps(plan)


def _with_quick_steps(plan: Plan) -> Plan:
    """Let steps on the CPU be longer as long as they take little time, where that fits."""
    engine, config = plan.engine, plan.problem.sizes.config
    tokens = quick_step_tokens(config, engine.context_tokens)
    if tokens <= engine.chunk_tokens or plan.shortage is not None:
        return plan
    engine = replace(engine, quick_chunk_tokens=tokens)
    found = _solve_without_gpu(replace(plan.problem, engine=engine))
    return plan if found.shortage is not None or found.disk_cache is not None else found


def _with_long_steps(plan: Plan, solver: Callable[[Problem], Plan]) -> Plan:
    """Make the steps of a plan with experts on disk as long as they pay and fit."""
    problem, engine, budgets = plan.problem, plan.engine, plan.problem.budgets
    config, context = problem.sizes.config, engine.context_tokens
    if budgets.vram_bytes:
        tokens = gpu_step_tokens(config, budgets.least_vram_bytes, context, over_disk=True)
    else:
        ram_bytes = budgets.expert_ram_bytes or budgets.ram_bytes
        tokens = disk_step_tokens(config, ram_bytes, context)
    if tokens <= engine.chunk_tokens:
        return plan
    with suppress(ConfigError):  # an explicit budget that leaves too little beside it
        found = solver(replace(problem, engine=replace(engine, chunk_tokens=tokens)))
        return plan if found.disk_cache is None else found
    return plan


def _solve_without_gpu(problem: Problem) -> Plan:
    sizes, engine = problem.sizes, problem.engine
    step_tokens = max(engine.chunk_tokens, engine.quick_chunk_tokens)
    core = (
        ("weights that every token uses", sizes.dense_bytes),
        kv_part(problem),
        ("activations", activation_bytes(sizes.config, step_tokens, on_cpu=True)),
        ("embedding", 0 if sizes.is_tied else sizes.embedding_bytes),
    )
    return _plan(problem, (), plan_ram(problem, core))


def _solve_with_gpu(problem: Problem) -> Plan:
    sizes, reason = problem.sizes, _no_kernel(problem)
    stages = plan_stages(problem, reason)
    core = (
        ("weights pinned to the CPU", sizes.cpu_bytes),
        ("embedding", sizes.embedding_bytes),
    )
    return _plan(problem, stages, plan_ram(problem, core, stages), reason)


def _no_kernel(problem: Problem) -> str | None:
    """Reason for leaving all experts to the CPU, if GPUs have no kernel for their types."""
    types = ", ".join(problem.sizes.types_without_gpu_kernel)
    if not types:
        return None
    return f"no expert slots, since {types} has no kernel for a GPU: the CPU computes all experts."


def _plan(
    problem: Problem, stages: Sequence[Stage], ram: RamPlan, reason: str | None = None
) -> Plan:
    plan = Plan(
        problem=problem,
        vram=total_vram(stages),
        ram=ram.tier,
        disk_cache=ram.disk_cache,
        num_disk_experts=ram.num_disk_experts,
        cpu_reason=reason,
        shortage=ram.shortage,
    )
    if len(stages) < 2:
        return plan
    return replace(plan, split=tuple(stage_plan(plan, stage) for stage in stages))
