"""Host and GPU memory through which the CPU computes its part of a hybrid step."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.streams import host_empty
from hybridmoe.experts.routed_experts import RoutedExperts

__all__ = ["CallMemory", "MakeCall", "StagedSubmission", "StepMemory", "mapped_calls"]


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

    def __init__(self, max_tokens: int, hidden: int, top_k: int, device: torch.device) -> None:
        def pinned(size: int) -> Tensor:
            return host_empty((max_tokens, size), torch.float32, device)

        self.x, self.weights = pinned(hidden), pinned(top_k)
        self.out = pinned(hidden).zero_()  # a graph's capture adds it before anything is computed
        self.result = torch.empty((max_tokens, hidden), dtype=torch.float32, device=device)
        self.layer_index: int | None = None  # None = free, else its result is outstanding

    def acquire(self, layer_index: int) -> None:
        """Take the memory for a layer, until `release`."""
        assert self.layer_index is None, f"{self.layer_index} is outstanding, {layer_index} came"
        self.layer_index = layer_index

    def release(self) -> None:
        """Free the memory once its result has been taken."""
        assert self.layer_index is not None, "a pending result is taken once"
        self.layer_index = None


class StepMemory:
    """Memory of steps of up to `max_tokens`. Addresses never change, for CUDA graphs.

    Each layer has its own ids; all share the rest, one after the other.
    """

    def __init__(
        self,
        max_tokens: int,
        experts: RoutedExperts,
        device: torch.device,
        *,
        has_calls: bool = True,
        make_call: MakeCall | None = None,
    ) -> None:
        """has_calls: False = the ids alone. make_call: None = `mapped_calls`."""
        self.max_tokens, self._top_k = max_tokens, experts.top_k
        self._make_call = make_call or mapped_calls(experts)
        shape = (experts.num_layers, max_tokens, experts.top_k)
        self.ids = host_empty(shape, torch.int32, device)
        self._staged = (
            StagedSubmission(max_tokens, experts.hidden, experts.top_k, device)
            if has_calls
            else None
        )
        self.calls: dict[tuple[int, int], _C.HostCall] = {}

    @property
    def staged(self) -> StagedSubmission:
        """Memory of the layer whose result is outstanding."""
        assert self._staged is not None, "has no calls"
        return self._staged

    def reset(self) -> None:
        """Free what a step that failed has left outstanding."""
        if self._staged is not None:
            self._staged.layer_index = None

    def make_call(self, index: int, slot_of: int) -> _C.HostCall:
        """Make the CPU's call of a layer. slot_of: address of a table (E,), or 0."""
        staged = self.staged
        memory = CallMemory(
            staged.x.data_ptr(),
            self.ids[index].data_ptr(),
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
