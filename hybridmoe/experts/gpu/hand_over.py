"""Hand-over of decode layers between GPU and CPU by counters in pinned memory.

In a step that a CUDA graph repeats, kernels of the main stream write a layer's inputs to the host
and wait for its outputs, while the thread that started the graph computes them: no other stream, no
copy, and no thread of the driver. Steps that are not repeated use host functions, since the
program may wait for the GPU in the middle of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.pending import Pending
from hybridmoe.device.streams import Stream, host_empty
from hybridmoe.errors import HybridMoeError, ShapeError
from hybridmoe.experts.gpu.staging import StagedSubmission
from hybridmoe.kernels.triton.hand_over import receive, send

__all__ = ["HandOver"]

_TRY_POLLS = 1 << 20  # about a second
_LINE = 16  # int32 of a cache line: each counter is written by one side only


class HandOver:
    """Counters of a GPU and the CPU. Not thread-safe."""

    def __init__(self, main: Stream, device: torch.device) -> None:
        """main: stream of the steps."""
        self._main = main
        self._counters = host_empty((2, _LINE), torch.int32, device).zero_()
        self._sent, self._done = self._counters[0, :1], self._counters[1, :1]
        self._count = torch.zeros(1, dtype=torch.int32, device=device)  # of submissions
        self._native = _C.HandOver(self._sent.data_ptr(), self._done.data_ptr())

    def send(
        self,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        staged: StagedSubmission,
        host_ids: Tensor,
    ) -> None:
        """Queue a submission's way to the host: write its inputs there, then tell the CPU."""
        tokens = len(x)
        host = (staged.x[:tokens], host_ids, staged.weights[:tokens])
        send(x, ids, weights, host, self._count, self._sent)

    def pending(self, staged: StagedSubmission, tokens: int, part: Tensor | None) -> Pending:
        """Return the sum of a submission's two parts; part: the GPU's."""
        return _HandedOver(self, staged, tokens, part)

    def serve(self, calls: Sequence[_C.HostCall]) -> None:
        """Compute the calls of a step that has been queued, as the GPU gets to them.

        Errors: torch's if the GPU fails, HybridMoeError if it hands over fewer.
        """
        try:
            self._native.serve(calls, self._main.is_idle)
        except ShapeError as error:
            raise HybridMoeError(str(error)) from None

    def works(self, hidden: int, top_k: int) -> bool:
        """Try one hand-over, while no step is in flight. Errors: torch's if the GPU fails."""
        device = self._count.device
        staged = StagedSubmission(1, hidden, top_k, device)
        x, weights = torch.arange(1.0, 1 + hidden)[None], torch.arange(1.0, 1 + top_k)[None]
        host_ids = host_empty((1, top_k), torch.int32, device)
        for t in (staged.x, host_ids, staged.weights, staged.out):
            t.zero_()  # it may be what the last try wrote
        there = x.to(device)
        y = torch.zeros_like(there)
        self.send(there, weights.int().to(device), weights.to(device), staged, host_ids)
        receive(y, there, staged.out, self._count, self._done, max_polls=_TRY_POLLS)
        staged.out.copy_(x)  # too late if launches block, as CUDA_LAUNCH_BLOCKING=1 makes them
        self.release()
        self._main.synchronize()
        pairs = ((staged.x, x), (host_ids, weights), (staged.weights, weights), (y.cpu(), 2 * x))
        return all(bool((got == want).all()) for got, want in pairs)

    def release(self) -> None:
        """Let a queued step end without the CPU's results. Errors: torch's if the GPU fails."""
        self._native.release(self._main.is_idle)

    def add_to(self, y: Tensor, staged: StagedSubmission, part: Tensor | None) -> Tensor:
        """Queue y += part + the CPU's result, once it is there."""
        receive(y, part, staged.out[: len(y)], self._count, self._done)
        return y


class _HandedOver(Pending):
    __slots__ = ("_hand_over", "_part", "_staged", "_tokens")

    def __init__(
        self, hand_over: HandOver, staged: StagedSubmission, tokens: int, part: Tensor | None
    ) -> None:
        self._hand_over, self._staged = hand_over, staged
        self._tokens, self._part = tokens, part

    def result(self) -> Tensor:
        y = self._part
        if y is None:
            y = torch.zeros_like(self._staged.result[: self._tokens])
        return self._add(y, None)

    def add_to(self, y: Tensor) -> Tensor:
        return self._add(y, self._part)

    def _add(self, y: Tensor, part: Tensor | None) -> Tensor:
        self._staged.release()
        return self._hand_over.add_to(y, self._staged, part)
