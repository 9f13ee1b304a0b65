"""Frequencies that fade with every visit of a layer, kept as scores that only grow.

A use adds a weight that is larger the later it is, so that fading costs nothing: all that matters
is how scores compare. Weights are brought down before they overflow. Absent keys' scores count on.
`demand_lowest` is the whole decision of a policy that evicts the lowest score.
"""

from typing import Any

import numpy as np

from hybridmoe.experts.policy.heap import SCORE, lowest_unpinned, pop, push, raised
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import ABSENT, EXPERTS, GHOST, OWN, WHERE, State, demand, inline
from hybridmoe.experts.policy.jit import new_state as new_plain_state
from hybridmoe.experts.policy.kernel_policy import KernelPolicy

__all__ = [
    "FIRST_FREE", "VISITS", "FadingPolicy", "bump", "demand_lowest", "new_state", "note_visit",
]  # fmt: skip

VISITS = 0  # row of State.layer
_OFFSET = OWN  # entry of State.sizes: visits that the weights are counted from
FIRST_FREE = OWN + 1  # entry of State.sizes
_WEIGHT = 1  # row of State.score, entry 0: of a use now
_MOST = 200.0  # of a weight's logarithm


def new_state(shape: CacheShape, *, num_scores: int = 2) -> State:
    """A heap of residents by fading frequency."""
    return new_plain_state(shape, num_columns=6, num_scores=num_scores, num_layer_rows=1)


@inline
def note_visit(s: State, layer: int, experts: Any, rate: float, factor: float) -> None:
    """Begin a visit, and count the absent among its experts; `bump` counts the others.

    rate: by how much a score's logarithm fades with a visit. factor: what a use counts.
    """
    s.layer[VISITS, layer] += 1
    exponent = rate * (s.layer[VISITS, layer] - s.sizes[_OFFSET])
    if exponent > _MOST:
        s.sizes[_OFFSET] = s.layer[VISITS, layer]
        for key in range(s.score.shape[1]):
            s.score[SCORE, key] *= np.exp(-exponent)
        exponent = 0.0
    s.score[_WEIGHT, 0] = factor * np.exp(exponent)
    for i in range(len(experts)):
        key = layer * s.sizes[EXPERTS] + experts[i]
        if not ABSENT < s.node[key, WHERE] < GHOST:
            s.score[SCORE, key] += s.score[_WEIGHT, 0]


@inline
def bump(s: State, key: int) -> None:
    """Count a use of a resident key."""
    s.score[SCORE, key] += s.score[_WEIGHT, 0]
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
    """A visit as `note_visit` has it; every miss is loaded, in place of the lowest score."""
    note_visit(s, layer, experts, rate, factor)
    return demand(
        s, layer, experts, is_prefill, hits, admitted, evicted, bump, evict_lowest, insert
    )


class FadingPolicy(KernelPolicy):
    """A subclass names itself and sets `kernel`."""

    def build(self, shape: CacheShape, seed: int) -> State:
        """A heap of residents by fading frequency."""
        return new_state(shape)
