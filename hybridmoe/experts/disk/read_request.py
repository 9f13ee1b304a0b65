"""Ranges of model files, and requests to read some of them into memory."""

from collections.abc import Sequence
from typing import NamedTuple

from hybridmoe.errors import DiskError
from hybridmoe.hardware.disk import BLOCK_BYTES

__all__ = ["FileRange", "ReadRequest"]


class FileRange(NamedTuple):
    """Byte range of a model file."""

    file_index: int
    offset: int
    num_bytes: int
    name: str  # of the tensor, for messages

    @property
    def skew(self) -> int:
        """Offset of the range in the buffer it is read to, which starts at a disk block."""
        return self.offset % BLOCK_BYTES


class ReadRequest:
    """File ranges that are read together."""

    def __init__(
        self, key: int, ranges: Sequence[FileRange], buffers: Sequence[memoryview]
    ) -> None:
        """key: unlike those of all requests under way.

        buffers: one a range, of `direct_buffer_bytes`, at the address of a whole block.
        """
        self.key = key
        self.ranges = ranges
        self.buffers = buffers
        self.error: DiskError | None = None  # once it has ended
