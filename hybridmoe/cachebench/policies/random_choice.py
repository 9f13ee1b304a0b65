"""Random eviction: the baseline that a useful policy has to beat."""

from typing import Any

import numpy as np

from hybridmoe.experts.policy.heap import RESIDENT, add, drop
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    OWN,
    USED,
    State,
    access_kernel,
    demand,
    inline,
    is_pinned,
    new_state,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy

__all__ = ["Random"]

RANDOM = OWN  # entry of State.sizes: state of the generator


@inline
def draw(s: State) -> int:
    """Draw from a 31-bit linear congruential generator (Park and Miller 1988)."""
    s.sizes[RANDOM] = s.sizes[RANDOM] * 48271 % 2147483647
    return int(s.sizes[RANDOM])


@inline
def touch(s: State, key: int) -> None:
    pass


@inline
def evict(s: State, key: int) -> int:
    victim = s.node[draw(s) % s.sizes[USED], RESIDENT]
    while is_pinned(s, victim):
        victim = s.node[draw(s) % s.sizes[USED], RESIDENT]
    drop(s, victim)
    return int(victim)


@inline
def insert(s: State, key: int) -> None:
    add(s, key)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class Random(KernelPolicy):
    """Random eviction."""

    name = "random"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make the array of residents; numpy spreads the seed, so that neighbours differ."""
        state = new_state(shape, num_columns=6)
        state.sizes[RANDOM] = np.random.default_rng(seed).integers(1, 2147483647)
        return state
