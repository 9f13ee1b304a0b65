"""A native RAM tier over a file of random experts, of several sizes where asked for: no model."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from random_weights import random_matrix
from torch import Tensor

from hybridmoe import _C
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.gguf.reader import FileState
from hybridmoe.hardware.disk import direct_buffer_bytes
from hybridmoe.kernels.ops import expert_ffn

__all__ = ["DECODE_TOKENS", "EXPERTS", "HIDDEN", "TOP_K", "RamTier"]

EXPERTS, TOP_K, HIDDEN, INTER = 12, 3, 256, 256
DECODE_TOKENS = 16


class RamTier:
    """The tier, its layers in memory, and what its calls read and write."""

    def __init__(
        self,
        path: Path,
        types: Sequence[Type],
        slots: Sequence[int],
        *,
        num_staging: int = TOP_K,
        num_ahead: int = 0,
        num_leaving: int = 0,
        faults: _C.ReadFaults | None = None,
    ) -> None:
        """types: of layers. slots: of each type, in order of first use."""
        self.path = path
        self.layers: list[ExpertWeights] = []
        offsets: list[list[int]] = []
        rng = np.random.default_rng(len(types))
        with open(path, "wb") as file:
            for index, kind in enumerate(types):
                both = random_matrix(kind, EXPERTS, 2 * INTER, HIDDEN, 3 * index)
                weights = ExpertWeights(  # with gaps between the matrices
                    both.slice_rows(0, INTER),
                    both.slice_rows(INTER, 2 * INTER),
                    random_matrix(kind, EXPERTS, HIDDEN, INTER, index),
                )
                self.layers.append(weights)
                offsets.append([])
                for w in weights:
                    file.seek(file.tell() + 32 * int(rng.integers(1, 300)))
                    offsets[-1].append(file.tell())
                    file.write(w.data.tobytes())
        fds = [os.open(path, os.O_RDONLY), -1]
        self.reader = _C.FileReader([(*fds, FileState.of(fds[0]))], num_threads=2, faults=faults)
        kinds = list(dict.fromkeys(types))
        extra = num_staging + num_ahead + num_leaving
        pools, arenas = [], []
        for kind, num_slots in zip(kinds, slots, strict=True):
            first = self.layers[list(types).index(kind)]
            room = [direct_buffer_bytes(size) for size in first.matrix_bytes]
            arenas.append(Arena((num_slots + extra) * sum(room)))
            pools.append((arenas[-1].address, num_slots, num_staging, room))
        self._arenas = arenas
        self.uses = np.zeros(len(types) * EXPERTS, np.int64)
        self.was_away = np.zeros(len(types) * EXPERTS, np.uint8)
        self.native = _C.RamExperts(
            self.reader,
            pools,
            [
                (
                    [w.handle for w in weights],
                    kinds.index(kind),
                    [
                        (0, offset, w.stride, w.matrix_bytes, f"file: tensor {index}.{i}")
                        for i, (offset, w) in enumerate(zip(offsets[index], weights, strict=True))
                    ],
                )
                for index, (kind, weights) in enumerate(zip(types, self.layers, strict=True))
            ],
            num_ahead=num_ahead,
            num_leaving=num_leaving,
            decode_tokens=DECODE_TOKENS,
            uses=self.uses.ctypes.data,
            was_away=self.was_away.ctypes.data,
        )

    def close(self) -> None:
        assert self.reader.close(10.0)

    def want(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Compute a layer with all of its experts in memory."""
        return expert_ffn(x, ids, weights, *self.layers[layer])

    def compute(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Compute a layer by the tier. Errors: DiskError, StalledReadError."""
        out = torch.full_like(x, torch.nan)
        tokens, top_k = ids.shape
        self.native.compute(
            layer, x.data_ptr(), ids.data_ptr(), weights.data_ptr(), tokens, top_k, out.data_ptr()
        )
        self.native.check()
        return out

    def wait_for(self, key: int) -> None:
        """Wait for the read of a key that is in flight."""
        while self.native.is_in_flight(key):
            self.native.wait()


def inputs(rng: np.random.Generator, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x (T, H), ids (T, k) with some -1, weights (T, k); some experts are likelier."""
    x = torch.from_numpy(rng.standard_normal((tokens, HIDDEN)).astype(np.float32))
    ids = np.stack([
        np.argsort(-(rng.random(EXPERTS) ** (1 + 2 * np.arange(EXPERTS) / EXPERTS)))[:TOP_K]
        for _ in range(tokens)
    ]).astype(np.int32)  # fmt: skip
    ids[rng.random(ids.shape) < 0.05] = -1
    weights = torch.from_numpy(rng.random((tokens, TOP_K)).astype(np.float32))
    return x, torch.from_numpy(ids), weights
