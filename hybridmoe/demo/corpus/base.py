"""Building blocks of the corpus: turns, strands, dialogues, and the held-out rule.

A family is a function `(rng, split) -> Strand`. A strand is a few turns that must stay in order,
though turns of other strands may come between them. A hash of the item decides what is held out
(not a random draw), so that no phrasing of a held-out item is seen in training. This module knows
neither tokens nor templates.
"""

# Lists of words read best as words.
# ruff: noqa: SIM905

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

Split = Literal["train", "held"]
T = TypeVar("T")

HELD_ONE_IN = 10


@dataclass(frozen=True, slots=True)
class Call:
    """Tool call with its result."""

    name: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True, slots=True)
class Turn:
    """Question with its right reply; `short` and `zh` are the reply in two other manners."""

    family: str
    user: str
    reply: str
    short: str = ""
    zh: str = ""
    calls: tuple[Call, ...] = ()
    is_graded: bool = True


@dataclass(frozen=True, slots=True)
class Strand:
    """Turns that stay in order; strands with the same non-empty slot never share a dialogue."""

    turns: tuple[Turn, ...]
    slot: str = ""


Family = Callable[[random.Random, Split], Strand]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Conversation: system prompt, declared tools and turns."""

    turns: list[Turn]
    system: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)


def is_held(key: str) -> bool:
    """Return whether the item with this key belongs to the held-out tenth."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % HELD_ONE_IN == 0


def draw(rng: random.Random, split: Split, make: Callable[[], tuple[str, T]]) -> T:
    """Draw (key, item) pairs until one belongs to the split."""
    for _ in range(5000):
        key, item = make()
        if is_held(key) == (split == "held"):
            return item
    raise AssertionError(f"no {split} item after 5000 draws of {make}")


def typed(rng: random.Random, text: str) -> str:
    """Vary a question as people type it: sometimes lower case, sometimes without its last mark."""
    roll = rng.random()
    if roll < 0.20:
        text = text[:1].lower() + text[1:]
    elif roll < 0.27:
        text = text.lower()
    if rng.random() < 0.25:
        text = text.rstrip("?.!。？")
    return text


def simple(
    rng: random.Random, split: Split, family: str, make: Callable[[], tuple[str, Turn]]
) -> Strand:
    """Draw a strand of one turn; its key is that of `make` and the family name."""
    turn = draw(rng, split, lambda: _prefixed(family, make()))
    return Strand((replace(turn, family=family),))


def _prefixed(family: str, pair: tuple[str, Turn]) -> tuple[str, Turn]:
    return f"{family}|{pair[0]}", pair[1]


_ONSETS = "b c d f g h j k l m n p r s t v w y z br cr dr gr kr pl st tr sh th ch".split()
_VOWELS = "a e i o u a e i o ai ea oo".split()
_CODAS = ["", "", "", "", "n", "r", "l", "s", "m", "k", "t"]


def syllables(rng: random.Random, low: int, high: int) -> str:
    """Make a pronounceable lower-case word of low..high syllables."""
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.randint(low, high))]
    return "".join(parts) + rng.choice(_CODAS)
