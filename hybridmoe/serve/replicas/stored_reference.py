"""Stored objects that a request refers to: only the replica that made them has them."""

from collections.abc import Mapping
from typing import Any

from hybridmoe.serve.stored_id import OWN_ID

__all__ = ["stored_reference"]

_PATHS = ("/v1/responses/", "/v1/conversations/", "/responses/", "/conversations/")


def stored_reference(path: str, fields: Mapping[str, Any]) -> str | None:
    """Find the id of a stored object in a path or a body; None if it has none.

    Where there are several, the first one: they are normally of one conversation.
    """
    if path.startswith(_PATHS):
        return next(filter(OWN_ID.fullmatch, path.split("/")), None)
    conversation = fields.get("conversation")
    if isinstance(conversation, Mapping):
        conversation = conversation.get("id")
    items = fields.get("input")
    references = [
        item.get("id")
        for item in (items if isinstance(items, list) else ())
        if isinstance(item, Mapping) and item.get("type") == "item_reference"
    ]
    for found in (fields.get("previous_response_id"), conversation, *references):
        if isinstance(found, str) and OWN_ID.fullmatch(found):
            return found
    return None
