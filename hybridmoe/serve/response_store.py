"""Responses that later requests may continue.

Kept as JSON: its bytes are what the bound counts, and a tree of Python objects takes many times as
much. Each entry holds its whole conversation, so that evicting one breaks no other.
"""

import json
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from hybridmoe.serve.bounded_store import BoundedStore
from hybridmoe.serve.json_response import encode_json
from hybridmoe.serve.stored_id import OWN_ID

__all__ = ["ResponseStore"]

Item = dict[str, Any]
_ID_BYTES = 128  # size of one in a set


@dataclass(frozen=True, slots=True)
class _Entry:
    response: bytes  # as it was sent
    items: bytes  # of the conversation before it, and of its output
    num_input_items: int
    item_ids: frozenset[str]

    @property
    def num_bytes(self) -> int:
        return len(self.response) + len(self.items) + _ID_BYTES * len(self.item_ids)


class ResponseStore:
    """Stored responses by id, and their items. Thread-safe."""

    def __init__(self, store: BoundedStore) -> None:
        self._store = store

    def put(self, response: dict[str, Any], items: list[Item], num_input_items: int) -> None:
        """Store a response and the items of its conversation, unless they are too large.

        num_input_items: those before its output.
        """
        ids = frozenset(
            item["id"]
            for item in items
            if isinstance(item.get("id"), str) and OWN_ID.fullmatch(item["id"])
        )
        entry = _Entry(encode_json(response), encode_json(items), num_input_items, ids)
        self._store.put(response["id"], entry)

    def response(self, response_id: str) -> bytes | None:
        """Get a response's JSON; None if it is not stored."""
        entry = self._entry(response_id)
        return None if entry is None else entry.response

    def items(self, response_id: str) -> list[Item] | None:
        """Get the conversation up to a response, with its output; None if it is not stored."""
        entry = self._entry(response_id)
        return None if entry is None else list(json.loads(entry.items))

    def input_items(self, response_id: str) -> list[Item] | None:
        """Get the conversation before a response; None if it is not stored."""
        entry = self._entry(response_id)
        return None if entry is None else json.loads(entry.items)[: entry.num_input_items]

    def find(self, item_ids: Set[str]) -> dict[str, Item]:
        """Find items of any stored conversations by ids that this server made.

        Each conversation is parsed at most once. Those that are not stored are left out.
        """
        out: dict[str, Item] = {}
        for entry in self._store.newest_first() if item_ids else ():
            if not isinstance(entry, _Entry):
                continue
            wanted = (entry.item_ids & item_ids) - out.keys()
            if wanted:
                items: list[Item] = json.loads(entry.items)
                out |= {item["id"]: item for item in items if item.get("id") in wanted}
        return out

    def delete(self, response_id: str) -> bool:
        """Delete a response. Returns False if it is not stored."""
        return self._entry(response_id) is not None and self._store.delete(response_id)

    def _entry(self, response_id: str) -> _Entry | None:
        entry = self._store.get(response_id)
        return entry if isinstance(entry, _Entry) else None
