"""Pending results: tensors that another stream, or another thread, may still be computing."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

__all__ = ["OnDemand", "Pending", "Ready"]


class Pending(ABC):
    """One tensor in flight."""

    __slots__ = ()

    @abstractmethod
    def result(self) -> Tensor:
        """Return the tensor, ordered before all work that the caller's stream gets from now on.

        Call it or `add_to` exactly once, before the step ends: it frees what the computation held.
        """

    def add_to(self, y: Tensor) -> Tensor:
        """Add the tensor to `y` in place; return `y`. Ordered as `result`."""
        return y.add_(self.result())


class Ready(Pending):
    """A tensor that is already computed."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def result(self) -> Tensor:
        return self._tensor


class OnDemand(Pending):
    """A tensor whose computation is queued when it is asked for."""

    __slots__ = ("_compute",)

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute

    def result(self) -> Tensor:
        return self._compute()
