"""Drafts by multi-token prediction change the number of steps, and nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_run import MakeEngine, engine_maker, request, run, tiny_decoder
from small_model import SMALL

from hybridmoe.engine.engine import Engine
from hybridmoe.engine.request import Request
from hybridmoe.errors import DiskError
from hybridmoe.model.decoder import Decoder

pytestmark = pytest.mark.usefixtures("exact_kernels")

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(0, 256, n).tolist() for n in (3, 70, 1, 130, 64)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    options = {**SMALL, "layers": 3, "gain": 0.3}  # so little that half of the drafts are right
    with tiny_decoder(tmp_path_factory.mktemp("mtp"), mtp=True, **options) as model:
        yield model


@pytest.fixture
def make(model: Decoder) -> Iterator[MakeEngine]:
    with engine_maker(model) as make:
        yield make


def requests(num_tokens: int = 40, **options: Any) -> list[Request]:
    return [request(prompt, num_tokens, seed=i, **options) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("speculate", ["mtp:1", "mtp:3", "mtp"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_responses_are_the_same(make: MakeEngine, speculate: str, temperature: float) -> None:
    wanted = requests(temperature=temperature, top_logprobs=2)
    plain, fast = make(speculate="off"), make(speculate=speculate, max_running=3, chunk_tokens=9)
    expected = [(r.ids, [t.top for t in r.tokens]) for r in run(plain, *wanted)]
    for _ in range(2):  # the second time from the prefix cache
        found = run(fast, *wanted)
        assert [(r.ids, [t.top for t in r.tokens]) for r in found] == expected
    assert fast.stats().accepted_tokens > 0
    assert plain.stats().draft_tokens == 0


def test_accepted_drafts_save_steps(make: MakeEngine) -> None:
    engine = make(speculate="mtp:2")
    (response,) = run(engine, request(PROMPTS[1], 60))
    usage, stats = response.end.usage, engine.stats()
    assert usage.accepted_tokens > 15
    assert stats.steps <= 60 - usage.accepted_tokens + 1
    assert (stats.draft_tokens, stats.accepted_tokens) == (
        usage.draft_tokens,
        usage.accepted_tokens,
    )


def test_drafts_leave_the_kv_cache_of_a_prompt(make: MakeEngine) -> None:
    engine, other = make(speculate="mtp:3", chunk_tokens=20), make(speculate="off")
    (response,) = run(engine, request(PROMPTS[1], 80))
    usage = response.end.usage
    assert 0 < usage.accepted_tokens < usage.draft_tokens
    ids = PROMPTS[1] + response.ids
    run(other, request(ids, 1))
    assert np.array_equal(_rows(engine, ids[:-1]), _rows(other, ids[:-1]))


def _rows(engine: Engine, ids: list[int]) -> np.ndarray:
    """Rows of all layers for a cached sequence but its last token."""
    cache = engine._thread.cache
    pages, num_tokens = cache.cached_pages(ids)
    assert num_tokens == len(ids) - 1
    return cache.read_rows(pages, num_tokens)


def test_preempted_requests_and_stop_tokens(make: MakeEngine) -> None:
    plain = make(speculate="off")
    wanted = requests(100)
    expected = [response.ids for response in run(plain, *wanted)]
    small = make(speculate="mtp:3", kv_tokens=512, context_tokens=256)
    assert [response.ids for response in run(small, *wanted)] == expected
    assert small.stats().preempted > 0
    stop = expected[1][20]
    end = expected[1].index(stop)
    (response,) = run(small, request(PROMPTS[1], 50, stop_token_ids=[stop]))
    assert (response.ids, response.end.reason) == (expected[1][:end], "stop")


def test_pages_on_disk_have_the_layers_rows(make: MakeEngine, tmp_path: Path) -> None:
    ids = RNG.integers(0, 256, 300).tolist()
    options: dict[str, Any] = {"speculate": "mtp:1", "kv_disk": f"{tmp_path}=1GiB"}
    first = make(**options)
    (expected,) = run(first, request(ids, 30))
    first.close()
    (response,) = run(make(**options), request(ids, 30))
    assert response.ids == expected.ids
    assert response.end.usage.disk_tokens == 299
    wanted, found = expected.end.usage, response.end.usage
    # The state behind what is read is unknown, so that one row of many differs.
    assert abs(found.accepted_tokens - wanted.accepted_tokens) <= 3 < found.accepted_tokens


def test_an_error_while_drafting_is_the_requests(
    make: MakeEngine, model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DiskError("model.gguf: cannot be read")

    monkeypatch.setattr(model, "draft", fail)
    engine = make(speculate="mtp:1")
    (response,) = run(engine, request([1, 2, 3], 9))
    assert (response.end.reason, response.end.error) == ("error", "model.gguf: cannot be read")
    monkeypatch.undo()
    assert len(run(engine, request([1, 2, 3], 9))[0].ids) == 9
