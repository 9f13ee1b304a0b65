"""Store of responses that later requests may continue: in memory, evicted by LRU.

Kept as JSON: its bytes are what the bound counts, and a tree of Python objects takes many times as
much. Each entry holds its whole conversation, so that evicting one breaks no other.
"""

import json
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from hybridmoe.serve.json_response import encode_json

__all__ = ["ResponseStore"]

Item = dict[str, Any]
# Ids made by this server, which cannot be guessed; clients number theirs, each from 1.
_OWN_ID = re.compile(r"(msg|rs|fc)_[0-9a-f]{32}")
_ID_BYTES = 128  # size of one in a set


@dataclass(frozen=True, slots=True)
class _Entry:
    response: bytes  # as it was sent
    items: bytes  # of the conversation before it, and of its output
    item_ids: frozenset[str]

    @property
    def num_bytes(self) -> int:
        return len(self.response) + len(self.items) + _ID_BYTES * len(self.item_ids)


class ResponseStore:
    """Stored responses by id, and their items. Thread-safe."""

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def put(self, response: dict[str, Any], items: list[Item]) -> None:
        """Store a response and the items of its conversation, unless they are too large."""
        ids = frozenset(
            item["id"]
            for item in items
            if isinstance(item.get("id"), str) and _OWN_ID.fullmatch(item["id"])
        )
        entry = _Entry(encode_json(response), encode_json(items), ids)
        if entry.num_bytes > self._max_bytes:
            return
        with self._lock:
            self._entries[response["id"]] = entry
            self._num_bytes += entry.num_bytes
            while len(self._entries) > self._max_responses or self._num_bytes > self._max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._num_bytes -= oldest.num_bytes

    def response(self, response_id: str) -> bytes | None:
        """Get a response's JSON; None if it is not stored."""
        entry = self._use(response_id)
        return None if entry is None else entry.response

    def items(self, response_id: str) -> list[Item] | None:
        """Get the conversation up to a response, with its output; None if it is not stored."""
        entry = self._use(response_id)
        return None if entry is None else list(json.loads(entry.items))

    def item(self, item_id: str) -> Item | None:
        """Find an item of any stored conversation by an id that this server made."""
        with self._lock:
            holders = (e for e in reversed(self._entries.values()) if item_id in e.item_ids)
            holder = next(holders, None)
        if holder is None:
            return None
        items: list[Item] = json.loads(holder.items)
        return next(item for item in items if item.get("id") == item_id)

    def delete(self, response_id: str) -> bool:
        """Delete a response. Returns False if it is not stored."""
        with self._lock:
            entry = self._entries.pop(response_id, None)
            if entry is not None:
                self._num_bytes -= entry.num_bytes
        return entry is not None

    def _use(self, response_id: str) -> _Entry | None:
        with self._lock:
            if response_id not in self._entries:
                return None
            self._entries.move_to_end(response_id)
            return self._entries[response_id]
