"""HybriMoE's score: halved with every visit of the layer, raised for the experts chosen.

Zhong et al., DAC 2025 (arXiv 2504.05897), with their a = 0.5. They raise the 2 * top_k best by
their gate scores; a policy hears which experts were chosen, not the scores: all count alike.
"""

from typing import Any

from hybridmoe.experts.policy.fading import bump, new_state, note_visit
from hybridmoe.experts.policy.heap import lowest_unpinned, pop, push
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import State, access_kernel, compiled, demand
from hybridmoe.experts.policy.kernel_policy import KernelPolicy

__all__ = ["Mrs"]

RATE = 0.693  # of fading, per visit


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
    note_visit(s, layer, experts, RATE, 1.0)
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class Mrs(KernelPolicy):
    """Minus recent score: evicts the lowest."""

    name = "mrs"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """A heap of residents by fading frequency."""
        return new_state(shape)
