"""One piece of memory, cut into buffers of one size: each takes any expert of the model.

Knows sizes and addresses; not which expert is where, or why. The system gives the memory as it is
first written, in huge pages where it has them.
"""

import mmap
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from hybridmoe.errors import ConfigError
from hybridmoe.hardware.disk import BLOCK_BYTES, direct_buffer_bytes

__all__ = ["Arena", "Slots", "buffer_bytes"]


def buffer_bytes(piece_bytes: Sequence[int]) -> int:
    """Memory of one buffer that takes pieces of these sizes."""
    return sum(map(direct_buffer_bytes, piece_bytes))


class Arena:
    """Anonymous memory that begins at a block of the disk. Its views keep it alive."""

    def __init__(self, num_bytes: int) -> None:
        """Errors: ConfigError where the system has not so much."""
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory gets no huge pages
            memory = mmap.mmap(-1, max(BLOCK_BYTES, num_bytes), flags=flags)
        except (OSError, ValueError, OverflowError):
            raise ConfigError(f"no memory for {num_bytes} bytes of weights") from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        self.num_bytes = num_bytes
        self.bytes = np.frombuffer(memory, np.uint8)
        self.view = memoryview(memory)
        self.address = self.bytes.ctypes.data


class Slots:
    """Numbered buffers, and which of them are free."""

    def __init__(self, num_buffers: int, piece_bytes: Sequence[int]) -> None:
        """piece_bytes: the most that each piece of an expert takes. Errors: ConfigError."""
        self.num_buffers = num_buffers
        self._rooms = [direct_buffer_bytes(size) for size in piece_bytes]
        self._arena = Arena(num_buffers * sum(self._rooms))
        self._free = list(range(num_buffers - 1, -1, -1))  # the lowest first

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free buffer; there has to be one."""
        return self._free.pop()

    def give_back(self, buffer: int) -> None:
        """The buffer is free again."""
        self._free.append(buffer)

    def memory(self, buffer: int) -> list[memoryview]:
        """Room for each piece."""
        views, start = [], buffer * sum(self._rooms)
        for room in self._rooms:
            views.append(self._arena.view[start : start + room])
            start += room
        return views

    def addresses(self, buffer: int) -> list[int]:
        """Where each piece's room begins."""
        starts, start = [], self._arena.address + buffer * sum(self._rooms)
        for room in self._rooms:
            starts.append(start)
            start += room
        return starts
