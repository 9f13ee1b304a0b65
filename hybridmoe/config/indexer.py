"""Indexer of DeepSeek Sparse Attention: its sizes, and its keys in GGUF metadata.

Each token attends to the `top_k` earlier positions that the indexer scores highest; up to that many
positions this is dense attention. Source: DeepSeek-V3.2-Exp (arXiv 2512.02556), section 2; layers
that reuse an earlier selection: GLM-5.2 (arXiv 2603.12201).
"""

from dataclasses import dataclass

from hybridmoe.errors import UnsupportedModelError
from hybridmoe.metadata_keys import MetadataKeys

__all__ = ["IndexerConfig", "read_indexer"]

# GLM-5.2 files without `indexer.types` are known by their context (llama.cpp's glm-dsa.cpp): two
# layers with an indexer, then every fourth. GLM-5 and 5.1 have one in each layer.
_LONG_CONTEXT_TOKENS = 1 << 20
_FIRST_FULL, _FULL_EVERY = 2, 4


@dataclass(frozen=True, slots=True)
class IndexerConfig:
    """Sizes of the indexers, and the layers that have one."""

    num_heads: int
    key_dim: int  # of one head's query, and of the key that all heads share
    top_k: int
    is_full: tuple[bool, ...]  # by layer: has an indexer; else reuses the last one's selection
    has_neighbour_pairs: bool  # rotary pairs are neighbours (GLM); else halves apart (DeepSeek)

    @property
    def num_full(self) -> int:
        """Layers with an indexer."""
        return sum(self.is_full)


def read_indexer(keys: MetadataKeys, num_layers: int, *, is_glm: bool) -> IndexerConfig:
    """Read the indexer of a model with `num_layers`. Errors: GGUFError, UnsupportedModelError."""
    rope_dim = keys.count("rope.dimension_count")
    key_dim = keys.count("attention.indexer.key_length", most=1 << 12)
    if key_dim < rope_dim:
        expected = f"at least rope.dimension_count={rope_dim}"
        raise keys.bad("attention.indexer.key_length", key_dim, expected)
    if "attention.q_lora_rank" not in keys:
        raise UnsupportedModelError(
            f"{keys.prefix}attention.q_lora_rank is missing: the indexer's queries come from it"
        )
    return IndexerConfig(
        num_heads=keys.count("attention.indexer.head_count", most=1 << 12),
        key_dim=key_dim,
        top_k=keys.count("attention.indexer.top_k"),
        is_full=_read_types(keys, num_layers) if is_glm else (True,) * num_layers,
        has_neighbour_pairs=is_glm,
    )


def _read_types(keys: MetadataKeys, num_layers: int) -> tuple[bool, ...]:
    """Read which layers have an indexer; further entries are those of multi-token prediction."""
    types = keys.flags("attention.indexer.types")
    if types is None:
        is_shared = keys.count("context_length") >= _LONG_CONTEXT_TOKENS
        return tuple(
            not is_shared or i < _FIRST_FULL or (i - _FIRST_FULL) % _FULL_EVERY == 0
            for i in range(num_layers)
        )
    if len(types) < num_layers or not types[0]:
        expected = f"one for each of {num_layers} layers, the first true"
        raise keys.bad("attention.indexer.types", types, expected)
    return tuple(types[:num_layers])
