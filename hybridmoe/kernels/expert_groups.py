"""Groups of experts that the GPU computes together in a prefill step, and their tables.

A pair is a token and one of its experts: number token * k + rank. Pairs of an expert are
neighbours, and so are those of a group's experts.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "FEW_ROWS", "MANY_ROWS", "ExpertGroup", "LayerStates", "cut_groups", "tile_rows", "tiles_of",
]  # fmt: skip

FEW_ROWS, MANY_ROWS = 64, 128  # of a product's tile


class LayerStates(NamedTuple):
    """One layer's input and output of a step, and its routing by expert. All on the GPU."""

    x: Tensor  # (T, H) bf16
    weights: Tensor  # (T, k) f32
    pairs: Tensor  # (P,) int32, by expert
    places: Tensor  # (T, k) int32: of each pair in `pairs`; -1 = not there
    out: Tensor  # (T, H) f32


class ExpertGroup(NamedTuple):
    """Experts whose pairs are neighbours. Tensors are on the GPU."""

    slots: Tensor  # (n,) int32: of the experts, in the data
    tiles: Tensor  # (m, 3) int32, see `tiles_of`
    first: int  # of its pairs
    num_pairs: int


def cut_groups(counts: Sequence[int], most_experts: int, most_pairs: int) -> Iterator[slice]:
    """Cut experts with these numbers of pairs into groups.

    A group has more than `most_pairs` only if it is one expert.
    """
    start = total = 0
    for end, count in enumerate(counts):
        if end > start and (end - start == most_experts or total + count > most_pairs):
            yield slice(start, end)
            start, total = end, 0
        total += count
    if start < len(counts):
        yield slice(start, len(counts))


def tile_rows(most_pairs: int) -> int:
    """Choose the rows of a product's tile; most_pairs: of one expert."""
    return FEW_ROWS if most_pairs <= FEW_ROWS else MANY_ROWS


def tiles_of(first: int, counts: Sequence[int], rows: int) -> NDArray[np.int32]:
    """Cut a group's pairs into tiles of up to `rows` of one expert.

    first: of the pairs. counts: pairs by expert. Returns (m, 3): number of the expert in the group,
    first pair, end of the expert's pairs.
    """
    tiles, start = [], first
    for expert, count in enumerate(counts):
        end = start + count
        tiles += [(expert, row, end) for row in range(start, end, rows)]
        start = end
    return np.array(tiles, np.int32).reshape(-1, 3)
