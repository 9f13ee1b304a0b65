"""Published models by name, with their sizes, so that none need be there.

Sizes are those of each maker's config.json on huggingface.co, in the keys of GGUF metadata that
llama.cpp's converter writes. `repo` has the release as GGUF files.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RELEASES", "Release", "release_named", "releases_beginning", "releases_like"]


@dataclass(frozen=True, slots=True)
class Release:
    """One model, or several of the same sizes."""

    name: str
    aliases: tuple[str, ...]  # in lower case; `name` in lower case is one more
    sizes: Mapping[str, Any]
    repo: str | None = None
    quant: str = "Q4_K_M"  # to plan for if none is named
    architecture: str = "deepseek2"

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of a GGUF file of this release."""
        keys = {f"{self.architecture}.{key}": value for key, value in self.sizes.items()}
        return {"general.architecture": self.architecture, "general.name": self.name, **keys}


# moonshotai/Kimi-K2-Instruct
_K2 = {
    "block_count": 61, "leading_dense_block_count": 1, "context_length": 131072,
    "embedding_length": 7168, "feed_forward_length": 18432, "vocab_size": 163840,
    "attention.head_count": 64, "attention.head_count_kv": 1, "attention.q_lora_rank": 1536,
    "attention.kv_lora_rank": 512, "attention.key_length": 576, "attention.value_length": 512,
    "attention.key_length_mla": 192, "attention.value_length_mla": 128,
    "attention.layer_norm_rms_epsilon": 1e-6, "rope.dimension_count": 64,
    "rope.freq_base": 50000.0, "expert_count": 384, "expert_used_count": 8,
    "expert_shared_count": 1, "expert_feed_forward_length": 2048, "expert_gating_func": 2,
    "expert_weights_norm": True, "expert_weights_scale": 2.827,
}  # fmt: skip
_K2_LONG = {**_K2, "context_length": 262144}
# deepseek-ai/DeepSeek-V3
_V3 = {
    **_K2, "leading_dense_block_count": 3, "context_length": 163840, "vocab_size": 129280,
    "attention.head_count": 128, "rope.freq_base": 10000.0, "expert_count": 256,
    "expert_group_count": 8, "expert_group_used_count": 4, "expert_weights_scale": 2.5,
}  # fmt: skip
# deepseek-ai/DeepSeek-V3.2
_V32 = {
    **_V3, "attention.indexer.head_count": 64, "attention.indexer.key_length": 128,
    "attention.indexer.top_k": 2048,
}  # fmt: skip
# deepseek-ai/DeepSeek-V2
_V2 = {
    **_V3, "block_count": 60, "leading_dense_block_count": 1, "embedding_length": 5120,
    "feed_forward_length": 12288, "vocab_size": 102400, "expert_count": 160,
    "expert_used_count": 6, "expert_shared_count": 2, "expert_feed_forward_length": 1536,
    "expert_group_used_count": 3, "expert_gating_func": 1, "expert_weights_norm": False,
    "expert_weights_scale": 16.0,
}  # fmt: skip
_NO_GROUPS = {"expert_group_count": 1, "expert_group_used_count": 1}
# deepseek-ai/DeepSeek-V2-Lite
_V2_LITE = {
    **{key: value for key, value in _V2.items() if key != "attention.q_lora_rank"}, **_NO_GROUPS,
    "block_count": 27, "embedding_length": 2048, "feed_forward_length": 10944,
    "attention.head_count": 16, "expert_count": 64, "expert_feed_forward_length": 1408,
    "expert_weights_scale": 1.0,
}  # fmt: skip
# moonshotai/Moonlight-16B-A3B-Instruct
_MOONLIGHT = {
    **_V2_LITE, "context_length": 8192, "feed_forward_length": 11264, "vocab_size": 163840,
    "rope.freq_base": 50000.0, "expert_gating_func": 2, "expert_weights_norm": True,
    "expert_weights_scale": 2.446,
}  # fmt: skip
# moonshotai/Kimi-VL-A3B-Instruct, its language model
_KIMI_VL = {**_MOONLIGHT, "context_length": 131072, "rope.freq_base": 800000.0}
# mistralai/Mistral-Large-3-675B-Instruct-2512, in params.json
_LARGE_3 = {
    **_V3, **_NO_GROUPS, "context_length": 294912, "feed_forward_length": 16384,
    "vocab_size": 131072, "expert_count": 128, "expert_used_count": 4,
    "expert_feed_forward_length": 4096, "expert_gating_func": 1, "expert_weights_scale": 1.0,
    "attention.temperature_scale": 0.1, "attention.temperature_length": 8192,
}  # fmt: skip
# mistralai/Mistral-Small-4-119B-2603
_SMALL_4 = {
    **_LARGE_3, "block_count": 36, "leading_dense_block_count": 0, "context_length": 1048576,
    "embedding_length": 4096, "feed_forward_length": 12288, "attention.head_count": 32,
    "attention.q_lora_rank": 1024, "attention.kv_lora_rank": 256, "attention.key_length": 320,
    "attention.value_length": 256, "attention.key_length_mla": 128,
    "expert_feed_forward_length": 2048,
}  # fmt: skip
# zai-org/GLM-4.7-Flash
_GLM_FLASH = {
    **_V3, **_NO_GROUPS, "block_count": 47, "leading_dense_block_count": 1,
    "context_length": 202752, "embedding_length": 2048, "feed_forward_length": 10240,
    "vocab_size": 154880, "attention.head_count": 20, "attention.q_lora_rank": 768,
    "attention.key_length_mla": 256, "attention.value_length_mla": 256,
    "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e6, "expert_count": 64,
    "expert_used_count": 4, "expert_feed_forward_length": 1536, "expert_weights_scale": 1.8,
}  # fmt: skip
# zai-org/GLM-5
_GLM_5 = {
    **_V32, **_NO_GROUPS, "block_count": 78, "context_length": 202752, "embedding_length": 6144,
    "feed_forward_length": 12288, "vocab_size": 154880, "attention.head_count": 64,
    "attention.q_lora_rank": 2048, "attention.key_length_mla": 256,
    "attention.value_length_mla": 256, "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 1e6, "attention.indexer.head_count": 32,
}  # fmt: skip
# zai-org/GLM-5.2: by its context, an indexer in every fourth layer
_GLM_5_2 = {**_GLM_5, "context_length": 1048576, "rope.freq_base": 8e6}

RELEASES = (
    Release("Kimi-K2-Instruct", ("kimi-k2", "k2"), _K2, "unsloth/Kimi-K2-Instruct-GGUF"),
    Release(
        "Kimi-K2-Instruct-0905",
        ("kimi-k2-0905", "k2-0905"),
        _K2_LONG,
        "unsloth/Kimi-K2-Instruct-0905-GGUF",
    ),
    Release(
        "Kimi-K2-Thinking", ("k2-thinking",), _K2_LONG, "unsloth/Kimi-K2-Thinking-GGUF", "Q4_0"
    ),
    Release("Kimi-K2.5", ("k2.5",), _K2_LONG, "unsloth/Kimi-K2.5-GGUF", "Q4_0"),
    Release("Kimi-K2.6", ("k2.6",), _K2_LONG, "unsloth/Kimi-K2.6-GGUF", "Q4_0"),
    Release(
        "Kimi-K2.7-Code", ("k2.7", "kimi-k2.7"), _K2_LONG, "unsloth/Kimi-K2.7-Code-GGUF", "Q4_0"
    ),
    Release("DeepSeek-V3", ("v3", "deepseek-v3-0324"), _V3, "unsloth/DeepSeek-V3-0324-GGUF"),
    Release("DeepSeek-V3.1", ("v3.1", "deepseek-v3.1-terminus"), _V3, "unsloth/DeepSeek-V3.1-GGUF"),
    Release(
        "DeepSeek-V3.2",
        ("v3.2", "deepseek-v3.2-exp", "deepseek-v3.2-speciale", "deepseek-math-v2"),
        _V32,
        architecture="deepseek32",
    ),
    Release("DeepSeek-R1", ("r1", "deepseek-r1-0528"), _V3, "unsloth/DeepSeek-R1-0528-GGUF"),
    Release("DeepSeek-V2", ("v2", "deepseek-v2-chat", "deepseek-v2.5", "deepseek-coder-v2"), _V2),
    Release(
        "DeepSeek-V2-Lite",
        ("v2-lite", "deepseek-coder-v2-lite"),
        _V2_LITE,
        "bartowski/DeepSeek-Coder-V2-Lite-Instruct-GGUF",
    ),
    Release("Moonlight-16B-A3B", ("moonlight",), _MOONLIGHT),
    Release("Kimi-VL-A3B", ("kimi-vl",), _KIMI_VL),
    Release("GLM-4.7-Flash", ("glm-flash",), _GLM_FLASH, "unsloth/GLM-4.7-Flash-GGUF"),
    Release("GLM-5", ("glm-5.1",), _GLM_5, "unsloth/GLM-5-GGUF", architecture="glm-dsa"),
    Release("GLM-5.2", (), _GLM_5_2, "unsloth/GLM-5.2-GGUF", architecture="glm-dsa"),
    Release("Mistral-Large-3", ("mistral-large-3-675b",), _LARGE_3),
    Release(
        "Mistral-Small-4",
        ("mistral-4-small", "mistral-small-4-119b"),
        _SMALL_4,
        architecture="mistral4",
    ),
)


def release_named(text: str) -> Release | None:
    """Find the release with this name, in any case and with any separators: `glm5.2`, `GLM 5.2`."""
    return _BY_NAME.get(_squeezed(text))


def releases_beginning(text: str) -> list[Release]:
    """List the releases whose names begin so."""
    wanted = _squeezed(text)
    return _unique(r for name, r in _BY_NAME.items() if name.startswith(wanted))


def releases_like(text: str) -> list[Release]:
    """List up to three releases whose names are nearly this, the most similar first."""
    near = difflib.get_close_matches(_squeezed(text), _BY_NAME, cutoff=0.7)
    return _unique(_BY_NAME[name] for name in near)


def _unique(releases: Iterable[Release]) -> list[Release]:
    return list({release.name: release for release in releases}.values())


def _squeezed(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.lower())


_BY_NAME = {_squeezed(name): r for r in RELEASES for name in (r.name, *r.aliases)}
