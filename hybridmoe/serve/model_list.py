"""Lists of models for OpenAI's and Anthropic's clients alike: each finds its own keys."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

__all__ = ["model_list", "named_card"]

Card = dict[str, Any]


def named_card(card: Card, name: str) -> Card:
    """Describe a model under one of its names, with Anthropic's keys beside OpenAI's."""
    created = datetime.fromtimestamp(card["created"], UTC)
    return {
        **card,
        "id": name,
        "root": card["id"],
        "type": "model",
        "display_name": card["meta"].get("name") or name,
        "created_at": created.isoformat().replace("+00:00", "Z"),
    }


def model_list(cards: Sequence[tuple[Card, Sequence[str]]]) -> dict[str, Any]:
    """List models by name, each with its aliases; aliases have entries of their own too."""
    data = []
    for card, aliases in cards:
        data.append({**named_card(card, card["id"]), "aliases": list(aliases)})
        data += [named_card(card, alias) for alias in aliases]
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
