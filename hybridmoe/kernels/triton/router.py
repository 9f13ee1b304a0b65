"""Expert routing on the GPU: the twin of `ops.route`.

One program a token, all experts in registers, the best taken one after the other.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmoe.config import RoutingSpec
from hybridmoe.errors import ShapeError
from hybridmoe.kernels.triton.runtime import check_device_tensor

__all__ = ["route"]

_NO_KEY = tl.constexpr(-0x7FFFFFFF - 1)  # below the key of every number


def route(logits: Tensor, bias: Tensor | None, spec: RoutingSpec) -> tuple[Tensor, Tensor]:
    """Choose each token's experts and their weights; hybridmoe.model.router explains the rules.

    Shapes:  logits (T, E) f32 · bias (E,) f32 -> ids (T, k) int32, best first, weights (T, k) f32.
    Numeric: of equal scores the lower id wins; a NaN counts as the best, and shows in the weights.
    Errors:  ShapeError.
    """
    f32 = (torch.float32,)
    check_device_tensor(logits, "route: logits", f32, (None, None))
    tokens, num_experts = logits.shape
    if bias is not None:
        check_device_tensor(bias, "route: bias", f32, (num_experts,))
    top_k, groups, groups_used = spec.top_k, spec.num_groups, spec.num_groups_used
    is_usable = 1 <= groups_used <= groups and num_experts % groups == 0
    if not is_usable or not 1 <= top_k <= num_experts // groups * groups_used:
        raise ShapeError(
            f"route: {top_k} of {num_experts} experts in {groups_used} of {groups} groups"
            " is not usable"
        )
    ids = torch.empty((tokens, top_k), dtype=torch.int32, device=logits.device)
    weights = logits.new_empty(tokens, top_k)
    if tokens:
        _route_kernel[(tokens,)](
            logits,
            logits if bias is None else bias,
            ids,
            weights,
            num_experts,
            spec.scale,
            TOP_K=top_k,
            GROUPS=groups,
            GROUPS_USED=groups_used,
            HAS_BIAS=bias is not None,
            IS_SIGMOID=spec.is_sigmoid,
            IS_NORMALIZED=spec.is_normalized,
            BLOCK=triton.next_power_of_2(num_experts),
            K_BLOCK=triton.next_power_of_2(top_k),
            GROUP_BLOCK=triton.next_power_of_2(groups),
            num_warps=2,
        )
    return ids, weights


@triton.jit
def _order(x):
    """Map floats to integers of the same order."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _best(key, index):
    """Find the index of the largest key, of equal ones the first."""
    return tl.min(tl.where(key == tl.max(key, 0), index, 0x7FFFFFFF), 0)


@triton.jit
def _in_best_groups(
    choice,
    e,
    size,
    GROUPS: tl.constexpr,
    GROUPS_USED: tl.constexpr,
    IS_SIGMOID: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
):
    """Select the experts of the best groups of `size`."""
    g = tl.arange(0, GROUP_BLOCK)
    group_key = tl.full((GROUP_BLOCK,), _NO_KEY, tl.int32)
    for group in range(GROUPS):
        is_inside = (e >= group * size) & (e < (group + 1) * size)
        inside = tl.where(is_inside, choice, float("-inf"))
        strength = tl.max(inside, 0)
        if IS_SIGMOID & (size > 1):
            first = tl.min(tl.where(is_inside & (inside == strength), e, BLOCK), 0)
            strength += tl.max(tl.where(e == first, float("-inf"), inside), 0)
        group_key = tl.where(g == group, _order(strength), group_key)
    is_candidate = e < 0
    for _ in range(GROUPS_USED):
        group = _best(group_key, g)
        is_candidate |= (e >= group * size) & (e < (group + 1) * size)
        group_key = tl.where(g == group, _NO_KEY, group_key)
    return is_candidate


@triton.jit
def _route_kernel(
    logits_ptr,
    bias_ptr,
    ids_ptr,
    weights_ptr,
    num_experts,
    scale,
    TOP_K: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_USED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SIGMOID: tl.constexpr,
    IS_NORMALIZED: tl.constexpr,
    BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    is_expert = e < num_experts
    logits = tl.load(logits_ptr + t * num_experts + e, mask=is_expert, other=float("-inf"))
    if IS_SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-logits))
    else:
        scores = tl.exp(logits - tl.max(logits, 0))
        scores = scores / tl.sum(scores, 0)
    choice = scores
    if HAS_BIAS:
        choice += tl.load(bias_ptr + e, mask=is_expert, other=0.0)
    choice = tl.where(choice != choice, float("inf"), choice)  # a NaN is seen, not lost
    is_candidate = is_expert
    if GROUPS_USED < GROUPS:
        is_candidate = _in_best_groups(
            choice, e, num_experts // GROUPS, GROUPS, GROUPS_USED, IS_SIGMOID, BLOCK, GROUP_BLOCK
        )
    key = tl.where(is_candidate, _order(choice), _NO_KEY)
    k = tl.arange(0, K_BLOCK)
    ids = tl.zeros((K_BLOCK,), tl.int32)
    weights = tl.zeros((K_BLOCK,), tl.float32)
    total = 0.0
    for j in range(TOP_K):
        best = _best(key, e)
        score = tl.sum(tl.where(e == best, scores, 0.0), 0)
        ids = tl.where(k == j, best, ids)
        weights = tl.where(k == j, score, weights)
        total += score
        key = tl.where(e == best, _NO_KEY, key)
    factor = scale
    if IS_NORMALIZED:
        factor = scale / (total + 1e-20)
    at = t * TOP_K + k
    tl.store(ids_ptr + at, ids, mask=k < TOP_K)
    tl.store(weights_ptr + at, weights * factor, mask=k < TOP_K)
