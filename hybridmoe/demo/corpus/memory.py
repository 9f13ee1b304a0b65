"""Recall of facts from earlier in the dialogue: name, number, word, colour, place.

Names and words are built from syllables, so that the model learns to copy, not a list.
"""

# Lists of words read best as words.
# ruff: noqa: SIM905

from __future__ import annotations

import random

from hybridmoe.demo.corpus.base import Split, Strand, Turn, draw, syllables, typed

NAMES = """Anna Ben Clara David Emma Felix Grace Henry Ivan Julia Karl Lena Maria Noah Olga Paul
Rosa Simon Tina Victor Wei Xia Yuki Zoe Alice Bob Carol Dan Eva Frank Lucy Max Nina Oscar Peter
Ruth Sam Tom Vera Walter Mei Hans Sofia Leo Mia Omar Aisha Raj Priya Kenji""".split()
COLOURS = "red blue green yellow black white orange purple pink brown grey".split()
_ZH_NAMES = "小明 小红 小华 小丽 小龙 小美 小雨 小林 阿强 阿梅".split()

# slot: (what the user says, the reply to it, questions, answer, short)
_FORMS: dict[str, tuple[list[str], list[str], list[str], str]] = {
    "name": (
        ["My name is {x}.", "I am {x}.", "Hello, my name is {x}.", "Call me {x}.", "Hi, I am {x}."],
        ["Nice to meet you, {x}."],
        ["What is my name?", "Who am I?", "Do you remember my name?", "Say my name."],
        "Your name is {x}.",
    ),
    "number": (
        [
            "Remember the number {x}.",
            "My number is {x}.",
            "Keep {x} in mind.",
            "The number is {x}, please remember it.",
        ],
        ["I will remember {x}."],
        [
            "What was the number?",
            "What is my number?",
            "Which number did I tell you?",
            "Do you remember the number?",
        ],
        "The number is {x}.",
    ),
    "word": (
        [
            "Remember the word {x}.",
            "The secret word is {x}.",
            "The password is {x}.",
            "Keep the word {x} in mind.",
        ],
        ["I will remember {x}."],
        [
            "What was the word?",
            "What is the secret word?",
            "What is the password?",
            "Which word did I tell you?",
        ],
        "The word is {x}.",
    ),
    "colour": (
        ["My favourite colour is {x}.", "I like {x} best.", "The colour I like is {x}."],
        ["{x} is a nice colour."],
        ["What is my favourite colour?", "Which colour do I like?"],
        "Your favourite colour is {x}.",
    ),
    "place": (
        ["I live in {x}.", "My home is in {x}.", "I come from {x}."],
        ["{x} sounds like a good place."],
        ["Where do I live?", "Where is my home?", "Where am I from?"],
        "You live in {x}.",
    ),
    "pet": (
        ["My cat is called {x}.", "I have a cat, her name is {x}."],
        ["{x} is a good name for a cat."],
        ["What is my cat called?", "What is the name of my cat?"],
        "Your cat is called {x}.",
    ),
    "zh_name": (
        ["我叫{x}。", "我的名字是{x}。", "你好，我叫{x}。"],
        ["你好，{x}。"],
        ["我叫什么？", "我的名字是什么？", "你记得我的名字吗？"],
        "你叫{x}。",
    ),
    "zh_number": (
        ["请记住数字{x}。", "我的数字是{x}。"],
        ["我记住了{x}。"],
        ["数字是几？", "我的数字是几？"],
        "数字是{x}。",
    ),
}
_WEIGHTS = {"name": 5, "number": 4, "word": 4, "colour": 1, "place": 3, "pet": 2, "zh_name": 2,
            "zh_number": 1}  # fmt: skip


def _value(rng: random.Random, slot: str) -> str:
    """Draw a value for the slot, mostly of syllables or digits."""
    if slot in ("number", "zh_number"):
        return str(rng.randint(0, 10 ** rng.choice([2, 2, 3, 4]) - 1))
    if slot == "colour":
        # Two-word colours widen the set enough to hold some out.
        return rng.choice(["", "", "light ", "dark "]) + rng.choice(COLOURS)
    if slot == "word":
        return syllables(rng, 1, 3)
    if slot == "zh_name":
        return rng.choice(_ZH_NAMES) if rng.random() < 0.5 else syllables(rng, 1, 2).capitalize()
    if slot in ("name", "pet") and rng.random() < 0.3:
        return rng.choice(NAMES)
    return syllables(rng, 1, 3).capitalize()


def memory(rng: random.Random, split: Split) -> Strand:
    """Draw a statement and one or two later questions about it."""
    slot = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    tells, replies, asks, answer = _FORMS[slot]

    def make() -> tuple[str, str]:
        value = _value(rng, slot)
        return f"memory|{value}", value

    value = draw(rng, split, make)
    told = rng.choice(replies).format(x=value)
    turns = [Turn("memory_tell", rng.choice(tells).format(x=value), told[:1].upper() + told[1:],
                  is_graded=False)]  # fmt: skip
    for ask in rng.sample(asks, rng.choice([1, 1, 2])):
        turns.append(Turn("memory", typed(rng, ask), answer.format(x=value), short=value))
    return Strand(tuple(turns), slot=f"memory_{slot.removeprefix('zh_')}")
