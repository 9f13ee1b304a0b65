"""EMA policy for slow links: admits an expert only after clearly higher use for a while.

The score is an exponential moving average of uses, over about 64 visits of the layer. A newcomer
replaces the resident with the lowest score only if its own is 1.5 times as high, the resident has
stayed for 16 visits, and this pass through the layers has swapped less than 1/64 of the slots. Made
for links on which an upload costs as much as a hit saves (docs/cache.md).
"""

from typing import Any

from hybridmoe.experts.policy.fading import FIRST_FREE, VISITS, bump, new_state, note_visit
from hybridmoe.experts.policy.heap import SCORE, lowest_unpinned, pop, push
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import EXPERTS, State, access_kernel, demand, inline
from hybridmoe.experts.policy.kernel_policy import KernelPolicy

__all__ = ["Ema"]

RATE = 1 / 64  # of decay, per visit
MARGIN = 1.5
DWELL = 16  # least visits of its layer that a resident stays
SINCE = 2  # row of State.score: visit in which a resident was admitted
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
    """Exponential moving average with hysteresis: few swaps, each likely to pay."""

    name = "ema"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make a heap of residents by decayed frequency, and the limit on swaps."""
        state = new_state(shape, num_scores=3)
        state.sizes[MOST_SWAPS] = max(1, shape.num_slots // 64)
        return state
