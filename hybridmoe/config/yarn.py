"""YaRN context extension: its formulas, and its keys in GGUF metadata.

The formulas are those of DeepSeek-V3's published `modeling_deepseek.py`.
"""

import math
from dataclasses import dataclass

from hybridmoe.config.limits import MAX_CONTEXT_TOKENS
from hybridmoe.errors import UnsupportedModelError, short
from hybridmoe.metadata_keys import MetadataKeys

__all__ = ["YarnConfig", "read_yarn"]


@dataclass(frozen=True, slots=True)
class YarnConfig:
    """YaRN context extension (Peng et al. 2023, arXiv 2309.00071), as DeepSeek-V3 applies it."""

    factor: float  # new context / original context
    original_context_tokens: int
    beta_fast: float  # rotations over the original context above which a dimension is kept
    beta_slow: float  # rotations below which a dimension is fully interpolated
    mscale_all_dim: float  # 0 = absent; `rope.scaling.yarn_log_multiplier` is 0.1 times this

    @property
    def attention_mscale(self) -> float:
        """Factor that enters the softmax scale squared: 1.347 for K2 (factor 32)."""
        return 1.0 + 0.1 * self.mscale_all_dim * self._log_factor

    @property
    def rotary_mscale(self) -> float:
        """Factor on cos and sin: 1 with `mscale_all_dim` (`mscale` equals it in every release)."""
        return 1.0 if self.mscale_all_dim else 1.0 + 0.1 * self._log_factor

    @property
    def _log_factor(self) -> float:
        return math.log(self.factor) if self.factor > 1.0 else 0.0


def read_yarn(keys: MetadataKeys) -> YarnConfig | None:
    """Read the rope scaling; None without one. Errors: GGUFError, UnsupportedModelError."""
    kind = keys.text("rope.scaling.type", default="none")
    if kind == "none":
        return None
    if kind != "yarn":
        raise UnsupportedModelError(f"rope.scaling.type is {short(kind)}; supported: yarn, none")
    # Neutral in every release. llama.cpp's deepseek2 ignores the last two; with the first it scales
    # the rotated part twice.
    keys.refuse("rope.scaling.attn_factor", neutral=1.0)
    keys.refuse("rope.scaling.yarn_attn_factor", neutral=1.0)
    keys.refuse("rope.scaling.yarn_ext_factor", neutral=1.0)
    return YarnConfig(
        factor=keys.number("rope.scaling.factor", least=1.0, most=1e5),
        original_context_tokens=keys.count(
            "rope.scaling.original_context_length", most=MAX_CONTEXT_TOKENS
        ),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", default=32.0, least=1e-6),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", default=1.0, least=1e-6),
        mscale_all_dim=10.0
        * keys.number("rope.scaling.yarn_log_multiplier", default=0.0, least=0.0),
    )
