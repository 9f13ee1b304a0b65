"""Counting, spelling, reversing, sorting and comparing.

Spelled words have dashes, one token per letter: `c-a-t`.
"""

# Lists of words read best as words.
# ruff: noqa: SIM905

from __future__ import annotations

import random

from hybridmoe.demo.corpus.base import Split, Strand, Turn, simple, syllables, typed

WORDS = """cat dog sun moon tree house water bread apple table chair river stone bird fish horse
green black white paper light night day book door window garden flower music letter number winter
summer spring king queen ship train plane road bridge city world lemon banana orange cherry grape
milk tea salt sugar rain snow wind cloud star fire earth sand gold iron glass clock phone lamp
mouse tiger lion zebra snake frog duck goose sheep goat camel whale shark eagle hand foot nose
mouth heart brain school friend mother father sister brother happy small large quick
quiet""".split()


def _word(rng: random.Random) -> str:
    return rng.choice(WORDS) if rng.random() < 0.5 else syllables(rng, 1, 2)


def spelling(rng: random.Random, split: Split) -> Strand:
    """Draw a word to spell, forwards or backwards, or its letters to count."""

    def make() -> tuple[str, Turn]:
        word = _word(rng)
        roll = rng.random()
        if roll < 0.45:
            ask = rng.choice(["Spell {w}.", "How do you spell {w}?", "Spell the word {w}."])
            reply = "-".join(word)
        elif roll < 0.88:
            ask = rng.choice(["Reverse {w}.", "Spell {w} backwards.", "Reverse the word {w}."])
            reply = "-".join(reversed(word))
        else:
            ask = rng.choice(["How many letters are in {w}?", "Count the letters of {w}."])
            reply = str(len(word))
        return word, Turn("", typed(rng, ask.format(w=word)), reply, short=reply, zh=reply)

    return simple(rng, split, "spelling", make)


def repeating(rng: random.Random, split: Split) -> Strand:
    """Draw a few words and numbers to repeat: copying in its plainest form."""

    def make() -> tuple[str, Turn]:
        parts = [
            str(rng.randint(0, 999)) if rng.random() < 0.3 else _word(rng)
            for _ in range(rng.randint(1, 6))
        ]
        if rng.random() < 0.3:
            parts[0] = parts[0].capitalize()
        text = " ".join(parts)
        ask = rng.choice(["Repeat: {x}", "Say {x}", "Repeat after me: {x}", "Please say: {x}"])
        return text, Turn("", ask.format(x=text), text, short=text, zh=text)

    return simple(rng, split, "repeating", make)


def counting(rng: random.Random, split: Split) -> Strand:
    """Draw a range of numbers to count, up, down or by twos."""

    def make() -> tuple[str, Turn]:
        low = rng.choice([1, 1, rng.randint(0, 90)])
        high = low + rng.randint(2, 9)
        roll = rng.random()
        if roll < 0.2 and low == 1:
            ask, row = rng.choice(["Count to {h}.", "数到{h}。"]), range(1, high + 1)
        elif roll < 0.6:
            ask = rng.choice(["Count from {l} to {h}.", "Count {l} to {h}.", "从{l}数到{h}。"])
            row = range(low, high + 1)
        elif roll < 0.85:
            ask = rng.choice(["Count down from {h} to {l}.", "Count backwards from {h} to {l}."])
            row = range(high, low - 1, -1)
        else:
            ask, row = "Count by twos from {l} to {t}.", range(low, low + 2 * (high - low) + 1, 2)
            high = low + 2 * (high - low)
        reply = ", ".join(map(str, row))
        user = typed(rng, ask.format(l=low, h=high, t=high))
        return f"{low}|{high}", Turn("", user, reply, short=reply, zh=reply)

    return simple(rng, split, "counting", make)


def sorting(rng: random.Random, split: Split) -> Strand:
    """Draw a list of numbers or words to sort, or a few to compare."""

    def make() -> tuple[str, Turn]:
        top = rng.choice([9, 99, 99])
        numbers = rng.sample(range(top + 1), rng.choice([2, 3, 3, 4, 5]))
        listed = ", ".join(map(str, numbers))
        roll = rng.random()
        if roll < 0.25:
            first = {word[0]: word for word in rng.sample(WORDS, 8)}
            words = rng.sample(list(first.values()), min(len(first), rng.choice([2, 3, 4])))
            listed = ", ".join(words)
            ask = rng.choice(["Sort {x}.", "Put in order: {x}.", "Sort these words: {x}."])
            reply = ", ".join(sorted(words))
        elif roll < 0.65:
            ask = rng.choice(["Sort {x}.", "Put in order: {x}.", "Sort these numbers: {x}."])
            reply = ", ".join(map(str, sorted(numbers)))
        elif roll < 0.85:
            pick = rng.choice([("largest", max), ("biggest", max), ("smallest", min)])
            ask = f"Which is the {pick[0]}: {{x}}?"
            reply = str(pick[1](numbers))
        else:
            ask = "Sort from large to small: {x}."
            reply = ", ".join(map(str, sorted(numbers, reverse=True)))
        user = typed(rng, ask.format(x=listed))
        return listed, Turn("", user, reply, short=reply, zh=reply)

    return simple(rng, split, "sorting", make)
