"""Routed experts of a layer in pieces: `ops.expert_ffn` for experts that become resident in turn.

An expert may lie anywhere in memory, and only during its own `compute`. The result is that of
`expert_ffn`, bit for bit.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.ops import check_routing

__all__ = ["IncrementalExpertFfn"]


class IncrementalExpertFfn:
    """One pass: begin, compute every expert, finish. Keeps its memory for the next pass."""

    def __init__(self) -> None:
        self._pass = _C.ExpertPass()
        self._out: Tensor | None = None
        self._inputs: tuple[object, ...] = ()  # kept alive from begin to finish

    def begin(
        self,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        matrices: Sequence[QuantMatrix],
        addresses: NDArray[np.int64],
    ) -> tuple[list[int], int]:
        """Begin a pass; returns the experts of the tokens, and the number of unordered ones.

        The unordered experts are the first of the list and may be computed in any order. The rest
        go through matrix tiles, whose sums depend on the order: they follow as listed.
        Shapes:  x, ids, weights as for `expert_ffn` · matrices: gate, up (E, I, H), down (E, H, I),
                 of which only type and shape count · addresses (3, E) of each expert's gate, up
                 and down, 0 = not in memory; read by `compute`.
        Errors:  ShapeError, also for an id outside -1..E-1.
        """
        gate, up, down = matrices
        tokens, top_k = check_routing(x, ids, weights, gate.cols)
        is_table = addresses.dtype == np.int64 and addresses.flags.c_contiguous
        if not is_table or addresses.shape != (3, gate.batch):
            raise ShapeError(
                f"expert_ffn: addresses are {addresses.dtype} {addresses.shape}, "
                f"expected contiguous int64 (3, {gate.batch})"
            )
        out = torch.empty_like(x)  # (T, H)
        order = self._pass.begin(
            x.data_ptr(),
            ids.data_ptr(),
            weights.data_ptr(),
            tokens,
            top_k,
            gate.handle,
            up.handle,
            down.handle,
            addresses.ctypes.data,
            out.data_ptr(),
        )
        self._out, self._inputs = out, (x, ids, weights, addresses)
        return order

    def compute(self, experts: Sequence[int]) -> None:
        """Compute some experts, which are in memory now.

        Errors: ShapeError for one that is not, or is out of order; the pass is then over.
        """
        self._pass.compute(experts)

    def finish(self) -> Tensor:
        """Return the result (T, H) f32. Errors: ShapeError if an expert is missing."""
        self._pass.finish()
        out, self._out, self._inputs = self._out, None, ()
        assert out is not None
        return out
