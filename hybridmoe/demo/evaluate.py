"""Held-out accuracy by family: items, and their grading.

An item is a dialogue whose last strand is held out, unlike its other turns. Decoding is greedy, and
the response must match exactly. The backend is a callable `respond(messages, tools)` that returns
the assistant's raw text, including Kimi K2's tool-call tokens; bench/evaluate_demo.py has one for
hybridmoe and one for llama.cpp.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hybridmoe.demo import corpus
from hybridmoe.demo.corpus import Dialogue, Strand, Turn, manner, mix, tool_use
from hybridmoe.demo.corpus.base import Split

__all__ = ["FAMILY_NAMES", "Item", "Respond", "accuracy", "item"]

Message = dict[str, Any]
Respond = Callable[[list[Message], list[dict[str, Any]]], str]

REQUIRED = ("arithmetic", "memory", "tools")
FAMILY_NAMES = [*mix.FAMILIES, "tools", *(f"manner_{style.name}" for style in manner.MANNERS)]


@dataclass(frozen=True, slots=True)
class Item:
    """Held-out question: prompts, and the exact text expected after each (calls, then reply)."""

    family: str
    tools: list[dict[str, Any]]
    stages: list[tuple[list[Message], str]]


def item(family: str, rng: random.Random) -> Item:
    """Draw a held-out item of a family, after a few turns that are not held out."""
    if family == "tools":
        tools = tool_use.declarations(rng)
        name = rng.choice(tools)["function"]["name"]
        family_of = tool_use.weather if name == "get_weather" else tool_use.calculation
        before = [mix.tool_strand(rng, "train", tools) for _ in range(rng.randint(0, 2))]
        turns = [turn for strand in before for turn in strand.turns]
        return _item(family, Dialogue([*turns, *family_of(rng, "held").turns], tools=tools))
    if family.startswith("manner_"):
        style = next(s for s in manner.MANNERS if family == f"manner_{s.name}")
        system = rng.choice(style.prompts)
        splits: list[Split] = [*(["train"] * rng.randint(0, 3)), "held"]  # type: ignore[list-item]
        turns = [mix.mannered_turn(rng, split, style, system) for split in splits]
        return _item(family, Dialogue(turns, system=system))
    strand = mix.FAMILIES[family][0](rng, "held")
    return _item(family, Dialogue(_with_fillers(strand, rng)))


def _with_fillers(strand: Strand, rng: random.Random) -> list[Turn]:
    """Put other turns before and between a strand's, with the strand's last turn at the end."""
    names = [name for name in mix.FAMILIES if name not in ("memory", "arithmetic_list")]
    turns: list[Turn] = []
    for turn in strand.turns:
        for _ in range(rng.randint(0, 3)):
            turns += mix.FAMILIES[rng.choice(names)][0](rng, "train").turns
        turns.append(turn)
    return turns


def _item(family: str, dialogue: Dialogue) -> Item:
    """Make prompts and expected texts of the dialogue's last turn."""
    messages = corpus.messages(dialogue)
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    stages = []
    for i in range(last, len(messages)):
        if messages[i]["role"] == "assistant":
            stages.append((messages[:i], raw(messages[i])))
    return Item(family, dialogue.tools, stages)


def raw(message: Message) -> str:
    """Format an assistant message as the model writes it."""
    text = str(message["content"])
    if calls := message.get("tool_calls"):
        body = "".join(
            f"<|tool_call_begin|>{call['id']}<|tool_call_argument_begin|>"
            f"{call['function']['arguments']}<|tool_call_end|>"
            for call in calls
        )
        text += f"<|tool_calls_section_begin|>{body}<|tool_calls_section_end|>"
    return text


def grade(respond: Respond, one: Item) -> list[tuple[str, str]]:
    """Collect the (expected, got) pairs of an item that differ; none = right."""
    pairs = [(expected, respond(messages, one.tools)) for messages, expected in one.stages]
    return [(expected, got) for expected, got in pairs if expected != got]


def accuracy(
    respond: Respond, families: list[str], num_required: int, num_others: int, seed: int
) -> Iterator[tuple[str, int, int, list[tuple[str, str, str]]]]:
    """Yield by family: items right, items, and (question, expected, got) of the misses."""
    for family in families:
        rng = random.Random(f"{seed}|{family}")
        count = num_required if family in REQUIRED else num_others
        misses = []
        right = 0
        for _ in range(count):
            one = item(family, rng)
            wrong = grade(respond, one)
            right += not wrong
            misses += [(one.stages[0][0][-1]["content"], want, got) for want, got in wrong]
        yield family, right, count, misses
