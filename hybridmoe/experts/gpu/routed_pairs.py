"""A step's routing by expert, and the tables from which the GPU computes groups of experts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.kernels.expert_groups import ExpertGroup, tile_rows, tiles_of

__all__ = ["GpuTables", "RoutedPairs", "places_of", "table_size"]


class GpuTables(NamedTuple):
    """Tables of a layer's groups, on the GPU."""

    pairs: Tensor  # (P,) int32, group by group
    groups: list[ExpertGroup]
    tile_rows: int


class RoutedPairs:
    """(Token, rank) pairs of a step, numbered token * k + rank, by expert."""

    def __init__(self, ids: NDArray[np.int32], num_experts: int) -> None:
        """ids: (T, k), -1 = none."""
        flat = ids.reshape(-1)
        self.counts = np.bincount(flat[flat >= 0], minlength=num_experts)
        assert len(self.counts) == num_experts, f"expert {len(self.counts) - 1} of {num_experts}"
        self.chosen = np.flatnonzero(self.counts)
        # Small integers are sorted by counting.
        short = flat.astype(np.int16) if num_experts < 1 << 15 else flat
        self._order = short.argsort(kind="stable").astype(np.int32)  # id -1 first
        self._ends = (flat < 0).sum() + self.counts.cumsum()

    def pairs_of(self, expert: int) -> NDArray[np.int32]:
        """Return an expert's pairs, ascending."""
        end = self._ends[expert]
        return self._order[end - self.counts[expert] : end]

    def tables(
        self,
        groups: Sequence[tuple[Sequence[int], Sequence[int]]],
        memory: Tensor,
        upload: Callable[[Tensor], Tensor],
    ) -> GpuTables:
        """Make the tables of groups, each of experts and their slots.

        memory: (`table_size`,) int32, on the host, in use until `upload` has copied from it.
        """
        counts = [self.counts[list(experts)].tolist() for experts, _ in groups]
        rows = tile_rows(max(map(max, counts)))
        firsts = np.cumsum([0, *map(sum, counts)]).tolist()
        tiles = [tiles_of(first, of, rows) for first, of in zip(firsts, counts, strict=False)]
        pieces = [self.pairs_of(expert) for experts, _ in groups for expert in experts]
        for (_, slots), group_tiles in zip(groups, tiles, strict=True):
            pieces += [np.array(slots, np.int32), group_tiles.reshape(-1)]
        ends = np.cumsum([piece.size for piece in pieces]).tolist()
        np.concatenate(pieces, out=memory.numpy()[: ends[-1]])
        on_gpu = upload(memory[: ends[-1]])
        made, at = [], firsts[-1]
        for number, (_, slots) in enumerate(groups):
            end = at + len(slots)
            tiles_end = end + tiles[number].size
            made.append(
                ExpertGroup(
                    on_gpu[at:end],
                    on_gpu[end:tiles_end].view(-1, 3),
                    firsts[number],
                    firsts[number + 1] - firsts[number],
                )
            )
            at = tiles_end
        return GpuTables(on_gpu[: firsts[-1]], made, rows)


def table_size(max_tokens: int, top_k: int, num_experts: int) -> int:
    """Count the integers of the tables of any step: pairs, slots and tiles."""
    num_pairs = max_tokens * top_k
    return num_pairs + num_experts + 3 * (num_pairs // tile_rows(1) + num_experts)


def places_of(pairs: Tensor, shape: tuple[int, int]) -> Tensor:
    """Invert pairs (P,): each pair's place, (T, k) int32; -1 = not there."""
    places = torch.full((shape[0] * shape[1],), -1, dtype=torch.int32, device=pairs.device)
    places[pairs.long()] = torch.arange(len(pairs), dtype=torch.int32, device=pairs.device)
    return places.view(shape)
