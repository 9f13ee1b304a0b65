"""Sizes and switches of a model, read from GGUF metadata.

Keys and defaults follow llama.cpp's `deepseek2`, `deepseek32` and `glm-dsa` (its converter writes
them).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybridmoe.config.engine import kv_row_bytes
from hybridmoe.config.indexer import IndexerConfig, read_indexer
from hybridmoe.config.limits import MAX_CONTEXT_TOKENS, MAX_LAYERS, MAX_ROPE_DIM
from hybridmoe.config.routing import GATE_SIGMOID, RoutingSpec, default_gate, read_experts
from hybridmoe.config.yarn import YarnConfig, read_yarn
from hybridmoe.errors import ConfigError, UnsupportedModelError, short
from hybridmoe.metadata_keys import MetadataKeys

__all__ = ["SUPPORTED_ARCHITECTURES", "ModelConfig"]

SUPPORTED_ARCHITECTURES = ("deepseek2", "deepseek32", "glm-dsa", "mistral4")
_SPARSE_ARCHITECTURES = ("deepseek32", "glm-dsa")


@dataclass(frozen=True, slots=True)
class AttentionTemperature:
    """Growth of queries with their positions: times 1 + scale * log(floor(p / num_tokens) + 1).

    In Mistral Large 3 and Mistral 4, after Llama 4.
    """

    scale: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of a model; counts are per layer unless they say otherwise."""

    name: str
    num_layers: int
    num_mtp_layers: int  # multi-token prediction, after the others
    num_dense_layers: int  # leading layers with a dense FFN instead of experts
    hidden: int
    dense_inter: int  # FFN width of the dense layers
    num_heads: int
    q_lora_rank: int  # 0 = the query is projected in one step (V2-Lite, Moonlight)
    kv_lora_rank: int
    nope_dim: int  # per-head query and key dimensions without rotary positions
    rope_dim: int  # rotary dimensions; all heads share the key's
    v_dim: int
    num_experts: int
    top_k: int
    expert_inter: int
    num_shared_experts: int
    gate: int  # GATE_SOFTMAX or GATE_SIGMOID
    normalize_weights: bool
    routed_scale: float
    num_groups: int  # 1 = no group limit
    num_groups_used: int
    rms_eps: float
    rope_base: float
    yarn: YarnConfig | None
    context_tokens: int
    vocab_size: int
    temperature: AttentionTemperature | None = None
    indexer: IndexerConfig | None = None  # of sparse attention; None = all attention is dense
    runs_mtp: bool = False  # the first MTP layer drafts tokens; else none of them is loaded

    @property
    def has_mtp(self) -> bool:
        """True if an MTP layer could run; its tensors may be left out of the file."""
        return self.num_mtp_layers > 0 and self.num_experts > 0

    @property
    def num_loaded_layers(self) -> int:
        """Layers with weights and a KV cache: the network's, and behind them one that drafts."""
        return self.num_layers + self.runs_mtp

    @property
    def num_moe_layers(self) -> int:
        return self.num_layers - self.num_dense_layers

    @property
    def reachable_experts(self) -> int:
        """Experts in the groups that one token uses: the limit of top_k."""
        return self.num_experts // self.num_groups * self.num_groups_used

    @property
    def qk_dim(self) -> int:
        """Dimensions of one head's query and (unabsorbed) key."""
        return self.nope_dim + self.rope_dim

    @property
    def latent_dim(self) -> int:
        """Elements of one token in one layer's KV cache: the latent and the rotary key."""
        return self.kv_lora_rank + self.rope_dim

    def kv_token_bytes(self, kv_type: str, layers: range | None = None) -> int:
        """Bytes of one token in the KV cache of some layers (None = all), index keys included."""
        layers = range(self.num_loaded_layers) if layers is None else layers
        latents = len(layers) * kv_row_bytes(kv_type, self.latent_dim)
        if self.indexer is None:
            return latents
        num_full = sum(self.indexer.is_full[layer] for layer in layers)
        return latents + num_full * kv_row_bytes(kv_type, self.indexer.key_dim)

    @property
    def shared_inter(self) -> int:
        return self.num_shared_experts * self.expert_inter

    @property
    def routing(self) -> RoutingSpec:
        return RoutingSpec(
            top_k=self.top_k,
            num_groups=self.num_groups,
            num_groups_used=self.num_groups_used,
            is_sigmoid=self.gate == GATE_SIGMOID,
            is_normalized=self.normalize_weights,
            scale=self.routed_scale,
        )

    @property
    def softmax_scale(self) -> float:
        mscale = self.yarn.attention_mscale if self.yarn else 1.0
        return mscale * mscale / math.sqrt(self.qk_dim)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "ModelConfig":
        """Read and check a file's metadata.

        Errors: UnsupportedModelError for another architecture or an unsupported switch;
        GGUFError for a missing key or a value outside its range. Messages name the key.
        """
        architecture = metadata.get("general.architecture")
        if architecture not in SUPPORTED_ARCHITECTURES:
            raise _unsupported(architecture)
        keys = MetadataKeys(metadata, f"{architecture}.")
        num_blocks = keys.count("block_count", most=MAX_LAYERS)
        num_mtp = keys.count("nextn_predict_layers", default=0, least=0, most=num_blocks - 1)
        num_layers = num_blocks - num_mtp
        num_dense = keys.count("leading_dense_block_count", default=0, least=0, most=num_layers)
        tokens = metadata.get("tokenizer.ggml.tokens")
        vocab_default = len(tokens) if isinstance(tokens, list) and tokens else None
        vocab_size = keys.count("vocab_size", default=vocab_default)
        yarn = read_yarn(keys)
        return cls(
            name=str(metadata.get("general.name") or architecture),
            num_layers=num_layers,
            num_mtp_layers=num_mtp,
            num_dense_layers=num_dense,
            hidden=keys.count("embedding_length"),
            dense_inter=(
                keys.count("feed_forward_length", layers=range(num_dense)) if num_dense else 0
            ),
            **_read_attention(keys, range(num_layers)),
            **read_experts(
                keys,
                range(num_dense, num_layers),
                default_gate(architecture, num_blocks, vocab_size),
            ),
            rms_eps=keys.number("attention.layer_norm_rms_epsilon", least=1e-30, most=1.0),
            rope_base=keys.number("rope.freq_base", default=10000.0, least=2.0, most=1e12),
            yarn=yarn,
            context_tokens=keys.count("context_length", most=MAX_CONTEXT_TOKENS),
            vocab_size=vocab_size,
            temperature=_read_temperature(keys, architecture, yarn),
            indexer=(
                read_indexer(keys, num_layers, is_glm=architecture == "glm-dsa")
                if architecture in _SPARSE_ARCHITECTURES
                else None
            ),
        )

    def of_layers(self, layers: Sequence[int]) -> "ModelConfig":
        """Return a copy with some of the network's layers."""
        indexer = self.indexer
        if indexer is not None:
            is_full = tuple(indexer.is_full[layer] for layer in layers)
            indexer = replace(indexer, is_full=is_full)
        return replace(
            self,
            num_layers=len(layers),
            num_dense_layers=sum(layer < self.num_dense_layers for layer in layers),
            indexer=indexer,
            runs_mtp=False,
        )

    def with_mtp(self) -> "ModelConfig":
        """Return a copy whose first MTP layer runs."""
        assert self.has_mtp, "no MTP layer"
        indexer = self.indexer
        if indexer is not None:  # its attention is dense
            indexer = replace(indexer, is_full=(*indexer.is_full, False))
        return replace(self, runs_mtp=True, indexer=indexer)

    def with_yarn_betas(self, beta_fast: float | None, beta_slow: float | None) -> "ModelConfig":
        """Return a copy with these YaRN betas. Errors: ConfigError if the model has no YaRN."""
        if beta_fast is None and beta_slow is None:
            return self
        if self.yarn is None:
            raise ConfigError("yarn betas given, but this model does not use YaRN: leave them out")
        fast = self.yarn.beta_fast if beta_fast is None else beta_fast
        slow = self.yarn.beta_slow if beta_slow is None else beta_slow
        return replace(self, yarn=replace(self.yarn, beta_fast=fast, beta_slow=slow))


def _unsupported(architecture: object) -> UnsupportedModelError:
    said = f"general.architecture is {short(architecture)}"
    if architecture == "clip":
        return UnsupportedModelError(
            f"{said}: this is an mmproj file, the vision encoder of a multimodal model; images are"
            " not supported, and text needs the model's own file"
        )
    return UnsupportedModelError(
        f"{said}; supported: {', '.join(SUPPORTED_ARCHITECTURES)} (Kimi K2, DeepSeek-V2 to V3.2,"
        " GLM-5, Moonlight, Mistral Large 3)"
    )


def _read_attention(keys: MetadataKeys, layers: range) -> dict[str, Any]:
    kv_lora_rank = keys.count("attention.kv_lora_rank")
    rope_dim = keys.count("rope.dimension_count", most=MAX_ROPE_DIM)
    # Files from before the split of `attn_kv_b` give the per-head sizes without the suffix.
    suffix = "_mla" if "attention.key_length_mla" in keys else ""
    qk_dim = keys.count(f"attention.key_length{suffix}")
    if qk_dim <= rope_dim or rope_dim % 2:
        expected = f"more than rope.dimension_count={rope_dim}, even"
        raise keys.bad(f"attention.key_length{suffix}", qk_dim, expected)
    return {
        "num_heads": keys.count("attention.head_count", most=1 << 16, layers=layers),
        "q_lora_rank": keys.count("attention.q_lora_rank", default=0, least=0),
        "kv_lora_rank": kv_lora_rank,
        "nope_dim": qk_dim - rope_dim,
        "rope_dim": rope_dim,
        "v_dim": keys.count(f"attention.value_length{suffix}"),
    }


def _read_temperature(
    keys: MetadataKeys, architecture: str, yarn: YarnConfig | None
) -> AttentionTemperature | None:
    if architecture in _SPARSE_ARCHITECTURES:
        keys.refuse("attention.temperature_scale", neutral=0.0)
    # llama.cpp's converter leaves both keys of Mistral 4 out; transformers has these values.
    is_mistral4 = architecture == "mistral4" and yarn is not None
    scale = keys.number(
        "attention.temperature_scale", default=0.1 if is_mistral4 else 0.0, least=0.0, most=1e3
    )
    if not scale:
        return None
    return AttentionTemperature(
        scale,
        keys.count(
            "attention.temperature_length",
            default=yarn.original_context_tokens if is_mistral4 and yarn else None,
            most=MAX_CONTEXT_TOKENS,
        ),
    )
