"""Layers whose experts are on the card for good, beside those that a policy chooses."""

import numpy as np
from numpy.typing import NDArray

from hybridmoe.experts.policy import CacheShape, Decision, Policy, make_policy

__all__ = ["PinnedLayers"]


class PinnedLayers:
    """A `Policy` that another one decides for all layers but some."""

    name = "pinned"

    def __init__(self, shape: CacheShape, layers: frozenset[int], name: str) -> None:
        """layers: counted from 0. shape: with slots for all of theirs. name: the other policy's."""
        num_pinned = len(layers) * shape.num_experts
        assert num_pinned <= shape.num_slots, (layers, shape)
        self._shape, self._layers = shape, layers
        rest = shape._replace(num_slots=shape.num_slots - num_pinned)
        self._others: Policy = make_policy(name, rest)
        first = np.array(sorted(layers), np.int64)[:, None] * shape.num_experts
        self.pinned = (first + np.arange(shape.num_experts)).reshape(-1)  # their keys

    def on_access(self, layer: int, experts: NDArray[np.int32], is_prefill: bool) -> Decision:
        if layer not in self._layers:
            return self._others.on_access(layer, experts, is_prefill)
        nothing = np.empty(0, np.int32)
        return Decision(np.ones(len(experts), np.bool_), nothing, nothing.astype(np.int64))

    def warm(self, keys: NDArray[np.int64]) -> None:
        self._others.warm(keys[~np.isin(keys, self.pinned)])

    def resident(self) -> NDArray[np.int64]:
        return np.union1d(self.pinned, self._others.resident())
