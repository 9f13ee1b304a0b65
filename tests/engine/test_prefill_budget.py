"""Prefill budget on a machine with known step times."""

import pytest

from hybridmoe.engine.prefill_budget import PrefillBudget


@pytest.mark.parametrize("prompt_token_s", [0.0001, 0.001, 0.01, 0.2])
def test_a_step_stays_within_the_slowdown_and_uses_it(prompt_token_s: float) -> None:
    prefill = PrefillBudget(256, 3.0)
    decode_s = 0.1
    taken, mixed = [], []
    for _ in range(300):
        budget = prefill.num_tokens(2)
        seconds = decode_s + budget * prompt_token_s
        prefill.update(2, budget, seconds)
        taken.append(budget)
        mixed.append(seconds)
    fitting = min(256.0, 0.2 / prompt_token_s)
    assert sum(taken[100:]) / 200 >= min(1.0, 0.5 * fitting)
    late = mixed[100:]
    assert max(late) <= 3.0 * decode_s * 1.1 + (prompt_token_s if fitting < 1 else 0.0)


def test_a_prompt_alone_gets_the_whole_chunk_and_measures_nothing() -> None:
    prefill = PrefillBudget(256, 3.0)
    prefill.update(0, 256, 9.0)
    assert prefill.num_tokens(0) == 256
    assert prefill.num_tokens(1) == 0  # measures a decode-only step
    prefill.update(1, 0, 0.1)
    assert prefill.num_tokens(1) > 0


def test_decode_only_steps_are_measured_again() -> None:
    prefill = PrefillBudget(256, 3.0)
    prefill.update(1, 0, 0.1)
    budgets = []
    for _ in range(200):
        budgets.append(prefill.num_tokens(1))
        prefill.update(1, budgets[-1], 0.2)
    assert 2 <= budgets.count(0) <= 5


@pytest.mark.parametrize(
    ("token_s", "want"), [(0.0001, 1024), (1 / 700, 700), (0.01, 256)], ids=["fast", "700", "slow"]
)
def test_a_prompt_alone_gets_more_while_a_step_takes_a_second(token_s: float, want: int) -> None:
    prefill = PrefillBudget(256, 3.0, 1024)
    assert prefill.num_tokens(0) == 256
    prefill.update(0, 256, 256 * token_s)
    assert prefill.num_tokens(0) == want
    prefill.update(0, want, want * token_s)
    assert abs(prefill.num_tokens(0) - want) <= 1  # rounding
    prefill.update(0, 20, 9.0)  # so few tokens say nothing of a whole step
    assert abs(prefill.num_tokens(0) - want) <= 1
    prefill.update(0, 256, 9.0)
    assert prefill.num_tokens(0) == 256


def test_beside_responses_a_quick_prompt_gets_a_chunk_at_most() -> None:
    prefill = PrefillBudget(256, 3.0, 1024)
    prefill.update(0, 256, 0.001)
    prefill.update(1, 0, 0.1)
    for _ in range(50):
        budget = prefill.num_tokens(1)
        assert budget <= 256
        prefill.update(1, budget, 0.1)
