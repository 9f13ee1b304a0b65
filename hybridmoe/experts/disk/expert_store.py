"""Experts in RAM buffers: loaded, or in flight from the file.

`request` and `release` are the caller's decisions; a policy is not known here. Not thread-safe:
only the reads run in other threads.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hybridmoe.errors import DiskError, StalledReadError
from hybridmoe.experts.disk.arena import ExpertBuffers
from hybridmoe.experts.disk.expert_layout import ExpertLayout
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.read_request import ReadRequest

__all__ = ["STALL_S", "ExpertStore"]

STALL_S = 2.0  # without any read: the disk hangs, or a network


class ExpertStore:
    """Buffers by expert key (see `RoutedExperts`)."""

    def __init__(self, layout: ExpertLayout, reader: FileReader, num_buffers: int) -> None:
        """Errors: ConfigError without memory for the buffers."""
        self._layout = layout
        self._reader = reader
        self._buffers = ExpertBuffers(num_buffers, layout.matrix_bytes)
        # Addresses of each expert's gate, up and down; 0 = not loaded.
        self.addresses: NDArray[np.int64] = np.zeros(
            (layout.num_layers, 3, layout.num_experts), np.int64
        )
        self._loaded: dict[int, int] = {}  # key -> buffer
        self._in_flight: dict[int, tuple[ReadRequest, int]] = {}  # key -> request, buffer
        self._released: set[int] = set()  # keys in flight: buffers are freed on arrival
        self.is_unwanted: Callable[[], bool] = lambda: False  # nobody needs what is waited for
        self.bytes_read = 0
        self.wait_s = 0.0

    @property
    def num_loaded(self) -> int:
        return len(self._loaded)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_free(self) -> int:
        return self._buffers.num_free

    def is_loaded(self, key: int) -> bool:
        return key in self._loaded

    def is_in_flight(self, key: int) -> bool:
        return key in self._in_flight and key not in self._released

    def request(self, key: int, *, is_urgent: bool = True) -> bool:
        """Load an expert, unless it is loaded or in flight. Returns False if no buffer is free."""
        if key in self._loaded:
            return True
        if key in self._in_flight:
            self._released.discard(key)
            if is_urgent:
                self._reader.make_urgent(self._in_flight[key][0])
            return True
        if self._buffers.num_free == 0:
            return False
        buffer = self._buffers.allocate()
        ranges = self._layout.ranges(*divmod(key, self._layout.num_experts))
        request = ReadRequest(key, ranges, self._buffers.views(buffer))
        self._in_flight[key] = (request, buffer)
        self._reader.submit(request, is_urgent=is_urgent)
        return True

    def release(self, key: int) -> bool:
        """Free an expert's buffer, now or when its read ends. Returns True if it was never read."""
        buffer = self._loaded.pop(key, None)
        if buffer is not None:
            layer_index, expert = divmod(key, self._layout.num_experts)
            self.addresses[layer_index, :, expert] = 0
            self._buffers.free(buffer)
        elif key in self._in_flight:
            request, buffer = self._in_flight[key]
            if self._reader.cancel(request):
                del self._in_flight[key]
                self._buffers.free(buffer)
                return True
            self._released.add(key)
        return False

    def collect(self, *, wait: bool) -> dict[int, DiskError | None]:
        """Take in the reads that have ended. Returns each key's error, or None.

        wait: for at least one, which must be in flight. Errors: StalledReadError if none ends for
        `STALL_S` and `is_unwanted()`; the reads go on.
        """
        ended: dict[int, DiskError | None] = {}
        assert self._in_flight or not wait, "no read is in flight"
        started = time.perf_counter()
        try:
            while True:
                request = self._reader.take_completed(wait=wait and not ended, timeout_s=STALL_S)
                if request is not None:
                    ended[request.key] = request.error
                    self._arrive(request)
                elif ended or not wait:
                    break
                elif self.is_unwanted():
                    raise StalledReadError(f"no read has returned for {STALL_S:g} s")
        finally:
            if wait:
                self.wait_s += time.perf_counter() - started
        return ended

    def load(self, keys: Sequence[int], progress: Callable[[int], None]) -> None:
        """Load experts, no more than buffers are free, and wait for them.

        Calls progress(bytes) as they arrive, and now and then while none do: it may raise to end
        this. Errors: DiskError.
        """

        def is_unwanted() -> bool:
            progress(0)
            return False

        self.is_unwanted = is_unwanted
        before = self.bytes_read
        for key in keys:
            is_requested = self.request(key)
            assert is_requested, len(keys)
        errors: list[DiskError] = []
        while self._in_flight:
            errors += filter(None, self.collect(wait=True).values())
            progress(self.bytes_read - before)
            before = self.bytes_read
        self.is_unwanted = lambda: False
        if errors:
            raise errors[0]

    def drain(self) -> None:
        """Wait until no read is in flight; ignores errors."""
        while self._in_flight:
            self.collect(wait=True)

    def _arrive(self, request: ReadRequest) -> None:
        key = request.key
        _, buffer = self._in_flight.pop(key)
        if request.error is None:
            self.bytes_read += sum(part.num_bytes for part in request.ranges)
        if request.error is not None or key in self._released:
            self._released.discard(key)
            self._buffers.free(buffer)
            return
        self._loaded[key] = buffer
        layer_index, expert = divmod(key, self._layout.num_experts)
        for i, (start, part) in enumerate(
            zip(self._buffers.addresses(buffer), request.ranges, strict=True)
        ):
            self.addresses[layer_index, i, expert] = start + part.skew
