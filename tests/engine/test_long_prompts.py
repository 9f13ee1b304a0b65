"""Prompts whose keys and values are expanded: what their bits depend on, and what not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_run import EngineResponse, MakeEngine, engine_maker, request, run, tiny_decoder

from hybridmoe.engine import prefill_budget
from hybridmoe.engine.request import Request

pytestmark = pytest.mark.usefixtures("exact_kernels")

LEAST = 256
RNG = np.random.default_rng(11)
PROMPT = RNG.integers(0, 256, 3 * LEAST - 67).tolist()
CONTEXT = 1024
Bits = list[tuple[object, ...]]


def prompt(num_tokens: int) -> list[int]:
    return RNG.integers(0, 256, num_tokens).tolist()


def bits(response: EngineResponse) -> Bits:
    """Log probabilities of the prompt, where they were asked for, and tokens with theirs."""
    scores = [(x,) for scored in response.prompt_logprobs for x in scored.logprobs]
    return [*scores, *((t.token_id, t.logprob, t.top) for t in response.tokens)]


def asked(ids: list[int], num_tokens: int = 3, *, scored: bool = False) -> Request:
    return request(ids, num_tokens, top_logprobs=3, prompt_logprobs=0 if scored else None)


@pytest.fixture
def cold(make: MakeEngine) -> Callable[..., Bits]:
    """Bits of a prompt in an engine that has run nothing else."""

    def respond(ids: list[int], scored: bool = False, **options: object) -> Bits:
        engine = make(context_tokens=CONTEXT, **options)
        return bits(run(engine, asked(ids, scored=scored))[0])

    return respond


def test_a_prompt_has_the_same_bits_in_steps_of_any_length(cold: Callable[..., Bits]) -> None:
    whole = cold(PROMPT, scored=True, chunk_tokens=CONTEXT)
    for chunk_tokens in (LEAST, LEAST + 1, 300, 350, 511, 512, len(PROMPT) - 1):
        assert cold(PROMPT, scored=True, chunk_tokens=chunk_tokens) == whole, chunk_tokens


@pytest.mark.parametrize("num_tokens", [LEAST - 56, LEAST, LEAST + 1, 700, 960])
def test_steps_that_the_clock_lengthens_change_no_bits(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    monkeypatch.setattr(prefill_budget, "_QUICK_S", 1e9)  # as on a fast machine
    ids, more = prompt(num_tokens), prompt(400)
    found = []
    for quick_tokens in (0, CONTEXT):
        engine = make(context_tokens=CONTEXT, chunk_tokens=LEAST, quick_chunk_tokens=quick_tokens)
        run(engine, asked(PROMPT, 1))  # one that tells how quick steps are
        before = engine.stats().steps
        alone = bits(run(engine, asked(ids, 1))[0])
        steps = engine.stats().steps - before
        behind_cached = bits(run(engine, asked([*ids[: num_tokens // 2], *more], 1))[0])
        found.append((steps, alone, behind_cached))
    (steps, *steady), (quick_steps, *quick) = found
    assert quick == steady
    assert quick_steps == 1 and steps == -(-num_tokens // LEAST)


def test_where_bits_depend_on_steps_the_clock_has_no_say(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill_budget, "_QUICK_S", 1e9)
    monkeypatch.setattr("hybridmoe.engine.engine_thread.isa.active", lambda: "amx")
    engine = make(context_tokens=CONTEXT, chunk_tokens=LEAST, quick_chunk_tokens=CONTEXT)
    run(engine, asked(PROMPT, 1))
    assert engine.stats().steps >= -(-len(PROMPT) // LEAST)


def test_short_steps_and_short_prompts_are_not_expanded(
    cold: Callable[..., Bits], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = PROMPT[:LEAST]
    found = cold(PROMPT), cold(PROMPT, chunk_tokens=100), cold(short)
    monkeypatch.setenv("HYBRIDMOE_EXPAND", "0")
    latent = cold(PROMPT, chunk_tokens=CONTEXT)
    assert all(cold(PROMPT, chunk_tokens=n) == latent for n in (7, 300))
    assert found[0] != latent and found[1:] == (latent, cold(short))


def test_a_prompt_has_the_same_bits_among_other_prompts(
    make: MakeEngine, cold: Callable[..., Bits]
) -> None:
    prompts = [PROMPT, *(prompt(n) for n in (LEAST + 2, 5, 600, LEAST, 900, 130))]
    alone = [cold(ids, scored=True) for ids in prompts]
    for chunk_tokens in (LEAST, 300, 700):
        engine = make(context_tokens=CONTEXT, chunk_tokens=chunk_tokens, max_running=8)
        # No tokens: where some decode, steps become short.
        found = run(engine, *(request(ids, 0, prompt_logprobs=0) for ids in prompts))
        for response, whole, ids in zip(found, alone, prompts, strict=True):
            assert bits(response) == whole[: len(ids) - 1]


@pytest.mark.parametrize("speculate", [6, 0])
def test_drafts_and_a_second_run_change_nothing(make: MakeEngine, speculate: int) -> None:
    repeated = (PROMPT[:40] * 20)[: CONTEXT - 50]
    for ids in (PROMPT, repeated):
        alone = bits(run(make(context_tokens=CONTEXT), asked(ids, 20))[0])
        engine = make(context_tokens=CONTEXT, speculate=speculate)
        for cached in (0, len(ids) - 1):
            (response,) = run(engine, asked(ids, 20))
            assert response.end.usage.cached_tokens == cached
            assert bits(response) == alone


@pytest.mark.parametrize("ending", [1, 64, 100, LEAST - 1, LEAST, LEAST + 1, 300, 500])
def test_a_prefix_of_another_prompt_changes_nothing_behind_which_enough_follows(
    make: MakeEngine, cold: Callable[..., Bits], ending: int
) -> None:
    """Fewer tokens than are expanded stay in latent space, where the prompt alone is expanded."""
    ids = [*PROMPT[: -ending - 1], *prompt(ending), 7]
    if ids[-ending - 1] == PROMPT[-ending - 1]:
        ids[-ending - 1] ^= 1
    engine = make(context_tokens=CONTEXT)
    run(engine, asked(PROMPT))
    (response,) = run(engine, asked(ids))
    assert response.end.usage.cached_tokens == len(ids) - 1 - ending
    assert (bits(response) == cold(ids)) == (ending >= LEAST)


def test_a_prompt_comes_back_from_files(
    make: MakeEngine, cold: Callable[..., Bits], tmp_path: Path
) -> None:
    alone, ids = cold(PROMPT), PROMPT
    options = {"context_tokens": CONTEXT, "kv_disk": f"{tmp_path / 'kv'}=1GiB"}
    engine = make(**options)
    run(engine, asked(ids))
    engine.save(tmp_path / "x.kv", ids, "model")
    engine.close()
    from_disk, restored = make(**options), make(context_tokens=CONTEXT)
    restored.restore(tmp_path / "x.kv", "model")
    for again in (from_disk, restored):
        (response,) = run(again, asked(ids))
        assert response.end.usage.cached_tokens == len(ids) - 1
        assert bits(response) == alone


def test_logits_are_those_of_the_response(make: MakeEngine) -> None:
    found = [make(context_tokens=CONTEXT, chunk_tokens=n).logits(PROMPT) for n in (300, CONTEXT)]
    assert np.array_equal(*found)
    (response,) = run(make(context_tokens=CONTEXT), request(PROMPT, 1, top_logprobs=0))
    last = found[0][-1].astype(np.float64)
    logprob = last.max() - np.log(np.exp(last - last.max()).sum()) - last.max()
    assert response.tokens[0].logprob == pytest.approx(logprob, abs=1e-6)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeEngine]:
    folder = tmp_path_factory.mktemp("sparse")
    with tiny_decoder(folder, "glm5", index_top_k=300) as model, engine_maker(model) as make:
        yield make


def test_sparse_attention_begins_behind_expanded_tokens(
    sparse: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond(chunk_tokens: int) -> Bits:
        engine = sparse(context_tokens=CONTEXT, chunk_tokens=chunk_tokens)
        return bits(run(engine, asked(PROMPT, scored=True))[0])

    whole = respond(CONTEXT)
    assert all(respond(n) == whole for n in (LEAST, 299, 301, 450))
    monkeypatch.setenv("HYBRIDMOE_EXPAND", "0")
    assert respond(CONTEXT) != whole
