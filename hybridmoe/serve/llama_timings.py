"""Timings of a request in llama.cpp's names: milliseconds, and tokens per second."""

from hybridmoe.engine.request import Usage

__all__ = ["timings"]


def timings(usage: Usage) -> dict[str, float]:
    """Convert what a request has used so far; `draft_n` where there were draft tokens."""
    num_computed = usage.prompt_tokens - usage.cached_tokens
    num_steps = usage.generated_tokens - 1
    drafts: dict[str, float] = {}
    if usage.draft_tokens:
        drafts = {"draft_n": usage.draft_tokens, "draft_n_accepted": usage.accepted_tokens}
    return {
        "queue_ms": round(usage.queue_s * 1e3, 3),
        "cache_n": usage.cached_tokens,
        "prompt_n": num_computed,
        "prompt_ms": round(usage.prompt_s * 1e3, 3),
        "prompt_per_token_ms": _per_token_ms(usage.prompt_s, num_computed),
        "prompt_per_second": _rate(num_computed, usage.prompt_s),
        "predicted_n": usage.generated_tokens,
        "predicted_ms": round(usage.decode_s * 1e3, 3),
        "predicted_per_token_ms": _per_token_ms(usage.decode_s, num_steps),
        "predicted_per_second": _rate(num_steps, usage.decode_s),
        **drafts,
    }


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0.0 and count > 0 else 0.0


def _per_token_ms(seconds: float, count: int) -> float:
    return round(seconds * 1e3 / count, 3) if count > 0 else 0.0
