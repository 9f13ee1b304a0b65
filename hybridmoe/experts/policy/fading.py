"""Frequencies that decay with every visit of a layer, kept as scores that only grow.

Later uses add larger weights instead of decaying all scores: only their order matters. Scores are
rescaled before they overflow. Keys that are not resident keep theirs. `demand_lowest` is the whole
decision of a policy that evicts the lowest score.
"""

from typing import Any

import numpy as np

from hybridmoe.experts.policy.heap import SCORE, lowest_unpinned, pop, push, raised
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import ABSENT, EXPERTS, GHOST, OWN, WHERE, State, demand, inline
from hybridmoe.experts.policy.jit import new_state as new_plain_state
from hybridmoe.experts.policy.kernel_policy import KernelPolicy

__all__ = [
    "FIRST_FREE", "VISITS", "WEIGHT", "FadingPolicy", "bump", "demand_lowest", "new_state",
    "note_visit",
]  # fmt: skip

VISITS = 0  # row of State.layer
_OFFSET = OWN  # entry of State.sizes: visit from which exponents count
FIRST_FREE = OWN + 1  # entry of State.sizes
WEIGHT = 1  # row of State.score, entry 0: weight of a use now
_MOST = 200.0  # largest logarithm of a weight


def new_state(shape: CacheShape, *, num_scores: int = 2) -> State:
    """Make the state of an empty cache: a heap of residents by decayed frequency."""
    return new_plain_state(shape, num_columns=6, num_scores=num_scores, num_layer_rows=1)


@inline
def note_visit(s: State, layer: int, experts: Any, rate: float, factor: float) -> None:
    """Begin a visit and count the uses of keys that are not resident; `bump` counts the others.

    rate: decay of a score's logarithm per visit. factor: weight of a use.
    """
    s.layer[VISITS, layer] += 1
    exponent = rate * (s.layer[VISITS, layer] - s.sizes[_OFFSET])
    if exponent > _MOST:
        s.sizes[_OFFSET] = s.layer[VISITS, layer]
        for key in range(s.score.shape[1]):
            s.score[SCORE, key] *= np.exp(-exponent)
        exponent = 0.0
    s.score[WEIGHT, 0] = factor * np.exp(exponent)
    for i in range(len(experts)):
        key = layer * s.sizes[EXPERTS] + experts[i]
        if not ABSENT < s.node[key, WHERE] < GHOST:
            s.score[SCORE, key] += s.score[WEIGHT, 0]


@inline
def bump(s: State, key: int) -> None:
    """Count a use of a resident key."""
    s.score[SCORE, key] += s.score[WEIGHT, 0]
    raised(s, key)


@inline
def evict_lowest(s: State, key: int) -> int:
    victim = lowest_unpinned(s)
    pop(s, victim)
    return victim


@inline
def insert(s: State, key: int) -> None:
    push(s, key)


@inline
def demand_lowest(
    s: State,
    layer: int,
    experts: Any,
    is_prefill: bool,
    hits: Any,
    admitted: Any,
    evicted: Any,
    rate: float,
    factor: float,
) -> tuple[int, int]:
    """Run `note_visit`, then load every miss in place of the lowest score."""
    note_visit(s, layer, experts, rate, factor)
    return demand(
        s, layer, experts, is_prefill, hits, admitted, evicted, bump, evict_lowest, insert
    )


class FadingPolicy(KernelPolicy):
    """Base of policies by decayed frequency; a subclass sets `name` and `kernel`."""

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make a heap of residents by decayed frequency."""
        return new_state(shape)
