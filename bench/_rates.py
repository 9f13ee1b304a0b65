"""Rates of memory and disk, sampled between timed steps: other programs change them."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridmoe import _C
from hybridmoe.experts.disk.disk_rate import DiskMeter
from hybridmoe.hardware.topology import num_threads

__all__ = ["RateSampler", "Sample"]

_BYTES = 128 << 20  # more than caches hold, little beside a memory limit
_DISK_S = 0.05


class Sample(NamedTuple):
    """Bytes/s at one time."""

    dram: float
    disk: float

    def mean(self, other: "Sample") -> "Sample":
        """Rates halfway between two samples, in seconds a byte."""
        return Sample(*(2 / (1 / a + 1 / b) for a, b in zip(self, other, strict=True)))


class RateSampler:
    """Measures what memory and the disk of a file give at the moment, in about 0.1 s."""

    def __init__(self, path: Path) -> None:
        self._disk = DiskMeter([path])
        assert self._disk.can_measure, "the file system has no direct reads"
        self._memory = np.ones(_BYTES, np.uint8)  # written, so that every page is resident

    def sample(self) -> Sample:
        """Read memory once, by all kernel threads, and pieces of the file past the page cache."""
        started = time.perf_counter()
        _C.read_memory(self._memory.ctypes.data, _BYTES, 16 * num_threads())
        dram = _BYTES / (time.perf_counter() - started)
        return Sample(dram, self._disk.measure(_DISK_S))

    def close(self) -> None:
        """End the reads."""
        self._disk.close()
