"""Open a GGUF that may be damaged: sound, or refused in one line, within a memory bound."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridmoe.errors import GGUFError
from hybridmoe.gguf import GGUFFile

MEMORY_PER_FILE_BYTE = 16
MEMORY_FLOOR = 256 << 10


@contextmanager
def memory_bound(path: Path) -> Iterator[None]:
    """Fail when the block allocates more than a small multiple of the file's length."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = path.stat().st_size if path.is_file() else 0
    assert peak < MEMORY_FLOOR + MEMORY_PER_FILE_BYTE * size, peak


def refusal(path: Path) -> str | None:
    """The message with which a file is refused, or None if it opens and reads soundly."""
    with memory_bound(path):
        try:
            with GGUFFile.open(path) as file:
                for tensor in file.tensors.values():
                    assert len(tensor.data) == tensor.num_bytes
                    int(tensor.data[0]) + int(tensor.data[-1])
                return None
        except GGUFError as error:
            message = str(error)
    assert message.isprintable(), message
    assert len(message) < 400, message
    assert message.startswith(f"{path.name}: "), message
    return message
