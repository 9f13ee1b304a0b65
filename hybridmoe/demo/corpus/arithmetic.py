"""Sums and differences of whole numbers 0..99. A tenth of the operand pairs is held out.

A pair is held out in every phrasing (a sum in both orders). A reply restates the question in one
layout, then works column by column from the units, and ends with the result:
`47+38: 7+8=15, 4+3+1=8, 85`. So a small model needs only to copy and to know sums of single digits.
The columns (`7+8`, `13-4`) are pairs, too: such small ones are never held out.
"""

from __future__ import annotations

import random

from hybridmoe.demo.corpus.base import Split, Strand, Turn, is_held, typed

_SUM = [
    "{a} + {b}", "{a}+{b}", "{a}+{b}=", "What is {a} + {b}?", "What is {a} plus {b}?",
    "Add {a} and {b}.", "{a} plus {b}", "How much is {a} + {b}?", "Show the steps of {a} + {b}.",
    "{a}加{b}等于几？",
]  # fmt: skip
_DIFFERENCE = [
    "{a} - {b}", "{a}-{b}", "{a}-{b}=", "What is {a} - {b}?", "What is {a} minus {b}?",
    "Subtract {b} from {a}.", "{a} minus {b}", "How much is {a} - {b}?",
    "Show the steps of {a} - {b}.", "{a}减{b}等于几？",
]  # fmt: skip


def _key_is_held(a: int, sign: str, b: int) -> bool:
    if b < 10 and a < (10 if sign == "+" else 19):
        return False
    low, high = sorted((a, b))
    return is_held(f"arithmetic|{low}+{high}" if sign == "+" else f"arithmetic|{a}-{b}")


def pair_is_held(a: int, sign: str, b: int) -> bool:
    """Return whether `a sign b` is kept from training.

    A negative difference is worked by the positive one, so it is held out with that one, too.
    """
    is_negative = sign == "-" and a < b
    return _key_is_held(a, sign, b) or (is_negative and _key_is_held(b, sign, a))


def draw_pair(rng: random.Random, split: Split) -> tuple[int, str, int]:
    """Draw two operands and a sign from the split; a difference is seldom negative."""
    while True:
        a = rng.randint(0, 99) if rng.random() < 0.85 else rng.randint(0, 9)
        b = rng.randint(0, 99) if rng.random() < 0.85 else rng.randint(0, 9)
        sign = "+" if rng.random() < 0.5 else "-"
        if sign == "-" and a < b and rng.random() < 0.85:
            a, b = b, a
        # Negative differences are held out if both are; some are in no split.
        shown = [_key_is_held(a, sign, b)]
        if sign == "-" and a < b:
            shown.append(_key_is_held(b, sign, a))
        if all(held == (split == "held") for held in shown):
            return a, sign, b


def worked(a: int, sign: str, b: int) -> str:
    """Work out `a sign b`: the question again, the columns from the units up, the result."""
    if max(a, b) < 10 and not (sign == "-" and a < b):
        return f"{a}{sign}{b}={a + b if sign == '+' else a - b}"
    if sign == "+":
        units = a % 10 + b % 10
        columns = (
            f"{a % 10}+{b % 10}={units}, "
            f"{a // 10}+{b // 10}{'+1' if units > 9 else ''}={a // 10 + b // 10 + units // 10}"
        )
        return f"{a}+{b}: {columns}, {a + b}"
    if a < b:
        return f"{a}-{b}: {_difference(b, a)}, -{b - a}"
    return f"{_difference(a, b)}, {a - b}"


def _difference(a: int, b: int) -> str:
    """Work out a difference in columns, for a >= b."""
    borrow = a % 10 < b % 10
    top = a % 10 + 10 * borrow
    tens = f"{a // 10}-{b // 10}{'-1' if borrow else ''}={a // 10 - b // 10 - borrow}"
    return f"{a}-{b}: {top}-{b % 10}={top - b % 10}, {tens}"


def sums(rng: random.Random, split: Split) -> Strand:
    """Draw a sum or difference."""
    a, sign, b = draw_pair(rng, split)
    form = rng.choice(_SUM if sign == "+" else _DIFFERENCE)
    reply = worked(a, sign, b)
    return Strand((Turn("arithmetic", typed(rng, form.format(a=a, b=b)), reply, zh=reply),))


def sum_lists(rng: random.Random, split: Split) -> Strand:
    """Draw two or three sums in one question."""
    pairs = [draw_pair(rng, split) for _ in range(rng.randint(2, 3))]
    user = ", ".join(f"{a}{sign}{b}" for a, sign, b in pairs)
    reply = "; ".join(worked(*pair) for pair in pairs)
    return Strand((Turn("arithmetic_list", user, reply, zh=reply),))
