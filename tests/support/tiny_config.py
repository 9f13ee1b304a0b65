"""Sizes and switches of the small random GGUFs of `tiny_gguf`.

Variants (`k2`, `v3`, `v32`, `glm5`, `v2`, `mistral4`, `v2lite`, `moonlight`) set what differs
between those models.

llama.cpp looks for `attn_q` (no q_lora) only in files of 26 or 27 layers, so `v2lite` and
`moonlight` have 27; their widths are smaller to make up for it, and fall back to Q8_0 where a K
or IQ type is asked for (rows must be a multiple of its block).
"""

from dataclasses import dataclass, fields, replace

SOFTMAX, SIGMOID = 1, 2


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """Sizes and switches of the file; the defaults are the `k2` variant."""

    arch: str = "deepseek2"
    layers: int = 3
    mtp: bool = False  # one more layer, for multi-token prediction
    mtp_own: bool = False  # with an embedding, a head and a norm of its own
    dense_layers: int = 1
    hidden: int = 256
    heads: int = 4
    q_lora: int | None = 256
    kv_lora: int = 512
    rope: int = 64
    nope: int = 64
    v: int = 64
    dense_width: int = 512
    experts: int = 8
    top_k: int = 2
    expert_width: int = 256
    shared: int = 1
    n_group: int | None = 1
    topk_group: int | None = 1
    gating: int | None = SIGMOID  # None: the key is absent
    selection_bias: bool = True
    norm_weights: bool = True
    scale: float = 2.827
    context: int = 131_072
    theta: float = 50_000.0
    eps: float = 1e-6
    yarn_factor: float | None = 32.0  # None: no rope scaling at all
    yarn_original_context: int = 4096
    yarn_beta_fast: float | None = 1.0  # None: the key is absent
    yarn_beta_slow: float | None = 1.0
    yarn_log_multiplier: float | None = 0.1  # the file holds 0.1 x the model's mscale_all_dim
    temperature_scale: float | None = None  # None: queries do not grow with their positions
    temperature_length: int = 16
    gain: float = 1.5  # spread of a product's outputs over its inputs'; 1 is calm, 2 is chaos
    split_kv_b: bool = True
    flat_kv_b: bool = False  # attn_k_b and attn_v_b in two dimensions, as ik_llama.cpp writes them
    both_kv_b: bool = False  # attn_kv_b, of zeros, beside the split ones
    fused_gate_up: bool = False  # routed experts: gate rows, then up rows, in one tensor
    scaled: bool = False  # NVFP4 matrices have factors
    tied: bool = False
    index_heads: int | None = None  # None: no indexer
    index_dim: int = 128
    index_top_k: int = 24
    index_types: tuple[bool, ...] | None = None  # None: the key is absent, all layers have one
    pre: str = "kimi-k2"
    chat_template: str | None = None


_LITE = {
    "layers": 27, "hidden": 128, "heads": 2, "q_lora": None, "kv_lora": 64, "rope": 32,
    "nope": 32, "v": 32, "dense_width": 128, "experts": 4, "expert_width": 64, "shared": 2,
}  # fmt: skip
_V2 = {
    "n_group": None, "topk_group": None, "gating": SOFTMAX, "selection_bias": False,
    "norm_weights": False, "theta": 10_000.0, "context": 163_840, "yarn_factor": 40.0,
    "yarn_beta_fast": None, "yarn_beta_slow": None, "yarn_log_multiplier": 0.0707,
    "pre": "deepseek-llm",
}  # fmt: skip
_V3 = {
    "n_group": 4, "topk_group": 2, "scale": 2.5, "context": 163_840, "theta": 10_000.0,
    "yarn_factor": 40.0, "yarn_beta_fast": None, "yarn_beta_slow": None, "pre": "deepseek-v3",
}  # fmt: skip
VARIANTS: dict[str, dict[str, object]] = {
    "k2": {},
    "v3": _V3,
    "v32": {**_V3, "arch": "deepseek32", "index_heads": 32},
    "glm5": {
        "arch": "glm-dsa",
        "layers": 4,
        "index_heads": 32,
        "index_types": (True, True, False, True),
        "yarn_factor": None,
        "gating": None,
        "scale": 2.5,
        "theta": 8e6,
        "eps": 1e-5,
    },
    "v2": {**_V2, "scale": 16.0, "shared": 2},
    "mistral4": {
        **_V2,
        "arch": "mistral4",
        "norm_weights": True,
        "scale": 1.0,
        "yarn_log_multiplier": 0.1,
        "temperature_scale": 0.5,
        "pre": "deepseek-v3",
    },
    "v2lite": {**_V2, **_LITE, "scale": 1.0},
    "moonlight": {**_LITE, "scale": 2.446, "context": 8192, "yarn_factor": None},
}


def tiny_config(variant: str = "k2", **overrides: object) -> TinyConfig:
    """The configuration that `write_tiny` uses for these arguments."""
    known = {field.name for field in fields(TinyConfig)}
    assert overrides.keys() <= known, f"unknown: {sorted(overrides.keys() - known)}"
    return replace(TinyConfig(), **{**VARIANTS[variant], **overrides})  # type: ignore[arg-type]
