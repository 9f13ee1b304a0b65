"""Host and GPU memory through which the CPU computes its part of a hybrid step."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.streams import host_empty
from hybridmoe.experts.routed_experts import RoutedExperts

__all__ = ["NUM_STAGED", "CallMemory", "MakeCall", "StagedSubmission", "StepMemory", "mapped_calls"]

NUM_STAGED = 4  # two submissions of a layer and two of the next: no more are outstanding at once


class CallMemory(NamedTuple):
    """Memory of a call on the CPU: addresses, and what they have place for."""

    x: int  # (max_tokens, H) f32
    ids: int  # (max_tokens, k) int32
    weights: int  # (max_tokens, k) f32
    out: int  # (max_tokens, H) f32
    max_tokens: int
    top_k: int


# Layer index, memory, address of the layer's slots (E,) int32 in VRAM or 0 -> the CPU's call.
MakeCall = Callable[[int, CallMemory, int], _C.HostCall]


class StagedSubmission:
    """Memory of one submission: the CPU's inputs and output, and the result on the GPU."""

    def __init__(
        self, buffer: int, max_tokens: int, hidden: int, top_k: int, device: torch.device
    ) -> None:
        """buffer: number of this memory among those that take turns."""

        def pinned(size: int) -> Tensor:
            return host_empty((max_tokens, size), torch.float32, device)

        self.x, self.weights, self.out = pinned(hidden), pinned(top_k), pinned(hidden)
        self.buffer = buffer
        self.result = torch.empty((max_tokens, hidden), dtype=torch.float32, device=device)
        self.layer_index: int | None = None  # None = free, else its result is outstanding

    def release(self) -> None:
        """Free the memory once its result has been taken."""
        assert self.layer_index is not None, "a pending result is taken once"
        self.layer_index = None


class StepMemory:
    """Memory of steps of up to `max_tokens`. Addresses never change, for CUDA graphs.

    Submission `number` of a layer (0 or 1) always gets the same memory, which other layers share.
    """

    def __init__(
        self,
        max_tokens: int,
        experts: RoutedExperts,
        device: torch.device,
        *,
        submissions_per_layer: int,
        max_outstanding: int,
        make_call: MakeCall | None = None,
    ) -> None:
        """max_outstanding: submissions of all layers with outstanding results, at once.

        make_call: None = `mapped_calls`.
        """
        self.max_tokens, self._top_k = max_tokens, experts.top_k
        self._make_call = make_call or mapped_calls(experts)
        self._per_layer = submissions_per_layer
        top_k, hidden = experts.top_k, experts.hidden
        shape = (experts.num_layers, submissions_per_layer, max_tokens, top_k)
        self.ids = host_empty(shape, torch.int32, device)
        self._staged = [
            StagedSubmission(buffer, max_tokens, hidden, top_k, device)
            for buffer in range(max_outstanding)
        ]
        self.calls: dict[tuple[int, int, int], _C.HostCall] = {}

    def release_all(self) -> None:
        """Free all submissions."""
        for staged in self._staged:
            staged.layer_index = None

    def outstanding(self) -> list[StagedSubmission]:
        """List the submissions with outstanding results."""
        return [staged for staged in self._staged if staged.layer_index is not None]

    def next_number(self, index: int) -> int:
        """Return the number of a layer's next submission: 1 while its first is outstanding."""
        return int(bool(self._staged) and self.staged(index, 0).layer_index == index)

    def acquire(self, index: int, number: int) -> StagedSubmission:
        """Take a submission's memory until its `layer_index` is None again."""
        assert number < self._per_layer, (index, number)
        staged = self.staged(index, number)
        assert staged.layer_index is None, f"{staged.layer_index} is outstanding, {index} submitted"
        staged.layer_index = index
        return staged

    def staged(self, index: int, number: int) -> StagedSubmission:
        """Return a submission's memory."""
        return self._staged[(index * self._per_layer + number) % len(self._staged)]

    def make_call(self, index: int, number: int, slot_of: int) -> _C.HostCall:
        """Make the CPU's call of a submission. slot_of: address of a table (E,), or 0."""
        staged = self.staged(index, number)
        memory = CallMemory(
            staged.x.data_ptr(),
            self.ids[index, number].data_ptr(),
            staged.weights.data_ptr(),
            staged.out.data_ptr(),
            self.max_tokens,
            self._top_k,
        )
        return self._make_call(index, memory, slot_of)


def mapped_calls(experts: RoutedExperts) -> MakeCall:
    """Make calls that find all experts in the memory map."""

    def make_call(index: int, memory: CallMemory, slot_of: int) -> _C.HostCall:
        gate, up, down = (w.handle for w in experts.by_index[index])
        return _C.HostExpertCall(*memory, gate, up, down, slot_of)

    return make_call
