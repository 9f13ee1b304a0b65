"""Direct reads (O_DIRECT): their block size, and a short measurement of their rate.

The measurement reads pieces of an expert matrix's size past the page cache, at random offsets,
several at a time, as the expert cache does. Writes nothing.
"""

import mmap
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hybridmoe import _C

__all__ = ["BLOCK_BYTES", "direct_buffer_bytes", "measure_disk"]

# Direct reads need offsets, lengths and addresses that are multiples of it.
BLOCK_BYTES = _C.BLOCK_BYTES
PIECE_BYTES = 8 << 20  # K2's expert matrices in Q4_K
_DEPTH = 4  # reads at a time


def direct_buffer_bytes(num_bytes: int) -> int:
    """Size of a buffer for a direct read of `num_bytes` from any offset: whole blocks and one."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES + BLOCK_BYTES


def measure_disk(paths: Sequence[Path], *, seconds: float = 1.0, seed: int = 0) -> float | None:
    """Measure bytes/s; None if the files are too short, or cannot be read past the cache."""
    sizes = {path: os.path.getsize(path) // PIECE_BYTES for path in paths}
    pieces = [(path, i * PIECE_BYTES) for path, count in sizes.items() for i in range(count)]
    if not pieces or not hasattr(os, "O_DIRECT"):
        return None
    random.Random(seed).shuffle(pieces)
    files: dict[Path, int] = {}
    buffers = [mmap.mmap(-1, PIECE_BYTES) for _ in range(_DEPTH)]  # page-aligned for O_DIRECT
    for buffer in buffers:
        buffer.write(bytes(PIECE_BYTES))  # pages are there before the clock starts
    try:
        for path in sizes:
            files[path] = os.open(path, os.O_RDONLY | os.O_DIRECT)
        started = time.perf_counter()
        until = started + seconds

        def read(worker: int) -> int:
            done = 0
            for path, offset in pieces[worker::_DEPTH]:
                if time.perf_counter() > until:
                    break
                done += os.preadv(files[path], [buffers[worker]], offset)
            return done

        with ThreadPoolExecutor(_DEPTH) as pool:
            done = sum(pool.map(read, range(_DEPTH)))
        taken = time.perf_counter() - started
    except OSError:  # a file system without direct reads
        return None
    finally:
        for buffer in buffers:
            buffer.close()
        for file in files.values():
            os.close(file)
    return done / taken if done and taken > 0 else None
