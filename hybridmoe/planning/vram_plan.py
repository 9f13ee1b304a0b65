"""VRAM of one GPU: what must be there, and expert slots in the rest."""

from hybridmoe.errors import ConfigError
from hybridmoe.planning.plan import Parts, Tier
from hybridmoe.planning.prefill_split import MIN_BUFFERS, stream_buffers
from hybridmoe.planning.problem import Problem
from hybridmoe.planning.refusal import refusal, too_few_slots
from hybridmoe.planning.step_plan import activation_bytes
from hybridmoe.units import GIB

__all__ = ["SCRATCH_BYTES", "fill_tier", "kv_part", "plan_vram", "uploads_per_step"]

VRAM_RESERVE_BYTES = 1 * GIB  # CUDA context, libraries' workspaces, fragmentation
GRAPH_BYTES = 256 << 20  # activations of captured steps
# For a prompt: dequantized weights and results of a group of experts; or expanded keys and values
# of some heads, and one layer's KV cache of a long sequence in a row (kernels.triton.matmul,
# expert_prefill, prefill_attention).
SCRATCH_BYTES = 512 << 20
# As the default policy swaps. An upload costs about three hits: a twentieth of a token's experts.
_CHOSEN_PER_UPLOAD = 64


def plan_vram(problem: Problem, reason: str | None) -> Tier:
    """Plan VRAM with as many expert slots as fit.

    reason: why there are none, which frees the space of streamed experts, too. Errors: ConfigError.
    """
    sizes, c = problem.sizes, problem.sizes.config
    max_slots = 0 if reason else sizes.num_experts - problem.num_cpu_pinned

    def fill(num_buffers: int) -> Tier:
        parts = (
            ("weights that every token uses", sizes.gpu_bytes),
            kv_part(problem),
            ("activations", activation_bytes(c, problem.engine.chunk_tokens)),
            ("graphs", GRAPH_BYTES),
            ("dequantized weights, expanded keys", SCRATCH_BYTES),
            ("streamed experts", num_buffers * sizes.slot_bytes if max_slots else 0),
            ("reserve", VRAM_RESERVE_BYTES),
        )
        return fill_tier("VRAM", problem, parts, max_slots, sizes.slot_bytes)

    vram = fill(MIN_BUFFERS)
    num_spare = vram.num_experts - problem.num_gpu_pinned
    if num_spare > 0:
        vram = fill(stream_buffers(c.hidden, c.expert_inter, num_spare))
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


def uploads_per_step(num_layers: int, top_k: int) -> int:
    """Count the experts that one GPU's cache starts to upload before a step, at most.

    num_layers: with experts, of this GPU.
    """
    return max(1, num_layers * top_k // _CHOSEN_PER_UPLOAD)
