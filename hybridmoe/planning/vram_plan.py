"""VRAM of one GPU: what must be there, and expert slots in the rest."""

from hybridmoe.errors import ConfigError
from hybridmoe.planning.plan import Parts, Tier
from hybridmoe.planning.prefill_split import STREAM_BUFFERS
from hybridmoe.planning.problem import Problem
from hybridmoe.planning.refusal import refusal, too_few_slots
from hybridmoe.planning.step_plan import activation_bytes
from hybridmoe.units import GIB

__all__ = ["SCRATCH_BYTES", "fill_tier", "kv_part", "plan_vram"]

VRAM_RESERVE_BYTES = 1 * GIB  # CUDA context, libraries' workspaces, fragmentation
GRAPH_BYTES = 256 << 20  # activations of captured steps
# For a prompt: dequantized weights, expanded keys and values of some heads, and one layer's KV
# cache of a long sequence in a row (kernels.triton.matmul, prefill_attention).
SCRATCH_BYTES = 512 << 20


def plan_vram(problem: Problem, reason: str | None) -> Tier:
    """Plan VRAM with as many expert slots as fit.

    reason: why there are none, which frees the space of streamed experts, too. Errors: ConfigError.
    """
    sizes = problem.sizes
    max_slots = 0 if reason else sizes.num_experts - problem.num_cpu_pinned
    parts = (
        ("weights that every token uses", sizes.gpu_bytes),
        kv_part(problem),
        ("activations", activation_bytes(sizes.config, problem.engine.chunk_tokens)),
        ("graphs", GRAPH_BYTES),
        ("dequantized weights, expanded keys", SCRATCH_BYTES),
        ("streamed experts", STREAM_BUFFERS * sizes.slot_bytes if max_slots else 0),
        ("reserve", VRAM_RESERVE_BYTES),
    )
    vram = fill_tier("VRAM", problem, parts, max_slots, sizes.slot_bytes)
    if vram.num_experts < problem.num_gpu_pinned:
        raise ConfigError(too_few_slots(problem, vram.num_experts, reason))
    return vram


def kv_part(problem: Problem) -> tuple[str, int]:
    """Name and size of the KV cache."""
    return f"KV cache of {problem.kv.num_tokens} tokens", problem.kv.num_bytes


def fill_tier(name: str, problem: Problem, parts: Parts, max_slots: int, slot_bytes: int) -> Tier:
    """Plan parts, which must fit, and up to `max_slots` in the rest. Errors: ConfigError."""
    budgets = problem.budgets
    budget = budgets.vram_bytes if name == "VRAM" else budgets.ram_bytes
    need = sum(size for _, size in parts)
    if need > budget:
        raise ConfigError(refusal(name, problem, parts))
    slots = min(max_slots, (budget - need) // slot_bytes) if slot_bytes else 0
    return Tier(name, budget, parts, slots, slots * slot_bytes)
