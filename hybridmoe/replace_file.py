"""Atomic and durable replacement of files, whatever ends the program or the machine meanwhile.

A new file is written beside the old one, brought to the disk, and then takes its name. While it is
written it is locked: one that nobody locks was left by a process that was killed.
"""

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["replace_file", "sync_file", "sync_folder"]


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` if the block ends without an exception.

    Errors: OSError, after which the old file is as it was.
    """
    _remove_stale(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            sync_file(file)
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path)


def sync_file(file: BinaryIO) -> None:
    """Bring what was written to the disk; pipes and devices have none. Errors: OSError."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def sync_folder(path: Path) -> None:
    """Bring the name of a file to the disk; the file itself is the caller's affair."""
    with suppress(OSError):  # a file system that cannot do it for folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove_stale(path: Path) -> None:
    """Remove what killed processes left of the same file."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]+\.tmp")
    with suppress(OSError):
        for beside in [p for p in path.parent.iterdir() if name.fullmatch(p.name)]:
            with suppress(OSError), beside.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is written
                beside.unlink()
