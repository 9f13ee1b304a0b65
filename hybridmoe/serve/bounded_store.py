"""Store of entries by id, in memory: bounded in number and bytes, evicted by LRU."""

import threading
from collections import OrderedDict
from typing import Protocol

__all__ = ["BoundedStore", "Entry"]


class Entry(Protocol):
    """Stored entry. Immutable."""

    @property
    def num_bytes(self) -> int: ...


class BoundedStore:
    """Entries by id. Thread-safe. Kinds of entries differ by the prefix of their ids."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def put(self, entry_id: str, entry: Entry) -> bool:
        """Store an entry in place of an earlier one. Returns False if it is too large to keep."""
        if self.max_entries == 0 or entry.num_bytes > self.max_bytes:
            return False
        with self._lock:
            self._pop(entry_id)
            self._entries[entry_id] = entry
            self._num_bytes += entry.num_bytes
            while len(self._entries) > self.max_entries or self._num_bytes > self.max_bytes:
                self._pop(next(iter(self._entries)))
        return True

    def get(self, entry_id: str) -> Entry | None:
        """Get an entry, which is then the most recently used; None if it is not stored."""
        with self._lock:
            if entry_id not in self._entries:
                return None
            self._entries.move_to_end(entry_id)
            return self._entries[entry_id]

    def delete(self, entry_id: str) -> bool:
        """Delete an entry. Returns False if it is not stored."""
        with self._lock:
            return self._pop(entry_id) is not None

    def newest_first(self) -> list[Entry]:
        """List all entries; their order of use stays the same."""
        with self._lock:
            return list(reversed(self._entries.values()))

    def _pop(self, entry_id: str) -> Entry | None:
        entry = self._entries.pop(entry_id, None)
        if entry is not None:
            self._num_bytes -= entry.num_bytes
        return entry
