"""Refusals of the memory planner: one line on what does not fit, and the ways out with sizes."""

from hybridmoe.config import PAGE_TOKENS
from hybridmoe.planning.kv_plan import KvPlan, pages_for
from hybridmoe.planning.plan import Parts
from hybridmoe.planning.problem import Problem
from hybridmoe.units import at_least, format_bytes

__all__ = ["refusal", "too_few_slots"]


def too_few_slots(problem: Problem, num_slots: int, reason: str | None) -> str:
    """Refuse experts that are pinned to VRAM. reason: why it has no slots at all."""
    wanted = f"VRAM: {problem.num_gpu_pinned} experts are to be placed there for good"
    if reason is not None:
        return f"{wanted}, but there are {reason.rstrip('.')}; place no experts on cuda"
    missing = at_least((problem.num_gpu_pinned - num_slots) * problem.sizes.slot_bytes)
    return (
        f"{wanted}, {num_slots} fit: place fewer layers' experts on cuda, or raise --vram by"
        f" {missing}"
    )


def refusal(name: str, problem: Problem, parts: Parts) -> str:
    """One line on what does not fit, and the ways out with their sizes."""
    need = sum(size for _, size in parts)
    budgets, kv = problem.budgets, problem.kv
    budget = budgets.vram_bytes if name == "VRAM" else budgets.ram_bytes
    listed = ", ".join(f"{part} {format_bytes(size)}" for part, size in parts if size)
    text = (
        f"{name}: {format_bytes(need)} are needed ({listed}), {format_bytes(budget)} are there,"
        f" {format_bytes(need - budget)} too few: "
    )
    ways = []
    if any(part.startswith("KV cache") for part, _ in parts):
        left = budget - (need - kv.num_bytes)
        tokens = left // kv.token_bytes // PAGE_TOKENS * PAGE_TOKENS
        if tokens > 0:
            freed = kv.num_bytes - tokens * kv.token_bytes
            option = _kv_option(kv, tokens)
            ways.append(f"lower {option} to {tokens}, which frees {format_bytes(freed)}")
    if name == "RAM":
        ways.append(f"have {at_least(need)} of RAM free")
    else:
        ways.append(f"raise --vram to {at_least(need)}")
        if need - budget < problem.sizes.gpu_bytes:
            ways.append(
                f"pin {at_least(need - budget)} of weights to the CPU with --place REGEX=cpu"
            )
        ways.append("use --device cpu, and the CPU computes all")
    return text + ", or ".join(ways)


def _kv_option(kv: KvPlan, num_tokens: int) -> str:
    """Name the option that cuts the KV cache to `num_tokens`."""
    if kv.num_pages == pages_for(kv.context_tokens):
        return "--ctx"
    return "--kv-tokens" if num_tokens >= kv.context_tokens else "--ctx and --kv-tokens"
