"""Cache policy of VRAM slots when placement rules pin the experts of some layers."""

import numpy as np
from numpy.typing import NDArray

from hybridmoe.experts.policy import CacheShape, Decision, Policy, PricedPolicy, make_policy
from hybridmoe.planning.placement_rules import ExpertLayers

__all__ = ["PinnedPolicy"]


class PinnedPolicy:
    """`Policy` that keeps some layers resident and others out, and delegates the rest."""

    name = "placed"

    def __init__(self, shape: CacheShape, layers: ExpertLayers, name: str) -> None:
        """shape: with slots for the pinned. layers: by index. name: policy of all other layers."""
        num_pinned = len(layers.gpu) * shape.num_experts
        assert num_pinned <= shape.num_slots, (layers, shape)
        self._layers = layers
        self._fixed = layers.gpu | layers.cpu
        rest = shape._replace(num_slots=shape.num_slots - num_pinned)
        self._others: Policy = make_policy(name, rest)
        self._num_experts = shape.num_experts
        first_keys = np.array(sorted(layers.gpu), np.int64)[:, None] * shape.num_experts
        self.pinned = (first_keys + np.arange(shape.num_experts)).reshape(-1)  # keys

    def on_access(self, layer: int, experts: NDArray[np.int32], is_prefill: bool) -> Decision:
        if layer not in self._fixed:
            return self._others.on_access(layer, experts, is_prefill)
        hits = np.full(len(experts), layer in self._layers.gpu)
        return Decision(hits, np.empty(0, np.int32), np.empty(0, np.int64))

    def warm(self, keys: NDArray[np.int64]) -> None:
        self._others.warm(keys[~np.isin(keys // self._num_experts, list(self._fixed))])

    @property
    def upload_hits(self) -> float:
        """Cost of an upload, in hits, of the layers that are not pinned."""
        return self._others.upload_hits if isinstance(self._others, PricedPolicy) else 0.0

    @upload_hits.setter
    def upload_hits(self, hits: float) -> None:
        if isinstance(self._others, PricedPolicy):
            self._others.upload_hits = hits

    def resident(self) -> NDArray[np.int64]:
        return np.union1d(self.pinned, self._others.resident())
