"""A step of few tokens on the CPU as one call, from their ids to logits and greedy tokens.

Experts' weights stream through the caches: whatever Python does between two steps begins in memory,
where a torch operation takes 50 us. So nothing of a step is a tensor that was not there before.
"""

import threading
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.errors import ShapeError
from hybridmoe.kernels.fused_layer import FusedLayers
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.ops import check_tensor
from hybridmoe.kernels.paged_mla import BlockTables, KvPages

__all__ = ["FusedStep", "StepResults"]


class StepResults(NamedTuple):
    """Results of a step, in memory that the thread's next one takes."""

    states: Tensor  # (T, H) f32, behind the last layer
    logits: NDArray[np.float32]  # (T, V)
    best: Sequence[int]  # (T): the first token of the greatest logit; -1 where one is not finite


class FusedStep(threading.local):
    """Embedding, layers and head of a model. Errors: ShapeError.

    Engines of one model run in threads of their own: each thread has its own attributes, which
    `__init__` makes at its first step.
    """

    def __init__(
        self,
        embedding: QuantMatrix,
        layers: FusedLayers,
        norm: Tensor,
        eps: float,
        head: QuantMatrix,
    ) -> None:
        """norm: (H,) f32, the last one. head: (V, H)."""
        check_tensor(norm, "fused step: norm", torch.float32, 1, layers.hidden)
        self._layers, self._weights = layers, (embedding, norm, head)
        self._handle = _C.FusedStep(
            embedding.handle, layers.handle, norm.data_ptr(), eps, head.handle
        )
        self._states = torch.empty((PREFILL_TOKENS, layers.hidden), dtype=torch.float32)
        self._logits = torch.empty((PREFILL_TOKENS, head.rows), dtype=torch.float32)
        self._best = array("i", [0] * PREFILL_TOKENS)
        self._addresses = (
            self._states.data_ptr(), self._logits.data_ptr(), self._best.buffer_info()[0]
        )  # fmt: skip
        self._results: dict[int, StepResults] = {}  # by number of tokens
        self._pages: Sequence[KvPages] = ()
        self._pages_handle = _C.LayerPages([])
        self._rotations, self._rotations_at, self._num_rotations = self._states[:0], 0, 0

    def forward(
        self,
        token_ids: Sequence[int],
        tables: BlockTables,
        pages: Sequence[KvPages],
        rotations: Tensor,
    ) -> StepResults:
        """Run at most PREFILL_TOKENS tokens, none with expanded keys.

        pages: of each layer, and perhaps of others behind them; the same object for the same pages.
        rotations: (positions, rope) f32.
        Errors: ShapeError, also for ids, positions and tables that do not fit.
        """
        tokens = len(token_ids)
        if tokens > PREFILL_TOKENS:
            raise ShapeError(f"fused step: {tokens} tokens, expected at most {PREFILL_TOKENS}")
        if pages is not self._pages:
            own = pages[: self._layers.num_layers]
            self._pages, self._pages_handle = pages, _C.LayerPages([p.handle for p in own])
        if rotations is not self._rotations:
            check_tensor(
                rotations, "fused step: rotations", torch.float32, 2, self._layers.rope_dim
            )
            self._rotations, self._rotations_at = rotations, rotations.data_ptr()
            self._num_rotations = len(rotations)
        ids = array("q", token_ids)
        self._handle.forward(
            ids.buffer_info()[0],
            tokens,
            *tables.arguments,
            self._pages_handle,
            self._rotations_at,
            self._num_rotations,
            *self._addresses,
        )
        results = self._results.get(tokens)
        if results is None:
            logits, best = self._logits[:tokens].numpy(), memoryview(self._best)[:tokens]
            results = self._results[tokens] = StepResults(self._states[:tokens], logits, best)
        return results
