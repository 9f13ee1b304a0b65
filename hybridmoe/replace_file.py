"""Atomic and durable replacement of files, safe against crashes of program and machine.

A new file is written beside the old one, flushed to disk, and then renamed over it. It is locked
while it is written: an unlocked one was left by a killed process.
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
    """Open a file that replaces `path` if the block ends without an exception.

    Errors: OSError; the old file is then unchanged.
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
    """Flush a file to disk; pipes and devices have none. Errors: OSError."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def sync_folder(path: Path) -> None:
    """Flush the name of a file to disk, but not its content."""
    with suppress(OSError):  # a file system that cannot flush folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove_stale(path: Path) -> None:
    """Remove unfinished replacements that killed processes left."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]+\.tmp")
    with suppress(OSError):
        for beside in [p for p in path.parent.iterdir() if name.fullmatch(p.name)]:
            with suppress(OSError), beside.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is written
                beside.unlink()
