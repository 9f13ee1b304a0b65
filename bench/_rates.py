"""Rates of memory and disk, sampled between timed steps: other programs change them."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridmoe import _C
from hybridmoe.hardware.disk import measure_disk
from hybridmoe.hardware.topology import num_threads

__all__ = ["RateSampler", "Sample"]

_BYTES = 128 << 20  # more than caches hold, little beside a memory limit
_DISK_S = 0.15


class Sample(NamedTuple):
    """Bytes/s at one time."""

    dram: float
    disk: float

    def mean(self, other: "Sample") -> "Sample":
        """Rates halfway between two samples, in seconds a byte."""
        return Sample(*(2 / (1 / a + 1 / b) for a, b in zip(self, other, strict=True)))


class RateSampler:
    """Measures what memory and the disk of a file give at the moment, in about 0.2 s."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory = np.ones(_BYTES, np.uint8)  # written, so that every page is resident
        self._num_samples = 0

    def sample(self) -> Sample:
        """Read memory once, by all kernel threads, and pieces of the file past the page cache."""
        started = time.perf_counter()
        _C.read_memory(self._memory.ctypes.data, _BYTES, 16 * num_threads())
        dram = _BYTES / (time.perf_counter() - started)
        self._num_samples += 1
        disk = measure_disk([self._path], seconds=_DISK_S, seed=self._num_samples)
        assert disk is not None, "the file system has no direct reads"
        return Sample(dram, disk)
