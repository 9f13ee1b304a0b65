"""Layer-aware LRU: least recently used, with time counted in visits of an expert's own layer.

Layers run in turn, so the number of accesses since a use says little; the number of visits in which
its layer did not use an expert says all. The victim is the expert passed over in most visits. Of
equals, it is the one whose layer runs next the latest: the current layer's own, then the one
before. An expert that its layer used in its last visit is no victim: the newcomer is streamed
instead. One exception keeps layers fair: a layer below its even share of the slots takes a slot
from a layer above its own share. After layered paging, Angelopoulos, Marchal, Obrecht and Simon
2025 (arXiv 2509.02408): fixed shares can be arbitrarily bad, and layer-aware LRU is good in
practice.
"""

from typing import Any

import numpy as np

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    EXPERTS,
    LAYERS,
    State,
    access_kernel,
    demand,
    inline,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import (
    back,
    head,
    move_to_front,
    push_front,
    share,
    unlink,
)

__all__ = ["LayerLru"]

VISITS, COUNT, OLDEST = range(3)  # rows of State.layer; OLDEST: last visit to use its oldest
LAST_USED = 0  # row of State.score, in visits of the layer


@inline
def note_oldest(s: State, layer: int) -> None:
    if s.layer[COUNT, layer] > 0:
        s.layer[OLDEST, layer] = np.int64(s.score[LAST_USED, back(s, head(s, layer))])


@inline
def touch(s: State, key: int) -> None:
    layer = key // s.sizes[EXPERTS]
    s.score[LAST_USED, key] = s.layer[VISITS, layer]
    move_to_front(s, head(s, layer), key)
    note_oldest(s, layer)


@inline
def evict(s: State, key: int) -> int:
    num_layers, here = s.sizes[LAYERS], key // s.sizes[EXPERTS]
    below_share = s.layer[COUNT, here] < share(s, here)
    from_layer, best = -1, num_layers  # an age of at least one visit is more than this
    from_rich, best_rich = -1, -1
    for layer in range(num_layers):
        if s.layer[COUNT, layer] == 0:
            continue
        passed_over = s.layer[VISITS, layer] - s.layer[OLDEST, layer]
        if layer == here and passed_over == 0:
            continue  # used in this visit
        distance = layer - here if layer > here else layer - here + num_layers
        age = passed_over * num_layers + distance
        if age > best:
            from_layer, best = layer, age
        if below_share and age > best_rich and s.layer[COUNT, layer] > share(s, layer):
            from_rich, best_rich = layer, age
    if from_layer < 0:
        from_layer = from_rich
    if from_layer < 0:
        return -1
    victim = back(s, head(s, from_layer))
    unlink(s, victim)
    s.layer[COUNT, from_layer] -= 1
    note_oldest(s, from_layer)
    return victim


@inline
def insert(s: State, key: int) -> None:
    layer = key // s.sizes[EXPERTS]
    s.score[LAST_USED, key] = s.layer[VISITS, layer]
    push_front(s, head(s, layer), key, 1)
    s.layer[COUNT, layer] += 1
    note_oldest(s, layer)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    s.layer[VISITS, layer] += 1
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class LayerLru(KernelPolicy):
    """Layer-aware LRU, the default."""

    name = "lru"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make one list for each layer."""
        return new_state(shape, num_heads=shape.num_layers, num_scores=1, num_layer_rows=3)
