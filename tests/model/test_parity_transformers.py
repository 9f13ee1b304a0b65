"""Float32 parity with transformers' models built from the same weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from logit_distance import relative_error
from tiny_gguf import write_tiny
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    GlmMoeDsaConfig,
    GlmMoeDsaForCausalLM,
    Mistral4Config,
    Mistral4ForCausalLM,
    PreTrainedModel,
)

import hybridmoe
from hybridmoe.config import ModelConfig

NUM_TOKENS = 64


def _reference(c: ModelConfig, weights: dict[str, np.ndarray]) -> PreTrainedModel:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_base}
    if c.yarn is not None:
        rope |= {
            "rope_type": "yarn",
            "factor": c.yarn.factor,
            "original_max_position_embeddings": c.yarn.original_context_tokens,
            "beta_fast": c.yarn.beta_fast,
            "beta_slow": c.yarn.beta_slow,
            "mscale": c.yarn.mscale_all_dim,
            "mscale_all_dim": c.yarn.mscale_all_dim,
        }
    kinds: tuple[Any, Any] = DeepseekV3Config, DeepseekV3ForCausalLM
    sparse: dict[str, Any] = {"rope_interleave": True}
    if c.temperature is not None:
        kinds = Mistral4Config, Mistral4ForCausalLM
        rope["llama_4_scaling_beta"] = c.temperature.scale
    if (indexer := c.indexer) is not None:
        kinds = DeepseekV32Config, DeepseekV32ForCausalLM
        sparse = {
            "index_n_heads": indexer.num_heads,
            "index_head_dim": indexer.key_dim,
            "index_topk": indexer.top_k,
        }
        if indexer.has_neighbour_pairs:
            kinds = GlmMoeDsaConfig, GlmMoeDsaForCausalLM
            sparse["indexer_types"] = ["full" if full else "shared" for full in indexer.is_full]
    config = kinds[0](
        vocab_size=c.vocab_size,
        hidden_size=c.hidden,
        intermediate_size=c.dense_inter,
        moe_intermediate_size=c.expert_inter,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_heads,
        n_shared_experts=c.num_shared_experts,
        n_routed_experts=c.num_experts,
        num_experts_per_tok=c.top_k,
        routed_scaling_factor=c.routed_scale,
        norm_topk_prob=c.normalize_weights,
        n_group=c.num_groups,
        topk_group=c.num_groups_used,
        first_k_dense_replace=c.num_dense_layers,
        q_lora_rank=c.q_lora_rank or None,
        kv_lora_rank=c.kv_lora_rank,
        qk_rope_head_dim=c.rope_dim,
        qk_nope_head_dim=c.nope_dim,
        v_head_dim=c.v_dim,
        rms_norm_eps=c.rms_eps,
        max_position_embeddings=c.context_tokens,
        rope_parameters=rope,
        attn_implementation="eager",
        **sparse,
    )
    model: PreTrainedModel = kinds[1](config).eval()
    state = {name: torch.from_numpy(array) for name, array in _rename(c, weights).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not missing
    return model


def _rename(c: ModelConfig, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename tensors to transformers' names, where the experts' gate and up are stacked."""
    named = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"],
        "lm_head.weight": weights["output.weight"],
    }
    plain = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_kv_b": "self_attn.kv_b_proj",
        "attn_output": "self_attn.o_proj",
        "indexer.attn_q_b": "self_attn.indexer.wq_b",
        "indexer.attn_k": "self_attn.indexer.wk",
        "indexer.k_norm": "self_attn.indexer.k_norm",
        "indexer.proj": "self_attn.indexer.weights_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "ffn_gate_inp": "mlp.gate",
        "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
        "ffn_up_shexp": "mlp.shared_experts.up_proj",
        "ffn_down_shexp": "mlp.shared_experts.down_proj",
    }
    for layer in range(c.num_layers):
        block, target = f"blk.{layer}.", f"model.layers.{layer}."
        for ours, theirs in plain.items():
            if (name := f"{block}{ours}.weight") in weights:
                named[f"{target}{theirs}.weight"] = weights[name]
        if (name := f"{block}indexer.k_norm.bias") in weights:
            named[f"{target}self_attn.indexer.k_norm.bias"] = weights[name]
        if layer >= c.num_dense_layers:
            gate, up = (weights[f"{block}ffn_{part}_exps.weight"] for part in ("gate", "up"))
            named[f"{target}mlp.experts.gate_up_proj"] = np.concatenate((gate, up), axis=1)
            named[f"{target}mlp.experts.down_proj"] = weights[f"{block}ffn_down_exps.weight"]
            if (bias := f"{block}exp_probs_b.bias") in weights:
                named[f"{target}mlp.gate.e_score_correction_bias"] = weights[bias]
    return named


@pytest.mark.parametrize("variant", ["k2", "v3", "moonlight"])
def test_float32_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    # The whole kv_b is what transformers stores; the split form is checked against it below.
    weights = write_tiny(path, variant=variant, type=GGMLQuantizationType.F32, split_kv_b=False)
    assert _error(path, weights) <= 1e-4


def test_queries_that_grow_with_their_positions_equal_transformers(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    sizes = {"yarn_original_context": 16, "temperature_scale": None}  # 0.1 by default
    weights = write_tiny(path, variant="mistral4", split_kv_b=False, **sizes)
    assert _error(path, weights) <= 1e-4


@pytest.mark.parametrize("variant", ["glm5", "v32"])
def test_sparse_attention_equals_transformers(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    weights = write_tiny(path, variant=variant, split_kv_b=False, index_top_k=12)
    assert _error(path, weights) <= 1e-4


def _error(path: Path, weights: dict[str, np.ndarray]) -> float:
    """Compute the relative error of a sequence's logits."""
    with hybridmoe.load(path, kv_type="f32") as llm:
        ids = np.random.default_rng(3).integers(0, llm.config.vocab_size, NUM_TOKENS).tolist()
        ours = llm.logits(ids)
        reference = _reference(llm.config, weights)
    with torch.inference_mode():
        theirs = reference(torch.tensor([ids])).logits[0].numpy()
    return relative_error(theirs, ours)


def test_both_generations_of_files_hold_the_same_model(tmp_path: Path) -> None:
    logits = []
    for split in (True, False):
        path = tmp_path / f"{split}.gguf"
        write_tiny(path, variant="k2", type=GGMLQuantizationType.F32, split_kv_b=split)
        with hybridmoe.load(path, kv_type="f32") as llm:
            logits.append(llm.logits(range(40)))
    assert relative_error(logits[0], logits[1]) <= 1e-5
