"""RAM's policy below VRAM: layer-aware LRU, with slots of several sizes.

Layers whose experts differ in size are groups with slots of their own. A group is a cache for
itself: shares, victims and offers stay in it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import State
from hybridmoe.experts.policy.lru import LayerLru

__all__ = ["RamPolicy"]


class RamPolicy:
    """A `LayerLru` for each group, over arrays that a kernel can index by group."""

    def __init__(
        self, shape: CacheShape, slots: Sequence[int], group_of: Sequence[int] | None = None
    ) -> None:
        """slots: by group. group_of: by layer, numbered from 0 on; None = all layers are one.

        shape: of the model; its slots are not looked at.
        """
        groups = np.zeros(shape.num_layers, np.int64) if group_of is None else np.array(group_of)
        assert len(groups) == shape.num_layers, (shape, group_of)
        assert sorted(set(groups.tolist())) == list(range(len(slots))), (slots, group_of)
        self.group_of: NDArray[np.int64] = groups.astype(np.int64)
        self.index_of = np.zeros(shape.num_layers, np.int64)  # of a layer in its group
        self.num_experts = shape.num_experts
        self.parts: list[LayerLru] = []
        for group, num_slots in enumerate(slots):
            is_in = self.group_of == group
            self.index_of[is_in] = np.arange(is_in.sum())
            own = shape._replace(num_layers=int(is_in.sum()), num_slots=num_slots)
            self.parts.append(LayerLru(own))
        self.state = _stack([part.state for part in self.parts])  # each with an axis for the group
        for group, part in enumerate(self.parts):
            part.state = State(*(array[group] for array in self.state))
        self.decide = self.parts[0].decide

    def warm(self, keys: NDArray[np.int64]) -> None:
        """Admit keys, most valuable first, while their group's slots are free."""
        layers, experts = keys // self.num_experts, keys % self.num_experts
        for group, part in enumerate(self.parts):
            is_in = self.group_of[layers] == group
            part.warm(self.index_of[layers[is_in]] * self.num_experts + experts[is_in])

    def resident(self) -> NDArray[np.int64]:
        """Return the resident keys, ascending."""
        found = []
        for group, part in enumerate(self.parts):
            layers = np.flatnonzero(self.group_of == group)
            index, experts = np.divmod(part.resident(), self.num_experts)
            found.append(layers[index] * self.num_experts + experts)
        return np.sort(np.concatenate(found))


def _stack(states: Sequence[State]) -> State:
    """Copy states into arrays with one axis more, with room for the largest."""
    stacked = []
    for arrays in zip(*states, strict=True):
        size = np.max([array.shape for array in arrays], axis=0)
        stacked.append(np.zeros((len(states), *size), arrays[0].dtype))
        for into, array in zip(stacked[-1], arrays, strict=True):
            into[tuple(map(slice, array.shape))] = array
    return State(*stacked)
