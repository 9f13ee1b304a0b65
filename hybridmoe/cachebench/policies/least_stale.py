"""Least-Stale: evicts the experts that this pass through the layers has not used first.

After Hoang et al. 2026 (SpecMD, arXiv 2602.03921), without their prefetching. An expert is stale if
the pass has not used it. Stale experts of layers behind the pass leave first, then those of layers
ahead, the farthest first, then the rest; in each layer the oldest first.
"""

from typing import Any

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    EXPERTS,
    LAYERS,
    State,
    access_kernel,
    demand,
    inline,
    is_pinned,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import back, head, move_to_front, push_front, unlink

__all__ = ["LeastStale"]

VISITS, LAST_USED = 0, 0  # rows of State.layer and of State.score


@inline
def touch(s: State, key: int) -> None:
    layer = key // s.sizes[EXPERTS]
    s.score[LAST_USED, key] = s.layer[VISITS, layer]
    move_to_front(s, head(s, layer), key)


@inline
def evict(s: State, key: int) -> int:
    num_layers, here = s.sizes[LAYERS], key // s.sizes[EXPERTS]
    victim, best = -1, -1
    for layer in range(num_layers):
        oldest = back(s, head(s, layer))
        if oldest == head(s, layer) or is_pinned(s, oldest):
            continue
        distance = layer - here if layer > here else layer - here + num_layers
        rank = distance
        if layer > here:
            rank += num_layers  # not used in this pass, which has yet to reach the layer
        elif s.score[LAST_USED, oldest] < s.layer[VISITS, layer]:
            rank += 2 * num_layers
        if rank > best:
            victim, best = oldest, rank
    unlink(s, victim)
    return int(victim)


@inline
def insert(s: State, key: int) -> None:
    layer = key // s.sizes[EXPERTS]
    s.score[LAST_USED, key] = s.layer[VISITS, layer]
    push_front(s, head(s, layer), key, 1)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    s.layer[VISITS, layer] += 1
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class LeastStale(KernelPolicy):
    """Least-Stale: knows the order of layers, and loads every miss."""

    name = "least-stale"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make one list for each layer."""
        return new_state(shape, num_heads=shape.num_layers, num_scores=1, num_layer_rows=1)
