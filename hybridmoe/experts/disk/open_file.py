"""Model files opened for reads past the page cache: one descriptor with O_DIRECT, one without."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hybridmoe.errors import DiskError
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.reader import FileState

__all__ = ["OpenFile"]


class OpenFile(NamedTuple):
    """Descriptors of one file; whoever has it closes them."""

    name: str  # for messages
    fd: int
    direct_fd: int  # -1 if the file system takes no direct reads
    state: FileState

    @classmethod
    def open(cls, path: Path, state: FileState | None = None) -> "OpenFile":
        """Open a file. state: when its header was read; None = now.

        Errors: DiskError if it cannot be opened, or is in another state.
        """
        name = printable(path.name, 255)
        fd, state = _open(path, name, 0, state)
        direct_fd = -1
        with suppress(DiskError):
            direct_fd, _ = _open(path, name, os.O_DIRECT, state)
        return cls(name, fd, direct_fd, state)

    def close(self) -> None:
        """Close the descriptors. Not idempotent."""
        os.close(self.fd)
        if self.direct_fd >= 0:
            os.close(self.direct_fd)


def _open(path: Path, name: str, flags: int, state: FileState | None) -> tuple[int, FileState]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        raise DiskError(f"{name}: cannot be opened: {error.strerror}") from None
    found = FileState.of(fd)
    if state not in (None, found):
        os.close(fd)
        raise DiskError(f"{name}: the file was changed while it was loaded; load it again")
    return fd, found
