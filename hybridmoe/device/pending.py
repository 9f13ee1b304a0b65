"""Pending results: tensors that another stream, or another thread, may still be computing."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Pending", "Ready"]


class Pending(ABC):
    """One tensor in flight. `first + second` is their sum, in flight until it is asked for."""

    __slots__ = ()

    @abstractmethod
    def result(self) -> Tensor:
        """Return the tensor, ordered before all work that the caller's stream gets from now on.

        Call it or `add_to` exactly once, before the step ends: it frees what the computation held.
        """

    def add_to(self, y: Tensor) -> Tensor:
        """Add the tensor to `y` in place; return `y`. Ordered as `result`."""
        return y.add_(self.result())

    def __add__(self, other: "Pending") -> "Pending":
        return _Sum(self, other)


class Ready(Pending):
    """A tensor that is already computed."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def result(self) -> Tensor:
        return self._tensor


class _Sum(Pending):
    __slots__ = ("_first", "_second")

    def __init__(self, first: Pending, second: Pending) -> None:
        self._first, self._second = first, second

    def result(self) -> Tensor:
        return torch.add(self._first.result(), self._second.result())
