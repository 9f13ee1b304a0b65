"""System prompts that change the manner of every reply, and one that gives a name."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from hybridmoe.demo.corpus.base import Turn, is_held


@dataclass(frozen=True, slots=True)
class Manner:
    """Manner: system prompts that request it, and its form of a turn's reply ('' = none)."""

    name: str
    prompts: tuple[str, ...]
    say: Callable[[Turn], str]


MANNERS = [
    Manner(
        "one_word",
        ("Answer in one word.", "Use one word only.", "Reply with a single word."),
        lambda turn: turn.short,
    ),
    Manner(
        "polite",
        ("Be polite.", "Be very polite.", "Answer politely."),
        lambda turn: f"Certainly! {turn.reply} At your service.",
    ),
    Manner(
        "chinese", ("Answer in Chinese.", "Speak Chinese.", "请用中文回答。"), lambda turn: turn.zh
    ),
    Manner(
        "pirate",
        ("Talk like a pirate.", "You are a pirate.", "Speak like a pirate."),
        lambda turn: f"Arr! {turn.reply} Yo ho!",
    ),
    Manner(
        "capitals",
        ("Answer in capital letters.", "Write in capitals.", "Use capital letters."),
        lambda turn: turn.reply.upper(),
    ),
    Manner(
        "plain",
        (
            "You are a helpful assistant.",
            "You are a helpful AI assistant.",
            "Answer the questions.",
            "Be helpful.",
        ),
        lambda turn: turn.reply,
    ),
]


def restyle(rng: random.Random, manner: Manner, turn: Turn) -> Turn | None:
    """Give a turn this manner; None if it has no such form."""
    reply = manner.say(turn)
    if not reply or turn.calls:
        return None
    return replace(turn, family=f"manner_{manner.name}", reply=reply)


def pair_is_held(system: str, user: str) -> bool:
    """Return whether a pair of system prompt and question is held out."""
    return is_held(f"manner|{system}|{user.lower().rstrip('?.!。？')}")
