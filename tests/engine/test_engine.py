"""Engine: responses independent of the batch, prefix sharing, preemption, queueing, errors."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_run import MakeEngine, Running, request, run
from waiting import HANG_S

from hybridmoe.config import KV_TYPES
from hybridmoe.engine.request import Finished, PromptProgress, Request, TokenEvent
from hybridmoe.engine.scheduler import Scheduler
from hybridmoe.errors import ConfigError, ContextLengthError, HybridMoeError, QueueFullError
from hybridmoe.model.decoder import Decoder

pytestmark = pytest.mark.usefixtures("exact_kernels")

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(0, 256, n).tolist() for n in (3, 70, 1, 200, 64, 130, 65, 20)]


def alone(make: MakeEngine, num_tokens: int = 16) -> list[list[int]]:
    """Response to each prompt in an engine that has run nothing else."""
    return [run(make(), request(prompt, num_tokens))[0].ids for prompt in PROMPTS]


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_response_does_not_depend_on_the_batch_or_the_chunks(
    make: MakeEngine, size: int, kv_type: str
) -> None:
    check_batches(make, kv_type, size, [request(prompt) for prompt in PROMPTS])


def test_sixty_four_requests_in_a_batch_equal_each_alone(make: MakeEngine) -> None:
    prompts = [RNG.integers(0, 256, 5 + 3 * i).tolist() for i in range(64)]
    lone = make()
    expected = [run(lone, request(prompt, 8))[0].ids for prompt in prompts]
    engine = make(kv_tokens=16384, max_running=64)
    assert [response.ids for response in run(engine, *(request(p, 8) for p in prompts))] == expected
    stats = engine.stats()
    assert stats.running == stats.waiting == stats.kv_pages_used == 0


def test_nor_in_any_instruction_set(make: MakeEngine, each_exact_isa: str) -> None:
    check_batches(make, "f16", 3, [request(prompt, 6) for prompt in PROMPTS[:3]])


def check_batches(make: MakeEngine, kv_type: str, size: int, requests: list[Request]) -> None:
    """Compare: alone and unchunked; `size` at a time, in chunks; again, from the prefix cache."""
    expected = [run(make(kv_type=kv_type, chunk_tokens=512), r)[0].ids for r in requests]
    engine = make(kv_type=kv_type, max_running=size, chunk_tokens=7 * size)
    assert [response.ids for response in run(engine, *requests)] == expected
    again = run(engine, *reversed(requests))
    assert [response.ids for response in again] == expected[::-1]
    for response, wanted in zip(again, reversed(requests), strict=True):
        assert response.end.usage.cached_tokens == len(wanted.prompt_ids) - 1


def test_a_shared_prefix_is_computed_once(make: MakeEngine) -> None:
    engine = make()
    shared = RNG.integers(0, 256, 150).tolist()
    responses = run(engine, *(request([*shared, i]) for i in range(4)))
    assert [a.end.usage.cached_tokens for a in responses] == [0, 128, 128, 128]
    assert engine.stats().kv_pages_used == 0
    (later,) = run(engine, request([*shared, 99]))
    assert later.end.usage.cached_tokens == 150  # a part of the third page


def test_a_response_is_cached_for_the_next_turn(make: MakeEngine) -> None:
    engine = make()
    (first,) = run(engine, request(PROMPTS[1], 100))
    (second,) = run(engine, request([*PROMPTS[1], *first.ids, 7]))
    assert second.end.usage.cached_tokens == 70 + 99  # all but the last, which was not computed


def test_preempted_requests_give_the_same_responses(make: MakeEngine) -> None:
    expected = alone(make, 200)
    engine = make(kv_tokens=512)
    responses = run(engine, *(request(prompt, 200) for prompt in PROMPTS))
    assert [response.ids for response in responses] == expected
    assert engine.stats().preempted > 0
    assert engine.stats().kv_pages_used == 0


def test_pages_are_freed_however_a_request_finishes(make: MakeEngine) -> None:
    engine = make(max_running=3)
    requests = [Running(engine, request(prompt, None)) for prompt in PROMPTS]
    for i, running in enumerate(requests):
        if i % 2:
            running.handle.cancel()
    ends = [running.wait().end.reason for running in requests]
    assert ends[0::2] == ["length"] * 4
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_pages_used) == (0, 0, 0)


def test_a_cancelled_request_finishes_within_two_steps(make: MakeEngine) -> None:
    engine = make()
    running = Running(engine, request(PROMPTS[1], 400))
    running.token()
    running.handle.cancel()
    running.handle.cancel()
    steps = engine.stats().steps
    end = running.wait().end
    assert end.reason == "cancelled"
    assert engine.stats().steps <= steps + 2
    assert end.usage.generated_tokens == len(running.response.ids) < 400
    assert engine.stats().kv_pages_used == 0


def test_a_waiting_request_can_be_cancelled(make: MakeEngine) -> None:
    engine = make(max_running=1)
    first = Running(engine, request(PROMPTS[0], 300))
    second = Running(engine, request(PROMPTS[1], 300))
    second.handle.cancel()
    assert second.wait().events == [second.response.end]
    first.handle.cancel()


def test_short_prompts_do_not_wait_for_long_ones(make: MakeEngine) -> None:
    engine = make(chunk_tokens=8)
    order: list[str] = []
    done = threading.Event()

    def listener(name: str) -> Callable[[Any], None]:
        def listen(event: Any) -> None:
            if isinstance(event, Finished):
                order.append(name)
                if len(order) == 2:
                    done.set()

        return listen

    engine.submit(request(RNG.integers(0, 256, 500).tolist(), 1), listener("long"))
    engine.submit(request([1, 2, 3, 4], 1), listener("short"))
    assert done.wait(HANG_S)
    assert order == ["short", "long"]


def test_decoding_goes_on_during_a_prefill(make: MakeEngine) -> None:
    engine = make(chunk_tokens=16)
    running = Running(engine, request([1], 400))
    running.token()
    prompt = Running(engine, request(RNG.integers(0, 256, 500).tolist(), 1))
    before = len(running.response.ids)
    prompt.wait()
    running.handle.cancel()
    assert len(running.wait().ids) - before >= 500 // 16 // 2


def test_a_full_queue_refuses_and_recovers(make: MakeEngine) -> None:
    engine = make(max_running=1, max_waiting=2)
    accepted = [Running(engine, request(PROMPTS[0], 400)) for _ in range(3)]
    with pytest.raises(QueueFullError, match=r"queue is full \(2 requests\): try again later"):
        Running(engine, request(PROMPTS[0], 400))
    for running in accepted:
        running.handle.cancel()
        running.wait()
    assert run(engine, request(PROMPTS[0], 2))[0].end.reason == "length"


def test_an_unusable_prompt_is_refused_at_once(make: MakeEngine) -> None:
    engine = make()
    with pytest.raises(ContextLengthError, match="513 tokens, the context holds 512") as caught:
        run(engine, request([1] * 513))
    assert (caught.value.num_prompt_tokens, caught.value.context_tokens) == (513, 512)
    for ids, message in (([], "empty"), ([-1], "token -1"), ([1, 1 << 30], "outside")):
        with pytest.raises(ConfigError, match=message):
            run(engine, request(ids))
    (whole,) = run(engine, request([1] * 512))
    assert (whole.end.reason, whole.ids) == ("length", [])


def test_a_failing_step_fails_its_requests_and_not_the_engine(
    make: MakeEngine, model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    forward = model.forward

    def fail(ids: list[int], *rest: Any) -> Any:
        if 77 in ids:
            raise MemoryError("no room\nfor this")
        return forward(ids, *rest)

    monkeypatch.setattr(model, "forward", fail)
    (response,) = run(engine, request([1, 77]))
    assert (response.end.reason, response.end.error) == ("error", "out of memory in a step")
    assert run(engine, request([1, 78], 3))[0].end.reason == "length"
    assert engine.stats().kv_pages_used == 0


def test_an_engine_that_fails_finishes_its_requests(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    running = Running(engine, request(PROMPTS[0], 400))
    running.token()

    def fail(self: Scheduler) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Scheduler, "schedule", fail)
    end = running.wait().end
    assert (end.reason, end.error) == ("error", "the engine has failed: KeyError: 'a bug'")
    with pytest.raises(HybridMoeError, match="closed"):
        engine.logits([1])


def test_a_listener_that_raises_cancels_its_own_request(make: MakeEngine) -> None:
    engine = make()

    def listen(event: Any) -> None:
        raise RuntimeError("listener")

    engine.submit(request(PROMPTS[0], 400), listen)
    assert len(run(engine, request(PROMPTS[1], 5))[0].ids) == 5
    assert engine.stats().running == 0


def test_progress_starts_at_the_cached_tokens_and_ends_at_all(make: MakeEngine) -> None:
    engine = make(chunk_tokens=32)
    (first,) = run(engine, request(PROMPTS[3], 1))
    assert [p.done_tokens for p in first.progress] == [0, 32, 64, 96, 128, 160, 192, 200]
    (second,) = run(engine, request([*PROMPTS[3][:150], 9, 9, 9], 1))
    assert second.progress[0] == PromptProgress(150, 153, 150)
    assert second.progress[-1] == PromptProgress(153, 153, 150)


def test_progress_within_a_long_step_goes_by_its_layers(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = run(make(), request(PROMPTS[3], 5))
    monkeypatch.setattr("hybridmoe.engine.step_runner._PROGRESS_S", 0.0)
    (response,) = run(make(), request(PROMPTS[3], 5))
    done = [p.done_tokens for p in response.progress]
    num_layers = len(done) - 2
    assert num_layers > 1
    assert done == [*(200 * i // num_layers for i in range(num_layers + 1)), 200]
    assert response.ids == before.ids


def test_log_probabilities_are_those_of_the_logits(make: MakeEngine) -> None:
    engine = make()
    (response,) = run(engine, request(PROMPTS[1], 8, top_logprobs=5, temperature=1.0, seed=3))
    logits = engine.logits([*PROMPTS[1], *response.ids]).astype(np.float64)
    for i, token in enumerate(response.tokens):
        row = logits[len(PROMPTS[1]) - 1 + i]
        expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert token.logprob == pytest.approx(expected[token.token_id], abs=1e-5)
        assert [i for i, _ in token.top] == np.argsort(-expected, kind="stable")[:5].tolist()
        assert [p for _, p in token.top] == pytest.approx(np.sort(expected)[::-1][:5], abs=1e-5)
    (plain,) = run(engine, request(PROMPTS[1], 2))
    assert (plain.tokens[0].logprob, plain.tokens[0].top) == (None, ())


def test_the_experts_of_a_token_are_traced_on_request(make: MakeEngine, model: Decoder) -> None:
    traced, plain = run(make(), request([1, 2], 4, expert_trace=True), request([1, 2], 4))
    c = model.config
    for token in traced.tokens:
        assert token.experts is not None
        ids = token.experts.ids
        assert ids.shape == (c.num_moe_layers, c.top_k)
        assert (ids >= 0).all() and (ids < c.num_experts).all()
    assert plain.tokens[0].experts is None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_speculation_changes_nothing_but_the_number_of_steps(
    make: MakeEngine, temperature: float
) -> None:
    plain, fast = make(), make(speculate=4)
    few = dict.fromkeys(range(4), 50.0)  # so that a random model repeats itself
    for seed, prompt in enumerate([[1, 2, 3] * 20, *PROMPTS[:4]]):
        wanted = request(prompt, 120, temperature=temperature, seed=seed, logit_bias=few)
        (expected,) = run(plain, wanted)
        (got,) = run(fast, wanted)
        assert got.ids == expected.ids
        usage = got.end.usage
        assert 0 <= usage.accepted_tokens <= usage.draft_tokens
    assert fast.stats().steps < plain.stats().steps


def test_accepted_drafts_save_steps(make: MakeEngine) -> None:
    engine = make(speculate=4)
    (response,) = run(engine, request([1, 2], 100, logit_bias={9: 1e6}))
    assert response.ids == [9] * 100
    usage, stats = response.end.usage, engine.stats()
    assert 75 <= usage.accepted_tokens <= usage.draft_tokens
    assert (stats.draft_tokens, stats.accepted_tokens) == (
        usage.draft_tokens,
        usage.accepted_tokens,
    )
    assert stats.steps <= 25  # 1 + 4 tokens a step, except the first few


def test_close_cancels_all_requests_and_refuses_new_ones(make: MakeEngine) -> None:
    engine = make(max_running=1)
    requests = [Running(engine, request(PROMPTS[0], 400)) for _ in range(3)]
    engine.close()
    engine.close()
    assert [running.wait().end.reason for running in requests] == ["cancelled"] * 3
    for use in (lambda: run(engine, request([1])), lambda: engine.logits([1])):
        with pytest.raises(HybridMoeError, match="closed"):
            use()


def test_events_come_in_order(make: MakeEngine) -> None:
    (response,) = run(make(), request(PROMPTS[1], 5))
    kinds = [type(e) for e in response.events]
    assert kinds == [PromptProgress] * 2 + [TokenEvent] * 5 + [Finished]
    assert [t.usage.generated_tokens for t in response.tokens] == [1, 2, 3, 4, 5]
    usage = response.end.usage
    assert (usage.prompt_tokens, usage.generated_tokens) == (70, 5)
    assert usage.queue_s >= 0 and usage.prompt_s > 0 and usage.decode_s > 0
