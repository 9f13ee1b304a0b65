"""Files of KV cache pages: one page each, named by chain hashes, written once and then only read.

    DIR/kv-MODEL/XX/PARENT-OWN      XX: the first two digits of PARENT

    8 bytes   magic, with the version
    4 bytes   CRC-32 of all that follows
    4 bytes   number of tokens n, at most PAGE_TOKENS; little-endian, as all numbers
    32 bytes  chain hash of the tokens before
    ids       int32 (n)
    rows      uint8, as `RowLayout` has them: latents (layers, n, row bytes), then index keys

A chain hash covers the model and all tokens up to a page's last, so that equal names mean equal
contents, and processes share a folder without locks: a file appears by being renamed, and vanishes
by being removed. Contents are verified when they are read, and nothing is flushed to disk: a file
that a crash cut off is a miss. Other users must not write to the folder: they could forge pages.
"""

import hashlib
import os
import re
import secrets
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridmoe.engine.kv_rows import RowLayout, Rows
from hybridmoe.errors import ConfigError
from hybridmoe.kernels.paged_mla import PAGE_TOKENS

__all__ = ["DamagedPageError", "PageFile", "PageFolder", "chain_hash", "page_files"]

_MAGIC = b"hmKVPG01"
_CHECKED_AT = 12  # behind magic and CRC
_PARENT_AT = 16
_IDS_AT = 48
_LARGE_BYTES = 1 << 20  # files that do not stay in the system's page cache, which weights need
_STALE_S = 60.0  # age of a file that a killed process left half-written
_MOST_CHILDREN = 256  # whose tokens are compared
_FOLDER = re.compile(r"kv-[0-9a-f]{32}")
_SUBFOLDER = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}(\.[0-9a-f]{8}\.tmp)?")


class DamagedPageError(Exception):
    """A file's contents are not those of its name; it has been removed."""


class PageFile(NamedTuple):
    """A file of any model in the folder."""

    used_ns: int
    num_bytes: int
    path: str


def chain_hash(parent: bytes, ids: Sequence[int]) -> bytes:
    """Hash the tokens of a page and all before it."""
    return hashlib.sha256(parent + np.array(ids, "<i4").tobytes()).digest()


class PageFolder:
    """Pages of one model in a folder. Thread-safe. All methods raise OSError."""

    def __init__(self, root: Path, model: str, layout: RowLayout) -> None:
        """model: identifies what computes the pages, and their layout."""
        self.root_path = root
        self.root_hash = hashlib.sha256(model.encode()).digest()
        self._folder = root / f"kv-{self.root_hash.hex()[:32]}"
        self.has_damage = False  # found in a file: no other is trusted without being read
        self._layout = layout

    def file_bytes(self, num_tokens: int) -> int:
        """Size of the file of a page with `num_tokens`."""
        return _IDS_AT + num_tokens * (4 + self._layout.token_bytes)

    def prepare(self) -> None:
        """Make the folders, for this user alone. Errors: ConfigError if others may write there."""
        self.root_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        root, own = self.root_path.stat(), self._folder.lstat()
        is_open = root.st_mode & stat.S_IWOTH and not root.st_mode & stat.S_ISVTX
        is_own = own.st_uid == os.geteuid() and stat.S_ISDIR(own.st_mode)
        if is_open or not is_own or own.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"other users may write to {self._folder}")

    def read(self, parent: bytes, ids: Sequence[int]) -> Rows | None:
        """Read the page with these tokens; None if it is missing. Errors: DamagedPageError."""
        page = self._read(parent, _name(parent, chain_hash(parent, ids)), ids)
        return None if page is None else page[1]

    def read_longest(self, parent: bytes, ids: Sequence[int], more_than: int) -> Rows | None:
        """Read the longest prefix of `ids` that a page behind `parent` has, at most a page.

        None if none has more than `more_than` tokens. Errors: DamagedPageError.
        """
        best, longest = "", more_than
        for name in self._children(parent):
            with suppress(OSError), open(self._path(name), "rb") as file:
                head = file.read(_IDS_AT + 4 * PAGE_TOKENS)
                common = _common_length(_ids_of(head), ids)
                if common > longest:
                    best, longest = name, common
        page = self._read(parent, best, None) if best else None
        if page is None or _common_length(page[0], ids) < longest:
            return None
        return self._layout.head(page[1], longest)

    def write(self, parent: bytes, ids: Sequence[int], rows: Rows, used_ns: int) -> int:
        """Write a page, as used at that time. Returns its bytes."""
        path = self._path(_name(parent, chain_hash(parent, ids)))
        head = len(ids).to_bytes(4, "little") + parent + np.array(ids, "<i4").tobytes()
        checksum = zlib.crc32(rows.data, zlib.crc32(head))
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        with suppress(FileNotFoundError):
            return self._write(beside, path, checksum, head, rows, used_ns)
        with suppress(FileExistsError):
            self.root_path.mkdir(mode=0o700)
        for folder in (self._folder, path.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        return self._write(beside, path, checksum, head, rows, used_ns)

    def touch(self, parent: bytes, own: bytes, used_ns: int) -> bool:
        """Mark a page as used at that time. Returns False if it is gone."""
        try:
            os.utime(self._path(_name(parent, own)), ns=(used_ns, used_ns))
        except FileNotFoundError:
            return False
        return True

    def _write(
        self, beside: Path, path: Path, checksum: int, head: bytes, rows: Rows, used_ns: int
    ) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(beside, flags, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(_MAGIC + checksum.to_bytes(4, "little") + head)
                file.write(rows.data)
                file.flush()
                size = file.tell()
                if size >= _LARGE_BYTES:
                    os.fdatasync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.utime(fd, ns=(used_ns, used_ns))
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
        return size

    def _read(
        self, parent: bytes, name: str, expected: Sequence[int] | None
    ) -> tuple[list[int], Rows] | None:
        """Read and verify a file: its tokens, `expected` or any, and rows; None without one."""
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb", buffering=0) as file:
            found = os.fstat(fd)
            size = found.st_size
            if size > self.file_bytes(PAGE_TOKENS if expected is None else len(expected)):
                self._remove_damaged(name, found)
            data = np.empty(size, np.uint8)
            num_read = file.readinto(data.data)
            if size >= _LARGE_BYTES:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        head = data[:_IDS_AT].tobytes()
        count = int.from_bytes(head[_CHECKED_AT:_PARENT_AT], "little")
        if (
            num_read != size
            or size != self.file_bytes(count)
            or head[: len(_MAGIC)] != _MAGIC
            or int.from_bytes(head[len(_MAGIC) : _CHECKED_AT], "little")
            != zlib.crc32(data[_CHECKED_AT:].data)
            or head[_PARENT_AT:] != parent
        ):
            self._remove_damaged(name, found)
        end = _IDS_AT + 4 * count
        ids = data[_IDS_AT:end].view("<i4").tolist()
        if expected is not None and ids != list(expected):
            self._remove_damaged(name, found)
        return ids, data[end:]

    def _remove_damaged(self, name: str, found: os.stat_result) -> None:
        self.has_damage = True
        path = self._path(name)
        with suppress(OSError):
            if os.path.samestat(found, path.lstat()):  # else it has been written anew
                path.unlink()
        raise DamagedPageError(str(path))

    def _children(self, parent: bytes) -> list[str]:
        """Names of the pages behind a page, the first of them."""
        first = parent.hex()[:32]
        try:
            names = os.listdir(self._folder / first[:2])
        except FileNotFoundError:
            return []
        mine = (n for n in names if n.startswith(first) and not n.endswith(".tmp"))
        return sorted(mine)[:_MOST_CHILDREN]

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name


def page_files(root: Path) -> Iterator[PageFile]:
    """Find the pages of all models in a folder, and remove what killed processes left of some.

    Errors: none; what cannot be read is skipped.
    """
    stale_ns = time.time_ns() - int(_STALE_S * 1e9)
    for folder in _folders(root, _FOLDER):
        for subfolder in _folders(folder, _SUBFOLDER):
            with suppress(OSError), os.scandir(subfolder) as entries:
                for entry in entries:
                    if not (match := _FILE.fullmatch(entry.name)):
                        continue
                    with suppress(OSError):
                        found = entry.stat(follow_symlinks=False)
                        if match[1] and found.st_mtime_ns < stale_ns:
                            os.unlink(entry.path)
                        else:
                            yield PageFile(found.st_mtime_ns, found.st_size, entry.path)


def _folders(path: str | Path, name: re.Pattern[str]) -> list[str]:
    with suppress(OSError), os.scandir(path) as entries:
        return [
            e.path for e in entries if name.fullmatch(e.name) and e.is_dir(follow_symlinks=False)
        ]
    return []


def _name(parent: bytes, own: bytes) -> str:
    return f"{parent.hex()[:32]}-{own.hex()[:32]}"


def _ids_of(head: bytes) -> list[int]:
    """Tokens in a file's first bytes, which are not verified."""
    count = min(int.from_bytes(head[_CHECKED_AT:_PARENT_AT], "little"), PAGE_TOKENS)
    ids = head[_IDS_AT : _IDS_AT + 4 * count]
    return np.frombuffer(ids[: len(ids) // 4 * 4], "<i4").tolist()  # type: ignore[no-any-return]


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
