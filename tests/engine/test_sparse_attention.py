"""Sparse attention in the engine: index keys are shared, saved and restored with the latents."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_run import EngineResponse, MakeEngine, engine_maker, request, run, tiny_decoder

IDS = [i * 7 % 250 for i in range(150)]  # six times top_k


@pytest.fixture(scope="module")
def sparse(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[MakeEngine]:
    folder = tmp_path_factory.mktemp("sparse")
    with tiny_decoder(folder, "glm5") as model, engine_maker(model) as make:
        yield make


def tokens(response: EngineResponse) -> list[tuple[object, ...]]:
    return [(t.token_id, t.logprob, t.top) for t in response.tokens]


@pytest.fixture(scope="module")
def alone(sparse: MakeEngine) -> list[tuple[object, ...]]:
    return tokens(run(sparse(), request(IDS, 20, top_logprobs=3))[0])


def test_a_response_depends_on_neither_batch_nor_chunks(
    sparse: MakeEngine, alone: list[tuple[object, ...]]
) -> None:
    engine = sparse(chunk_tokens=7)
    others = [request(IDS[i : i + 9 * i + 5], 30) for i in range(1, 6)]
    together = run(engine, others[0], request(IDS, 20, top_logprobs=3), *others[1:])
    assert tokens(together[1]) == alone


def test_a_cached_prefix_has_its_index_keys(
    sparse: MakeEngine, alone: list[tuple[object, ...]]
) -> None:
    engine = sparse()
    run(engine, request([*IDS[:140], 3], 40))
    (response,) = run(engine, request(IDS, 20, top_logprobs=3))
    assert response.end.usage.cached_tokens == 140  # the last page in part
    assert tokens(response) == alone


def test_draft_tokens_change_nothing(sparse: MakeEngine, alone: list[tuple[object, ...]]) -> None:
    assert tokens(run(sparse(speculate=6), request(IDS, 20, top_logprobs=3))[0]) == alone


@pytest.mark.parametrize("kv_type", ["f16", "int8"])
def test_a_saved_sequence_goes_on_with_its_index_keys(
    sparse: MakeEngine, tmp_path: Path, kv_type: str
) -> None:
    path, engine = tmp_path / "x.kv", sparse(kv_type=kv_type)
    (first,) = run(engine, request(IDS, 20))
    whole = [*IDS, *first.ids]
    assert engine.save(path, whole, "model") == len(whole) - 1
    (wanted,) = run(engine, request(whole, 20, top_logprobs=3))
    again = sparse(kv_type=kv_type)
    assert again.restore(path, "model") == whole[:-1]
    (response,) = run(again, request(whole, 20, top_logprobs=3))
    assert response.end.usage.cached_tokens == len(whole) - 1
    assert tokens(response) == tokens(wanted)
    other = sparse(kv_type="bf16")  # converted
    assert other.restore(path, "model") == whole[:-1]
    (response,) = run(other, request(whole, 20))
    assert response.end.usage.cached_tokens == len(whole) - 1


def test_index_keys_come_back_from_disk(
    sparse: MakeEngine, alone: list[tuple[object, ...]], tmp_path: Path
) -> None:
    engine = sparse(kv_disk=f"{tmp_path / 'kv'}=1GiB")
    run(engine, request([*IDS[:147], 3], 1))
    engine.close()
    (response,) = run(sparse(kv_disk=f"{tmp_path / 'kv'}=1GiB"), request(IDS, 20, top_logprobs=3))
    assert response.end.usage.disk_tokens == 147  # the last page in part
    assert tokens(response) == alone
