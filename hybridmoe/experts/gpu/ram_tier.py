"""RAM tier below one GPU's VRAM slots: its part of the expert cache over the file.

Joins `GpuExpertCache`, whose keys are of the GPU's own layers, and `CachedExperts`, which has all
layers. Which of the two keeps an expert follows from their policies alone. Where its bytes are lags
behind: an expert on its way to VRAM stays in a buffer of RAM until it has arrived. One that RAM has
taken back comes over the link, or is read again: behind all other reads, or when a step needs it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.pending import Pending, Ready
from hybridmoe.errors import DiskError, HybridMoeError, StalledReadError
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.gpu.host_registration import HostRegistration, Span, host_view
from hybridmoe.experts.gpu.slot_downloader import Download, SlotDownloader
from hybridmoe.experts.gpu.staging import CallMemory
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.stats import ExpertStats

__all__ = ["HostPrefill", "RamTier"]


class RamTier:
    """`LowerTier` of a GPU, and the CPU's part of its layers. Not thread-safe, except `stats`."""

    def __init__(self, ram: CachedExperts, experts: RoutedExperts, first: int = 0) -> None:
        """ram: of all layers. experts: of this GPU. first: index of its first layer in `ram`."""
        self.cache, self._native = ram, ram.native
        self._sizes = [weights.matrix_bytes for weights in experts.by_index]
        self._num_experts, self._top_k = experts.num_experts, experts.top_k
        self.first, self._first_key = first, first * experts.num_experts
        self.registration: HostRegistration | None = None  # of `spans`, with the GPU
        self.downloader: SlotDownloader | None = None  # of the GPU's slots
        self._taken: dict[int, None] = {}  # keys that RAM has just taken back
        self._downloads: list[_Return] = []

    def begin_step(self) -> None:
        """Let calls compute again after one has failed."""
        self._native.begin_step()

    def spans(self) -> list[Span]:
        """List the memory of all layers' experts; none for the GPUs behind the first."""
        pools = self._native.pools() if self.first == 0 else []
        return [(start, start + size) for start, size in pools]

    def ready(self, wait_s: float) -> None:
        """Begin to register the memory, now that it is filled; wait for that up to `wait_s`."""
        if self.registration is not None:
            self.registration.begin(wait_s)

    def as_error(self, text: str) -> HybridMoeError:
        """Return the error of a step in which a call failed with this text."""
        kind = {"stall": StalledReadError, "read": DiskError}.get(self._native.take_failure() or "")
        return (kind or HybridMoeError)(text)

    def make_call(self, index: int, memory: CallMemory, slot_of: int) -> _C.HostCall:
        """Make the CPU's call of a layer. slot_of: address of its slots (E,) in VRAM, or 0."""
        return _C.RamExpertCall(self._native, self.first + index, *memory, slot_of)

    def bytes_of(self, layer_index: int, expert: int) -> list[NDArray[np.uint8]]:
        """View an expert that `is_ready`: its gate, up and down, until `uploaded`."""
        key = self._first_key + layer_index * self._num_experts + expert
        addresses = self._native.addresses(key)
        assert addresses is not None, f"expert {expert} of layer {layer_index} is not in memory"
        sizes = self._sizes[layer_index]
        return [host_view(*part).numpy() for part in zip(addresses, sizes, strict=True)]

    def discard(self, key: int) -> None:
        self._native.discard(self._first_key + key)

    def offer(self, key: int) -> None:
        is_taken, _ = self._native.offer(self._first_key + key)
        if is_taken:
            self._taken[self._first_key + key] = None

    def returned(self, key: int, slot: int) -> None:
        key += self._first_key
        if key not in self._taken or self.downloader is None:
            return
        receipt = self._native.receive(key)
        if receipt is None:  # it has no place yet, or the bytes
            return
        buffer, addresses = receipt
        layer_index = key // self._num_experts - self.first
        download = self.downloader.begin(layer_index, slot)
        if download is None:
            self._native.received(buffer, False)
            return
        del self._taken[key]
        self._downloads.append(_Return(download, buffer, addresses))

    def advance(self) -> DiskError | None:
        failed = next((error for _, error in self._native.poll() if error is not None), None)
        for key in self._taken:
            self._native.fetch(key)  # or else the step that needs it does
        self._taken.clear()
        self._downloads = [one for one in self._downloads if not self._is_over(one)]
        return None if failed is None else DiskError(failed)

    def is_ready(self, key: int) -> bool:
        key += self._first_key
        if self._native.addresses(key) is not None:
            return True
        self._native.fetch(key)
        return False

    def uploaded(self, key: int) -> None:
        self._native.uploaded(self._first_key + key)

    def _is_over(self, one: "_Return") -> bool:
        """Take in a copy from VRAM that is done."""
        assert self.downloader is not None
        if not one.download.is_done():
            return False
        for part, address in zip(one.download.parts, one.addresses, strict=True):
            _C.copy_memory(address, part.data_ptr(), part.nbytes)
        self._native.received(one.buffer, True)
        self.downloader.end(one.download)
        return True

    def tiers(self, ids: NDArray[np.int16]) -> NDArray[np.uint8]:
        """Find what served experts of this GPU's layers that were in no slot."""
        return self.cache.tiers(ids, self.first)

    def stats(self) -> ExpertStats | None:
        """Return the statistics of all layers; None for the GPUs behind the first. Thread-safe."""
        return self.cache.stats() if self.first == 0 else None

    def abandon_when(self, is_unwanted: Callable[[], bool]) -> None:
        """Ask this while a step waits for a disk that hangs."""
        self.cache.abandon_when(is_unwanted)

    def close(self) -> None:
        """End the registration, and the reads, also those of other GPUs. Idempotent."""
        if self.registration is not None:
            self.registration.close()
        self.cache.close()


class _Return(NamedTuple):
    """An expert on its way back from VRAM."""

    download: Download
    buffer: int  # of the tier
    addresses: tuple[int, int, int]  # in it, of gate, up and down


class HostPrefill:
    """`PrefillExecutor` that leaves all experts to the RAM tier, a layer at a time."""

    def __init__(self, ram: RamTier) -> None:
        self._ram = ram.cache

    def begin_step(self, num_tokens: int) -> None:
        self._ram.begin_step(num_tokens)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        """Wait for the GPU, and compute at once; see `ExpertBackend.submit`. Errors: DiskError."""
        pending = self._ram.submit(layer, x.cpu(), ids.cpu(), weights.cpu())
        return Ready(pending.result().to(x.device))

    def check(self) -> None:
        return

    def ready(self, wait_s: float) -> None:
        return

    def close(self) -> None:
        return
