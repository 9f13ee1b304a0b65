"""Registration of host memory with a GPU, so that its copy engine reads a file's pages directly.

Copies from registered memory take no time of the CPU, and no memory traffic but the read itself.
Registering locks the pages in RAM, at some gigabytes a second: a thread does it, piece by piece,
while the model is used already. Pieces that the driver refuses are staged; all are, where copies
from the first one are wrong or slow.
"""

import ctypes
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hybridmoe.device.streams import CudaStream
from hybridmoe.errors import DeviceError

__all__ = ["CudaRegistrar", "HostRegistration", "Piece", "Registrar", "Span", "host_view"]

_CHECKED_BYTES, _ROUNDS = 32 << 20, 4  # of the first piece
PIECE_BYTES = 64 << 20  # other calls of the driver wait for one registration at most
_PAGE_BYTES = 4096
_MOST_REFUSED = 2  # pieces, before the rest is not tried

Span = tuple[int, int]  # addresses: first, end


class Registrar(Protocol):
    """Locks host memory for a GPU. Both methods may be called from any thread."""

    def register(self, address: int, num_bytes: int) -> None:
        """Lock whole pages. Errors: DeviceError."""
        ...

    def unregister(self, address: int) -> None: ...

    def copy_rate(self, address: int, num_bytes: int) -> float | None:
        """Measure copies from registered memory, bytes/s; None if the GPU gets other bytes."""
        ...


class CudaRegistrar:
    """`Registrar` of a CUDA GPU."""

    _READ_ONLY = 8  # cudaHostRegisterReadOnly: pages of a file that is mapped for reading

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]

    def register(self, address: int, num_bytes: int) -> None:
        with torch.cuda.device(self._device):
            result = self._runtime.cudaHostRegister(address, num_bytes, self._READ_ONLY)
        if int(result):
            raise DeviceError(f"cudaHostRegister of {num_bytes} bytes: {result}")

    def unregister(self, address: int) -> None:
        with torch.cuda.device(self._device):
            self._runtime.cudaHostUnregister(address)

    def copy_rate(self, address: int, num_bytes: int) -> float | None:
        with torch.cuda.device(self._device):
            stream = CudaStream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
            source = host_view(address, min(num_bytes, _CHECKED_BYTES))
            target = torch.zeros(source.nbytes, dtype=torch.uint8, device=self._device)
            torch.cuda.current_stream().synchronize()
            seconds = []
            for _ in range(_ROUNDS):
                started = time.perf_counter()
                stream.copy(target, source)
                stream.synchronize()
                seconds.append(time.perf_counter() - started)
            return source.nbytes / min(seconds) if torch.equal(target.cpu(), source) else None


class Piece(NamedTuple):
    """Part of a range that one copy may take."""

    start: int  # from the range's first byte
    end: int
    is_registered: bool


class HostRegistration:
    """Memory that is registered, or being so. All methods but `close` from any thread."""

    def __init__(
        self,
        spans: Sequence[Span],
        registrar: Registrar,
        *,
        most_bytes: int,
        least_rate: float = 0.0,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        """spans: memory to register, the most wanted first. most_bytes: that may be locked.

        least_rate: of copies from it, in bytes/s; else nothing is registered.
        """
        self._wanted_bytes = sum(end - start for start, end in spans)
        self._pieces = list(_cut(spans, most_bytes, piece_bytes))
        self._planned_bytes = sum(end - start for start, end in self._pieces)
        self._registrar, self._least_rate = registrar, least_rate
        self._done: list[Span] = []  # sorted; replaced, never changed
        self._closing = threading.Event()
        self._is_behind = False  # the program has gone on
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None
        self.error: str | None = None  # why the rest is not registered

    @property
    def num_bytes(self) -> int:
        """Registered so far."""
        return sum(end - start for start, end in self._done)

    @property
    def expected_share(self) -> float:
        """Share of the memory that is registered in the end, by what is known."""
        return self.expected_bytes / max(1, self._wanted_bytes)

    @property
    def expected_bytes(self) -> int:
        """Registered in the end, by what is known."""
        return self.num_bytes if self._finished.is_set() else self._planned_bytes

    def begin(self, wait_s: float = 0.0) -> None:
        """Start the thread, unless it is; wait up to `wait_s` for it to finish."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="host memory", daemon=True)
            self._thread.start()
        self._finished.wait(wait_s)
        self._is_behind = True

    def covers(self, address: int, num_bytes: int) -> bool:
        """Return True if one copy may take all of a range."""
        done = self._done
        number = bisect_right(done, (address, float("inf"))) - 1
        return number >= 0 and address + num_bytes <= done[number][1]

    def pieces(self, address: int, num_bytes: int) -> Iterator[Piece]:
        """Cut a range where registrations begin and end."""
        done, at, end = self._done, address, address + num_bytes
        number = max(0, bisect_right(done, (address, end)) - 1)
        for first, last in done[number:]:
            if first >= end:
                break
            if last <= at:
                continue
            if at < first:
                yield Piece(at - address, first - address, False)
                at = first
            stop = min(end, last)
            yield Piece(at - address, stop - address, True)
            at = stop
        if at < end:
            yield Piece(at - address, num_bytes, False)

    def close(self) -> None:
        """Stop, and unlock all memory; no copy from it may be under way. Idempotent."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        done, self._done = self._done, []
        for start, _ in done:
            self._registrar.unregister(start)

    def _work(self) -> None:
        num_refused = 0
        try:
            for start, end in self._pieces:
                if self._closing.is_set() or num_refused > _MOST_REFUSED:
                    break
                started = time.perf_counter()
                try:
                    self._registrar.register(start, end - start)
                except DeviceError as error:  # another GPU may have registered a page of it
                    self.error, num_refused = str(error), num_refused + 1
                    continue
                if not self._done and (fault := self._fault(start, end)) is not None:
                    self._registrar.unregister(start)
                    self.error = fault
                    break
                self._done = sorted([*self._done, (start, end)])
                if self._is_behind:  # the GPU's work waits for it half of the time at most
                    self._closing.wait(time.perf_counter() - started)
        finally:
            self._finished.set()

    def _fault(self, start: int, end: int) -> str | None:
        """Try copies from the first piece; describe what is wrong with them."""
        try:
            rate = self._registrar.copy_rate(start, end - start)
        except RuntimeError as error:  # torch's
            return str(error).splitlines()[0]
        if rate is not None and rate >= self._least_rate:
            return None
        found = "wrong bytes" if rate is None else f"{rate / 1e9:.1f} GB/s"
        least = f"expected at least {self._least_rate / 1e9:.1f} GB/s"
        return f"copies from registered memory give {found}, {least}"


def host_view(address: int, num_bytes: int) -> Tensor:
    """View host memory that is only read as uint8: of read-only arrays, torch warns."""
    memory = (ctypes.c_uint8 * num_bytes).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _cut(spans: Sequence[Span], most_bytes: int, piece_bytes: int) -> Iterator[Span]:
    """Cut spans into pieces of whole pages, each page once, up to `most_bytes` in all."""
    taken: list[Span] = []
    for first, last in spans:
        start, end = first // _PAGE_BYTES * _PAGE_BYTES, -(-last // _PAGE_BYTES) * _PAGE_BYTES
        # Neighbours in the file share a page.
        start = max([start, *(e for s, e in taken if s <= start < e)])
        end = min([end, *(s for s, e in taken if s < end <= e)])
        for at in range(start, end, piece_bytes):
            stop = min(end, at + piece_bytes)
            if stop - at > most_bytes:
                return
            most_bytes -= stop - at
            taken.append((at, stop))
            yield at, stop
