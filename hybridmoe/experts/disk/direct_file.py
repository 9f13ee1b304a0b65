"""One file, read past the page cache.

O_DIRECT where the file system takes it. Where it does not: buffered reads with read-ahead off,
whose pages are given back at once, so that a file larger than memory does not push out what is in
use.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

from hybridmoe.errors import DiskError
from hybridmoe.experts.disk.read_queue import Piece
from hybridmoe.gguf.cursor import printable
from hybridmoe.hardware.disk import BLOCK_BYTES

__all__ = ["DirectFile"]


class DirectFile:
    """One open file; for any thread."""

    def __init__(self, path: Path) -> None:
        """Errors: DiskError where it cannot be opened."""
        self._name = printable(path.name, 255)
        self._fds = [self._open(path, 0)]
        with suppress(OSError):  # no read-ahead
            os.posix_fadvise(self._fds[0], 0, 0, os.POSIX_FADV_RANDOM)
        self.is_direct = False
        with suppress(DiskError):
            self._fds.append(self._open(path, os.O_DIRECT))
            self.is_direct = True

    def fd(self, is_direct: bool) -> int:
        """A descriptor. is_direct: only where `is_direct` is or was true."""
        return self._fds[is_direct]

    def read(self, piece: Piece, memory: memoryview) -> None:
        """Read a piece to `memory`, from `piece.skew` on. Errors: DiskError."""
        start = piece.offset - piece.skew
        wanted = piece.skew + piece.num_bytes
        whole = -(-wanted // BLOCK_BYTES) * BLOCK_BYTES
        done = 0
        while done < wanted:
            is_direct = self.is_direct
            try:
                count = os.preadv(self.fd(is_direct), [memory[done:whole]], start + done)
            except OSError as error:
                if self.turns_buffered(is_direct, error.errno):
                    continue
                raise self.failure(piece, error.strerror or str(error)) from None
            if not is_direct:
                self.forget(start + done, count)
            whole_blocks = (done + count) // BLOCK_BYTES * BLOCK_BYTES
            if done + count < wanted and whole_blocks == done:
                raise self.failure(piece, f"the file ends at {start + done + count}")
            done = done + count if done + count >= wanted else whole_blocks

    def turns_buffered(self, was_direct: bool, error: int | None) -> bool:
        """Whether a read failed since it was direct; it can be tried again."""
        if not was_direct or error != errno.EINVAL:
            return False
        self.is_direct = False  # it could be opened so, but not read
        return True

    def forget(self, offset: int, num_bytes: int) -> None:
        """Give pages back that a buffered read has cached."""
        with suppress(OSError):
            os.posix_fadvise(self._fds[0], offset, num_bytes, os.POSIX_FADV_DONTNEED)

    def failure(self, piece: Piece, why: str) -> DiskError:
        """What to say about a piece that could not be read."""
        return DiskError(
            f"{self._name}: tensor {printable(piece.name)}: cannot read {piece.num_bytes} bytes"
            f" at offset {piece.offset}: {why}"
        )

    def close(self) -> None:
        """Once."""
        for fd in self._fds:
            os.close(fd)

    def _open(self, path: Path, flags: int) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        except OSError as error:
            raise DiskError(f"{self._name}: cannot be opened: {error.strerror}") from None
