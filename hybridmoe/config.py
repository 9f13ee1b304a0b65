"""Model and engine configuration, read from GGUF metadata or options and checked once.

Knows keys, ranges and defaults, but neither files nor tensors, so that it stays at the bottom of
the import order. Keys and defaults follow llama.cpp's `deepseek2` (its converter writes them); the
YaRN formulas are those of DeepSeek-V3's published `modeling_deepseek.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from hybridmoe.errors import ConfigError, UnsupportedModelError, short
from hybridmoe.metadata_keys import MetadataKeys
from hybridmoe.option import Choice, Count, FolderLimit, FolderSize, Number, check_options

__all__ = [
    "DEVICES",
    "GATE_SIGMOID",
    "GATE_SOFTMAX",
    "GPU_KV_TYPES",
    "KV_TYPES",
    "PAGE_TOKENS",
    "PREFILL_TOKENS",
    "SUPPORTED_ARCHITECTURES",
    "EngineConfig",
    "EngineOptions",
    "ModelConfig",
    "RoutingSpec",
    "YarnConfig",
    "check_gpu_kv_type",
    "kv_row_bytes",
]

SUPPORTED_ARCHITECTURES = ("deepseek2",)

# `expert_gating_func` in the GGUF specification. 0 and absent mean softmax (DeepSeek-V2), except in
# GLM-4.7-Flash files of January 2026, known by their sizes (llama.cpp #18980; block 48 is for MTP).
GATE_SOFTMAX = 1
GATE_SIGMOID = 2
_GLM_FLASH_BLOCKS, _GLM_FLASH_VOCAB = (47, 48), 154_880

KV_TYPES = ("f16", "bf16", "int8", "f32")  # the default first
GPU_KV_TYPES = ("f16", "bf16")
# The KV cache's layout, as csrc/kernels/kernel_table.h has it.
PAGE_TOKENS = 64
_NUMBER_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_SCALED_CODES = 64  # of int8, for each float32 scale
# A step of more tokens is prefill. Up to this many, kernels read each weight once and unpack it in
# registers (gemv), and CUDA graphs repeat the step.
PREFILL_TOKENS = 16
DEVICES = ("auto", "cpu", "cuda")

# Bounds on a file's claims: generous for a real model, and no product overflows 63 bits.
_MAX_LAYERS = 4096
_MAX_ROPE_DIM = 1024  # columns of the cos_sin table
_MAX_CONTEXT_TOKENS = 1 << 26


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSpec:
    """Rule by which a router's scores become expert ids and weights."""

    top_k: int
    is_sigmoid: bool  # else softmax
    is_normalized: bool  # a token's weights sum to 1 before `scale`
    scale: float = 1.0
    num_groups: int = 1  # 1 = no group limit
    num_groups_used: int = 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of a deepseek2 model; counts are per layer unless they say otherwise."""

    name: str
    num_layers: int
    num_mtp_layers: int  # multi-token prediction, after the others; not run
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
            raise UnsupportedModelError(
                f"general.architecture is {short(architecture)}; supported: "
                f"{', '.join(SUPPORTED_ARCHITECTURES)} (Kimi K2, DeepSeek-V2 to R1, Moonlight)"
            )
        keys = MetadataKeys(metadata, f"{architecture}.")
        keys.refuse("attention.temperature_scale", neutral=0.0)
        keys.refuse("rope.scaling.attn_factor", neutral=1.0)
        num_blocks = keys.count("block_count", most=_MAX_LAYERS)
        num_mtp = keys.count("nextn_predict_layers", default=0, least=0, most=num_blocks - 1)
        num_layers = num_blocks - num_mtp
        num_dense = keys.count("leading_dense_block_count", default=0, least=0, most=num_layers)
        tokens = metadata.get("tokenizer.ggml.tokens")
        vocab_default = len(tokens) if isinstance(tokens, list) and tokens else None
        vocab_size = keys.count("vocab_size", default=vocab_default)
        is_glm_flash = num_blocks in _GLM_FLASH_BLOCKS and vocab_size == _GLM_FLASH_VOCAB
        return cls(
            name=str(metadata.get("general.name") or architecture),
            num_layers=num_layers,
            num_mtp_layers=num_mtp,
            num_dense_layers=num_dense,
            hidden=keys.count("embedding_length"),
            dense_inter=keys.count("feed_forward_length") if num_dense else 0,
            **_read_attention(keys),
            **_read_experts(keys, num_dense < num_layers, is_glm_flash),
            rms_eps=keys.number("attention.layer_norm_rms_epsilon", least=1e-30, most=1.0),
            rope_base=keys.number("rope.freq_base", default=10000.0, least=2.0, most=1e12),
            yarn=_read_yarn(keys),
            context_tokens=keys.count("context_length", most=_MAX_CONTEXT_TOKENS),
            vocab_size=vocab_size,
        )

    def with_yarn_betas(self, beta_fast: float | None, beta_slow: float | None) -> "ModelConfig":
        """Return a copy with these YaRN betas. Errors: ConfigError if the model has no YaRN."""
        if beta_fast is None and beta_slow is None:
            return self
        if self.yarn is None:
            raise ConfigError("yarn betas given, but this model does not use YaRN: leave them out")
        fast = self.yarn.beta_fast if beta_fast is None else beta_fast
        slow = self.yarn.beta_slow if beta_slow is None else beta_slow
        return replace(self, yarn=replace(self.yarn, beta_fast=fast, beta_slow=slow))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of an engine that a user may choose before the model is known."""

    kv_type: Annotated[
        str,
        Choice(
            "KV cache type; int8 halves the memory of f16",
            flags=("-ctk", "--kv-type"),
            choices=KV_TYPES,
        ),
    ] = KV_TYPES[0]
    kv_tokens: Annotated[
        int | None,
        Count("KV cache size in tokens, all requests together", unset="by free memory", least=1),
    ] = None
    max_running: Annotated[
        int,
        Count(
            "Requests in one batch", flags=("-np", "--max-running", "--slots"), least=1, most=4096
        ),
    ] = 8
    max_waiting: Annotated[
        int,
        Count(
            "Requests in the queue; further ones are refused (HTTP 429)",
            flags=("--max-waiting", "--queue"),
            most=1 << 20,
        ),
    ] = 64
    speculate: Annotated[int, Count("Draft up to N tokens by prompt lookup", most=64)] = 0
    kv_disk: Annotated[
        FolderLimit | None,
        FolderSize(
            "Keep the KV cache in a folder too, up to a size, e.g. DIR=20GiB: prompts computed"
            " before are read from it, after a restart too",
            metavar="DIR=SIZE",
            unset="in memory only",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(EngineOptions):
    """Sizes of an engine: context, KV cache, batch, queue. Raises ConfigError."""

    context_tokens: Annotated[
        int, Count("Prompt and response of one request", least=1, most=_MAX_CONTEXT_TOKENS)
    ]
    chunk_tokens: Annotated[int, Count("Prompt tokens of one step", least=1, most=1 << 16)] = 512
    decode_slowdown: Annotated[
        float, Number("Slowdown of decoding while prompts are read, at most", above=1.0, most=1e6)
    ] = 3.0

    def __post_init__(self) -> None:
        check_options(self)
        if self.kv_tokens is not None and self.kv_tokens < self.context_tokens:
            raise ConfigError(
                f"kv_tokens={self.kv_tokens}: expected at least the context, {self.context_tokens}"
            )


def kv_row_bytes(kv_type: str, latent_dim: int) -> int:
    """Bytes that one token takes in one layer of the KV cache."""
    if kv_type in _NUMBER_BYTES:
        return _NUMBER_BYTES[kv_type] * latent_dim
    assert kv_type == "int8", kv_type
    return 4 * -(-latent_dim // _SCALED_CODES) + 4 * -(-latent_dim // 4)


def check_gpu_kv_type(kv_type: str) -> None:
    """Errors: ConfigError for a KV cache type that GPU kernels do not read."""
    if kv_type not in GPU_KV_TYPES:
        raise ConfigError(
            f"kv_type={kv_type}: expected {' or '.join(GPU_KV_TYPES)} on a GPU"
            " (or use --device cpu)"
        )


def _read_attention(keys: MetadataKeys) -> dict[str, Any]:
    kv_lora_rank = keys.count("attention.kv_lora_rank")
    rope_dim = keys.count("rope.dimension_count", most=_MAX_ROPE_DIM)
    # Files from before the split of `attn_kv_b` give the per-head sizes without the suffix.
    suffix = "_mla" if "attention.key_length_mla" in keys else ""
    qk_dim = keys.count(f"attention.key_length{suffix}")
    if qk_dim <= rope_dim or rope_dim % 2:
        expected = f"more than rope.dimension_count={rope_dim}, even"
        raise keys.bad(f"attention.key_length{suffix}", qk_dim, expected)
    return {
        "num_heads": keys.count("attention.head_count", most=1 << 16),
        "q_lora_rank": keys.count("attention.q_lora_rank", default=0, least=0),
        "kv_lora_rank": kv_lora_rank,
        "nope_dim": qk_dim - rope_dim,
        "rope_dim": rope_dim,
        "v_dim": keys.count(f"attention.value_length{suffix}"),
    }


def _read_experts(keys: MetadataKeys, has_experts: bool, is_glm_flash: bool) -> dict[str, Any]:
    num_experts = keys.count("expert_count") if has_experts else 0
    num_groups = keys.count("expert_group_count", default=1, most=max(1, num_experts))
    if num_experts % num_groups:
        raise keys.bad("expert_group_count", num_groups, f"a divisor of {num_experts} experts")
    num_groups_used = keys.count("expert_group_used_count", default=num_groups, most=num_groups)
    reachable = num_experts // num_groups * num_groups_used
    gate = keys.count("expert_gating_func", default=0, least=0, most=1 << 16)
    gate = gate or (GATE_SIGMOID if is_glm_flash else GATE_SOFTMAX)
    if has_experts and gate not in (GATE_SOFTMAX, GATE_SIGMOID):
        raise UnsupportedModelError(
            f"{keys.prefix}expert_gating_func is {gate}; supported: 1 (softmax), 2 (sigmoid)"
        )
    return {
        "num_experts": num_experts,
        "top_k": keys.count("expert_used_count", most=reachable) if has_experts else 0,
        "expert_inter": keys.count("expert_feed_forward_length") if has_experts else 0,
        "num_shared_experts": keys.count("expert_shared_count", default=0, least=0, most=1 << 16),
        "gate": gate,
        "normalize_weights": keys.flag("expert_weights_norm", default=False),
        "routed_scale": keys.number("expert_weights_scale", default=0.0) or 1.0,  # 0 means none
        "num_groups": num_groups,
        "num_groups_used": num_groups_used,
    }


def _read_yarn(keys: MetadataKeys) -> YarnConfig | None:
    kind = keys.text("rope.scaling.type", default="none")
    if kind == "none":
        return None
    if kind != "yarn":
        raise UnsupportedModelError(f"rope.scaling.type is {short(kind)}; supported: yarn, none")
    return YarnConfig(
        factor=keys.number("rope.scaling.factor", least=1.0, most=1e5),
        original_context_tokens=keys.count(
            "rope.scaling.original_context_length", most=_MAX_CONTEXT_TOKENS
        ),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", default=32.0, least=1e-6),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", default=1.0, least=1e-6),
        mscale_all_dim=10.0
        * keys.number("rope.scaling.yarn_log_multiplier", default=0.0, least=0.0),
    )
