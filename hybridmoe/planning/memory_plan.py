"""Memory plan: a model's parts and its routed experts over VRAM, RAM and disk, decided once.

`plan_memory` takes the model's tensors, the engine's configuration and budgets, and returns a
`Plan`, or one line that says what to lower and by how much. With a GPU, the weights that every
token uses and the KV cache go to VRAM, and the rest of VRAM becomes expert slots. Without one, they
go to RAM. An expert in VRAM is not kept in RAM too. The embedding stays in RAM, since a token reads
one row of it. Experts that fit nowhere are read from the file. Speed: cost_model.py.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from hybridmoe.config import EngineConfig, ModelConfig, check_gpu_kv_type
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.accounting import TensorLike
from hybridmoe.planning.disk_cache_plan import DiskCachePlan, plan_disk_cache
from hybridmoe.planning.kv_plan import plan_kv
from hybridmoe.planning.model_sizes import sizes_of
from hybridmoe.planning.placement_rules import ExpertLayers, PlacementRules
from hybridmoe.planning.plan import Parts, Plan, Tier
from hybridmoe.planning.problem import NO_RULES, Budgets, Problem
from hybridmoe.planning.refusal import refusal
from hybridmoe.planning.stages import Stage, plan_stages, stage_plan, total_vram
from hybridmoe.planning.step_plan import activation_bytes, disk_step_tokens, gpu_step_tokens
from hybridmoe.planning.vram_plan import fill_tier, kv_part
from hybridmoe.units import GIB, format_bytes

__all__ = ["RAM_RESERVE_BYTES", "plan_memory", "solve"]

RAM_RESERVE_BYTES = 1 * GIB  # Python, torch, vocabulary, allocators


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
            return replace(_solve_with_kv(model, engine, budgets), notes=tuple(notes))
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
        layers = rules.expert_layers(names, config.num_layers)
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
    if problem.budgets.vram_bytes:
        return _solve_with_gpu(problem)
    plan = _solve_without_gpu(problem)
    return plan if plan.disk_cache is None else _with_long_steps(plan)


def _with_long_steps(plan: Plan) -> Plan:
    """Make the steps of a plan with experts on disk as long as they pay and fit."""
    problem, engine = plan.problem, plan.engine
    ram_bytes = problem.budgets.expert_ram_bytes or problem.budgets.ram_bytes
    tokens = disk_step_tokens(problem.sizes.config, ram_bytes, engine.context_tokens)
    longer = replace(problem, engine=replace(engine, chunk_tokens=max(tokens, engine.chunk_tokens)))
    with suppress(ConfigError):  # an explicit budget that leaves too little beside it
        found = _solve_without_gpu(longer)
        return plan if found.disk_cache is None else found
    return plan


def _solve_without_gpu(problem: Problem) -> Plan:
    sizes, step_tokens = problem.sizes, problem.engine.chunk_tokens
    core = (
        ("weights that every token uses", sizes.dense_bytes),
        kv_part(problem),
        ("activations", activation_bytes(sizes.config, step_tokens, on_cpu=True)),
        ("embedding", 0 if sizes.is_tied else sizes.embedding_bytes),
    )
    return _plan(problem, (), _plan_ram(problem, core))


def _solve_with_gpu(problem: Problem) -> Plan:
    sizes, reason = problem.sizes, _no_kernel(problem)
    stages = plan_stages(problem, reason)
    rest = sizes.num_experts - sum(stage.vram.num_experts for stage in stages)
    # Which experts are in VRAM changes; the mean size counts for those that are not.
    rest_bytes = sizes.all_expert_bytes * rest // max(1, sizes.num_experts)
    parts = (
        ("weights pinned to the CPU", sizes.cpu_bytes),
        ("embedding", sizes.embedding_bytes),
        ("reserve", RAM_RESERVE_BYTES),
    )
    ram = fill_tier("RAM", problem, parts, 0, 0)
    if rest_bytes <= ram.free_bytes and _may_map(problem):
        ram = replace(ram, num_experts=rest, expert_bytes=rest_bytes)
        return _plan(problem, stages, _Ram(ram), reason)
    reason = _DISK_REASON
    stages = plan_stages(problem, reason)
    core = (
        ("weights pinned to the CPU", sizes.cpu_bytes),
        ("embedding", sizes.embedding_bytes),
    )
    return _plan(problem, stages, _plan_ram(problem, core), reason)


# The one rule for experts on disk beside a GPU. The backend of the disk cache
# (experts.disk.cached_experts) runs on the CPU alone, behind experts.gpu.host_adapter.
_DISK_REASON = (
    "no expert slots, and the CPU computes the experts of prompts too, since not all experts"
    " are in the memory map (not enough RAM for them, or less given by --expert-ram)."
)


def _no_kernel(problem: Problem) -> str | None:
    """Reason for leaving all experts to the CPU, if GPUs have no kernel for their types."""
    types = ", ".join(problem.sizes.types_without_gpu_kernel)
    if not types:
        return None
    return f"no expert slots, since {types} has no kernel for a GPU: the CPU computes all experts."


def _may_map(problem: Problem) -> bool:
    """Return True if the budget that was given for experts takes all of them."""
    given = problem.budgets.expert_ram_bytes
    return given is None or problem.sizes.all_expert_bytes <= given


class _Ram(NamedTuple):
    """Plan of RAM: a `Plan`'s fields."""

    tier: Tier
    disk_cache: DiskCachePlan | None = None
    num_disk_experts: int = 0
    shortage: str | None = None


def _plan(problem: Problem, stages: Sequence[Stage], ram: _Ram, reason: str | None = None) -> Plan:
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


def _plan_ram(problem: Problem, core: Parts) -> _Ram:
    """RAM that holds `core`, and of all experts as many as fit."""
    sizes, budgets = problem.sizes, problem.budgets
    parts = (*core, ("reserve", RAM_RESERVE_BYTES))
    if not _may_map(problem):
        return _explicit_cache(problem, core)
    free = budgets.ram_bytes - sum(size for _, size in parts)
    if sizes.all_expert_bytes <= free:
        ram = Tier("RAM", budgets.ram_bytes, parts, sizes.num_experts, sizes.all_expert_bytes)
        return _Ram(ram)
    if budgets.expert_ram_bytes is None and sizes.num_experts:
        try:
            return _default_cache(problem, parts)
        except ConfigError as error:
            return _paged(problem, parts, str(error))
    needed = (*parts, ("experts", sizes.all_expert_bytes))
    return _paged(problem, parts, refusal("RAM", problem, needed))


def _default_cache(problem: Problem, parts: Parts) -> _Ram:
    """Cache over the disk in the RAM that is left. Errors: ConfigError where it is too small."""
    sizes, budgets = problem.sizes, problem.budgets
    aside = _aside(problem, sizes.config.top_k, budgets.num_ahead)
    fill_tier("RAM", problem, (*parts, *aside), 0, 0)
    free = budgets.ram_bytes - sum(size for _, size in parts)
    return _cached(problem, parts, _cache_of(problem, free))


def _explicit_cache(problem: Problem, core: Parts) -> _Ram:
    """Cache over the disk in the RAM that was given for experts. Errors: ConfigError."""
    budgets, given = problem.budgets, problem.budgets.expert_ram_bytes
    assert given is not None
    cache = _cache_of(problem, given)
    others = sum(size for _, size in core)
    left = budgets.ram_bytes - cache.num_bytes - others
    if left < 0:
        raise ConfigError(
            f"expert_ram={given} bytes: with {format_bytes(others)} of other weights, KV cache and"
            f" activations that is {format_bytes(others + cache.num_bytes)}, but"
            f" {format_bytes(budgets.ram_bytes)} are free"
        )
    # An explicit budget may use the reserve up.
    return _cached(problem, (*core, ("reserve", min(left, RAM_RESERVE_BYTES))), cache)


def _cache_of(problem: Problem, budget_bytes: int) -> DiskCachePlan:
    c = problem.sizes.config
    return plan_disk_cache(
        budget_bytes,
        problem.sizes.buffer_bytes,
        len(problem.sizes.experts),
        c.num_experts,
        c.top_k,
        num_ahead=problem.budgets.num_ahead,
    )


def _cached(problem: Problem, parts: Parts, cache: DiskCachePlan) -> _Ram:
    num_slots, budget = cache.num_slots, problem.budgets.ram_bytes
    parts = (*parts, *_aside(problem, cache.num_staging, cache.num_ahead))
    ram = Tier("RAM", budget, parts, num_slots, num_slots * cache.buffer_bytes)
    return _Ram(ram, cache, problem.sizes.num_experts - num_slots)


def _aside(problem: Problem, num_staging: int, num_ahead: int) -> Parts:
    """Buffers of experts that are not resident."""
    size = problem.sizes.buffer_bytes
    return ("streamed experts", num_staging * size), ("experts read ahead", num_ahead * size)


def _paged(problem: Problem, parts: Parts, shortage: str) -> _Ram:
    """Memory map that is larger than RAM: as many experts as fit beside `parts`, if any."""
    sizes, budget = problem.sizes, problem.budgets.ram_bytes
    free = max(0, budget - sum(size for _, size in parts))
    fitting = free * sizes.num_experts // max(1, sizes.all_expert_bytes)
    ram = Tier("RAM", budget, parts, fitting, min(free, sizes.all_expert_bytes))
    return _Ram(ram, None, sizes.num_experts - fitting, shortage)
