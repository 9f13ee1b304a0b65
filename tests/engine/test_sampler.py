"""Sampler: each filter against its definition, determinism, refusal of bad parameters."""

from typing import Any

import numpy as np
import pytest

from hybridmoe.engine.sampler import Sampler
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.engine.token_filters import candidates
from hybridmoe.errors import ConfigError

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.06, 0.04], np.float32))


def _draws(num: int = 4000, logits: np.ndarray = LOGITS, **params: Any) -> np.ndarray:
    """Sample `num` first tokens; returns their frequencies."""
    counts = np.zeros(logits.size)
    for seed in range(num):
        sampler = Sampler(SamplingParams(seed=seed, **params), [], logits.size)
        counts[sampler.sample(logits)] += 1
    return counts / num


def test_temperature_zero_is_greedy() -> None:
    sampler = Sampler(SamplingParams(temperature=0.0), [], LOGITS.size)
    assert [sampler.sample(LOGITS) for _ in range(5)] == [0] * 5


@pytest.mark.parametrize("filters", [{}, {"top_k": 3, "top_p": 0.5, "min_p": 0.1}])
@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 9e-6, 1.1e-5])
def test_the_lowest_temperatures_are_greedy(temperature: float, filters: Any) -> None:
    params = SamplingParams(temperature=temperature, **filters)
    assert [Sampler(params, [], 5).sample(LOGITS * 1e4) for _ in range(5)] == [0] * 5


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"logit_bias": {0: -9.0}},
        {"repetition_penalty": 9.0},
        {"presence_penalty": 9.0},
        {"frequency_penalty": 9.0},
        {"dry_multiplier": 9.0, "dry_allowed_length": 1},
        {"temperature": 1.0},
    ],
)
@pytest.mark.parametrize("mask", [None, np.array([0b11110], np.uint32)])
@pytest.mark.parametrize("banned", [(), (0,)])
def test_a_known_argmax_changes_no_token(
    params: Any, mask: np.ndarray | None, banned: tuple[int, ...]
) -> None:
    both = [Sampler(SamplingParams(seed=1, **{"temperature": 0.0, **params}), [], 5) for _ in "ab"]
    logits = LOGITS - 1.0  # negative: penalties push down what was sampled
    for _ in range(8):
        token = both[0].sample(logits, mask, None, banned)
        assert both[1].sample(logits, mask, None, banned, best=0) == token


def test_a_known_argmax_spares_the_logits() -> None:
    assert Sampler(SamplingParams(temperature=0.0), [], 5).sample(LOGITS[:0], best=3) == 3


@pytest.mark.parametrize("filters", [{}, {"top_k": 1}, {"top_p": 0.5, "min_p": 0.5}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_left_is_an_error(temperature: float, filters: Any) -> None:
    banned = dict.fromkeys(range(5), -np.inf)
    none = Sampler(SamplingParams(temperature=temperature, logit_bias=banned, **filters), [], 5)
    with pytest.raises(ConfigError, match="no token is left"):
        none.sample(LOGITS)
    banned = dict.fromkeys(range(4), -np.inf)
    one = Sampler(SamplingParams(temperature=temperature, logit_bias=banned, **filters), [], 5)
    assert one.sample(LOGITS) == 4
    with pytest.raises(ConfigError, match="no token is left"):
        one.sample(LOGITS, np.array([0b1111], np.uint32))  # token 4 is forbidden by the mask


def test_draws_follow_the_distribution() -> None:
    assert np.allclose(_draws(temperature=1.0), np.exp(LOGITS), atol=0.03)


def test_a_low_temperature_sharpens() -> None:
    squared = np.exp(LOGITS) ** 2
    assert np.allclose(_draws(temperature=0.5), squared / squared.sum(), atol=0.03)


@pytest.mark.parametrize(
    ("params", "num_kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_k": 99}, 5),
        ({"top_p": 0.74}, 2),
        ({"top_p": 0.76}, 3),
        ({"top_p": 0.0}, 1),
        ({"min_p": 0.2}, 3),
        ({"min_p": 1.0}, 1),
        ({"top_k": 3, "top_p": 0.5, "min_p": 0.01}, 1),
    ],
)
def test_filters_keep_the_best_tokens_only(params: dict[str, Any], num_kept: int) -> None:
    expected = np.exp(LOGITS) * (np.arange(5) < num_kept)
    got = _draws(num=2000, temperature=1.0, **params)
    assert np.allclose(got, expected / expected.sum(), atol=0.05)
    assert not got[num_kept:].any()


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.99999])
def test_top_p_draws_from_the_least_tokens_with_that_share(spread: float, top_p: float) -> None:
    logits = (spread * np.random.default_rng(1).standard_normal(20000)).astype(np.float32)
    weights = np.exp(np.sort(logits)[::-1].astype(np.float64))
    share = np.cumsum(weights) / weights.sum()
    num_kept = 1 + int(np.count_nonzero(share < top_p))
    params = SamplingParams(temperature=1.0, top_p=top_p)
    _, kept = candidates(logits.copy(), logits.max(), params, lambda: 0.0)
    assert kept is not None and abs(len(kept) - num_kept) <= 2  # roundings of the sums
    assert set(kept.tolist()) <= set(np.argsort(-logits)[: num_kept + 2].tolist())


def test_the_same_seed_gives_the_same_tokens() -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), [], LOGITS.size)
        return [sampler.sample(LOGITS) for _ in range(50)]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_penalties_lower_seen_tokens() -> None:
    logits = np.array([2.0, 1.5, -1.0], np.float32)
    greedy = {"temperature": 0.0}
    repetition = Sampler(SamplingParams(repetition_penalty=2.0, **greedy), [0], 3)
    assert repetition.sample(logits) == 1  # 2.0 / 2 < 1.5: the prompt counts
    presence = Sampler(SamplingParams(presence_penalty=1.0, **greedy), [0], 3)
    assert [presence.sample(logits) for _ in range(3)] == [0, 1, 0]  # the prompt does not
    frequency = Sampler(SamplingParams(frequency_penalty=0.3, **greedy), [], 3)
    assert [frequency.sample(logits) for _ in range(4)] == [0, 0, 1, 0]


def test_a_repeated_negative_logit_gets_lower() -> None:
    logits = np.array([-1.0, -1.5], np.float32)
    assert (
        Sampler(SamplingParams(temperature=0.0, repetition_penalty=2.0), [0], 2).sample(logits) == 1
    )


def test_bias_moves_and_bans() -> None:
    params = SamplingParams(temperature=0.0, logit_bias={0: -np.inf, 4: 10.0})
    assert Sampler(params, [], 5).sample(LOGITS) == 4


def test_logits_are_not_changed() -> None:
    before = LOGITS.copy()
    params = SamplingParams(logit_bias={1: 5.0}, repetition_penalty=1.5, top_p=0.5)
    Sampler(params, [1], 5).sample(LOGITS)
    assert np.array_equal(before, LOGITS)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    for params in (SamplingParams(logit_bias={5: 1.0}), SamplingParams(stop_token_ids=(5,))):
        with pytest.raises(ConfigError, match="token 5 is outside the vocabulary of 5"):
            Sampler(params, [], 5)


def test_xtc_removes_the_top_choices_as_often_as_asked() -> None:
    got = _draws(temperature=1.0, xtc_probability=0.5, xtc_threshold=0.14)
    kept = np.array([0, 0, 0.15, 0.06, 0.04])  # the least likely of the three choices above 0.14
    assert np.allclose(got, 0.5 * np.exp(LOGITS) + 0.5 * kept / kept.sum(), atol=0.03)
    assert not _draws(num=500, temperature=1.0, xtc_probability=1.0, xtc_threshold=0.14)[:2].any()


def test_xtc_leaves_a_single_top_choice() -> None:
    got = _draws(num=500, temperature=1.0, xtc_probability=1.0, xtc_threshold=0.4)
    assert got[0] > 0.4


def test_greedy_decoding_knows_no_filter() -> None:
    filters = {"xtc_probability": 1.0, "xtc_threshold": 0.1, "typical_p": 0.1, "top_n_sigma": 0.1}
    params = SamplingParams(temperature=0.0, temperature_last=True, **filters)
    assert Sampler(params, [], 5).sample(LOGITS) == 0


@pytest.mark.parametrize("temperature_last", [False, True])
@pytest.mark.parametrize("filters", [{"typical_p": 0.5}, {"top_n_sigma": 1.0}, {"top_p": 0.9}])
def test_filters_bear_probabilities_of_zero(filters: Any, temperature_last: bool) -> None:
    logits = np.array([200.0, 199.0, 90.0, -500.0, -np.inf], np.float32)
    params = SamplingParams(
        temperature=0.7, temperature_last=temperature_last, xtc_probability=1.0, **filters
    )
    assert Sampler(params, [], 5).sample(logits) in (0, 1)


def test_typical_p_bears_weights_with_a_probability_of_zero() -> None:
    logits = np.array([0.0, -0.01, -0.02, -103.2], np.float32)
    assert np.exp(logits)[3] > 0
    assert Sampler(SamplingParams(temperature=1.0, typical_p=0.3), [], 4).sample(logits) < 3


def test_the_temperature_comes_last_on_request() -> None:
    early = _draws(num=1500, temperature=3.0, min_p=0.2)
    late = _draws(num=1500, temperature=3.0, min_p=0.2, temperature_last=True)
    assert early.all()
    assert not late[3:].any() and late[:3].all()


def test_a_window_forgets_tokens() -> None:
    logits = np.array([2.0, 1.5, -1.0], np.float32)
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0, repeat_last_n=1)
    sampler = Sampler(params, [0, 2], 3)
    assert [sampler.sample(logits) for _ in range(4)] == [0, 1, 0, 1]


def test_dry_stops_a_loop() -> None:
    logits = np.zeros(5, np.float32)
    logits[1:] = [0.5, 0.4, 0.3, 0.2]
    prompt = [0, 1, 2, 3] * 3 + [0]
    plain = Sampler(SamplingParams(temperature=0.0), prompt, 5)
    loop = SamplingParams(temperature=0.0, dry_multiplier=0.8, dry_allowed_length=2)
    assert plain.sample(logits) == 1
    assert Sampler(loop, prompt, 5).sample(logits) == 2
    assert Sampler(loop, prompt, 5, {0: ((),)}).sample(logits) == 1  # a breaker ends the prompt
    assert Sampler(loop, prompt, 5, {1: ((),)}).sample(logits) == 1  # the next one is a breaker


def test_dry_counts_what_it_sampled() -> None:
    logits = np.array([1.0, 0.5, 0.0], np.float32)
    sampler = Sampler(SamplingParams(temperature=0.0, dry_multiplier=0.8), [], 3)
    assert [sampler.sample(logits) for _ in range(4)] == [0, 0, 0, 1]


def test_a_long_loop_bans_without_overflow() -> None:
    params = SamplingParams(temperature=0.0, dry_multiplier=100.0, dry_base=100.0)
    sampler = Sampler(params, [0] * 3000, 2)
    assert sampler.sample(np.array([100.0, 0.0], np.float32)) == 1
