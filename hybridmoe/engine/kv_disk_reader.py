"""Read-ahead of KV cache pages from disk, by threads, in the order of a sequence's tokens."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from hybridmoe.engine.kv_disk_files import DamagedPageError, PageFolder, chain_hash
from hybridmoe.engine.kv_rows import Rows
from hybridmoe.kernels.paged_mla import PAGE_TOKENS

__all__ = ["LoadedPage", "PageLoad", "ReadError", "SequenceOnDisk"]

_AHEAD_BYTES = 64 << 20  # read but not yet taken
_AHEAD_PAGES = (2, 64)  # at least, at most

ReadError = OSError | DamagedPageError | MemoryError


class LoadedPage(NamedTuple):
    """Rows of one page of a sequence, or of its first tokens."""

    number: int  # of the page in the sequence
    rows: Rows


class PageLoad:
    """Pages of one sequence on their way from disk, until the first that is missing.

    Of the missing page, or of the last and shorter one, the longest prefix that some page on disk
    shares is read. `take`, `is_done` and `cancel` are for one thread.
    """

    def __init__(
        self,
        folder: PageFolder,
        pool: ThreadPoolExecutor,
        ids: Sequence[int],
        hashes: Sequence[bytes],
        num_known: int,
        wake: Callable[[], None],
        on_error: Callable[[ReadError], None],
    ) -> None:
        """Start to read.

        ids: of the whole sequence, whose last token is not read. hashes: the chain hash before each
        page of `ids`. num_known: tokens that need not be read. wake, on_error: called from other
        threads, `wake` when something arrives or turns out to be missing.
        """
        self._folder, self._pool, self._ids, self._hashes = folder, pool, ids, hashes
        self._num_known, self._wake, self._on_error = num_known, wake, on_error
        self._lock = threading.Lock()
        self._next = self._submitted = num_known // PAGE_TOKENS
        self._missing = (len(ids) - 1) // PAGE_TOKENS  # the first page that is not read whole
        self._found: dict[int, Rows] = {}
        self._is_tail_submitted = self._is_tail_read = False
        self._is_cancelled = self.is_done = False
        self.progress_at = time.monotonic()
        least, most = _AHEAD_PAGES
        page_bytes = folder.file_bytes(PAGE_TOKENS)
        self._window = max(least, min(most, _AHEAD_BYTES // page_bytes))
        self._submit()

    def take(self) -> list[LoadedPage]:
        """Take the pages that have arrived, in order, and read on."""
        taken = []
        with self._lock:
            while (rows := self._found.pop(self._next, None)) is not None:
                taken.append(LoadedPage(self._next, rows))
                self._next += 1
            self.is_done = self._is_tail_read or self._is_cancelled
        if taken:
            self.progress_at = time.monotonic()
        if not self.is_done:
            self._submit()
        return taken

    def cancel(self) -> None:
        """Read no further; what is being read is dropped."""
        self._is_cancelled = self.is_done = True

    def _submit(self) -> None:
        with self._lock:
            first = self._submitted
            self._submitted = max(first, min(self._missing, self._next + self._window))
            pages = range(first, self._submitted)
            needs_tail = self._next == self._missing and not self._is_tail_submitted
            self._is_tail_submitted |= needs_tail
        for index in pages:
            self._pool.submit(self._read, index)
        if needs_tail:
            self._pool.submit(self._read_tail, self._missing)

    def _read(self, index: int) -> None:
        if self._is_cancelled or index >= self._missing:
            return
        start = index * PAGE_TOKENS
        ids = self._ids[start : start + PAGE_TOKENS]
        rows = self._try(lambda: self._folder.read(self._hashes[index], ids))
        with self._lock:
            if rows is None:
                self._missing = min(self._missing, index)
            else:
                self._found[index] = rows
        self._wake()

    def _read_tail(self, index: int) -> None:
        """Read a part of the page that is missing."""
        start = index * PAGE_TOKENS
        ids = self._ids[start : min(start + PAGE_TOKENS, len(self._ids) - 1)]
        known = max(0, self._num_known - start)
        rows = None
        if len(ids) > known:
            parent = self._hashes[index]
            rows = self._try(lambda: self._folder.read_longest(parent, ids, known))
        with self._lock:
            if rows is not None:
                self._found[index] = rows
            self._is_tail_read = True
        self._wake()

    def _try(self, read: Callable[[], Rows | None]) -> Rows | None:
        try:
            return None if self._is_cancelled else read()
        except (OSError, DamagedPageError, MemoryError) as error:
            self._on_error(error)
            return None


class SequenceOnDisk:
    """State of one sequence: its chain hashes, what was offered to the disk, the load under way."""

    def __init__(self, root_hash: bytes) -> None:
        self._hashes = [root_hash]
        self.num_offered = 0  # pages
        self.started_ns = 0  # when it was admitted; its pages count as used then
        self.load: PageLoad | None = None

    def hashes(self, ids: Sequence[int], num_pages: int) -> list[bytes]:
        """Chain hashes before each of the first, full pages of `ids`, and behind the last."""
        while len(self._hashes) <= num_pages:
            end = len(self._hashes) * PAGE_TOKENS
            self._hashes.append(chain_hash(self._hashes[-1], ids[end - PAGE_TOKENS : end]))
        return self._hashes
