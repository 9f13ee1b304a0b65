"""Download of one file that can be interrupted at any time and goes on where it was.

Bytes arrive in FILE.part, which becomes FILE when its size and checksum are right.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from hybridmoe.errors import DownloadError
from hybridmoe.library.hub import NETWORK_ERRORS, Hub, HubFile
from hybridmoe.library.stored_model import PARTIAL
from hybridmoe.replace_file import sync_file, sync_folder

__all__ = ["download_file", "part_of"]

_CHUNK_BYTES = 4 << 20
_MAX_TRIES = 6  # without a byte between them


def part_of(target: Path) -> Path:
    """Return the path of the bytes that have arrived of a file."""
    return target.with_name(target.name + PARTIAL)


def download_file(
    hub: Hub,
    repo: str,
    file: HubFile,
    target: Path,
    on_bytes: Callable[[int], None],
    *,
    pause_s: float = 1.0,
) -> None:
    """Download a file, or the rest of it. on_bytes: gets the number that are there.

    Errors: DownloadError, OSError. Cost: SHA-256 of the bytes that were there before, once.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(target)
    with part.open("a+b") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"{target.name}: another process downloads it") from None
        except OSError:  # a file system without locks
            pass
        digest = _digest(out, file, on_bytes)
        _receive_rest(hub, repo, file, out, digest, on_bytes, pause_s)
        sync_file(out)
        if file.sha256 is not None and digest.hexdigest() != file.sha256:
            part.unlink()
            raise DownloadError(
                f"{target.name}: its SHA-256 is not the hub's: removed, pull it again"
            )
        os.replace(part, target)
    sync_folder(target)


def _digest(out: BinaryIO, file: HubFile, on_bytes: Callable[[int], None]) -> "hashlib._Hash":
    """Hash what is there; a file that is too long begins anew."""
    digest = hashlib.sha256()
    if out.seek(0, os.SEEK_END) > file.num_bytes:
        out.truncate(0)
    out.seek(0)
    while chunk := out.read(_CHUNK_BYTES):
        digest.update(chunk)
        on_bytes(out.tell())
    return digest


def _receive_rest(
    hub: Hub,
    repo: str,
    file: HubFile,
    out: BinaryIO,
    digest: "hashlib._Hash",
    on_bytes: Callable[[int], None],
    pause_s: float,
) -> None:
    tries = 0
    while (size := out.seek(0, os.SEEK_END)) < file.num_bytes:
        try:
            with hub.open(repo, file.path, size) as response:
                skipped = size if response.status == 200 else 0  # the range was ignored
                where = response.headers.get("Content-Range", f"bytes {size}-")
                if not skipped and not where.startswith(f"bytes {size}-"):
                    _fail(f"{where!r:.60} instead of the rest from byte {size}")
                while skipped:
                    skipped -= len(response.read(min(skipped, _CHUNK_BYTES)) or _fail("too short"))
                while chunk := response.read(min(_CHUNK_BYTES, file.num_bytes - size)):
                    out.write(chunk)
                    digest.update(chunk)
                    size, tries = size + len(chunk), 0
                    on_bytes(size)
            if size < file.num_bytes:
                _fail("the connection ended early")
        except NETWORK_ERRORS as error:
            out.flush()
            tries += 1
            if tries >= _MAX_TRIES:
                raise hub.unreachable(error) from None
            time.sleep(pause_s * tries)


def _fail(what: str) -> bytes:
    raise ConnectionError(what)
