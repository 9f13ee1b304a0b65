"""Conversations of the Responses API: items that grow with each response."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybridmoe.serve.bounded_store import BoundedStore
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.json_response import encode_json
from hybridmoe.serve.stored_id import new_id

__all__ = ["Conversation", "ConversationStore"]

Item = dict[str, Any]
_ITEM_BYTES = 256  # of memory for an item, beside its id and JSON


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation's state; its items are kept as JSON, with their ids."""

    id: str
    created_at: int
    metadata: bytes
    items: tuple[tuple[str, bytes], ...] = ()

    @property
    def num_bytes(self) -> int:
        return len(self.metadata) + sum(map(_num_bytes, self.items))

    def to_json(self) -> dict[str, Any]:
        """Describe it without its items."""
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created_at,
            "metadata": json.loads(self.metadata),
        }

    def parsed_items(self) -> list[Item]:
        """List its items, oldest first."""
        return [json.loads(data) for _, data in self.items]


class ConversationStore:
    """Stored conversations by id. Thread-safe."""

    def __init__(self, store: BoundedStore) -> None:
        self._store = store
        self._lock = threading.Lock()  # of changes, which read first

    def create(self, items: Sequence[Item], metadata: dict[str, Any]) -> Conversation:
        """Make a conversation. The items have ids. Raises ApiError (400) if it is too large."""
        made = Conversation(
            id=new_id("conv"),
            created_at=int(time.time()),
            metadata=encode_json(metadata),
        )
        return self._put(self._grown(made, items))

    def get(self, conversation_id: str) -> Conversation | None:
        """Get a conversation; None if it is not stored."""
        entry = self._store.get(conversation_id)
        return entry if isinstance(entry, Conversation) else None

    def extend(self, conversation_id: str, items: Sequence[Item]) -> Conversation | None:
        """Add items, which have ids. Returns None if the conversation is not stored.

        Raises ApiError (400) if it becomes too large; it stays as it was.
        """
        with self._lock:
            found = self.get(conversation_id)
            return None if found is None else self._put(self._grown(found, items))

    def set_metadata(self, conversation_id: str, metadata: dict[str, Any]) -> Conversation | None:
        """Replace the metadata. Returns and raises as `extend`."""
        with self._lock:
            found = self.get(conversation_id)
            if found is None:
                return None
            return self._put(replace(found, metadata=encode_json(metadata)))

    def remove_item(self, conversation_id: str, item_id: str) -> Conversation | None:
        """Remove an item. Returns None if the conversation or the item is not stored."""
        with self._lock:
            found = self.get(conversation_id)
            kept = tuple(one for one in found.items if one[0] != item_id) if found else ()
            if found is None or len(kept) == len(found.items):
                return None
            return self._put(replace(found, items=kept))

    def delete(self, conversation_id: str) -> bool:
        """Delete a conversation. Returns False if it is not stored."""
        with self._lock:
            return self.get(conversation_id) is not None and self._store.delete(conversation_id)

    def _grown(self, conversation: Conversation, items: Sequence[Item]) -> Conversation:
        """Add items. Raises ApiError before they take more memory than the store has."""
        more: list[tuple[str, bytes]] = []
        size = conversation.num_bytes
        for item in items:  # many may refer to one stored item
            more.append((item["id"], encode_json(item)))
            size += _num_bytes(more[-1])
            if size > self._store.max_bytes:
                raise self._too_large(size)
        return replace(conversation, items=(*conversation.items, *more))

    def _put(self, conversation: Conversation) -> Conversation:
        if not self._store.put(conversation.id, conversation):
            raise self._too_large(conversation.num_bytes)
        return conversation

    def _too_large(self, num_bytes: int) -> ApiError:
        return ApiError(
            400,
            f"a conversation of {num_bytes} bytes or more is not stored: at most"
            f" {self._store.max_bytes} bytes are, in {self._store.max_entries} entries",
            param="items",
        )


def _num_bytes(item: tuple[str, bytes]) -> int:
    return _ITEM_BYTES + len(item[0]) + len(item[1])
