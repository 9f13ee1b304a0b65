"""Buffers of several sizes: a budget divided among pools, each for the experts of some layers.

A buffer has room for a gate, an up and a down matrix, of whole disk blocks each, at any offset in
the file. Layers of one size share a pool; sizes share one, too, where the buffers that each pool
keeps for experts on their way would cost more than the waste. A token uses as many experts of each
layer, so each layer gets as many slots.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["BufferPool", "PartBytes", "divide", "group_layers"]

PartBytes = tuple[int, int, int]  # room for a gate, an up and a down

# Buffers for each streamed expert: a prompt's reads go on while attention is computed, as long as
# buffers are free, and each of them is a slot less.
_BUFFERS_PER_STREAMED = 16


class BufferPool(NamedTuple):
    """Equal buffers for the experts of some layers."""

    part_bytes: PartBytes
    num_layers: int
    num_slots: int  # for resident experts
    num_staging: int  # for streamed experts
    num_aside: int  # for experts that are read ahead, or on their way between RAM and VRAM

    @property
    def buffer_bytes(self) -> int:
        return sum(self.part_bytes)

    @property
    def num_buffers(self) -> int:
        return self.num_slots + self.num_staging + self.num_aside

    @property
    def num_bytes(self) -> int:
        return self.num_buffers * self.buffer_bytes


class _Group(NamedTuple):
    part_bytes: PartBytes
    layers: tuple[int, ...]  # indices

    @property
    def layer_bytes(self) -> int:
        """Bytes of one buffer for each layer."""
        return sum(self.part_bytes) * len(self.layers)

    def merged(self, other: "_Group") -> "_Group":
        gate, up, down = map(max, zip(self.part_bytes, other.part_bytes, strict=True))
        return _Group((gate, up, down), (*self.layers, *other.layers))


def group_layers(
    budget_bytes: int, by_layer: Sequence[PartBytes], least: int
) -> tuple[tuple[PartBytes, ...], tuple[int, ...]]:
    """Choose the sizes of buffers, largest first, and each layer's, by number.

    least: buffers that each size has before the first slot. The choice gives layers most slots.
    """
    groups = [
        _Group(size, tuple(i for i, other in enumerate(by_layer) if other == size))
        for size in sorted(set(by_layer), key=lambda size: (-sum(size), size))
    ]
    while len(groups) > 1:
        merges = [
            [*groups[:i], groups[i].merged(groups[i + 1]), *groups[i + 2 :]]
            for i in range(len(groups) - 1)
        ]
        best = max(merges, key=lambda merge: _slots_per_layer(budget_bytes, merge, least))
        now = _slots_per_layer(budget_bytes, groups, least)
        if _slots_per_layer(budget_bytes, best, least) < now:
            break
        groups = best
    number_of = {layer: n for n, group in enumerate(groups) for layer in group.layers}
    return tuple(group.part_bytes for group in groups), tuple(
        number_of[layer] for layer in range(len(by_layer))
    )


def divide(
    budget_bytes: int,
    sizes: Sequence[PartBytes],
    size_of: Sequence[int],
    num_experts: int,
    top_k: int,
    num_aside: int,
) -> tuple[BufferPool, ...]:
    """Divide a budget, which is enough for top_k + num_aside buffers of each size.

    sizes, size_of: by `group_layers`. num_experts, top_k: of each layer.
    """
    least = top_k + num_aside
    layers = [list(size_of).count(n) for n in range(len(sizes))]
    spare = budget_bytes - least * sum(map(sum, sizes))
    for_all = sum(n * sum(size) for n, size in zip(layers, sizes, strict=True))
    # In an order that the budget does not change, so that more bytes are never a slot less.
    counts = [n * (spare // for_all) for n in layers]
    left = spare % for_all
    while sum(sizes[next_ := _poorest(counts, layers)]) <= left:
        counts[next_] += 1
        left -= sum(sizes[next_])
    pools = []
    for size, num_layers, more in zip(sizes, layers, counts, strict=True):
        count = top_k + more
        num_staging = max(top_k, min(num_experts, count // _BUFFERS_PER_STREAMED))
        num_slots = min(count - num_staging, num_layers * num_experts)
        pools.append(BufferPool(size, num_layers, num_slots, num_staging, num_aside))
    return tuple(pools)


def _poorest(counts: Sequence[int], layers: Sequence[int]) -> int:
    """Number of the pool with the fewest buffers for each of its layers."""
    return min(range(len(counts)), key=lambda i: counts[i] / layers[i])


def _slots_per_layer(budget_bytes: int, groups: Sequence[_Group], least: int) -> float:
    free = budget_bytes - least * sum(sum(group.part_bytes) for group in groups)
    return free / sum(group.layer_bytes for group in groups)
