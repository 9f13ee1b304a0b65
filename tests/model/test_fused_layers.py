"""Layers as native calls: the bits, the routing and the KV cache of their steps one by one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from tiny_gguf import write_tiny

from hybridmoe.config import PREFILL_TOKENS, EngineConfig, ModelConfig
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.errors import ShapeError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels import fused_layer, ops
from hybridmoe.kernels.fused_layer import FUSED_TOKENS
from hybridmoe.kernels.fused_step import FusedStep
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import BlockTables, KvPages, Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.router import Routing
from hybridmoe.model.weights import Weights
from hybridmoe.planning.kv_plan import plan_kv

# Steps of two sequences: prompts, then few tokens of each.
STEPS = ((40, 30), (1, 1), (3, 2), (1, 0), (PREFILL_TOKENS, 0), (29, FUSED_TOKENS - 29), (1, 1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which calls computed layers."""
    found: list[str] = []

    def spy(owner: type, what: str) -> None:
        forward = owner.forward

        def spied(self: object, *args: object) -> object:
            found.append(what)
            return forward(self, *args)

        monkeypatch.setattr(owner, "forward", spied)

    spy(fused_layer.FusedLayers, "layers")
    spy(fused_layer.FusedAttention, "attention")
    spy(fused_layer.FusedFfn, "ffn")
    return found


def run(
    path: Path, *, stepwise: bool = False
) -> tuple[list[torch.Tensor], list[Routing], torch.Tensor]:
    """Return the states of all steps, their routing, and the KV cache."""
    ids = np.random.default_rng(3).integers(0, 250, 200).tolist()
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=256), 0))
        for layer in cache.layers:  # type: ignore[assignment]
            layer.data.zero_()
        model = Decoder(Weights(file), config)
        for decoder_layer in model._layers if stepwise else ():
            decoder_layer._fused_attention = decoder_layer._fused_ffn = None
        states, trace, ends = [], list[Routing](), [0, 0]
        for step in STEPS:
            spans = [Span(n, ends[i], [i, 2 + i]) for i, n in enumerate(step) if n]
            ends = [end + n for end, n in zip(ends, step, strict=True)]
            x = model.forward(ids[: sum(step)], spans, cache.layers, trace)
            states.append(x.clone())
        return states, trace, torch.stack([layer.data.clone() for layer in cache.layers])


@pytest.mark.parametrize(
    ("variant", "type"),
    [("k2", Type.F32), ("k2", Type.Q8_0), ("v2lite", Type.Q4_0), ("v2", Type.Q8_0)],
)
def test_bits_are_those_of_the_steps(
    restore_threads: None, variant: str, type: Type, calls: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, variant=variant, type=type)
    ops.set_num_threads(1)
    states, trace, pages = run(path, stepwise=True)
    assert not calls
    for threads in (1, 2, 3, 7):
        ops.set_num_threads(threads)
        found, found_trace, found_pages = run(path)
        assert calls.count("layers") == len(STEPS) - 1 and set(calls) == {"layers", "ffn"}
        calls.clear()
        assert all(torch.equal(a, b) for a, b in zip(states, found, strict=True))
        assert torch.equal(pages, found_pages)
        for wanted, got in zip(trace, found_trace, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


@pytest.mark.parametrize("variant", ["glm5", "mistral4"])
def test_selectors_and_temperatures_take_their_steps(
    variant: str, calls: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, variant=variant)
    states, _, _ = run(path, stepwise=True)
    assert not calls
    found, _, _ = run(path)
    assert set(calls) == {"ffn"}
    assert all(torch.equal(a, b) for a, b in zip(states, found, strict=True))


def test_observed_layers_leave_python_the_states(calls: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=64), 0))
        model, spans = Decoder(Weights(file), config), [Span(3, 0, [0])]
        with model.observe(lambda *_: None):
            seen = model.forward([1, 2, 3], spans, cache.layers)
        assert set(calls) == {"attention"}
        assert torch.equal(model.forward([1, 2, 3], spans, cache.layers), seen)
        assert calls[-1] == "layers"


def test_few_tokens_of_a_small_file_report_no_layers(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=128), 0))
        model, told = Decoder(Weights(file), config), list[int]()

        def step(num_tokens: int) -> list[int]:
            told.clear()
            ids, span = [1] * num_tokens, Span(num_tokens, 0, [0, 1])
            model.forward(ids, [span], cache.layers, None, told.append)
            return told

        assert not step(FUSED_TOKENS) and calls == ["layers"]
        every_layer = list(range(1, config.num_layers + 1))
        assert step(FUSED_TOKENS + 1) == every_layer
        monkeypatch.setattr("hybridmoe.model.decoder._BRIEF_BYTES", 0)
        assert step(3) == every_layer and calls.count("layers") == 1


def test_a_whole_step_has_the_bits_of_its_parts(restore_threads: None, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, type=Type.Q8_0)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=256), 0))
        for layer in cache.layers:  # type: ignore[assignment]
            layer.data.zero_()
        model = Decoder(Weights(file), config)
        model.forward(list(range(9)), [Span(5, 0, [0]), Span(4, 0, [1])], cache.layers)
        for ids, spans in (
            ([4, 5, 6], [Span(2, 5, [0]), Span(1, 4, [1])]),
            ([7], [Span(1, 70, [1, 2])]),
            (list(range(PREFILL_TOKENS)), [Span(PREFILL_TOKENS, 7, [0])]),
        ):
            for threads in (1, 3):
                ops.set_num_threads(threads)
                found = model.decode(ids, spans, cache.layers)
                assert found is not None
                states, logits = found.states.clone(), found.logits.copy()
                assert list(found.best) == logits.argmax(1).tolist()
                assert torch.equal(model.forward(ids, spans, cache.layers), states)
                assert np.array_equal(model.logits(states).numpy(), logits)


def test_threads_do_not_share_the_results_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        plan = plan_kv(config, EngineConfig(context_tokens=64), 0)
        model, caches = Decoder(Weights(file), config), [KvCache(config, plan) for _ in "ab"]
        with ThreadPoolExecutor(1) as other:
            mine = model.decode([4], [Span(1, 0, [0])], caches[0].layers)
            assert mine is not None
            kept = mine.states.clone(), mine.logits.copy(), list(mine.best)
            others = other.submit(model.decode, [9], [Span(1, 0, [0])], caches[1].layers).result()
            assert others is not None and not np.array_equal(others.logits, kept[1])
            assert torch.equal(mine.states, kept[0]) and np.array_equal(mine.logits, kept[1])
            assert list(mine.best) == kept[2]


def test_what_is_no_whole_step_is_left_to_forward(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=64), 0))
        model, most = Decoder(Weights(file), config), PREFILL_TOKENS
        assert model.decode([1], [Span(1, 0, [0])], cache.layers) is not None
        assert model.decode([1] * (most + 1), [Span(most + 1, 0, [0])], cache.layers) is None
        assert model.decode([1], [Span(1, 0, [0], 1)], cache.layers) is None
        with model.observe(lambda *_: None):
            assert model.decode([1], [Span(1, 0, [0])], cache.layers) is None


def test_a_step_finds_the_first_of_the_greatest_logits(
    each_isa: str, restore_threads: None, tmp_path: Path
) -> None:
    path, size = tmp_path / "x.gguf", 20_000  # of logits: several parts, the last one shorter
    write_tiny(path)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=128), 0))
        model, spans = Decoder(Weights(file), config), [Span(1, 0, [0]), Span(1, 0, [1])]
        rows = np.zeros((size, config.hidden), np.float32)
        layers, norm = model._stages[0].fused(), model._norm
        assert layers is not None
        matrix = QuantMatrix.from_array(rows)
        step = FusedStep(model._embedding, layers, norm.weight, norm.eps, matrix)

        def best() -> list[int]:
            pages, tables = cast(list[KvPages], cache.layers), BlockTables(spans)
            return list(step.forward([4, 5], tables, pages, model._rope.rows(64)).best)

        for threads in (1, 3):
            ops.set_num_threads(threads)
            rows[:] = 0.0
            assert best() == [0, 0]  # all are alike
            states = model.forward([4, 5], spans, cache.layers)
            for at in (size - 1, 8192, 8191, 70):
                rows[at] = norm(states)[0].numpy()  # as great as those behind it
                assert best()[0] == at
            for bad in (np.nan, np.inf, -np.inf):
                rows[12_345, 0] = bad
                assert best() == [-1, -1]


def test_steps_refuse_what_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=64), 0))
        model = Decoder(Weights(file), config)
        with pytest.raises(ShapeError, match="id 1000000 at position 1"):
            model.decode([1, 1_000_000], [Span(2, 0, [0])], cache.layers)
        with pytest.raises(ShapeError, match="2 tokens, sequences have 1"):
            model.decode([1, 2], [Span(1, 0, [0])], cache.layers)
        with pytest.raises(ShapeError, match=r"latent_attention|store_kv"):
            model.decode([1], [Span(1, 0, [10**6])], cache.layers)


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "x.gguf")
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        config = ModelConfig.from_metadata(file.metadata)
        layer = Decoder(Weights(file), config)._layers[-1]
        attention, ffn = layer.fused  # type: ignore[misc]
        w = attention.weights
        with pytest.raises(ShapeError, match=r"fused layer: out is \(1, "):
            swapped = fused_layer.AttentionWeights(
                w.q_a, w.q_a_norm, w.q_b, w.kv_a, w.kv_a_norm, w.k_b, w.v_b, w.kv_a, w.scale
            )
            fused_layer.FusedAttention(attention.norm, attention.eps, swapped)
        with pytest.raises(ShapeError, match="fused layer: norm is"):
            fused_layer.FusedFfn(attention.norm[:-1], ffn.eps, ffn.routed, ffn.dense)
        with pytest.raises(ShapeError, match="fused layer: down is"):
            gate, up, _ = ffn.routed.experts
            experts = fused_layer.SwigluWeights(gate, up, gate.slice(0, 1))
            routed = fused_layer.RoutedWeights(
                ffn.routed.router, ffn.routed.bias, ffn.routed.spec, experts
            )
            fused_layer.FusedFfn(ffn.norm, ffn.eps, routed, ffn.dense)
        x = torch.zeros(2, config.hidden)
        with pytest.raises(ShapeError, match="x has 2 tokens, residual 1"):
            ffn.forward(x, torch.zeros(1, config.hidden))
