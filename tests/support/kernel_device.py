"""The device that Triton's kernels run on here: a GPU, or the CPU for the interpreter.

Tests make tensors on the CPU and compare there; `on_device` runs a kernel on copies of them.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from hybridmoe.kernels.triton.runtime import IS_INTERPRETED

__all__ = ["DEVICE", "moved", "on_device"]

DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")


class _Copies:
    """Copies of a call's tensors: views of one storage stay views of one storage."""

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}  # a storage's address -> its bytes

    def to_device(self, t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        if t.untyped_storage().nbytes() == 0:
            return t.to(DEVICE)
        address = t.untyped_storage().data_ptr()
        if address not in self._pairs:
            host = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
            self._pairs[address] = (host, host.to(DEVICE))
        return _view(t, self._pairs[address][1])

    def copy_back(self) -> None:
        for host, device in self._pairs.values():
            host.copy_(device)

    def to_host(self, t: Any) -> Any:
        if isinstance(t, tuple):
            return tuple(map(self.to_host, t))
        if not isinstance(t, Tensor):
            return t
        for host, device in self._pairs.values():
            if t.untyped_storage().data_ptr() == device.untyped_storage().data_ptr():
                return _view(t, host)
        return t.cpu()


def _view(t: Tensor, base: Tensor) -> Tensor:
    """View another storage as `t` views its own."""
    empty = torch.empty(0, dtype=t.dtype, device=base.device)
    return empty.set_(base.untyped_storage(), t.storage_offset(), t.size(), t.stride())


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of the device take and return CPU tensors, which it may write to."""
    if DEVICE.type == "cpu":
        return function

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        copies = _Copies()
        on_gpu = {name: copies.to_device(value) for name, value in kwargs.items()}
        result = function(*map(copies.to_device, args), **on_gpu)
        copies.copy_back()
        return copies.to_host(result)

    return call


def moved(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copy tensors to the device."""
    return tuple(t.to(DEVICE) for t in tensors)
