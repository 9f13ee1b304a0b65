"""Routing on the GPU, against the native kernel."""

import pytest
import torch

from hybridmoe.config import RoutingSpec
from hybridmoe.errors import ShapeError
from hybridmoe.kernels import ops

pytest.importorskip("triton", reason="needs triton")

from kernel_device import on_device

from hybridmoe.kernels.triton import router

route = on_device(router.route)


def spec(
    top_k: int, groups: int, used: int, sigmoid: bool, normalized: bool, scale: float
) -> RoutingSpec:
    return RoutingSpec(
        top_k=top_k,
        num_groups=groups,
        num_groups_used=used,
        is_sigmoid=sigmoid,
        is_normalized=normalized,
        scale=scale,
    )


VARIANTS = {  # experts; top_k, groups, used, sigmoid, normalised, scale
    "k2": (384, spec(8, 1, 1, True, True, 2.827)),
    "v3": (256, spec(8, 8, 4, True, True, 2.5)),
    "v2": (160, spec(6, 8, 3, False, False, 16.0)),
    "v2-lite": (64, spec(6, 1, 1, False, False, 1.0)),
    "groups of one": (6, spec(2, 6, 3, True, True, 1.0)),
    "all": (5, spec(5, 1, 1, True, False, 1.0)),
}


def both(
    logits: torch.Tensor, bias: torch.Tensor | None, variant: str
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    _, rule = VARIANTS[variant]
    return route(logits, bias, rule), ops.route(logits, bias, rule)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_routes_are_the_twins(variant: str, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    num_experts = VARIANTS[variant][0]
    logits = torch.randn((17, num_experts), generator=generator)
    logits[3] = 0.0  # all equal
    logits[4] = (logits[4] * 2).round()  # many equal
    logits[5, 1:3] = float("nan")
    logits[6, num_experts - 1] = float("nan")  # alone in the last group
    logits[7, 0] = float("nan")
    bias = 0.2 * torch.randn(num_experts, generator=generator) if has_bias else None
    (ids, weights), (want_ids, want_weights) = both(logits, bias, variant)
    assert torch.equal(ids, want_ids)
    assert torch.allclose(weights, want_weights, rtol=2e-6, equal_nan=True)
    assert weights[5:8].isnan().any(dim=1).all()


def test_a_bias_of_minus_infinity_is_taken_last_and_once() -> None:
    bias = torch.full((5,), float("-inf"))
    (ids, _), (want_ids, _) = both(torch.randn(2, 5), bias, "all")
    assert torch.equal(ids, want_ids)
    assert sorted(ids[0].tolist()) == list(range(5))


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(ShapeError, match="not usable"):
        route(torch.zeros(1, 8), None, spec(0, 1, 1, True, True, 1.0))
    with pytest.raises(ShapeError, match="not usable"):
        route(torch.zeros(1, 8), None, spec(5, 4, 2, True, True, 1.0))
    with pytest.raises(ShapeError, match="bias"):
        route(torch.zeros(1, 8), torch.zeros(7), spec(1, 1, 1, True, True, 1.0))
