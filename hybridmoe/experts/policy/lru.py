"""Layer-aware LRU: least recently used, with time counted in visits of an expert's own layer.

Layers run in turn, so the number of accesses since a use says little; the number of visits in which
its layer did not use an expert says all. The victim is the expert passed over in most visits. Of
equals, it is the one whose layer runs next the latest: the current layer's own, then the one
before. An expert that its layer used in its last visit is no victim: the newcomer is streamed
instead. One exception keeps layers fair: a layer below its even share of the slots takes a slot
from a layer above its own share. After layered paging, Angelopoulos, Marchal, Obrecht and Simon
2025 (arXiv 2509.02408): fixed shares can be arbitrarily bad, and layer-aware LRU is good in
practice.

Below another tier (`LowerPolicy`), an expert's age goes on while it is above: `note_above` records
its uses. One that comes back is linked by its age, in place of the oldest of all residents if that
one was passed over in more visits. It is offered between steps, so that layer 0 runs next.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    ABSENT,
    EXPERTS,
    LAYERS,
    NEXT,
    SLOTS,
    USED,
    WHERE,
    State,
    access_kernel,
    demand,
    inline,
    loop,
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

__all__ = ["LayerLru", "discard", "note_above", "offer"]

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


@inline
def note_above(s: State, layer: int, experts: Any) -> None:
    for i in range(len(experts)):
        s.score[LAST_USED, layer * s.sizes[EXPERTS] + experts[i]] = s.layer[VISITS, layer]


@inline
def remove(s: State, key: int) -> None:
    layer = key // s.sizes[EXPERTS]
    unlink(s, key)
    s.layer[COUNT, layer] -= 1
    note_oldest(s, layer)
    s.sizes[USED] -= 1


@inline
def discard(s: State, key: int) -> bool:
    if s.node[key, WHERE] == ABSENT:
        return False
    remove(s, key)
    return True


@inline
def link_by_age(s: State, key: int) -> None:
    """Link a key behind those of its layer that were used in its last visit or later."""
    layer = key // s.sizes[EXPERTS]
    newer = top = head(s, layer)
    while s.node[newer, NEXT] != top:
        if s.score[LAST_USED, s.node[newer, NEXT]] < s.score[LAST_USED, key]:
            break
        newer = s.node[newer, NEXT]
    push_front(s, newer, key, 1)
    s.layer[COUNT, layer] += 1
    note_oldest(s, layer)
    s.sizes[USED] += 1


@inline
def offer(s: State, key: int) -> tuple[bool, int]:
    victim = -1
    if s.sizes[USED] == s.sizes[SLOTS]:
        layer = key // s.sizes[EXPERTS]
        most = s.layer[VISITS, layer] - np.int64(s.score[LAST_USED, key])
        from_layer = -1
        for other in range(s.sizes[LAYERS]):
            passed_over = s.layer[VISITS, other] - s.layer[OLDEST, other]
            if s.layer[COUNT, other] > 0 and (
                passed_over > most or (passed_over == most and from_layer >= 0)
            ):
                from_layer, most = other, passed_over
        if from_layer < 0:
            return False, -1
        victim = back(s, head(s, from_layer))
        remove(s, victim)
    link_by_age(s, key)
    return True, victim


@loop
def _note_above(s: State, layer: int, experts: Any) -> None:
    note_above(s, layer, experts)


@loop
def _discard(s: State, key: int) -> bool:
    return discard(s, key)


@loop
def _offer(s: State, key: int) -> tuple[bool, int]:
    return offer(s, key)


class LayerLru(KernelPolicy):
    """Layer-aware LRU, the default; a `LowerPolicy`."""

    name = "lru"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make one list for each layer."""
        return new_state(shape, num_heads=shape.num_layers, num_scores=1, num_layer_rows=3)

    def note_above(self, layer: int, experts: NDArray[np.int32]) -> None:
        """Record uses of experts that the tier above keeps."""
        _note_above(self.state, layer, experts)

    def discard(self, key: int) -> bool:
        """Forget a key; see `LowerPolicy.discard`."""
        return bool(_discard(self.state, key))

    def offer(self, key: int) -> tuple[bool, int]:
        """Decide about a key that the tier above gives up; see `LowerPolicy.offer`."""
        taken, victim = _offer(self.state, key)
        return bool(taken), int(victim)
