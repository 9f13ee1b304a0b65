"""Routing against plain loops, for every gating variant."""

import math

import numpy as np
import pytest
import torch
from k2_config import K2

from hybridmoe import _C
from hybridmoe.config import GATE_SIGMOID, GATE_SOFTMAX, ModelConfig, RoutingSpec
from hybridmoe.errors import ShapeError
from hybridmoe.kernels import ops


def _config(**changes: object) -> ModelConfig:
    metadata = K2 | {f"deepseek2.{key}": value for key, value in changes.items()}
    return ModelConfig.from_metadata(metadata)


def _expected(logits: np.ndarray, bias: np.ndarray | None, c: ModelConfig) -> dict[int, float]:
    """One token's experts and weights, written out."""
    if c.gate == GATE_SIGMOID:
        scores = [1 / (1 + math.exp(-v)) for v in logits]
    else:
        total = sum(math.exp(v) for v in logits)
        scores = [math.exp(v) / total for v in logits]
    shifts = [0.0] * len(scores) if bias is None else bias.tolist()
    choice = [s + b for s, b in zip(scores, shifts, strict=True)]
    size = c.num_experts // c.num_groups
    groups = [choice[g * size : (g + 1) * size] for g in range(c.num_groups)]
    counted = 2 if c.gate == GATE_SIGMOID else 1
    strength = [sum(sorted(g)[-counted:]) for g in groups]
    kept = sorted(range(c.num_groups), key=lambda g: -strength[g])[: c.num_groups_used]
    reachable = [e for e in range(c.num_experts) if e // size in kept]
    chosen = sorted(reachable, key=lambda e: -choice[e])[: c.top_k]
    norm = sum(scores[e] for e in chosen) if c.normalize_weights else 1.0
    return {e: scores[e] / norm * c.routed_scale for e in chosen}


VARIANTS = {
    "k2": _config(),
    "v3": _config(expert_count=256, expert_group_count=8, expert_group_used_count=4),
    "v2": _config(
        expert_count=160,
        expert_used_count=6,
        expert_group_count=8,
        expert_group_used_count=3,
        expert_gating_func=GATE_SOFTMAX,
        expert_weights_norm=False,
        expert_weights_scale=16.0,
    ),
    "v2-lite": _config(
        expert_count=64,
        expert_used_count=6,
        expert_gating_func=GATE_SOFTMAX,
        expert_weights_norm=False,
        expert_weights_scale=1.0,
    ),
}


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_routes_as_written_out(variant: str, has_bias: bool) -> None:
    c = VARIANTS[variant]
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(50, c.num_experts)).astype(np.float32)
    bias = rng.normal(scale=0.1, size=c.num_experts).astype(np.float32) if has_bias else None
    ids, weights = ops.route(
        torch.from_numpy(logits), None if bias is None else torch.from_numpy(bias), c.routing
    )
    assert ids.dtype == torch.int32
    for token in range(50):
        got = dict(zip(ids[token].tolist(), weights[token].tolist(), strict=True))
        want = _expected(logits[token], bias, c)
        assert got.keys() == want.keys()
        for expert, weight in want.items():
            assert got[expert] == pytest.approx(weight, rel=1e-5)


def test_the_bias_selects_but_does_not_weigh() -> None:
    c = VARIANTS["k2"]
    logits = torch.zeros(1, c.num_experts)
    bias = torch.zeros(c.num_experts)
    bias[100:108] = 0.5
    ids, weights = ops.route(logits, bias, c.routing)
    assert sorted(ids[0].tolist()) == list(range(100, 108))
    assert torch.allclose(weights, torch.full((1, 8), c.routed_scale / 8))


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 0), (8, -1), (8, 9), (0, 0), (0, 1)])
@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("is_sigmoid", [True, False])
def test_no_experts_to_choose_are_refused(
    num_experts: int, top_k: int, tokens: int, is_sigmoid: bool
) -> None:
    spec = RoutingSpec(top_k=top_k, is_sigmoid=is_sigmoid, is_normalized=True)
    logits = torch.zeros(tokens, num_experts)
    with pytest.raises(ShapeError, match="route: "):
        ops.route(logits, None, spec)
    with pytest.raises(ShapeError, match="not usable"):  # the kernel checks by itself
        _C.route(0, 0, tokens, num_experts, top_k, 1, 1, is_sigmoid, True, 1.0, 0, 0)
