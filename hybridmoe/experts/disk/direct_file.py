"""Reads of a model file past the page cache.

With O_DIRECT if the file system supports it. Otherwise buffered, without read-ahead, and the pages
are dropped at once: a file larger than memory must not evict pages that are in use.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

from hybridmoe.errors import DiskError
from hybridmoe.experts.disk.read_queue import FileRange
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.reader import FileState
from hybridmoe.hardware.disk import BLOCK_BYTES

__all__ = ["DirectFile"]


class DirectFile:
    """One open file. Thread-safe."""

    def __init__(self, path: Path, state: FileState | None = None) -> None:
        """state: when its header was read; None = now.

        Errors: DiskError if it cannot be opened, or is in another state.
        """
        self.name = printable(path.name, 255)
        self._state = state
        self._fds = [self._open(path, 0)]
        self._state = state or FileState.of(self._fds[0])
        with suppress(OSError):  # no read-ahead
            os.posix_fadvise(self._fds[0], 0, 0, os.POSIX_FADV_RANDOM)
        self.is_direct = False
        with suppress(DiskError):
            self._fds.append(self._open(path, os.O_DIRECT))
            self.is_direct = True

    def fd(self, is_direct: bool) -> int:
        """Return a descriptor. is_direct: only if `is_direct` is or was True."""
        return self._fds[is_direct]

    def read(self, part: FileRange, buffer: memoryview) -> None:
        """Read a range into `buffer`, from `part.skew` on. Errors: DiskError."""
        start = part.offset - part.skew
        wanted = part.skew + part.num_bytes
        padded = -(-wanted // BLOCK_BYTES) * BLOCK_BYTES
        done = 0
        while done < wanted:
            is_direct = self.is_direct
            try:
                count = os.preadv(self.fd(is_direct), [buffer[done:padded]], start + done)
            except OSError as error:
                if self.fall_back_to_buffered(is_direct, error.errno):
                    continue
                raise self.read_error(part, error.strerror or str(error)) from None
            if not is_direct:
                self.drop_cached(start + done, count)
            whole_blocks = (done + count) // BLOCK_BYTES * BLOCK_BYTES
            if done + count < wanted and whole_blocks == done:
                raise self.read_error(part, f"the file ends at {start + done + count}")
            done = done + count if done + count >= wanted else whole_blocks
        if (change := self.find_change(part)) is not None:
            raise change

    def find_change(self, part: FileRange) -> DiskError | None:
        """Return the error of a range that was read after the file was written to, or None."""
        try:
            if FileState.of(self._fds[0]) == self._state:
                return None
        except OSError as error:  # a file system that is gone
            return self.read_error(part, error.strerror or str(error))
        return self.read_error(part, "the file was changed after it was opened; load it again")

    def fall_back_to_buffered(self, was_direct: bool, error: int | None) -> bool:
        """Stop reading directly if `error` says so. Returns True if the read is to be retried."""
        if not was_direct or error != errno.EINVAL:
            return False
        self.is_direct = False  # some file systems accept O_DIRECT at open, and fail at read
        return True

    def drop_cached(self, offset: int, num_bytes: int) -> None:
        """Drop the pages that a buffered read has cached."""
        with suppress(OSError):
            os.posix_fadvise(self._fds[0], offset, num_bytes, os.POSIX_FADV_DONTNEED)

    def read_error(self, part: FileRange, reason: str) -> DiskError:
        """Make the error of a range that could not be read."""
        return DiskError(
            f"{self.name}: tensor {printable(part.name)}: cannot read {part.num_bytes} bytes"
            f" at offset {part.offset}: {reason}"
        )

    def close(self) -> None:
        """Close the descriptors. Not idempotent."""
        for fd in self._fds:
            os.close(fd)

    def _open(self, path: Path, flags: int) -> int:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        except OSError as error:
            raise DiskError(f"{self.name}: cannot be opened: {error.strerror}") from None
        if self._state not in (None, FileState.of(fd)):
            os.close(fd)
            raise DiskError(f"{self.name}: the file was changed while it was loaded; load it again")
        return fd
