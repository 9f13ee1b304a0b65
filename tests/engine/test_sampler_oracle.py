"""Filters and penalties against llama.cpp: the same tokens are left, as likely as there."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llama_samplers import LlamaSamplers

from hybridmoe.demo import demo_path
from hybridmoe.engine.dry import DryPenalty
from hybridmoe.engine.penalties import Penalties
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.engine.token_filters import candidates
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.text.sequence_breakers import BreakerFinder
from hybridmoe.text.tokenizer import Tokenizer

VOCAB = 1400


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaSamplers]:
    samplers = LlamaSamplers(demo_path())
    yield samplers
    samplers.close()


@pytest.fixture(scope="module")
def finder() -> Iterator[BreakerFinder]:
    with GGUFFile.open(demo_path()) as file:
        tokenizer = Tokenizer(file.path, file.metadata)
        assert tokenizer.num_tokens == VOCAB
        yield BreakerFinder(tokenizer)
        tokenizer.close()


def _ours(
    logits: np.ndarray, params: SamplingParams, tokens: list[int], finder: BreakerFinder
) -> dict[int, float]:
    """Probabilities of the tokens that are left. The tokens are half prompt, half output."""
    half = len(tokens) // 2
    breakers = finder.find(params.dry_sequence_breakers)
    penalties, dry = Penalties(params, tokens[:half]), DryPenalty(params, tokens[:half], breakers)
    scores = logits.copy()
    for token in tokens[half:]:
        dry.apply(scores.copy())
        penalties.accept(token)
        dry.accept(token)
    penalties.apply(scores)
    if params.dry_multiplier:
        dry.apply(scores)
    weights, kept = candidates(scores, scores.max(), params, lambda: 0.0)
    shares = np.zeros(logits.size)
    left = np.arange(logits.size) if kept is None else kept
    shares[left] = weights[left] / weights[left].sum(dtype=np.float64)
    return {int(i): float(shares[i]) for i in np.flatnonzero(shares)}


def _assert_same(got: dict[int, float], want: dict[int, float], case: Any) -> None:
    # llama.cpp leaves tokens whose probability float32 rounds to nothing.
    unlikely = {i for i in got.keys() ^ want.keys() if max(got.get(i, 0), want.get(i, 0)) > 1e-30}
    assert not unlikely, case
    for token_id, share in got.items():
        wanted = want.get(token_id, 0.0)
        assert abs(share - wanted) <= 2e-4 * wanted + 1e-30, (case, token_id, share, wanted)


FILTERS = [
    {"typical_p": 0.2},
    {"typical_p": 0.95},
    {"typical_p": 0.999},
    {"top_n_sigma": 0.3},
    {"top_n_sigma": 1.0},
    {"top_n_sigma": 2.5},
    {"xtc_probability": 1.0, "xtc_threshold": 0.1},
    {"xtc_probability": 1.0, "xtc_threshold": 0.02},
    {"xtc_probability": 1.0, "xtc_threshold": 0.6},
    {"top_k": 40, "typical_p": 0.9, "top_p": 0.8, "min_p": 0.05},
    {"top_n_sigma": 1.5, "top_k": 100, "top_p": 0.95, "min_p": 0.01, "xtc_probability": 1.0,
     "xtc_threshold": 0.05},
    {"typical_p": 0.7, "xtc_probability": 1.0, "xtc_threshold": 0.01},
    {"min_p": 0.1, "xtc_probability": 1.0, "xtc_threshold": 0.08},
    {"top_p": 0.7},
    {"top_k": 20, "min_p": 0.02},
]  # fmt: skip


@pytest.mark.parametrize("temperature_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("filters", FILTERS, ids=lambda f: " ".join(f))
def test_filters_leave_what_llama_cpps_leave(
    llama: LlamaSamplers, finder: BreakerFinder, filters: dict[str, Any], temperature_last: bool
) -> None:
    rng = np.random.default_rng(len(str(filters)))
    # A probability of 0 would make llama.cpp's entropy NaN: no typical_p with more, or with sigmas.
    for spread in (0.5, 1.5, 3.0, 4.5):
        for temperature in (0.5, 1.0, 1.7):
            logits = (spread * rng.standard_normal(VOCAB)).astype(np.float32)
            params = SamplingParams(
                temperature=temperature, temperature_last=temperature_last, **filters
            )
            got = _ours(logits, params, [], finder)
            _assert_same(got, llama.distribution(logits, params), (spread, temperature))


@pytest.mark.parametrize("last_n", [-1, 0, 1, 7, 1000])
def test_the_repetition_penalty_has_llama_cpps_window(
    llama: LlamaSamplers, finder: BreakerFinder, last_n: int
) -> None:
    rng = np.random.default_rng(5)
    for num_tokens in (0, 1, 6, 40):
        tokens = rng.integers(0, VOCAB, num_tokens).tolist()
        logits = rng.standard_normal(VOCAB).astype(np.float32)
        params = SamplingParams(temperature=1.0, repetition_penalty=1.6, repeat_last_n=last_n)
        got = _ours(logits, params, tokens, finder)
        _assert_same(got, llama.distribution(logits, params, tokens), num_tokens)


@pytest.mark.parametrize("breakers", [(), ("\n", ":", '"', "*"), (" zq", "the\n", "*?*")])
def test_dry_penalizes_as_llama_cpp_does(
    llama: LlamaSamplers, finder: BreakerFinder, breakers: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(7)
    spellings = [[first, *rest] for first, tails in finder.find(breakers).items() for rest in tails]
    num_penalized = 0
    for _ in range(150):
        few = [[i] for i in rng.integers(0, VOCAB, rng.integers(1, 5)).tolist()]
        if spellings and rng.random() < 0.7:
            breaker = spellings[rng.integers(len(spellings))]
            few += [breaker, breaker[:-1]]
        chosen = rng.integers(0, len(few), rng.integers(0, 60))
        tokens = [token for i in chosen for token in few[i]]
        if rng.random() < 0.3:
            tokens += tokens[-int(rng.integers(1, 20)) :]
        params = SamplingParams(
            temperature=1.0,
            dry_multiplier=float(rng.choice([0.8, 0.1])),
            dry_base=float(rng.choice([1.0, 1.3, 1.75])),
            dry_allowed_length=int(rng.integers(1, 5)),
            dry_penalty_last_n=int(rng.choice([-1, -1, 1, 5, 30])),
            dry_sequence_breakers=breakers,
        )
        logits = rng.standard_normal(VOCAB).astype(np.float32)
        got = _ours(logits, params, tokens, finder)
        _assert_same(got, llama.distribution(logits, params, tokens), (tokens, params))
        plain = _ours(logits, SamplingParams(temperature=1.0), [], finder)
        num_penalized += max(abs(got.get(i, 0) - share) for i, share in plain.items()) > 1e-5
    assert num_penalized > 40
