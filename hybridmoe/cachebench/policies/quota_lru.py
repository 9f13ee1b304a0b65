"""LRU within each layer, with a fixed, even share of the slots for each.

The choice of most systems: robust below the per-token working set, wasteful if layers differ.
"""

from typing import Any

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    EXPERTS,
    USED,
    State,
    access_kernel,
    begin,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lists import (
    head,
    move_to_front,
    oldest_unpinned,
    push_front,
    share,
    unlink,
)

__all__ = ["QuotaLru"]

COUNT = 0  # row of State.layer


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    begin(s, layer, experts, hits)
    first, own = layer * s.sizes[EXPERTS], head(s, layer)
    for i in range(len(experts)):
        if hits[i]:
            move_to_front(s, own, first + experts[i])
    num_admitted = num_evicted = 0
    for i in range(len(experts)):
        if hits[i]:
            continue
        if s.layer[COUNT, layer] == share(s, layer):
            victim = -1 if is_prefill else oldest_unpinned(s, own)
            if victim < 0:
                continue
            unlink(s, victim)
            evicted[num_evicted] = victim
            num_evicted += 1
        else:
            s.layer[COUNT, layer] += 1
            s.sizes[USED] += 1
        push_front(s, own, first + experts[i], 1)
        admitted[num_admitted] = experts[i]
        num_admitted += 1
    return num_admitted, num_evicted


class QuotaLru(KernelPolicy):
    """LRU per layer with fixed quotas."""

    name = "quota-lru"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make one list for each layer."""
        return new_state(shape, num_heads=shape.num_layers, num_layer_rows=1)
