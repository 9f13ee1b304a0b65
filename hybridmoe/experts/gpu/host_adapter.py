"""Routed experts on the CPU for a model whose dense part a card computes, one layer at a time.

For executors that need Python in every layer, such as those that read experts from disk: the step
waits for the card before each layer's experts, and the card for them. What does without is
hybrid.py.
"""

from torch import Tensor

from hybridmoe.device.interface import Device
from hybridmoe.device.pending import Pending
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.stats import ExpertStats

__all__ = ["HostAdapter"]


class HostAdapter(ExpertBackend):
    """Brings states to the inner executor, and its results back."""

    def __init__(self, inner: ExpertBackend, device: Device) -> None:
        self._inner = inner
        self._device = device

    @property
    def wants_prefetch_hints(self) -> bool:
        return self._inner.wants_prefetch_hints

    def begin_step(self, num_tokens: int) -> None:
        self._inner.begin_step(num_tokens)

    def end_step(self) -> None:
        self._inner.end_step()

    def prefetch(self, layer: int, ids: Tensor) -> None:
        self._inner.prefetch(layer, self._device.to_host(ids))

    def stats(self) -> ExpertStats | None:
        return self._inner.stats()

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """As `ExpertBackend.submit`."""
        on_host = [self._device.to_host(t) for t in (x, ids, weights)]
        return _Uploaded(self._inner.submit(layer, *on_host), self._device)

    def close(self) -> None:
        self._inner.close()


class _Uploaded(Pending):
    """A result of the host, brought to the device."""

    __slots__ = ("_device", "_on_host")

    def __init__(self, on_host: Pending, device: Device) -> None:
        self._on_host, self._device = on_host, device

    def result(self) -> Tensor:
        return self._device.upload(self._on_host.result())
