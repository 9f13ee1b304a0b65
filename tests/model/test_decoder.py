"""Decoder: equal logits for any chunks, causality, observers."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.router import Routing
from hybridmoe.model.weights import Weights
from hybridmoe.planning.kv_plan import plan_kv

NUM_TOKENS = 60


@pytest.fixture(scope="module", params=["k2", "mistral4"])
def f32_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "tiny.gguf"
    write_tiny(path, variant=request.param, type=Type.F32)
    return path


def _logits_in_chunks(path: Path, ids: list[int], chunk_tokens: int) -> np.ndarray:
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        model = Decoder(Weights(file), config)
        engine = EngineConfig(context_tokens=len(ids), kv_type="f32")
        cache = KvCache(config, plan_kv(config, engine, 0))
        rows = []
        for start in range(0, len(ids), chunk_tokens):
            chunk = ids[start : start + chunk_tokens]
            spans = [Span(len(chunk), start, range(cache.plan.num_pages))]
            rows.append(model.logits(model.forward(chunk, spans, cache.layers)).numpy())
        return np.concatenate(rows)


@pytest.mark.parametrize("variant", ["glm5", "v32"])
def test_chunks_of_sparse_attention_give_the_logits_of_the_whole_prompt(
    variant: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, variant=variant, index_top_k=24)
    ids = np.random.default_rng(1).integers(0, 256, 150).tolist()
    whole = _logits_in_chunks(path, ids, len(ids))
    for chunk_tokens in (1, 7, 64):
        assert np.array_equal(whole, _logits_in_chunks(path, ids, chunk_tokens))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 32])
def test_chunks_give_the_logits_of_the_whole_prompt(f32_path: Path, chunk_tokens: int) -> None:
    ids = np.random.default_rng(1).integers(0, 256, NUM_TOKENS).tolist()
    whole = _logits_in_chunks(f32_path, ids, NUM_TOKENS)
    assert np.array_equal(whole, _logits_in_chunks(f32_path, ids, chunk_tokens))


def test_later_tokens_do_not_change_earlier_logits(f32_path: Path) -> None:
    with hybridmoe.load(f32_path) as llm:
        short, long = llm.logits([5, 6, 7]), llm.logits([5, 6, 7, 8, 9])
    assert np.array_equal(short, long[:3])


def test_the_trace_has_every_layers_routing(f32_path: Path) -> None:
    with GGUFFile.open(f32_path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=9), 0))
        trace: list[Routing] = []
        Decoder(Weights(file), config).forward([1, 2, 3], [Span(3, 0, [0])], cache.layers, trace)
    shape = (3, config.top_k)
    assert [tuple(ids.shape) for ids, _ in trace] == [shape] * config.num_moe_layers
    assert [tuple(weights.shape) for _, weights in trace] == [shape] * config.num_moe_layers


def test_states_are_observed_within_the_block_only(f32_path: Path) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    with GGUFFile.open(f32_path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=9), 0))
        model = Decoder(Weights(file), config)
        with model.observe(lambda layer, states: seen.append((layer, tuple(states.shape)))):
            model.forward([1, 2, 3], [Span(3, 0, [0])], cache.layers)
        model.forward([4], [Span(1, 3, [0])], cache.layers)
    assert seen == [(layer, (3, config.hidden)) for layer in range(config.num_layers)]
