"""The pacer against a machine of which the cost is known."""

import pytest

from hybridmoe.engine.prefill_budget import PrefillBudget


@pytest.mark.parametrize("prompt_token_s", [0.0001, 0.001, 0.01, 0.2])
def test_a_step_stays_within_the_slowdown_and_uses_it(prompt_token_s: float) -> None:
    pacer = PrefillBudget(256, 3.0)
    quiet = 0.1
    taken, mixed = [], []
    for _ in range(300):
        budget = pacer.budget(2)
        seconds = quiet + budget * prompt_token_s
        pacer.note(2, budget, seconds)
        taken.append(budget)
        mixed.append(seconds)
    fitting = min(256.0, 0.2 / prompt_token_s)
    assert sum(taken[100:]) / 200 >= min(1.0, 0.5 * fitting)
    late = mixed[100:]
    assert max(late) <= 3.0 * quiet * 1.1 + (prompt_token_s if fitting < 1 else 0.0)


def test_alone_a_prompt_gets_the_whole_chunk_and_measures_nothing() -> None:
    pacer = PrefillBudget(256, 3.0)
    pacer.note(0, 256, 9.0)
    assert pacer.budget(0) == 256
    assert pacer.budget(1) == 0  # how fast is one answer alone?
    pacer.note(1, 0, 0.1)
    assert pacer.budget(1) > 0


def test_the_quiet_pace_is_looked_at_again() -> None:
    pacer = PrefillBudget(256, 3.0)
    pacer.note(1, 0, 0.1)
    budgets = []
    for _ in range(200):
        budgets.append(pacer.budget(1))
        pacer.note(1, budgets[-1], 0.2)
    assert 2 <= budgets.count(0) <= 5
