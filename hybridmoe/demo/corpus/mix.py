"""Dialogues: interleaved strands of many families, some with a manner or tools."""

from __future__ import annotations

import random
from typing import Any

from hybridmoe.demo.corpus import arithmetic, manner, memory, talk, tool_use, words, world
from hybridmoe.demo.corpus.base import Dialogue, Family, Split, Strand, Turn

# family -> (generator, weight in plain dialogues)
FAMILIES: dict[str, tuple[Family, float]] = {
    "arithmetic": (arithmetic.sums, 6.0),
    "arithmetic_list": (arithmetic.sum_lists, 1.0),
    "memory": (memory.memory, 5.0),
    "small_talk": (talk.small_talk, 1.6),
    "hybridmoe": (talk.about, 3.0),
    "chinese": (talk.chinese, 1.2),
    "repeating": (words.repeating, 1.0),
    "counting": (words.counting, 1.2),
    "spelling": (words.spelling, 2.5),
    "sorting": (words.sorting, 2.0),
    "days": (world.days, 2.0),
    "months": (world.months, 2.0),
    "capitals": (world.capitals, 2.5),
    "units": (world.units, 1.5),
}
_MANNERLY = ["arithmetic", "small_talk", "hybridmoe", "capitals", "days", "months", "chinese"]
_KINDS = {"plain": 0.56, "tools": 0.32, "manner": 0.12}


def dialogue(rng: random.Random, split: Split = "train", kind: str = "") -> Dialogue:
    """Draw a dialogue whose turns all belong to the split."""
    kind = kind or rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    count = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 10, 12])
    if kind == "tools":
        tools = tool_use.declarations(rng)
        strands = _fresh(rng, (tool_strand(rng, split, tools) for _ in range(max(2, count // 2))))
        return Dialogue(_interleave(rng, strands), tools=tools)
    if kind == "manner":
        return _mannered(rng, split, count)
    names = list(FAMILIES)
    weights = [FAMILIES[name][1] for name in names]
    chosen = rng.choices(names, weights, k=count)
    return Dialogue(_interleave(rng, _fresh(rng, (FAMILIES[n][0](rng, split) for n in chosen))))


def tool_strand(rng: random.Random, split: Split, tools: list[dict[str, Any]]) -> Strand:
    """Draw a strand for a dialogue with these tools, mostly one that calls them."""
    declared = [tool["function"]["name"] for tool in tools]
    if rng.random() < 0.75:
        name = rng.choice(declared)
        return (tool_use.weather if name == "get_weather" else tool_use.calculation)(rng, split)
    able = ["memory", "small_talk", "hybridmoe", "capitals", "spelling", "days"]
    if "calculator" not in declared:
        able += ["arithmetic", "arithmetic"]
    while True:
        strand = FAMILIES[rng.choice(able)][0](rng, split)
        # With the tool declared, a question about the weather is not small talk.
        if not any("weather" in turn.user or "rain" in turn.user for turn in strand.turns):
            return strand


def mannered_turn(rng: random.Random, split: Split, style: manner.Manner, system: str) -> Turn:
    """Draw a turn in the manner; the pair (prompt, question) obeys the split."""
    while True:
        strand = FAMILIES[rng.choice(_MANNERLY)][0](rng, "train")
        turn = manner.restyle(rng, style, strand.turns[0])
        if turn and manner.pair_is_held(system, turn.user) == (split == "held"):
            return turn


def _mannered(rng: random.Random, split: Split, count: int) -> Dialogue:
    style = rng.choice(manner.MANNERS)
    system = rng.choice(style.prompts)
    turns = [mannered_turn(rng, split, style, system) for _ in range(min(count, 6))]
    return Dialogue(turns, system=system)


def _fresh(rng: random.Random, strands: Any) -> list[Strand]:
    """Keep the first strand of each slot."""
    kept: list[Strand] = []
    for strand in strands:
        if not strand.slot or all(strand.slot != other.slot for other in kept):
            kept.append(strand)
    return kept


def _interleave(rng: random.Random, strands: list[Strand]) -> list[Turn]:
    """Shuffle turns, keeping the order inside each strand."""
    order = [i for i, strand in enumerate(strands) for _ in strand.turns]
    rng.shuffle(order)
    queues = [iter(strand.turns) for strand in strands]
    return [next(queues[i]) for i in order]
