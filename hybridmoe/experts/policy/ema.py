"""A slow cache for slow links: an expert gets in when it has clearly been used more for a while.

The score is a moving average of use over some 64 visits of the layer. A newcomer replaces the
lowest resident only if its score is higher by half, the resident has stayed for 16 visits, and this
pass through the layers has swapped less than a 64th of the slots. Made for where an upload costs as
much as a hit saves (docs/cache.md).
"""

from typing import Any

from hybridmoe.experts.policy.fading import FIRST_FREE, VISITS, bump, new_state, note_visit
from hybridmoe.experts.policy.heap import SCORE, lowest_unpinned, pop, push
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import EXPERTS, State, access_kernel, demand, inline
from hybridmoe.experts.policy.kernel_policy import KernelPolicy

__all__ = ["Ema"]

RATE = 1 / 64  # of fading, per visit
MARGIN = 1.5
DWELL = 16  # visits of its layer that a resident stays at least
SINCE = 2  # row of State.score: the visit that a resident came with
LAST_LAYER, NUM_SWAPS, MOST_SWAPS = FIRST_FREE, FIRST_FREE + 1, FIRST_FREE + 2


@inline
def evict(s: State, key: int) -> int:
    if s.sizes[NUM_SWAPS] >= s.sizes[MOST_SWAPS]:
        return -1
    victim = lowest_unpinned(s)
    visits = s.layer[VISITS, victim // s.sizes[EXPERTS]]
    is_settled = visits - s.score[SINCE, victim] >= DWELL
    if not is_settled or s.score[SCORE, key] <= MARGIN * s.score[SCORE, victim]:
        return -1
    s.sizes[NUM_SWAPS] += 1
    pop(s, victim)
    return victim


@inline
def insert(s: State, key: int) -> None:
    s.score[SINCE, key] = s.layer[VISITS, key // s.sizes[EXPERTS]]
    push(s, key)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    if layer <= s.sizes[LAST_LAYER]:
        s.sizes[NUM_SWAPS] = 0
    s.sizes[LAST_LAYER] = layer
    note_visit(s, layer, experts, RATE, 1.0)
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, bump, evict, insert)


class Ema(KernelPolicy):
    """Few swaps, each of them likely to pay."""

    name = "ema"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """A heap of residents by fading frequency, and the bound on swaps."""
        state = new_state(shape, num_scores=3)
        state.sizes[MOST_SWAPS] = max(1, shape.num_slots // 64)
        return state
