"""Layout of KV cache rows outside of the pages: what snapshots and pages on disk hold.

Rows of one kind lie together: first the latents of all layers, then the index keys of the layers
that have an indexer; of each kind layer by layer, and of a layer token by token.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridmoe.config import ModelConfig, kv_row_bytes

__all__ = ["RowKind", "RowLayout", "Rows"]

Rows = NDArray[np.uint8]  # (T * RowLayout.token_bytes,)


class RowKind(NamedTuple):
    """Rows of one size."""

    num_layers: int
    dim: int  # numbers in a row


class RowLayout:
    """Layout of some tokens' rows of one kv_type."""

    def __init__(self, kinds: tuple[RowKind, ...], kv_type: str) -> None:
        self.kinds, self.kv_type = kinds, kv_type
        self.row_bytes = tuple(kv_row_bytes(kv_type, kind.dim) for kind in kinds)
        self.token_bytes = sum(
            kind.num_layers * width for kind, width in zip(kinds, self.row_bytes, strict=True)
        )

    @classmethod
    def of(cls, model: ModelConfig, kv_type: str) -> "RowLayout":
        """Lay out the rows of a model."""
        kinds = [RowKind(model.num_loaded_layers, model.latent_dim)]
        if model.indexer is not None:
            kinds.append(RowKind(model.indexer.num_full, model.indexer.key_dim))
        return cls(tuple(kinds), kv_type)

    def with_type(self, kv_type: str) -> "RowLayout":
        """Lay out the same rows in another kv_type."""
        return RowLayout(self.kinds, kv_type)

    def num_tokens(self, rows: Rows) -> int:
        """Count the tokens of rows."""
        return len(rows) // self.token_bytes

    def empty(self, num_tokens: int) -> Rows:
        """Allocate the rows of some tokens."""
        return np.empty(num_tokens * self.token_bytes, np.uint8)

    def views(self, rows: Rows) -> list[NDArray[np.uint8]]:
        """View rows by kind: (layers, T, row bytes)."""
        num_tokens = self.num_tokens(rows)
        shapes = [
            (kind.num_layers, num_tokens, width)
            for kind, width in zip(self.kinds, self.row_bytes, strict=True)
        ]
        ends = np.cumsum([0, *(np.prod(shape, dtype=np.int64) for shape in shapes)])
        return [
            rows[start:end].reshape(shape)
            for (start, end), shape in zip(pairwise(ends), shapes, strict=True)
        ]

    def head(self, rows: Rows, num_tokens: int) -> Rows:
        """Return the rows of the first tokens."""
        if num_tokens == self.num_tokens(rows):
            return rows
        out = self.empty(num_tokens)
        for to, of in zip(self.views(out), self.views(rows), strict=True):
            to[:] = of[:, :num_tokens]
        return out

    def __str__(self) -> str:
        """Name the layout, as a part of what identifies pages on disk."""
        kinds = zip(self.kinds, self.row_bytes, strict=True)
        return " ".join([self.kv_type, *(f"{kind.num_layers} {width}" for kind, width in kinds)])
