"""Number of drafts: as many as pay on simulated machines, and hardly slower where none does."""

import random
from collections.abc import Callable

import pytest

from hybridmoe.engine.draft_control import DraftControl, StepKind

ONE = StepKind(1, 1)


def tokens_per_s(
    seconds: Callable[[int], float],
    acceptance: Callable[[int], float],
    control: DraftControl | None,
    num_steps: int = 4000,
) -> float:
    """Speed of a machine. seconds: of a step, by its drafts. acceptance: by the step's number."""
    rng, tokens, time = random.Random(1), 0, 0.0
    for step in range(num_steps):
        num_drafts = control.count(ONE) if control is not None else 0
        accepted = 0
        while accepted < num_drafts and rng.random() < acceptance(step):
            accepted += 1
        spent = seconds(num_drafts) * rng.choice((1.0, 1.0, 1.1, 1.5))
        if control is not None:
            control.learn(num_drafts, accepted)
            control.update(ONE, num_drafts, spent)
        tokens, time = tokens + 1 + accepted, time + spent
    return tokens / time


@pytest.mark.parametrize("cost", [0.05, 0.3, 0.6, 0.9, 1.5])
@pytest.mark.parametrize("acceptance", [0.1, 0.5, 0.8, 0.95])
def test_it_is_never_slower_and_takes_most_of_what_is_there(cost: float, acceptance: float) -> None:
    plain = tokens_per_s(lambda n: 1.0 + cost * n, lambda _: acceptance, None)
    found = tokens_per_s(lambda n: 1.0 + cost * n, lambda _: acceptance, DraftControl(3))
    sums = [sum(acceptance**k for k in range(n + 1)) / (1.0 + cost * n) for n in range(4)]
    assert found / plain > max(0.98, 0.95 * max(sums))


def test_it_follows_a_change_of_the_text() -> None:
    def acceptance(step: int) -> float:
        return 0.05 if step // 1500 % 2 else 0.9

    control = DraftControl(3)
    plain = tokens_per_s(lambda n: 1.0 + 0.4 * n, acceptance, None, 6000)
    assert tokens_per_s(lambda n: 1.0 + 0.4 * n, acceptance, control, 6000) > 1.15 * plain


def test_kinds_of_steps_are_told_apart() -> None:
    control, many = DraftControl(2), StepKind(8, 8)
    for _ in range(300):
        for kind, cost in ((ONE, 0.1), (many, 8.0)):
            num_drafts = control.count(kind)
            control.update(kind, num_drafts, 1.0 + cost * num_drafts)
            control.learn(num_drafts, num_drafts)
    assert (control.count(ONE), control.count(many)) == (2, 0)
    assert control.count(StepKind(4, 0)) == 0
