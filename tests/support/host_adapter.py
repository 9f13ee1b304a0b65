"""CPU experts beside a dense part on the GPU, one layer at a time, each waiting for the other."""

from collections.abc import Callable, Sequence

from torch import Tensor

from hybridmoe.device.interface import Device
from hybridmoe.device.pending import Pending
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.stats import ExpertStats

__all__ = ["HostAdapter"]


class HostAdapter(ExpertBackend):
    """Copies states to a backend of the host, and its results back."""

    def __init__(self, inner: ExpertBackend, devices: Sequence[Device]) -> None:
        """devices: of each layer of the model."""
        self._inner, self._devices = inner, devices

    @property
    def wants_prefetch_hints(self) -> bool:
        return self._inner.wants_prefetch_hints

    def abandon_when(self, is_unwanted: Callable[[], bool]) -> None:
        self._inner.abandon_when(is_unwanted)

    def begin_step(self, num_tokens: int) -> None:
        self._inner.begin_step(num_tokens)

    def end_step(self) -> None:
        self._inner.end_step()

    def prefetch(self, layer: int, ids: Tensor) -> None:
        self._inner.prefetch(layer, self._devices[layer].to_host(ids))

    def stats(self) -> ExpertStats | None:
        return self._inner.stats()

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        device = self._devices[layer]
        on_host = [device.to_host(t) for t in (x, ids, weights)]
        return _Uploaded(self._inner.submit(layer, *on_host), device)

    def close(self) -> None:
        self._inner.close()


class _Uploaded(Pending):
    """Result of the host, copied to the device."""

    __slots__ = ("_device", "_on_host")

    def __init__(self, on_host: Pending, device: Device) -> None:
        self._on_host, self._device = on_host, device

    def result(self) -> Tensor:
        return self._device.upload(self._on_host.result())
