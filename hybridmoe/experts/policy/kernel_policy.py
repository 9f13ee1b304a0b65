"""Base of all policies: compiled decisions over arrays, behind the `Policy` interface."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hybridmoe.experts.policy.interface import CacheShape, Decision
from hybridmoe.experts.policy.jit import ABSENT, EXPERTS, GHOST, WHERE, Kernel, State, new_state

__all__ = ["KernelPolicy"]


class KernelPolicy:
    """Policy whose decisions are one kernel over a `State`.

    A subclass sets `name` and `kernel`, and builds the kernel's state.
    """

    name: ClassVar[str]
    kernel: ClassVar[Kernel]

    def __init__(self, shape: CacheShape, seed: int = 0) -> None:
        self.shape = shape
        self.state = self.build(shape, seed)
        self.decide = self.kernel.compiled  # now, so that no access waits for it

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make the state of an empty cache."""
        return new_state(shape)

    def on_access(self, layer: int, experts: NDArray[np.int32], is_prefill: bool) -> Decision:
        """Decide as `Policy.on_access`."""
        count = len(experts)
        hits = np.empty(count, np.bool_)
        admitted = np.empty(count, np.int32)
        evicted = np.empty(count, np.int64)
        num_admitted, num_evicted = self.decide(
            self.state, layer, experts, is_prefill, hits, admitted, evicted
        )
        return Decision(hits, admitted[:num_admitted], evicted[:num_evicted])

    def resident(self) -> NDArray[np.int64]:
        """Return the resident keys, ascending."""
        where = self.state.node[: self.shape.num_keys, WHERE]
        return np.flatnonzero((where > ABSENT) & (where < GHOST)).astype(np.int64)

    def warm(self, keys: NDArray[np.int64]) -> None:
        """Admit keys, most valuable first, while slots are free."""
        num_experts = int(self.state.sizes[EXPERTS])
        free = self.shape.num_slots - len(self.resident())
        # The most valuable one is used last, so that it is the last to leave.
        for key in keys[:free][::-1]:
            self.on_access(int(key) // num_experts, np.array([key % num_experts], np.int32), True)
