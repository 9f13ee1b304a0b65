"""Memory for weights that are read from a file.

The system provides the pages on first write, as huge pages where it supports them and the machine
has one NUMA node.
"""

import mmap

import numpy as np

from hybridmoe.errors import ConfigError
from hybridmoe.gguf.huge_pages import advise_huge_pages
from hybridmoe.hardware import topology
from hybridmoe.hardware.disk import BLOCK_BYTES

__all__ = ["Arena"]

_HUGE_BYTES = 2 << 20


class Arena:
    """Anonymous memory, aligned to disk blocks and huge pages. Its views keep it alive."""

    def __init__(self, num_bytes: int) -> None:
        """Errors: ConfigError if the system has less memory."""
        size = max(BLOCK_BYTES, num_bytes)
        spare = _HUGE_BYTES if size >= _HUGE_BYTES else 0  # not every kernel aligns by itself
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory gets no huge pages
            memory = mmap.mmap(-1, size + spare, flags=flags)
        except (OSError, ValueError, OverflowError):
            raise ConfigError(f"no memory for {num_bytes} bytes of weights") from None
        # A huge page lies on one NUMA node, whose threads read a part of each matrix alone.
        advise_huge_pages(memory, wanted=len(topology.current().nodes) == 1)
        self.num_bytes = num_bytes
        address = np.frombuffer(memory, np.uint8).ctypes.data
        start = -address % _HUGE_BYTES if spare else 0
        self.view = memoryview(memory)[start : start + size]
        self.bytes = np.frombuffer(self.view, np.uint8)
        self.address = address + start
