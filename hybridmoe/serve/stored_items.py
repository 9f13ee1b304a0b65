"""Items of the Responses API as stores and lists hold them: with an id, a status, and parts."""

from collections.abc import Sequence
from typing import Any, Literal

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.stored_id import new_id

__all__ = ["item_page", "listed_item", "with_id"]

Item = dict[str, Any]
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


def with_id(item: Item) -> Item:
    """Give an item an id of this server's, unless it has one."""
    if item.get("id"):
        return item
    kind = item.get("type") or "message"
    prefix = _PREFIXES.get(kind, "fco" if kind.endswith("_output") else "item")
    return {"type": kind, **item, "id": new_id(prefix)}


def listed_item(item: Item) -> Item:
    """Convert a message's text to content parts, as lists of items have it."""
    out = {"status": "completed", **item}
    if (item.get("type") or "message") == "message" and isinstance(item.get("content"), str):
        is_output = item.get("role") == "assistant"
        kind = "output_text" if is_output else "input_text"
        part: dict[str, Any] = {"type": kind, "text": item["content"]}
        out["content"] = [{**part, "annotations": []} if is_output else part]
    return out


def item_page(
    items: Sequence[Item], order: Literal["asc", "desc"], after: str | None, limit: int
) -> dict[str, Any]:
    """Make a page of a list of items, which are oldest first.

    Raises ApiError (400) if `after` is none of them.
    """
    ordered = list(items if order == "asc" else reversed(items))
    if after is not None:
        index = next((i for i, item in enumerate(ordered) if item["id"] == after), None)
        if index is None:
            raise ApiError(400, f"after: no item has the id {after!r:.80}", param="after")
        ordered = ordered[index + 1 :]
    page = [listed_item(item) for item in ordered[:limit]]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(ordered) > limit,
    }
