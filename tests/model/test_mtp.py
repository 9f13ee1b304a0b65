"""Multi-token prediction: drafts against float64, a KV cache that no chunk changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_network import exact_drafts, exact_states
from gguf import GGMLQuantizationType as Type
from host_adapter import HostAdapter
from small_model import SMALL
from tiny_gguf import write_tiny

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.errors import GGUFError
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.planning.kv_plan import plan_kv

IDS = np.random.default_rng(1).integers(0, 256, 70).tolist()  # more than a page


@contextmanager
def opened(path: Path, kv_type: str = "f32") -> Iterator[tuple[Decoder, KvCache]]:
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata).with_mtp()
        engine = EngineConfig(context_tokens=len(IDS) + 2, kv_type=kv_type)
        yield Decoder(Weights(file), config), KvCache(config, plan_kv(config, engine, 0))


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("k2", {}),
        ("v3", {"mtp_own": True}),
        ("mistral4", {"tied": True}),
        ("glm5", {}),  # 24 positions are all
    ],
)
def test_drafts_are_those_of_float64(variant: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    weights = write_tiny(path, variant=variant, type=Type.F32, mtp=True, **options)
    ids = IDS[:20]
    with opened(path) as (model, cache):
        c, pages = model.config, range(cache.plan.num_pages)
        states = model.forward(ids, [Span(len(ids), 0, pages)], cache.layers)
        # All positions at once: each attends to the rows before its own.
        spans = [Span(1, i, pages) for i in range(1, len(ids))]
        own, logits = model.draft(ids[1:], model.head_states(states[:-1]), spans, cache.layers[-1])
        exact = exact_states(c, weights, ids)
        before = torch.cat((torch.zeros(1, c.hidden), exact[:-1]))
        wanted_states, wanted = exact_drafts(c, weights, ids, before)
        assert relative_error(logits.numpy(), wanted[1:]) < 1e-4
        drafted = int(logits[-1].argmax())
        end = [Span(1, len(ids), pages)]
        _, logits = model.draft([drafted], own[-1:], end, cache.layers[-1])
        before = torch.cat((before, wanted_states[-1:]))
        _, wanted = exact_drafts(c, weights, [*ids, drafted], before)
        assert relative_error(logits.numpy(), wanted[-1:]) < 1e-4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mtp") / "tiny.gguf"
    write_tiny(path, type=Type.Q8_0, mtp=True, **SMALL)
    return path


@pytest.mark.parametrize("ends", [(1, 2, 3, 40, 64, 65), range(1, len(IDS))])
def test_chunks_fill_the_kv_cache_as_a_whole_prompt_does(small: Path, ends: list[int]) -> None:
    with opened(small, "int8") as (model, cache):
        pages = range(cache.plan.num_pages)
        model.forward(IDS, [Span(len(IDS), 0, pages)], cache.layers)
        wanted = cache.read_rows(list(pages), len(IDS))
        for part in cache.parts:
            part.zero_()
        before = None
        for start, end in pairwise([0, *ends, len(IDS)]):
            span = Span(end - start, start, pages)
            states = model.forward(IDS[start:end], [span], cache.layers, before=before)
            before = states[-1:].clone()
        assert np.array_equal(cache.read_rows(list(pages), len(IDS)), wanted)
        assert cache.rows.views(wanted)[0][-1].any(1).all(), "rows of the layer"


def test_a_layer_without_a_tensor_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    keys = {"deepseek2.nextn_predict_layers": 1}
    write_tiny(path, metadata=keys, **{**SMALL, "layers": 3})
    with (
        pytest.raises(GGUFError, match=r"tensor blk\.2\.nextn\.enorm\.weight is missing"),
        opened(path),
    ):
        pass


def test_the_layer_may_be_on_another_gpu_than_the_head(small: Path) -> None:
    pytest.importorskip("triton", reason="needs triton")
    from two_gpus import two_devices

    def drafted(numbers: list[int]) -> np.ndarray:
        gpus = two_devices()
        with GGUFFile.open(small) as file:
            config = ModelConfig.from_metadata(file.metadata).with_mtp()
            devices = [gpus[i] for i in numbers]
            experts = HostAdapter(CpuExperts(routed_experts(Weights(file), config)), devices)
            model = Decoder(Weights(file, device=devices[0]), config, experts, devices=devices)
            cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=9), 0), devices)
            states = model.head_states(model.forward([5], [Span(1, 0, [0])], cache.layers))
            _, logits = model.draft([8], states, [Span(1, 1, [0])], cache.layers[-1])
            return logits.numpy().copy()

    assert np.array_equal(drafted([0, 0, 0]), drafted([0, 0, 1]))
