"""Responses that later requests may go on from: a few, in memory, the least used forgotten first.

Kept as JSON, whose bytes are what the bound counts: a tree of Python objects takes many times as
much. Each one holds its whole conversation, so that forgetting one breaks no other.
"""

import json
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from hybridmoe.serve.reply import as_json

__all__ = ["ResponseStore"]

Item = dict[str, Any]
# An id that was made here, and cannot be guessed; clients number theirs, each from 1.
_OWN_ID = re.compile(r"(msg|rs|fc)_[0-9a-f]{32}")
_ID_BYTES = 128  # what one takes in a set


@dataclass(frozen=True, slots=True)
class _Stored:
    response: bytes  # as it was answered
    items: bytes  # of the conversation that led to it, and of its output
    item_ids: frozenset[str]

    @property
    def num_bytes(self) -> int:
        return len(self.response) + len(self.items) + _ID_BYTES * len(self.item_ids)


class ResponseStore:
    """Safe to use from any thread."""

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._stored: OrderedDict[str, _Stored] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    def put(self, response: dict[str, Any], items: list[Item]) -> None:
        """Keep a response and the items of its conversation, unless they are too large."""
        ids = frozenset(
            item["id"]
            for item in items
            if isinstance(item.get("id"), str) and _OWN_ID.fullmatch(item["id"])
        )
        stored = _Stored(as_json(response), as_json(items), ids)
        if stored.num_bytes > self._max_bytes:
            return
        with self._lock:
            self._stored[response["id"]] = stored
            self._num_bytes += stored.num_bytes
            while len(self._stored) > self._max_responses or self._num_bytes > self._max_bytes:
                _, oldest = self._stored.popitem(last=False)
                self._num_bytes -= oldest.num_bytes

    def response(self, response_id: str) -> bytes | None:
        """A response's JSON; None if it is not stored."""
        stored = self._use(response_id)
        return None if stored is None else stored.response

    def items(self, response_id: str) -> list[Item] | None:
        """The conversation up to a response, its output included; None if it is not stored."""
        stored = self._use(response_id)
        return None if stored is None else list(json.loads(stored.items))

    def item(self, item_id: str) -> Item | None:
        """An item of any stored conversation, by an id that was made here."""
        with self._lock:
            holders = (s for s in reversed(self._stored.values()) if item_id in s.item_ids)
            holder = next(holders, None)
        if holder is None:
            return None
        items: list[Item] = json.loads(holder.items)
        return next(item for item in items if item.get("id") == item_id)

    def delete(self, response_id: str) -> bool:
        """Forget a response. Returns False if it is not stored."""
        with self._lock:
            stored = self._stored.pop(response_id, None)
            if stored is not None:
                self._num_bytes -= stored.num_bytes
        return stored is not None

    def _use(self, response_id: str) -> _Stored | None:
        with self._lock:
            if response_id not in self._stored:
                return None
            self._stored.move_to_end(response_id)
            return self._stored[response_id]
