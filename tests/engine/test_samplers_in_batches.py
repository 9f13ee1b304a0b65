"""Samplers in an engine: batches, speculation and seeds change nothing; ends and minimum length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from engine_run import MakeEngine, request, run
from numpy.typing import NDArray

from hybridmoe.engine.request import Request

pytestmark = pytest.mark.usefixtures("exact_kernels")

RNG = np.random.default_rng(6)
PROMPTS = [[1, 2, 3] * 20, *(RNG.integers(0, 256, n).tolist() for n in (70, 3, 64))]
DRY: dict[str, Any] = {"dry_multiplier": 0.8, "dry_breakers": {7: ((),), 9: ((2,),)}}
WRITING: dict[str, Any] = {
    **DRY, "top_n_sigma": 2.0, "typical_p": 0.95, "min_p": 0.01, "xtc_probability": 0.5,
    "xtc_threshold": 0.05, "temperature": 1.0, "temperature_last": True,
    "repetition_penalty": 1.1, "repeat_last_n": 16,
}  # fmt: skip


class OnlyIds:
    """Constraint to some tokens, for any length."""

    def __init__(self, *token_ids: int) -> None:
        self._words = np.zeros(64, np.uint32)  # more than the vocabulary
        for i in token_ids:
            self._words[i // 32] |= np.uint32(1 << i % 32)

    def is_inactive(self) -> bool:
        return False

    def mask(self) -> NDArray[np.uint32]:
        return self._words

    def accept(self, token_id: int) -> None:
        pass

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        return next((n for n, i in enumerate(token_ids) if not self._words[i // 32] >> i % 32 & 1),
                    len(token_ids))  # fmt: skip

    def is_done(self) -> bool:
        return False

    def is_slow(self) -> bool:
        return False

    def eos_redirect(self) -> None:
        return None


@pytest.mark.parametrize("options", [{"temperature": 0.0, **DRY}, WRITING], ids=["dry", "all"])
def test_batches_and_speculation_change_no_sampled_token(
    make: MakeEngine, options: dict[str, Any]
) -> None:
    few = dict.fromkeys(range(12), 50.0)  # so that a random model repeats itself

    def requests() -> list[Request]:
        return [
            request(prompt, 100, seed=seed, logit_bias=few, **options)
            for seed, prompt in enumerate(PROMPTS)
        ]

    plain = make(max_running=1)
    expected = [response.ids for response in run(plain, *requests())]
    fast = make(speculate=4, max_running=4, kv_tokens=512)
    responses = run(fast, *requests())
    assert [response.ids for response in responses] == expected
    assert any(response.end.usage.accepted_tokens for response in responses)
    unpenalized = {key: value for key, value in options.items() if not key.startswith("dry")}
    (other,) = run(plain, request(PROMPTS[0], 100, seed=0, logit_bias=few, **unpenalized))
    assert other.ids != expected[0]


def test_seeds_differ_and_repeat(make: MakeEngine) -> None:
    engine = make()
    one, same, other = (
        run(engine, request(PROMPTS[1], 30, **{**WRITING, "seed": seed}))[0].ids
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_stop_tokens_end_the_response_and_are_not_part_of_it(make: MakeEngine) -> None:
    engine = make(eos_ids={300})
    (whole,) = run(engine, request(PROMPTS[1], 12))
    stop_id = whole.ids[6]
    for ignore_eos in (True, False):
        (cut,) = run(
            engine,
            request(
                PROMPTS[1], 12, stop_token_ids=[stop_id], ignore_eos=ignore_eos, top_logprobs=2
            ),
        )
        assert cut.ids == whole.ids[: whole.ids.index(stop_id)]
        assert cut.end.reason == "stop"
        assert cut.end.stop_token is not None
        assert cut.end.stop_token.token_id == stop_id
        assert cut.end.stop_token.logprob is not None and len(cut.end.stop_token.top) == 2
    assert whole.end.stop_token is None


def test_no_end_token_comes_before_the_minimum(make: MakeEngine) -> None:
    (whole,) = run(make(), request(PROMPTS[1], 12))
    eos_id, stop_id = whole.ids[0], whole.ids[1]
    engine = make(eos_ids={eos_id})
    wanted = {"ignore_eos": False, "stop_token_ids": [stop_id]}
    (short,) = run(engine, request(PROMPTS[1], 12, **wanted))
    assert (short.ids, short.end.reason) == ([], "stop")
    push = {eos_id: 60.0, stop_id: 59.0}  # the model would end at once, whenever it may
    (long,) = run(engine, request(PROMPTS[1], 12, min_tokens=7, logit_bias=push, **wanted))
    assert len(long.ids) == 7
    assert not {eos_id, stop_id} & set(long.ids)
    assert long.end.reason == "stop"
    (ignored,) = run(
        engine, request(PROMPTS[1], 12, min_tokens=7, logit_bias=push, stop_token_ids=[stop_id])
    )
    assert ignored.ids == [eos_id] * 12  # no end token, so that it is not held back


def test_a_constraint_that_allows_the_end_alone_outranks_the_minimum(make: MakeEngine) -> None:
    engine = make(eos_ids={5})
    (ended,) = run(engine, request([1, 2], 12, min_tokens=7, constraint=OnlyIds(5)))
    assert (ended.ids, ended.end.reason) == ([], "stop")
    push = {5: 60.0}
    (both,) = run(
        engine, request([1, 2], 12, min_tokens=7, constraint=OnlyIds(5, 6), logit_bias=push)
    )
    assert (both.ids, both.end.reason) == ([6] * 7, "stop")
