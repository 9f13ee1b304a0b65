"""Rate of a disk, by reads as the expert cache does them: two experts at a time, in matrices.

They are at random offsets and go past the page cache. Writes nothing.
"""

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from hybridmoe.experts.disk.arena import Arena
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.read_request import FileRange, ReadRequest
from hybridmoe.hardware.disk import direct_buffer_bytes

__all__ = ["PIECE_BYTES", "DiskMeter", "measure_disk"]

PIECE_BYTES = 8 << 20  # K2's expert matrices in Q4_K
_NUM_IN_FLIGHT = 6


class DiskMeter:
    """Measures again and again, with files and memory that are ready. Not thread-safe."""

    def __init__(self, paths: Sequence[Path], *, seed: int = 0) -> None:
        """Open the files. Errors: DiskError, ConfigError."""
        self._reader = FileReader(paths, piece_bytes=PIECE_BYTES)
        room = direct_buffer_bytes(PIECE_BYTES)
        arena = Arena(_NUM_IN_FLIGHT * room)
        arena.bytes[:] = 0  # pages are there before the clock starts
        self._buffers = [arena.view[i * room : (i + 1) * room] for i in range(_NUM_IN_FLIGHT)]
        self._reader.keep_alive(arena)
        self._pieces = [
            FileRange(number, offset, PIECE_BYTES, "weights")
            for number, path in enumerate(paths)
            for offset in range(0, path.stat().st_size - PIECE_BYTES + 1, PIECE_BYTES)
        ]
        self._random = random.Random(seed)
        self._order: Iterator[FileRange] = iter(())

    @property
    def can_measure(self) -> bool:
        """False if the files are too short, or cannot be read past the page cache."""
        return self._reader.native.is_direct and bool(self._pieces)

    def measure(self, seconds: float) -> float:
        """Read for some time; returns bytes/s. Errors: DiskError."""
        started, num_bytes = time.perf_counter(), 0
        num_in_flight = len(self._buffers)
        for key in range(num_in_flight):
            self._submit(key)
        while num_in_flight:
            request = self._reader.take_completed(wait=True)
            assert request is not None
            if request.error is not None:
                raise request.error
            num_bytes += PIECE_BYTES
            if time.perf_counter() - started < seconds:
                self._submit(request.key)
            else:
                num_in_flight -= 1
        return num_bytes / (time.perf_counter() - started)

    def close(self) -> None:
        """End the reads. Idempotent."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _submit(self, key: int) -> None:
        piece = next(self._order, None)
        if piece is None:
            self._order = iter(self._random.sample(self._pieces, len(self._pieces)))
            piece = next(self._order)
        self._reader.submit(ReadRequest(key, [piece], [self._buffers[key]]))


def measure_disk(paths: Sequence[Path], *, seconds: float = 1.0) -> float | None:
    """Measure bytes/s; None if the files are too short, or cannot be read past the cache.

    Errors: DiskError, ConfigError.
    """
    with DiskMeter(paths) as meter:
        return meter.measure(seconds) if meter.can_measure else None
