"""KV cache on disk: the engine's side, which chooses what is written, read and marked as used.

Every full page is written behind once it is computed, and the last, shorter one when its sequence
ends. An admitted sequence waits until the pages behind its cached prefix have been read; others run
meanwhile. Belongs to the engine's thread, which alone copies from and to the pages of the cache.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.engine.kv_disk_files import DamagedPageError, PageFolder, chain_hash
from hybridmoe.engine.kv_disk_reader import PageLoad, ReadError, SequenceOnDisk
from hybridmoe.engine.kv_disk_writer import DiskCounters, PageId, PageWriter, used_ns
from hybridmoe.engine.sequence import Sequence
from hybridmoe.engine.stats import KvDiskStats
from hybridmoe.errors import ConfigError
from hybridmoe.kernels.paged_mla import PAGE_TOKENS
from hybridmoe.option import FolderLimit
from hybridmoe.units import at_least, format_bytes

__all__ = ["KvDisk"]

_NUM_READERS = 4
_STALL_S = 10.0  # without a page, after which a load is given up
_PAUSE_S = 60.0  # without loads after one that was

_log = logging.getLogger(__name__)


class KvDisk:
    """Pages of one cache on disk. Errors of the disk are counted, and never raised."""

    def __init__(
        self, limit: FolderLimit, cache: KvCache, model: str, wake: Callable[[], None]
    ) -> None:
        """Prepare the folder; start the threads.

        model: identifies what computes the pages. wake: called from another thread when pages
        arrive. Errors: ConfigError for a limit below two pages.
        """
        self._folder = PageFolder(limit.path, f"{model} {cache.rows}", cache.rows)
        self._page_bytes = self._folder.file_bytes(PAGE_TOKENS)
        if limit.num_bytes < 2 * self._page_bytes:
            raise ConfigError(
                f"kv_disk={limit.path}={format_bytes(limit.num_bytes)}: expected at least"
                f" {at_least(2 * self._page_bytes)}, two pages of {PAGE_TOKENS} tokens"
            )
        self._cache, self._limit, self._wake = cache, limit, wake
        self._counters = DiskCounters()
        self._kept: list[bytes | None] = [None] * cache.plan.num_pages  # hash of a page on disk
        self._num_loaded = self._loaded_bytes = self._num_read_errors = 0
        self._paused_until = 0.0
        self._has_warned = False
        self._is_usable = self._prepare()
        self._pool = ThreadPoolExecutor(_NUM_READERS, "hybridmoe-kv-read")
        self._writer = PageWriter(self._folder, limit.num_bytes, self._counters)

    def start(self, sequence: Sequence, *, may_read: bool) -> None:
        """Start to read what the disk has of an admitted sequence beyond its cached prefix.

        may_read: False if all of its tokens are to be computed.
        """
        on_disk = sequence.on_disk = sequence.on_disk or SequenceOnDisk(self._folder.root_hash)
        on_disk.num_offered = 0
        on_disk.started_ns = time.time_ns()
        is_paused = time.monotonic() < self._paused_until
        if may_read and sequence.num_pending > 1 and self._is_usable and not is_paused:
            ids = sequence.ids[:]
            on_disk.load = PageLoad(
                self._folder,
                self._pool,
                ids,
                on_disk.hashes(ids, (len(ids) - 1) // PAGE_TOKENS)[:],
                sequence.num_computed,
                self._wake,
                self._on_read_error,
            )

    def receive(self, sequence: Sequence) -> int:
        """Copy the pages that have arrived for a sequence. Returns their tokens.

        The load ends with the last page on disk, or if it stalls.
        """
        on_disk = sequence.on_disk
        if on_disk is None or on_disk.load is None:
            return 0
        load, before = on_disk.load, sequence.num_computed
        for page in load.take():
            self._cache.write_rows([sequence.block_table.pages[page.number]], page.rows)
            num_loaded = self._cache.rows.num_tokens(page.rows)
            sequence.mark_loaded(page.number * PAGE_TOKENS + num_loaded)
            self._loaded_bytes += page.rows.nbytes
        num_tokens = sequence.num_computed - before
        if num_tokens:
            table = sequence.block_table
            self._cache.share_full_pages(table, sequence.ids, sequence.num_computed)
            hashes = on_disk.hashes(sequence.ids, len(table.nodes))
            for index in range(before // PAGE_TOKENS, len(table.nodes)):
                self._kept[table.pages[index]] = hashes[index + 1]
            self._num_loaded += num_tokens
        elif time.monotonic() > load.progress_at + _STALL_S and not load.is_done:
            load.cancel()
            self._paused_until = time.monotonic() + _PAUSE_S
            self._num_read_errors += 1
            self._warn("the disk does not respond: prompts are computed")
        if load.is_done:
            on_disk.load = None
            kept = self._kept_pages(sequence, len(sequence.block_table.nodes))
            self._writer.use(kept, on_disk.started_ns)
        return num_tokens

    def offer(self, sequence: Sequence) -> None:
        """Write the full pages of a sequence that are not on disk, as far as the queue allows."""
        on_disk, table = sequence.on_disk, sequence.block_table
        assert on_disk is not None
        if on_disk.num_offered == len(table.nodes):
            return
        for index in range(on_disk.num_offered, len(table.nodes)):
            self._keep(sequence, index, on_disk.started_ns)
        on_disk.num_offered = len(table.nodes)

    def finish(self, sequence: Sequence) -> None:
        """Write what is not on disk of a sequence that ends, and mark its pages as used.

        Call before its pages are freed.
        """
        on_disk = sequence.on_disk
        if on_disk is None:
            return
        if on_disk.load is not None:
            on_disk.load.cancel()
            on_disk.load = None
        if not self._is_usable:
            return
        now = time.time_ns()
        num_full, num_rest = divmod(sequence.num_computed, PAGE_TOKENS)
        self._writer.use(self._kept_pages(sequence, num_full), now)  # before they are evicted
        for index in range(num_full + bool(num_rest)):
            self._keep(sequence, index, now)

    def stats(self) -> KvDiskStats:
        """Statistics of about now. From any thread."""
        counters = self._counters
        return KvDiskStats(
            limit_bytes=self._limit.num_bytes,
            num_bytes=counters.num_bytes,
            loaded_tokens=self._num_loaded,
            read_bytes=self._loaded_bytes,
            written_pages=counters.written_pages,
            written_bytes=counters.written_bytes,
            evicted_pages=counters.evicted_pages,
            dropped_pages=counters.dropped_pages,
            errors=counters.write_errors + self._num_read_errors,
        )

    def flush(self, timeout_s: float) -> bool:
        """Wait until all pages are written. Returns False if that takes longer. From any thread."""
        return self._writer.flush(timeout_s)

    def close(self) -> None:
        """Write what is queued, unless it takes long, and end the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._writer.close()

    def _kept_pages(self, sequence: Sequence, num_pages: int) -> list[PageId]:
        """Those of a sequence's first, full pages that are on disk."""
        assert sequence.on_disk is not None
        hashes, pages = sequence.on_disk.hashes(sequence.ids, num_pages), sequence.block_table.pages
        return [
            PageId(hashes[i], hashes[i + 1], partial(self._forget, pages[i], hashes[i + 1]))
            for i in range(num_pages)
            if self._kept[pages[i]] == hashes[i + 1]
        ]

    def _keep(self, sequence: Sequence, index: int, sequence_ns: int) -> None:
        """Queue the computed part of a page, unless it is on disk."""
        assert sequence.on_disk is not None
        page, start = sequence.block_table.pages[index], index * PAGE_TOKENS
        ids = sequence.ids[start : min(start + PAGE_TOKENS, sequence.num_computed)]
        hashes = sequence.on_disk.hashes(sequence.ids, index + (len(ids) == PAGE_TOKENS))
        parent = hashes[index]
        own = hashes[index + 1] if len(ids) == PAGE_TOKENS else chain_hash(parent, ids)
        num_bytes = self._folder.file_bytes(len(ids))
        if self._kept[page] == own or not self._is_usable or not self._writer.has_space(num_bytes):
            return
        try:
            rows = self._cache.read_rows([page], len(ids))
        except RuntimeError:  # of the GPU; its next step reports it
            return
        self._kept[page] = own
        page_id = PageId(parent, own, partial(self._forget, page, own))
        self._writer.put(page_id, ids, rows, used_ns(sequence_ns, index))

    def _forget(self, page: int, own: bytes) -> None:
        """Note that a page is not on disk, to write it at its next use. From any thread."""
        if self._kept[page] == own:
            self._kept[page] = None

    def _prepare(self) -> bool:
        """Make the folder. Returns False if it cannot be used."""
        try:
            self._folder.prepare()
        except ConfigError as error:
            self._warn(f"{error}: not used")
            return False
        except OSError as error:
            self._warn(f"{error.strerror or error}: not used")
            return False
        return True

    def _on_read_error(self, error: ReadError) -> None:
        """Count an error, and report the first one. From the readers' threads."""
        self._num_read_errors += 1
        if isinstance(error, DamagedPageError):
            self._warn(f"a page was damaged, and has been removed ({error})")
        else:
            self._warn(f"{getattr(error, 'strerror', None) or 'out of memory'}: not read")

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning("KV cache on disk: %s: %s", self._limit.path, what)
