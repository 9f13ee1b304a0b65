"""Write-behind of KV cache pages to disk, and the limit of the folder's size.

A thread of its own writes what a bounded queue holds; a page that does not fit the queue is
dropped. The least recently used files of the folder are removed, of whatever model and process.
Several processes each count what they write and now and then what there is, so that together
they stay within the limit but for a sixteenth of it each.
"""

import errno
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hybridmoe.engine.kv_disk_files import PageFolder, page_files
from hybridmoe.engine.kv_rows import Rows

__all__ = ["DiskCounters", "FolderSpace", "PageId", "PageWriter", "used_ns"]

_QUEUE_BYTES = 128 << 20
_QUEUE_PAGES = 4  # that the queue holds at least
_PAUSE_S = 30.0  # without writes, after one that failed
_CLOSE_S = 5.0  # for writing what is queued at the end
_REFUSE_S = 1.0  # without counting the files anew, after one that did not fit
_SHARE = 16  # of the limit: written between two counts, and freed at a time

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class DiskCounters:
    """Counters since the start. Each is written by one thread at a time."""

    num_bytes: int = 0  # of all files in the folder, about
    written_pages: int = 0
    written_bytes: int = 0
    evicted_pages: int = 0
    dropped_pages: int = 0
    write_errors: int = 0


class FolderSpace:
    """Size of a folder of pages, kept within a limit. Not thread-safe. Raises no errors."""

    def __init__(self, root: Path, limit_bytes: int, counters: DiskCounters) -> None:
        self._root, self._limit = root, limit_bytes
        self._counters = counters
        self._num_uncounted = 0  # bytes written since the files were counted
        self._refused: tuple[float, int] = (-math.inf, 0)  # when, and what the page's use was

    def make(self, num_bytes: int, used_ns: int) -> bool:
        """Remove the least recently used files until `num_bytes` fit.

        Returns False if they do not fit beside the files used later than `used_ns`.
        """
        is_full = self._counters.num_bytes + num_bytes > self._limit
        if not is_full and self._num_uncounted <= self._limit // _SHARE:
            return True
        refused_at, refused_ns = self._refused
        if used_ns <= refused_ns and time.monotonic() < refused_at + _REFUSE_S:
            return False
        self.count(num_bytes, older_than_ns=used_ns)
        is_made = self._counters.num_bytes + num_bytes <= self._limit
        if not is_made:
            self._refused = time.monotonic(), used_ns
        return is_made

    def add(self, num_bytes: int) -> None:
        """Count a file that was written."""
        self._counters.num_bytes += num_bytes
        self._num_uncounted += num_bytes

    def count(
        self, num_bytes: int = 0, *, older_than_ns: float = math.inf, must_free: bool = False
    ) -> None:
        """Count the files, and remove the least recently used ones if `num_bytes` do not fit.

        must_free: remove some even if they fit, since the disk is full.
        """
        files = list(page_files(self._root))
        total = sum(file.num_bytes for file in files)
        if total + num_bytes > self._limit or must_free:
            most = min(self._limit, total)
            target = most - most // _SHARE - num_bytes
            for file in sorted(files):
                if total <= target or file.used_ns >= older_than_ns:
                    break
                try:
                    os.unlink(file.path)
                    self._counters.evicted_pages += 1
                except FileNotFoundError:
                    pass  # by another process
                except OSError:
                    continue
                total -= file.num_bytes
        self._counters.num_bytes = total
        self._num_uncounted = 0


@dataclass(frozen=True, slots=True)
class PageId:
    """A page of a sequence, and what to call if it turns out not to be on disk."""

    parent: bytes  # chain hash of the tokens before
    own: bytes
    on_loss: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Write:
    """A page to write."""

    page: PageId
    ids: Sequence[int]
    rows: Rows
    used_ns: int


@dataclass(frozen=True, slots=True)
class _Use:
    """Pages that were used, the first of a sequence first."""

    pages: Sequence[PageId]
    used_ns: int


class PageWriter:
    """Queue and thread. `has_space`, `put` and `use` are for one thread, and never block."""

    def __init__(self, folder: PageFolder, limit_bytes: int, counters: DiskCounters) -> None:
        self._folder = folder
        self._counters = counters
        self._space = FolderSpace(folder.root_path, limit_bytes, counters)
        self._jobs: deque[_Write | _Use] = deque()
        self._condition = threading.Condition()
        self._num_queued = 0  # bytes
        self._is_closing = self._is_idle = False
        self._paused_until = 0.0
        self._warned: set[int | None] = set()
        self._thread = threading.Thread(target=self._run, name="hybridmoe-kv-write", daemon=True)
        self._thread.start()

    def has_space(self, num_bytes: int) -> bool:
        """Test whether a page can be queued; counts it as dropped if not."""
        if time.monotonic() < self._paused_until:
            return False
        most = max(_QUEUE_BYTES, _QUEUE_PAGES * num_bytes)
        if self._num_queued + num_bytes <= most:
            return True
        self._counters.dropped_pages += 1
        return False

    def put(self, page: PageId, ids: Sequence[int], rows: Rows, used_ns: int) -> None:
        """Queue a page, used at that time."""
        with self._condition:
            self._num_queued += rows.nbytes
            self._jobs.append(_Write(page, ids, rows, used_ns))
            self._condition.notify_all()

    def use(self, pages: Sequence[PageId], used_ns: int) -> None:
        """Mark the first pages of a sequence as used; the last of them will be evicted first."""
        with self._condition:
            self._jobs.append(_Use(pages, used_ns))
            self._condition.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is written. Returns False if that takes longer."""
        with self._condition:
            return self._condition.wait_for(lambda: self._is_idle and not self._jobs, timeout_s)

    def close(self) -> None:
        """Write what is queued, unless it takes long, and end the thread."""
        self.flush(_CLOSE_S)
        with self._condition:
            self._is_closing = True
            self._jobs.clear()
            self._condition.notify_all()

    def _run(self) -> None:
        self._space.count()
        while True:
            with self._condition:
                self._is_idle = not self._jobs
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._jobs or self._is_closing)
                if self._is_closing:
                    return
                job = self._jobs.popleft()
                self._is_idle = False
            if isinstance(job, _Write):
                self._write(job)
                with self._condition:
                    self._num_queued -= job.rows.nbytes
            else:
                self._mark(job)

    def _write(self, job: _Write) -> None:
        page = job.page
        try:
            if time.monotonic() < self._paused_until:
                page.on_loss()
                return
            is_trusted = not self._folder.has_damage
            if is_trusted and self._folder.touch(page.parent, page.own, job.used_ns):
                return  # another process has written it
            if not self._space.make(self._folder.file_bytes(len(job.ids)), job.used_ns):
                self._counters.dropped_pages += 1
                page.on_loss()
                return
            num_bytes = self._folder.write(page.parent, job.ids, job.rows, job.used_ns)
        except OSError as error:
            page.on_loss()
            self._pause(error)
            return
        self._space.add(num_bytes)
        self._counters.written_pages += 1
        self._counters.written_bytes += num_bytes

    def _mark(self, job: _Use) -> None:
        for index, page in enumerate(job.pages):
            is_kept = True
            with suppress(OSError):
                is_kept = self._folder.touch(page.parent, page.own, used_ns(job.used_ns, index))
            if not is_kept:
                page.on_loss()

    def _pause(self, error: OSError) -> None:
        self._counters.write_errors += 1
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._space.count(must_free=True)
        self._paused_until = time.monotonic() + _PAUSE_S
        if error.errno not in self._warned:
            self._warned.add(error.errno)
            what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
            _log.warning("KV cache on disk: %s: %s: not written", self._folder.root_path, what)


def used_ns(sequence_ns: int, index: int) -> int:
    """Time of use of a sequence's page: of those used together, the last is evicted first."""
    return sequence_ns - 1000 * index
