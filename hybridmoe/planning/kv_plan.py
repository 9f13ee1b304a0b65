"""Memory plan of the KV cache, made once for the life of an engine."""

from dataclasses import dataclass

from hybridmoe.config import PAGE_TOKENS, EngineConfig, ModelConfig
from hybridmoe.units import format_bytes

__all__ = ["KvPlan", "pages_for", "plan_kv"]

# Of the memory that is free when a model is opened, unless `kv_tokens` is given.
_DEFAULT_SHARE = 0.125


@dataclass(frozen=True, slots=True)
class KvPlan:
    """Pages of a KV cache, all reserved when the engine starts."""

    kv_type: str
    num_pages: int
    page_bytes: int  # of all layers
    context_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens that all pages hold."""
        return self.num_pages * PAGE_TOKENS

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return self.num_pages * self.page_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all layers."""
        return self.page_bytes // PAGE_TOKENS

    def __str__(self) -> str:
        return (
            f"KV cache: {self.num_tokens} tokens in {self.num_pages} pages, {self.kv_type},"
            f" {format_bytes(self.num_bytes)}; context {self.context_tokens} tokens"
        )


def plan_kv(model: ModelConfig, config: EngineConfig, available_bytes: int) -> KvPlan:
    """Plan pages for `kv_tokens`; by default an eighth of the memory that is available.

    The default is at least one context and at most one for each running request.
    """
    page_bytes = PAGE_TOKENS * model.kv_token_bytes(config.kv_type)
    one = pages_for(config.context_tokens)
    if config.kv_tokens is not None:
        num_pages = pages_for(config.kv_tokens)
    else:
        affordable = int(available_bytes * _DEFAULT_SHARE) // page_bytes
        num_pages = max(one, min(affordable, one * config.max_running))
    return KvPlan(config.kv_type, num_pages, page_bytes, config.context_tokens)


def pages_for(num_tokens: int) -> int:
    """Number of pages that hold `num_tokens`."""
    return -(-num_tokens // PAGE_TOKENS)
