"""Conversations to record: categories of prompts, drawn at random from a seed.

They come from the generator of the embedded model's corpus: held-out questions, on which it was not
trained. Other models can answer them, too.
"""

import random
from typing import Any, NamedTuple

from hybridmoe.demo import evaluate

__all__ = ["CATEGORIES", "Workload", "workloads"]

# Category -> family of questions, and their number in one conversation.
CATEGORIES = {
    "chat": ("small_talk", 1),
    "facts": ("capitals", 1),
    "arithmetic": ("arithmetic", 1),
    "spelling": ("spelling", 1),
    "tools": ("tools", 1),
    "chinese": ("chinese", 1),
    "long context": ("memory", 6),
}


class Workload(NamedTuple):
    """Conversation up to the prompt to respond to."""

    category: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]


def workloads(per_category: int, seed: int) -> list[Workload]:
    """Draw `per_category` conversations of each category."""
    found = []
    for category, (family, count) in CATEGORIES.items():
        rng = random.Random(f"{seed} {category}")
        for _ in range(per_category):
            items = [evaluate.item(family, rng) for _ in range(count)]
            past = [message for one in items[:-1] for message in one.stages[0][0]]
            messages = [m for m in past if m["role"] != "system"] + items[-1].stages[0][0]
            found.append(Workload(category, messages, items[-1].tools))
    return found
