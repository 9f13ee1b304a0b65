"""What all policies share: arrays on the inside, the interface on the outside."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hybridmoe.experts.policy.interface import CacheShape, Decision
from hybridmoe.experts.policy.jit import ABSENT, EXPERTS, GHOST, WHERE, State, new_state

__all__ = ["KernelPolicy"]


class KernelPolicy:
    """A policy whose decisions are one compiled function of a `State`.

    A subclass names itself, sets `kernel`, and builds the state that this works on.
    """

    name: ClassVar[str]
    kernel: ClassVar[Callable[..., tuple[int, int]]]

    def __init__(self, shape: CacheShape, seed: int = 0) -> None:
        self.shape = shape
        self.state = self.build(shape, seed)

    def build(self, shape: CacheShape, seed: int) -> State:
        """The state of an empty cache."""
        return new_state(shape)

    def on_access(self, layer: int, experts: NDArray[np.int32], is_prefill: bool) -> Decision:
        """As `Policy.on_access`."""
        count = len(experts)
        hits = np.empty(count, np.bool_)
        admitted = np.empty(count, np.int32)
        evicted = np.empty(count, np.int64)
        num_admitted, num_evicted = type(self).kernel(
            self.state, layer, experts, is_prefill, hits, admitted, evicted
        )
        return Decision(hits, admitted[:num_admitted], evicted[:num_evicted])

    def resident(self) -> NDArray[np.int64]:
        """The resident keys, ascending."""
        where = self.state.node[: self.shape.num_keys, WHERE]
        return np.flatnonzero((where > ABSENT) & (where < GHOST)).astype(np.int64)

    def warm(self, keys: NDArray[np.int64]) -> None:
        """Make keys resident, the most valuable first, as far as there are free slots."""
        num_experts = int(self.state.sizes[EXPERTS])
        free = self.shape.num_slots - len(self.resident())
        # The most valuable one is used last, so that it is the last to leave.
        for key in keys[:free][::-1]:
            self.on_access(int(key) // num_experts, np.array([key % num_experts], np.int32), True)
