"""The memory of the KV cache, planned once for the life of an engine."""

from dataclasses import dataclass

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, row_bytes

__all__ = ["KvPlan", "pages_for", "plan_kv"]

# Of the memory that is free when a model is opened, where nobody says how much latents may take.
_DEFAULT_SHARE = 0.125


@dataclass(frozen=True, slots=True)
class KvPlan:
    """How much memory latents take, in all, for the life of an engine."""

    kv_type: str
    num_pages: int
    page_bytes: int  # of all layers
    context_tokens: int

    @property
    def num_tokens(self) -> int:
        return self.num_pages * PAGE_TOKENS

    @property
    def num_bytes(self) -> int:
        return self.num_pages * self.page_bytes

    def __str__(self) -> str:
        return (
            f"latents: {self.num_tokens} tokens in {self.num_pages} pages, {self.kv_type},"
            f" {self.num_bytes / 2**20:.0f} MiB; context {self.context_tokens} tokens"
        )


def plan_kv(model: ModelConfig, config: EngineConfig, available_bytes: int) -> KvPlan:
    """The pages for `config`: one context at least, one for each running request at most.

    Between these, without `kv_tokens`, an eighth of the memory that is free.
    """
    page_bytes = model.num_layers * PAGE_TOKENS * row_bytes(config.kv_type, model.latent_dim)
    one = pages_for(config.context_tokens)
    if config.kv_tokens is not None:
        num_pages = pages_for(config.kv_tokens)
    else:
        affordable = int(available_bytes * _DEFAULT_SHARE) // page_bytes
        num_pages = max(one, min(affordable, one * config.max_running))
    return KvPlan(config.kv_type, num_pages, page_bytes, config.context_tokens)


def pages_for(num_tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-num_tokens // PAGE_TOKENS)
