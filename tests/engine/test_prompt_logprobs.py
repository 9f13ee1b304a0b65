"""Log probabilities of prompts: those of the logits, in any batch, chunk or cache; memory."""

import numpy as np
import pytest
from engine_run import EngineResponse, MakeEngine, request, run
from torch import Tensor

from hybridmoe.engine import prompt_scorer
from hybridmoe.engine.engine import Engine
from hybridmoe.engine.request import Finished, PromptLogprobs, Request
from hybridmoe.engine.score_cache import MAX_ENTRIES, ScoreCache
from hybridmoe.errors import ConfigError
from hybridmoe.model.decoder import Decoder

pytestmark = pytest.mark.usefixtures("exact_kernels")

RNG = np.random.default_rng(8)
PROMPTS = [RNG.integers(0, 256, n).tolist() for n in (150, 2, 70, 64)]


def check(engine: Engine, prompt: list[int], response: EngineResponse, num_top: int) -> None:
    """Compare with the logits of the whole prompt."""
    logits = engine.logits(prompt)[:-1].astype(np.float64)
    best = logits.max(1, keepdims=True)
    expected = logits - best - np.log(np.exp(logits - best).sum(1, keepdims=True))
    own = expected[np.arange(len(prompt) - 1), prompt[1:]]
    events = response.prompt_logprobs
    assert [event.start for event in events] == list(
        np.cumsum([1, *(len(event.logprobs) for event in events[:-1])])
    )
    np.testing.assert_allclose(np.concatenate([e.logprobs for e in events]), own, atol=1e-5)
    ranks = 1 + (expected > own[:, None]).sum(1)
    assert np.concatenate([e.ranks for e in events]).tolist() == ranks.tolist()
    top_ids = np.concatenate([e.top_ids for e in events])
    top = np.concatenate([e.top_logprobs for e in events])
    assert top_ids.shape == top.shape == (len(prompt) - 1, num_top)
    best_ids = np.argsort(-expected, 1, kind="stable")[:, :num_top]
    np.testing.assert_array_equal(top_ids, best_ids)
    np.testing.assert_allclose(top, np.take_along_axis(expected, best_ids, 1), atol=1e-5)


@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_they_are_those_of_the_logits(make: MakeEngine, num_top: int) -> None:
    engine = make(chunk_tokens=48, max_running=4)
    requests = [request(prompt, 4, prompt_logprobs=num_top) for prompt in PROMPTS]
    plain = run(engine, *(request(prompt, 4) for prompt in PROMPTS))  # they are cached now
    for is_scored in (False, True):
        responses = run(engine, *requests)
        for prompt, response, unscored in zip(PROMPTS, responses, plain, strict=True):
            check(engine, prompt, response, num_top)
            assert response.end.usage.cached_tokens == (len(prompt) - 1 if is_scored else 0)
            assert response.ids == unscored.ids
    assert not any(response.prompt_logprobs for response in plain)


def test_a_shared_prefix_is_scored_once(make: MakeEngine) -> None:
    """At once or later; also of a longer or shorter prompt, and for fewer alternatives."""
    shared = RNG.integers(0, 256, 150).tolist()
    prompts = [[*shared, *RNG.integers(0, 256, n).tolist()] for n in (20, 3, 70)] + [shared[:99]]
    engine = make(chunk_tokens=64, max_running=4)
    responses = run(engine, *(request(prompt, 2, prompt_logprobs=2) for prompt in prompts))
    responses += run(engine, *(request(prompt, 2, prompt_logprobs=1) for prompt in prompts))
    for i, (prompt, response) in enumerate(zip(prompts * 2, responses, strict=True)):
        check(engine, prompt, response, 2 if i < 4 else 1)
    cached = [response.end.usage.cached_tokens for response in responses]
    full_pages = [0, 128, 128, 98]  # of the first one, while it runs
    assert cached == [*full_pages, *(len(prompt) - 1 for prompt in prompts)]
    (more,) = run(engine, request(prompts[0], 2, prompt_logprobs=3))  # are not known
    check(engine, prompts[0], more, 3)
    assert more.end.usage.cached_tokens == 0


def test_a_prefix_cached_further_than_it_is_scored(make: MakeEngine) -> None:
    engine = make()
    run(engine, request(PROMPTS[0][:99], 1, prompt_logprobs=1))
    run(engine, request(PROMPTS[0], 1))
    (response,) = run(engine, request(PROMPTS[0], 1, prompt_logprobs=1))
    check(engine, PROMPTS[0], response, 1)
    assert response.end.usage.cached_tokens == 98


def test_known_scores_are_of_no_use_without_the_kv_cache(make: MakeEngine) -> None:
    engine = make(kv_tokens=512)
    wanted = request(PROMPTS[0], 2, prompt_logprobs=1)
    run(engine, wanted)
    run(engine, request(RNG.integers(0, 256, 480).tolist(), 8))  # evicts it
    (again,) = run(engine, wanted)
    assert again.end.usage.cached_tokens < 149
    check(engine, PROMPTS[0], again, 1)


def test_kept_scores_are_bounded() -> None:
    cache = ScoreCache()
    size = MAX_ENTRIES // 8
    scores = PromptLogprobs(
        1, np.zeros(size - 1, np.float32), np.zeros(size - 1, np.int32),
        np.zeros((size - 1, 1), np.int32), np.zeros((size - 1, 1), np.float32),
    )  # fmt: skip
    for i in range(6):
        cache.add([i] * size, scores)
    found = [cache.find([i] * 9, 0) for i in range(6)]
    assert [part.end if part else None for part in found] == [None, None, 9, 9, 9, 9]
    assert cache.find([5] * 9, 2) is None
    cache.find([2] * 9, 0)  # used last
    cache.add([7] * size, scores)
    assert [cache.find([i] * 9, 0) is not None for i in (2, 3, 4)] == [True, False, True]


def test_a_prompt_alone_generates_nothing(make: MakeEngine) -> None:
    engine = make(context_tokens=150)
    (response,) = run(engine, request(PROMPTS[0], 0, prompt_logprobs=1))  # as long as the context
    check(engine, PROMPTS[0], response, 1)
    assert (response.ids, response.end.reason) == ([], "length")
    kinds = [type(event) for event in response.events]
    assert kinds.index(PromptLogprobs) < kinds.index(Finished)
    (single,) = run(engine, request([7], 0, prompt_logprobs=1))
    assert (single.prompt_logprobs, single.end.reason) == ([], "length")
    (cached,) = run(engine, request(PROMPTS[0], 0))  # a scored prompt enters the prefix cache
    assert cached.end.usage.cached_tokens == 149


def test_a_preempted_request_sends_them_once(make: MakeEngine) -> None:
    engine = make(kv_tokens=512, max_running=8)
    prompts = [RNG.integers(0, 256, 100).tolist() for _ in range(4)]
    responses = run(engine, *(request(prompt, 200, prompt_logprobs=2) for prompt in prompts))
    assert engine.stats().preempted > 0
    for prompt, response in zip(prompts, responses, strict=True):
        check(engine, prompt, response, 2)


def test_logits_are_computed_for_a_few_tokens_at_a_time(
    make: MakeEngine, model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    monkeypatch.setattr(prompt_scorer, "BLOCK_BYTES", 4 * model.config.vocab_size * 16)
    compute, num_rows = model.logits, list[int]()

    def count_rows(states: Tensor) -> Tensor:
        num_rows.append(len(states))
        return compute(states)

    with monkeypatch.context() as patch:
        patch.setattr(model, "logits", count_rows)
        (response,) = run(engine, request(PROMPTS[0], 1, prompt_logprobs=3))
    assert num_rows == [1, *[16] * 9, 5]  # the first: of the token to sample
    check(engine, PROMPTS[0], response, 3)


@pytest.mark.parametrize("count", [-1, 21, True, 1.0])
def test_an_unusable_number_is_refused(count: object) -> None:
    with pytest.raises(ConfigError, match="prompt_logprobs"):
        Request(prompt_ids=[1], params=request([1]).params, prompt_logprobs=count)  # type: ignore[arg-type]
