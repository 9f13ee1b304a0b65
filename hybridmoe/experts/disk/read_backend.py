"""Choice of what reads files: threads that each wait for one read, or io_uring with many in flight.

io_uring takes less CPU time for pieces up to about 1 MiB, and threads for larger ones, which they
read no slower (docs/log.md).
"""

from hybridmoe import _C, env
from hybridmoe.errors import ConfigError, ShapeError
from hybridmoe.hardware.disk import BLOCK_BYTES
from hybridmoe.units import format_bytes

__all__ = [
    "CHUNK_BYTES",
    "LARGE_BYTES",
    "NUM_THREADS",
    "RING_DEPTH",
    "describe_backend",
    "find_reason_for_threads",
]

NUM_THREADS = 4  # large reads: each alone keeps a disk's queue full
RING_DEPTH = 32  # chunks in flight
LARGE_BYTES = 2 << 20  # pieces of a matrix and more that threads read with less CPU time
CHUNK_BYTES = 512 << 10  # smaller ones cost more CPU time; some disk drivers split larger ones


def find_reason_for_threads(*, is_direct: bool = True, piece_bytes: int = 0) -> str:
    """Return "" for io_uring, if the system has it and `HYBRIDMOE_IO` does not forbid it.

    is_direct: True if the files take direct reads. io_uring hands buffered reads to kernel threads,
    which gains nothing. piece_bytes: typical of a read, 0 = small.
    Errors: ConfigError if io_uring is asked for and missing.
    """
    wanted = env.io_engine()
    if wanted == "threads":
        return "HYBRIDMOE_IO=threads"
    if wanted == "auto" and not is_direct:
        return "the file system takes no direct reads"
    if wanted == "auto" and piece_bytes >= LARGE_BYTES:
        return f"matrices of {format_bytes(piece_bytes)} cost them less than io_uring"
    try:
        _C.IoRing(RING_DEPTH, CHUNK_BYTES, BLOCK_BYTES).close()
    except ShapeError as error:
        if wanted == "uring":
            raise ConfigError(f"HYBRIDMOE_IO=uring: {error}; use auto or threads") from None
        return str(error)
    return ""


def describe_backend(
    why_threads: str, *, num_threads: int = NUM_THREADS, num_devices: int = 1
) -> str:
    """Describe for users what reads. why_threads: "" = io_uring."""
    disks = f" for each of {num_devices} disks" if num_devices > 1 else ""
    return f"{num_threads} threads{disks} ({why_threads})" if why_threads else f"io_uring{disks}"
