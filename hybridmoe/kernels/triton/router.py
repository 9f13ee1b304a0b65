"""Which experts a token goes to, chosen on a card: the twin of `ops.route`.

One program a token, all experts in registers, the best taken one after the other.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmoe.errors import ShapeError
from hybridmoe.kernels.triton.runtime import check_device_tensor

__all__ = ["route"]


def route(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    *,
    num_groups: int,
    num_groups_used: int,
    is_sigmoid: bool,
    is_normalized: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Each token's experts and their weights; hybridmoe.model.router says what the switches mean.

    Shapes:  logits (T, E) f32 · bias (E,) f32 -> ids (T, k) int32, best first, weights (T, k) f32.
    Numeric: of equal scores the lower id wins; a NaN counts as the best, and shows in the weights.
    Errors:  ShapeError.
    """
    f32 = (torch.float32,)
    check_device_tensor(logits, "route: logits", f32, (None, None))
    tokens, num_experts = logits.shape
    if bias is not None:
        check_device_tensor(bias, "route: bias", f32, (num_experts,))
    is_usable = 1 <= num_groups_used <= num_groups and num_experts % num_groups == 0
    if not is_usable or not 1 <= top_k <= num_experts // num_groups * num_groups_used:
        raise ShapeError(
            f"route: {top_k} of {num_experts} experts in {num_groups_used} of {num_groups} groups"
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
            scale,
            TOP_K=top_k,
            GROUPS=num_groups,
            GROUPS_USED=num_groups_used,
            HAS_BIAS=bias is not None,
            IS_SIGMOID=is_sigmoid,
            IS_NORMALIZED=is_normalized,
            BLOCK=triton.next_power_of_2(num_experts),
            K_BLOCK=triton.next_power_of_2(top_k),
            GROUP_BLOCK=triton.next_power_of_2(num_groups),
            num_warps=2,
        )
    return ids, weights


@triton.jit
def _order(x):
    """Integers in the order of the numbers."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # there is one zero
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _best(key, index):
    """Where the largest key is; of equal ones the first."""
    return tl.min(tl.where(key == tl.max(key, 0), index, 0x7FFFFFFF), 0)


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
    none = -0x7FFFFFFF - 1  # no number's key
    is_candidate = is_expert
    if GROUPS_USED < GROUPS:
        size = num_experts // GROUPS
        g = tl.arange(0, GROUP_BLOCK)
        group_key = tl.full((GROUP_BLOCK,), none, tl.int32)
        for group in tl.static_range(GROUPS):
            is_inside = (e >= group * size) & (e < (group + 1) * size)
            inside = tl.where(is_inside, choice, float("-inf"))
            strength = tl.max(inside, 0)
            if IS_SIGMOID & (size > 1):
                first = tl.min(tl.where(is_inside & (inside == strength), e, BLOCK), 0)
                strength += tl.max(tl.where(e == first, float("-inf"), inside), 0)
            group_key = tl.where(g == group, _order(strength), group_key)
        is_candidate = e < 0
        for _ in tl.static_range(GROUPS_USED):
            group = _best(group_key, g)
            is_candidate |= (e >= group * size) & (e < (group + 1) * size)
            group_key = tl.where(g == group, none, group_key)
    key = tl.where(is_candidate, _order(choice), none)
    k = tl.arange(0, K_BLOCK)
    ids = tl.zeros((K_BLOCK,), tl.int32)
    weights = tl.zeros((K_BLOCK,), tl.float32)
    total = 0.0
    for j in tl.static_range(TOP_K):
        best = _best(key, e)
        score = tl.sum(tl.where(e == best, scores, 0.0), 0)
        ids = tl.where(k == j, best, ids)
        weights = tl.where(k == j, score, weights)
        total += score
        key = tl.where(e == best, none, key)
    factor = scale
    if IS_NORMALIZED:
        factor = scale / (total + 1e-20)
    at = t * TOP_K + k
    tl.store(ids_ptr + at, ids, mask=k < TOP_K)
    tl.store(weights_ptr + at, weights * factor, mask=k < TOP_K)
