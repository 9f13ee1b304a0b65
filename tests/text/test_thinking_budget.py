"""Thinking budget: forces `</think>`, around any constraint, and lets all else pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from kimi_chat import TOKENIZER
from numpy.typing import NDArray

from hybridmoe.text.thinking_budget import ThinkingBudget

OPEN, CLOSE = TOKENIZER.special_id("<think>") or 0, TOKENIZER.special_id("</think>") or 0
CALL = TOKENIZER.special_id("<|tool_call_begin|>") or 0
A = TOKENIZER.encode("a")[0]
NUM_WORDS = -(-TOKENIZER.num_tokens // 32)


class Inner:
    """Allows the ids it is given; keeps what it accepted."""

    def __init__(self, *allowed: int, inactive: bool = False) -> None:
        self.allowed, self.inactive = allowed, inactive
        self.accepted: list[int] = []

    def is_inactive(self) -> bool:
        return self.inactive

    def mask(self) -> NDArray[np.uint32]:
        assert not self.inactive
        mask = np.zeros(NUM_WORDS, np.uint32)
        for token_id in self.allowed:
            mask[token_id // 32] |= 1 << token_id % 32
        return mask

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        return 1

    def is_done(self) -> bool:
        return len(self.accepted) == 9

    def is_slow(self) -> bool:
        return True

    def eos_redirect(self) -> Any:
        return "redirect"

    def copy(self) -> "Inner":
        out = Inner(*self.allowed, inactive=self.inactive)
        out.accepted = list(self.accepted)
        return out


def budget(inner: Inner | None, tokens: int, *, is_thinking: bool = True) -> ThinkingBudget:
    return ThinkingBudget(inner, TOKENIZER, tokens, is_thinking=is_thinking, leaving_ids=[CALL])


def allowed(constraint: ThinkingBudget) -> list[int] | None:
    """Ids of the mask; None if it allows all."""
    bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    return None if bits.all() else np.flatnonzero(bits).tolist()


def test_the_closing_mark_is_forced_after_the_budget_and_nothing_before_or_behind() -> None:
    constraint = budget(None, 2)
    for _ in range(2):
        assert constraint.is_inactive()
        constraint.accept(A)
    assert not constraint.is_inactive()
    assert allowed(constraint) == [CLOSE]
    constraint.accept(CLOSE)
    assert constraint.is_inactive()
    assert allowed(constraint) is None
    for _ in range(5):
        constraint.accept(A)
    assert constraint.is_inactive()
    assert not constraint.is_done()


def test_the_model_may_open_its_thoughts_itself_or_again() -> None:
    constraint = budget(None, 1, is_thinking=False)
    for _ in range(3):
        constraint.accept(A)
    assert constraint.is_inactive()
    for token_id in (OPEN, A):
        assert constraint.is_inactive()
        constraint.accept(token_id)
    assert allowed(constraint) == [CLOSE]
    constraint.accept(CLOSE)
    constraint.accept(OPEN)
    assert allowed(constraint) == [CLOSE]


def test_none_at_all_with_a_budget_of_zero() -> None:
    assert allowed(budget(None, 0)) == [CLOSE]
    assert budget(None, 0, is_thinking=False).is_inactive()


def test_a_call_inside_the_thoughts_is_not_cut() -> None:
    constraint = budget(Inner(A, CLOSE), 2)
    for token_id in (A, CALL, A, A):
        constraint.accept(token_id)
    assert allowed(constraint) == sorted([A, CLOSE])


def test_the_constraint_inside_sees_every_token_and_decides_otherwise() -> None:
    inner = Inner(A, CLOSE)
    constraint = budget(inner, 1)
    assert not constraint.is_inactive()
    assert allowed(constraint) == sorted([A, CLOSE])
    assert constraint.eos_redirect() == "redirect"
    assert constraint.is_slow()
    constraint.accept(A)
    assert allowed(constraint) == [CLOSE]
    constraint.accept(CLOSE)
    assert inner.accepted == [A, CLOSE]
    assert allowed(constraint) == sorted([A, CLOSE])
    for _ in range(7):
        constraint.accept(A)
    assert constraint.is_done()


def test_an_inactive_one_inside_is_asked_for_no_mask() -> None:
    constraint = budget(Inner(inactive=True), 1)
    assert constraint.is_inactive()
    assert constraint.eos_redirect() is None
    constraint.accept(A)
    assert allowed(constraint) == [CLOSE]


def test_it_does_not_close_within_a_character() -> None:
    first, second = TOKENIZER.encode("°") if len(TOKENIZER.encode("°")) == 2 else (None, None)
    assert first is not None
    assert second is not None
    constraint = budget(None, 1)
    constraint.accept(first)
    assert constraint.is_inactive()
    constraint.accept(second)
    assert allowed(constraint) == [CLOSE]
    assert allowed(budget(Inner(A), 0)) == [A]  # as a grammar does within a character


def test_copies_have_states_of_their_own() -> None:
    inner = Inner(A, CLOSE)
    constraint = budget(inner, 2)
    constraint.accept(A)
    copies = [constraint.copy() for _ in range(2)]
    copies[0].accept(A)
    assert inner.accepted == [A]
    assert [allowed(c) for c in copies] == [[CLOSE], sorted([A, CLOSE])]
    assert allowed(constraint) == sorted([A, CLOSE])


@pytest.mark.parametrize("tokens", [None, 3])
def test_it_is_around_a_constraint_only_with_a_budget(tokens: int | None) -> None:
    inner = Inner(A)
    found = ThinkingBudget.around(inner, TOKENIZER, tokens, is_thinking=True)
    assert (found is inner) == (tokens is None)
