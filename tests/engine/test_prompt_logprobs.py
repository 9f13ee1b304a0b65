"""Log probabilities of prompts: those of the logits, in any batch, chunk or cache; memory."""

import numpy as np
import pytest
from engine_run import EngineResponse, MakeEngine, request, run
from torch import Tensor

from hybridmoe.engine import Engine, Finished, PromptLogprobs, Request, prompt_scorer
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
    for _ in range(2):
        responses = run(engine, *requests)
        for prompt, response, unscored in zip(PROMPTS, responses, plain, strict=True):
            check(engine, prompt, response, num_top)
            assert response.end.usage.cached_tokens == 0
            assert response.ids == unscored.ids
    assert not any(response.prompt_logprobs for response in plain)


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
