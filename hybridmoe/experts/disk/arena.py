"""Memory for experts: one block-aligned arena, cut into buffers that each take any expert.

The system provides the pages on first write, as huge pages where it supports them.
"""

import mmap
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from hybridmoe.errors import ConfigError
from hybridmoe.hardware.disk import BLOCK_BYTES, direct_buffer_bytes

__all__ = ["Arena", "ExpertBuffers", "buffer_bytes"]


def buffer_bytes(matrix_bytes: Sequence[int]) -> int:
    """Size of a buffer for an expert with matrices of these sizes."""
    return sum(map(direct_buffer_bytes, matrix_bytes))


class Arena:
    """Anonymous memory, aligned to disk blocks. Its views keep it alive."""

    def __init__(self, num_bytes: int) -> None:
        """Errors: ConfigError if the system has less memory."""
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory gets no huge pages
            memory = mmap.mmap(-1, max(BLOCK_BYTES, num_bytes), flags=flags)
        except (OSError, ValueError, OverflowError):
            raise ConfigError(f"no memory for {num_bytes} bytes of weights") from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without huge pages
                memory.madvise(mmap.MADV_HUGEPAGE)
        self.num_bytes = num_bytes
        self.bytes = np.frombuffer(memory, np.uint8)
        self.view = memoryview(memory)
        self.address = self.bytes.ctypes.data


class ExpertBuffers:
    """Fixed number of equal buffers with a free list."""

    def __init__(self, num_buffers: int, matrix_bytes: Sequence[int]) -> None:
        """matrix_bytes: of the largest gate, up and down. Errors: ConfigError."""
        self.num_buffers = num_buffers
        self._capacities = [direct_buffer_bytes(size) for size in matrix_bytes]
        self._arena = Arena(num_buffers * sum(self._capacities))
        self._free = list(range(num_buffers - 1, -1, -1))  # lowest last, so that it is used first

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        """Take a free buffer; there must be one."""
        return self._free.pop()

    def free(self, buffer: int) -> None:
        """Put a buffer back on the free list."""
        self._free.append(buffer)

    def views(self, buffer: int) -> list[memoryview]:
        """Return a buffer's memory, one view for each matrix."""
        views, start = [], buffer * sum(self._capacities)
        for capacity in self._capacities:
            views.append(self._arena.view[start : start + capacity])
            start += capacity
        return views

    def addresses(self, buffer: int) -> list[int]:
        """Return the addresses of a buffer's views."""
        starts, start = [], self._arena.address + buffer * sum(self._capacities)
        for capacity in self._capacities:
            starts.append(start)
            start += capacity
        return starts
