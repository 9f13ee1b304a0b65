"""Corpus: deterministic, with a truly held-out part, rendered as by the template."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hybridmoe.demo import corpus
from hybridmoe.demo.corpus import arithmetic, manner, mix, tool_use
from hybridmoe.demo.corpus.base import Split

SPLITS: list[Split] = ["train", "held"]
_PAIR = re.compile(r"(?<![\d.])(\d{1,2})\s*(?:([+-])|(plus|加)|(minus|减))\s*(\d{1,2})(?![\d.])")


def dialogues(seed: int, count: int, split: Split = "train") -> list[corpus.Dialogue]:
    """Draw dialogues of a split."""
    rng = random.Random(seed)
    return [corpus.dialogue(rng, split) for _ in range(count)]


def operand_pairs(text: str) -> set[tuple[int, str, int]]:
    """Find the sums and differences of two numbers of at most two digits in a question."""
    pairs = set()
    for a, sign, plus, minus, b in _PAIR.findall(text):
        pairs.add((int(a), sign or ("+" if plus else "-" if minus else ""), int(b)))
    for a, b in re.findall(r"[Aa]dd (\d+) and (\d+)", text):
        pairs.add((int(a), "+", int(b)))
    for b, a in re.findall(r"[Ss]ubtract (\d+) from (\d+)", text):
        pairs.add((int(a), "-", int(b)))
    return pairs


def test_same_seed_gives_the_same_dialogues() -> None:
    assert dialogues(3, 50) == dialogues(3, 50)
    assert dialogues(3, 50) != dialogues(4, 50)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("family", list(mix.FAMILIES))
def test_every_family_generates_both_splits(family: str, split: Split) -> None:
    rng = random.Random(1)
    for _ in range(20):
        strand = mix.FAMILIES[family][0](rng, split)
        assert strand.turns and all(turn.user and turn.reply for turn in strand.turns)
        assert any(turn.family == family and turn.is_graded for turn in strand.turns)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("make", [tool_use.weather, tool_use.calculation])
def test_tool_families_generate_both_splits(make: Any, split: Split) -> None:
    rng = random.Random(1)
    for _ in range(50):
        (turn,) = make(rng, split).turns
        assert turn.calls and turn.reply


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("style", manner.MANNERS, ids=lambda style: style.name)
def test_every_manner_generates_both_splits(style: manner.Manner, split: Split) -> None:
    rng = random.Random(1)
    for _ in range(10):
        turn = mix.mannered_turn(rng, split, style, style.prompts[0])
        assert manner.pair_is_held(style.prompts[0], turn.user) == (split == "held")


def test_held_out_operand_pairs_are_never_trained() -> None:
    seen = set()
    for dialogue in dialogues(5, 1200):
        for turn in dialogue.turns:
            seen |= operand_pairs(turn.user) | operand_pairs(turn.reply)
    assert len(seen) > 1000
    assert not [pair for pair in seen if arithmetic.pair_is_held(*pair)]


def test_a_held_out_sum_is_held_out_in_both_orders() -> None:
    for a in range(100):
        for b in range(100):
            held = arithmetic.pair_is_held(a, "+", b)
            assert held == arithmetic.pair_is_held(b, "+", a)
            assert not (held and a < 10 and b < 10)


def test_about_a_tenth_of_the_pairs_is_held_out() -> None:
    held = sum(
        arithmetic.pair_is_held(a, s, b) for a in range(100) for b in range(100) for s in "+-"
    )
    assert 0.08 < held / 20000 < 0.16


def test_held_out_memory_values_and_tool_arguments_are_never_trained() -> None:
    def values(split: Split) -> set[str]:
        found = set()
        for dialogue in dialogues(6, 700, split):
            for turn in dialogue.turns:
                found |= {json.dumps(call.arguments) for call in turn.calls}
                if turn.family == "memory":
                    found.add(turn.short)
        return found

    trained, held = values("train"), values("held")
    assert len(trained) > 500 and len(held) > 300
    assert not trained & held


def test_single_turn_items_of_one_split_are_not_in_the_other() -> None:
    for family in ("spelling", "counting", "days", "months", "capitals", "units", "hybridmoe"):
        asked = []
        for split in SPLITS:
            rng = random.Random(8)
            strands = [mix.FAMILIES[family][0](rng, split) for _ in range(150)]
            asked.append({strand.turns[0].user.lower().rstrip("?.!。？") for strand in strands})
        assert not asked[0] & asked[1], family


def test_template_renders_what_the_model_is_trained_on() -> None:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps
    template = environment.from_string(corpus.CHAT_TEMPLATE)
    for split in SPLITS:
        for dialogue in dialogues(9, 150, split):
            trained = "".join(segment.text for segment in corpus.segments(dialogue))
            messages = corpus.messages(dialogue)
            assert template.render(messages=messages, tools=dialogue.tools) == trained
            prompt = template.render(
                messages=messages[:-1], tools=dialogue.tools, add_generation_prompt=True
            )
            assert trained == f"{prompt}{messages[-1]['content']}<|im_end|>"


def test_tool_call_ids_count_over_the_dialogue() -> None:
    for dialogue in dialogues(10, 200):
        ids = [call["id"] for m in corpus.messages(dialogue) for call in m.get("tool_calls", [])]
        assert [int(name.split(":")[1]) for name in ids] == list(range(len(ids)))
        assert all(
            name.startswith(("functions.get_weather:", "functions.calculator:")) for name in ids
        )
