"""ModelConfig: metadata that is read or refused, and numbers derived from Kimi K2's."""

import math
from typing import Any

import pytest
from k2_config import K2

from hybridmoe.config import (
    GATE_SIGMOID,
    GATE_SOFTMAX,
    AttentionTemperature,
    IndexerConfig,
    ModelConfig,
    RoutingSpec,
)
from hybridmoe.errors import ConfigError, GGUFError, UnsupportedModelError


def _with(**changes: Any) -> dict[str, Any]:
    changed = {f"deepseek2.{key.replace('__', '.')}": value for key, value in changes.items()}
    return {k: v for k, v in (K2 | changed).items() if v is not None}


def test_kimi_k2_reads_as_published() -> None:
    c = ModelConfig.from_metadata(K2)
    assert (c.num_layers, c.num_dense_layers, c.num_moe_layers) == (61, 1, 60)
    assert (c.nope_dim, c.rope_dim, c.v_dim, c.qk_dim) == (128, 64, 128, 192)
    assert (c.latent_dim, c.num_experts, c.top_k, c.gate) == (576, 384, 8, GATE_SIGMOID)
    assert c.yarn is not None
    assert (c.yarn.beta_fast, c.yarn.beta_slow) == (1.0, 1.0)
    assert c.yarn.attention_mscale == pytest.approx(0.1 * math.log(32) + 1)
    assert c.yarn.rotary_mscale == 1.0
    assert c.softmax_scale == pytest.approx(1.34657**2 / math.sqrt(192), rel=1e-5)


def test_routing_follows_the_metadata() -> None:
    k2 = RoutingSpec(top_k=8, is_sigmoid=True, is_normalized=True, scale=2.827)
    assert ModelConfig.from_metadata(K2).routing == k2
    v2 = _with(
        expert_gating_func=1,
        expert_weights_norm=False,
        expert_group_count=8,
        expert_group_used_count=3,
        expert_weights_scale=16.0,
    )
    assert ModelConfig.from_metadata(v2).routing == RoutingSpec(
        top_k=8, is_sigmoid=False, is_normalized=False, scale=16.0, num_groups=8, num_groups_used=3
    )


def test_yarn_betas_default_to_32_and_1_and_can_be_overridden() -> None:
    lacking = _with(rope__scaling__yarn_beta_fast=None, rope__scaling__yarn_beta_slow=None)
    c = ModelConfig.from_metadata(lacking)
    assert c.yarn is not None
    assert (c.yarn.beta_fast, c.yarn.beta_slow) == (32.0, 1.0)
    changed = c.with_yarn_betas(1.0, None).yarn
    assert changed is not None
    assert (changed.beta_fast, changed.beta_slow) == (1.0, 1.0)


def test_overriding_betas_of_a_model_without_yarn_is_refused() -> None:
    c = ModelConfig.from_metadata(_with(rope__scaling__type="none"))
    assert c.yarn is None
    with pytest.raises(ConfigError, match="does not use YaRN"):
        c.with_yarn_betas(1.0, 1.0)


def test_old_files_give_head_sizes_without_the_suffix() -> None:
    c = ModelConfig.from_metadata(
        _with(
            attention__key_length_mla=None,
            attention__value_length_mla=None,
            attention__key_length=192,
            attention__value_length=128,
        )
    )
    assert (c.nope_dim, c.v_dim) == (128, 128)


def test_absent_gating_function_means_softmax() -> None:
    assert ModelConfig.from_metadata(_with(expert_gating_func=None)).gate == GATE_SOFTMAX


@pytest.mark.parametrize(
    "blocks", [{"block_count": 47}, {"block_count": 48, "nextn_predict_layers": 1}]
)
def test_glm_flash_without_a_gating_function_is_sigmoid(blocks: dict[str, int]) -> None:
    flash = {**blocks, "vocab_size": 154_880}
    assert ModelConfig.from_metadata(_with(expert_gating_func=None, **flash)).gate == GATE_SIGMOID
    assert ModelConfig.from_metadata(_with(expert_gating_func=1, **flash)).gate == GATE_SOFTMAX


def test_prediction_layers_are_not_counted() -> None:
    assert ModelConfig.from_metadata(_with(nextn_predict_layers=1)).num_layers == 60


def test_lists_are_read_for_the_layers_that_they_concern() -> None:
    lists = _with(
        feed_forward_length=[18432] + [2048] * 60,
        expert_feed_forward_length=[0] + [2048] * 60,
        expert_count=[0] + [384] * 60,
        expert_used_count=[0] + [8] * 60,
        attention__head_count=[64] * 61,
    )
    assert ModelConfig.from_metadata(lists) == ModelConfig.from_metadata(K2)


def test_zero_groups_are_none() -> None:
    zero = _with(expert_group_count=0, expert_group_used_count=0)
    assert ModelConfig.from_metadata(zero) == ModelConfig.from_metadata(K2)


def test_queries_grow_with_their_positions() -> None:
    large3 = _with(attention__temperature_scale=0.1, attention__temperature_length=8192)
    assert ModelConfig.from_metadata(large3).temperature == AttentionTemperature(0.1, 8192)
    mistral4 = {k.replace("deepseek2", "mistral4"): v for k, v in K2.items()}
    mistral4["general.architecture"] = "mistral4"  # whose converter leaves the keys out
    assert ModelConfig.from_metadata(mistral4).temperature == AttentionTemperature(0.1, 4096)
    off = _with(attention__temperature_scale=0.0, attention__temperature_length=8192)
    assert ModelConfig.from_metadata(off) == ModelConfig.from_metadata(K2)


def test_a_vision_file_is_said_to_be_one() -> None:
    with pytest.raises(UnsupportedModelError, match="'clip': this is an mmproj file"):
        ModelConfig.from_metadata({"general.architecture": "clip"})


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'llama'; supported: deepseek2"):
        ModelConfig.from_metadata({"general.architecture": "llama"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_length": None}, "embedding_length is missing"),
        ({"embedding_length": 0}, "embedding_length is 0; expected a whole number"),
        ({"embedding_length": "7168"}, "embedding_length is '7168'"),
        ({"embedding_length": True}, "embedding_length is True"),
        ({"block_count": 2**60}, "block_count is 1152921504606846976"),
        ({"leading_dense_block_count": 62}, "leading_dense_block_count is 62"),
        ({"expert_used_count": 385}, "expert_used_count is 385"),
        ({"rope__dimension_count": 1026}, "rope.dimension_count is 1026; expected .* 1 to 1024"),
        ({"expert_group_count": 7}, "expert_group_count is 7; expected a divisor"),
        ({"expert_gating_func": 3}, "expert_gating_func is 3; supported"),
        ({"attention__key_length_mla": 64}, "key_length_mla is 64"),
        ({"attention__layer_norm_rms_epsilon": math.nan}, "rms_epsilon is nan"),
        ({"attention__layer_norm_rms_epsilon": 0.0}, "rms_epsilon is 0.0; expected a number from"),
        ({"rope__scaling__type": "longrope"}, "rope.scaling.type is 'longrope'"),
        ({"rope__scaling__factor": None}, "rope.scaling.factor is missing"),
        ({"attention__temperature_scale": 0.5}, "temperature_length is missing"),
        ({"attention__temperature_scale": -0.5}, "temperature_scale is -0.5; expected a number"),
        (
            {"attention__temperature_scale": 0.5, "attention__temperature_length": 0},
            "temperature_length is 0; expected a whole number",
        ),
        ({"rope__scaling__attn_factor": 0.5}, "attn_factor is 0.5; not supported"),
        ({"rope__scaling__yarn_attn_factor": 2.0}, "yarn_attn_factor is 2.0; not supported"),
        ({"rope__scaling__yarn_ext_factor": 0.0}, "yarn_ext_factor is 0.0; not supported"),
        ({"expert_count": [384] * 60}, "expert_count is .* or one for each of 61 layers"),
        ({"expert_count": [0, 300, *[384] * 59]}, "expert_count is .* of different sizes are not"),
        ({"attention__head_count": [64] * 60 + [32]}, "head_count is .* of different sizes"),
        ({"expert_used_count": [*[8] * 60, 4]}, "expert_used_count is .* of different sizes"),
        ({"expert_used_count": []}, "expert_used_count is .* one for each of 61 layers"),
        ({"expert_used_count": [[8]] * 61}, "expert_used_count is .*; expected a whole number"),
        ({"expert_count": 205, "expert_group_count": 8}, "a divisor of 205 experts: .* pruning"),
        ({"expert_weights_norm": 1}, "expert_weights_norm is 1; expected true or false"),
    ],
)
def test_bad_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GGUFError, match=message):
        ModelConfig.from_metadata(_with(**change))


GLM = {
    "general.architecture": "glm-dsa",
    **{k.replace("deepseek2", "glm-dsa"): v for k, v in K2.items() if k.startswith("deepseek2.")},
    "glm-dsa.attention.indexer.head_count": 32,
    "glm-dsa.attention.indexer.key_length": 128,
    "glm-dsa.attention.indexer.top_k": 2048,
}


def _glm(**changes: Any) -> dict[str, Any]:
    changed = {f"glm-dsa.{key.replace('__', '.')}": value for key, value in changes.items()}
    return {k: v for k, v in (GLM | changed).items() if v is not None}


def _indexer(metadata: dict[str, Any]) -> IndexerConfig:
    indexer = ModelConfig.from_metadata(metadata).indexer
    assert indexer is not None
    return indexer


def test_glm_without_a_gating_function_is_sigmoid() -> None:
    assert ModelConfig.from_metadata(_glm(expert_gating_func=None)).gate == GATE_SIGMOID


def test_glm_indexers_are_those_of_the_file_or_follow_from_its_context() -> None:
    assert _indexer(GLM).is_full == (True,) * 61
    by_context = _indexer(_glm(context_length=1 << 20, block_count=79, nextn_predict_layers=1))
    full = [0, 1, *range(2, 78, 4)]
    assert by_context.is_full == tuple(i in full for i in range(78))
    named = _indexer(_glm(attention__indexer__types=[1, 0] * 31))  # one entry for block 61
    assert named.is_full == tuple(i % 2 == 0 for i in range(61))


def test_deepseek_indexers_are_in_every_layer_and_rotate_halves() -> None:
    v32 = {k.replace("glm-dsa", "deepseek32"): v for k, v in GLM.items()}
    indexer = _indexer({**v32, "general.architecture": "deepseek32"})
    assert (indexer.num_heads, indexer.key_dim, indexer.top_k) == (32, 128, 2048)
    assert indexer.num_full == 61 and not indexer.has_neighbour_pairs
    assert _indexer(GLM).has_neighbour_pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention__temperature_scale": 0.1}, "temperature_scale is 0.1; not supported"),
        ({"attention__indexer__top_k": None}, "indexer.top_k is missing"),
        ({"attention__indexer__top_k": 0}, "indexer.top_k is 0"),
        ({"attention__indexer__key_length": 32}, "key_length is 32; expected at least rope"),
        ({"attention__indexer__types": [True] * 60}, "types is .* expected one for each of 61"),
        ({"attention__indexer__types": [False] * 61}, "types is .* the first true"),
        ({"attention__indexer__types": [2] * 61}, "types is .* expected a list of true or false"),
        ({"attention__q_lora_rank": None}, "q_lora_rank is missing: the indexer's queries"),
    ],
)
def test_bad_indexers_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GGUFError, match=message):
        ModelConfig.from_metadata(_glm(**change))
