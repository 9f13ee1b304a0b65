"""RAM of a plan: what must be there, and experts that are not in VRAM in the rest.

They are in the file's memory map if all fit; else in a cache over the file, beside which VRAM's
experts have no copies: both tiers add up.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

from hybridmoe.errors import ConfigError
from hybridmoe.planning.disk_cache_plan import DiskCachePlan, plan_disk_cache
from hybridmoe.planning.plan import Parts, Tier
from hybridmoe.planning.problem import Problem
from hybridmoe.planning.refusal import refusal
from hybridmoe.planning.stages import Stage
from hybridmoe.planning.vram_plan import fill_tier, uploads_per_step
from hybridmoe.units import GIB, format_bytes

__all__ = ["RAM_RESERVE_BYTES", "RamPlan", "plan_ram"]

RAM_RESERVE_BYTES = 1 * GIB  # Python, torch, vocabulary, allocators
_BUFFERS_PER_UPLOAD = 2  # one being uploaded, one being read or on its way back


class RamPlan(NamedTuple):
    """Plan of RAM: a `Plan`'s fields."""

    tier: Tier
    disk_cache: DiskCachePlan | None = None
    num_disk_experts: int = 0
    shortage: str | None = None


def plan_ram(problem: Problem, core: Parts, stages: Sequence[Stage] = ()) -> RamPlan:
    """RAM that holds `core`, and of the experts that are not in VRAM as many as fit."""
    sizes, budgets = problem.sizes, problem.budgets
    parts = (*core, ("reserve", RAM_RESERVE_BYTES))
    rest = _Rest.of(problem, stages)
    if budgets.expert_ram_bytes is not None and budgets.expert_ram_bytes < rest.num_bytes:
        return _explicit_cache(problem, core, rest)
    free = budgets.ram_bytes - sum(size for _, size in parts)
    if rest.num_bytes <= free:
        return RamPlan(Tier("RAM", budgets.ram_bytes, parts, rest.num_experts, rest.num_bytes))
    if budgets.expert_ram_bytes is None and sizes.num_experts:
        try:
            return _default_cache(problem, parts, rest)
        except ConfigError as error:
            return _paged(problem, parts, rest, str(error))
    needed = (*parts, ("experts", rest.num_bytes))
    return _paged(problem, parts, rest, refusal("RAM", problem, needed))


class _Rest(NamedTuple):
    """Experts that are not in VRAM, and buffers for those on their way there and back."""

    num_experts: int
    num_bytes: int
    num_leaving: int

    @classmethod
    def of(cls, problem: Problem, stages: Sequence[Stage]) -> Self:
        sizes = problem.sizes
        num_experts = sizes.num_experts - sum(stage.vram.num_experts for stage in stages)
        # Which experts are in VRAM changes; the mean size counts for those that are not.
        num_bytes = sizes.all_expert_bytes * num_experts // max(1, sizes.num_experts)
        uploads = (
            uploads_per_step(len(stage.problem.sizes.experts), sizes.config.top_k)
            for stage in stages
            if stage.vram.num_experts
        )
        return cls(num_experts, num_bytes, _BUFFERS_PER_UPLOAD * sum(uploads))


def _default_cache(problem: Problem, parts: Parts, rest: _Rest) -> RamPlan:
    """Cache over the disk in the RAM that is left. Errors: ConfigError where it is too small."""
    sizes, num_ahead = problem.sizes, problem.budgets.num_ahead
    least = sizes.config.top_k + num_ahead + rest.num_leaving
    needed = (*parts, ("streamed experts", least * sizes.buffer_bytes))
    fill_tier("RAM", problem, needed, 0, 0)
    free = problem.budgets.ram_bytes - sum(size for _, size in parts)
    return _cached(problem, parts, _cache_of(problem, free, rest), rest)


def _explicit_cache(problem: Problem, core: Parts, rest: _Rest) -> RamPlan:
    """Cache over the disk in the RAM that was given for experts. Errors: ConfigError."""
    budgets, given = problem.budgets, problem.budgets.expert_ram_bytes
    assert given is not None
    cache = _cache_of(problem, given, rest)
    others = sum(size for _, size in core)
    left = budgets.ram_bytes - cache.num_bytes - others
    if left < 0:
        raise ConfigError(
            f"expert_ram={given} bytes: with {format_bytes(others)} of other weights, KV cache and"
            f" activations that is {format_bytes(others + cache.num_bytes)}, but"
            f" {format_bytes(budgets.ram_bytes)} are free"
        )
    # An explicit budget may use the reserve up.
    parts = (*core, ("reserve", min(left, RAM_RESERVE_BYTES)))
    return _cached(problem, parts, cache, rest)


def _cache_of(problem: Problem, budget_bytes: int, rest: _Rest) -> DiskCachePlan:
    c = problem.sizes.config
    return plan_disk_cache(
        budget_bytes,
        problem.sizes.buffer_parts,
        c.num_experts,
        c.top_k,
        num_ahead=problem.budgets.num_ahead,
        num_leaving=rest.num_leaving,
    )


def _cached(problem: Problem, parts: Parts, cache: DiskCachePlan, rest: _Rest) -> RamPlan:
    one_of_each = cache.one_of_each_bytes
    aside = (
        ("streamed experts", cache.staging_bytes),
        ("experts read ahead", cache.num_ahead * one_of_each),
        ("experts between RAM and VRAM", cache.num_leaving * one_of_each),
    )
    num_slots, budget = cache.num_slots, problem.budgets.ram_bytes
    ram = Tier("RAM", budget, (*parts, *aside), num_slots, cache.resident_bytes)
    return RamPlan(ram, cache, rest.num_experts - num_slots)


def _paged(problem: Problem, parts: Parts, rest: _Rest, shortage: str) -> RamPlan:
    """Memory map that is larger than RAM: as many experts as fit beside `parts`, if any."""
    budget = problem.budgets.ram_bytes
    free = max(0, budget - sum(size for _, size in parts))
    fitting = min(rest.num_experts, free * rest.num_experts // max(1, rest.num_bytes))
    ram = Tier("RAM", budget, parts, fitting, min(free, rest.num_bytes))
    return RamPlan(ram, None, rest.num_experts - fitting, shortage)
