"""MoE-Infinity's cache: how often this sequence used an expert, times how early its layer is.

Xue et al. 2024 (arXiv 2401.14361). Early layers are preferred because prefetching cannot help them.
A policy does not hear where sequences begin: counts fade by half in 64 visits instead. Their
prefetching by similar sequences is no part of this.
"""

from typing import Any

from hybridmoe.experts.policy.fading import bump, new_state, note_visit
from hybridmoe.experts.policy.heap import lowest_unpinned, pop, push
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import LAYERS, State, access_kernel, compiled, demand
from hybridmoe.experts.policy.kernel_policy import KernelPolicy

__all__ = ["ActivationMap"]

RATE = 0.693 / 64  # of fading, per visit


@compiled
def touch(s: State, key: int) -> None:
    bump(s, key)


@compiled
def evict(s: State, key: int) -> int:
    victim = lowest_unpinned(s)
    pop(s, victim)
    return victim


@compiled
def insert(s: State, key: int) -> None:
    push(s, key)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    num_layers = s.sizes[LAYERS]
    note_visit(s, layer, experts, RATE, (num_layers - layer) / num_layers)
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class ActivationMap(KernelPolicy):
    """Evicts the lowest product."""

    name = "moe-infinity"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """A heap of residents by fading frequency."""
        return new_state(shape)
