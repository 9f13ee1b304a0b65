"""Layers on two GPUs: the bits of one, and no tensor where it does not belong."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from host_adapter import HostAdapter
from small_model import SMALL
from tiny_gguf import write_tiny

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.device.interface import Device
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.router import Routing
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.planning.kv_plan import plan_kv

pytest.importorskip("triton", reason="needs triton")

from two_gpus import Ledger, WatchedGpu, two_devices

IDS = np.random.default_rng(1).integers(0, 256, 96).tolist()
CHUNKS = [IDS[:3], IDS[3:67], IDS[67:68], IDS[68:69]]
NUM_LAYERS = 3


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stages") / "m.gguf"
    types = {"default": Type.F32, "ffn_up_exps": Type.Q8_0}
    write_tiny(path, type=types, **{**SMALL, "layers": NUM_LAYERS, "q_lora": 64})
    return path


class Capturable(HostAdapter):
    is_capturable = True


def run(
    path: Path, devices: Sequence[Device], *, with_graphs: bool = False
) -> tuple[np.ndarray, list[Routing]]:
    """Logits and routing of a sequence, chunk by chunk."""
    trace = list[Routing]()
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        experts = Capturable(CpuExperts(routed_experts(Weights(file), config)), devices)
        model = Decoder(Weights(file, device=devices[0]), config, experts, devices=devices)
        cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=200), 0), devices)
        if with_graphs:
            model.use_graphs(cache.layers)
        rows, start = [], 0
        for chunk in CHUNKS:
            span = Span(len(chunk), start, range(cache.plan.num_pages))
            states = model.forward(chunk, [span], cache.layers, trace)
            assert model.is_finite(states)
            rows.append(model.logits(states).numpy().copy())  # valid until the next step
            start += len(chunk)
        assert len(cache.parts) == len(set(map(id, devices)))
    return np.concatenate(rows), trace


@pytest.fixture(scope="module")
def on_one(path: Path) -> tuple[np.ndarray, list[Routing]]:
    return run(path, [two_devices()[0]] * NUM_LAYERS)


@pytest.mark.parametrize(("split", "with_graphs"), [((0, 1, 1), False), ((0, 0, 1), True)])
def test_two_gpus_compute_the_bits_of_one(
    path: Path, on_one: tuple[np.ndarray, list[Routing]], split: Sequence[int], with_graphs: bool
) -> None:
    """Prompts in chunks and decode; the routing is that of all layers, in order."""
    gpus = two_devices()
    is_real = torch.cuda.is_available()  # these experts wait for the host: in no graph there
    devices = [gpus[i] for i in split]
    got, found = run(path, devices, with_graphs=with_graphs and not is_real)
    want, routing = on_one
    assert np.array_equal(got, want)
    assert len(found) == len(routing) == 2 * len(CHUNKS)
    for (ids, weights), (wanted_ids, wanted) in zip(found, routing, strict=True):
        assert torch.equal(ids.cpu(), wanted_ids.cpu()) and torch.equal(weights.cpu(), wanted.cpu())
    if isinstance(gpus[0], WatchedGpu):
        states = [shape for shape in gpus[0].ledger.crossings if shape[1] == SMALL["hidden"]]
        sizes = [len(chunk) for chunk in CHUNKS] + [1] * with_graphs  # for a capture, too
        assert states == [(size, SMALL["hidden"]) for size in sizes]  # once a step


@pytest.mark.interpreter  # real GPUs refuse this by themselves
def test_the_watch_sees_states_that_did_not_cross(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger()
    first, second = WatchedGpu(ledger, 0), WatchedGpu(ledger, 1)
    monkeypatch.setattr(second, "upload", lambda t: t)
    with pytest.raises(AssertionError, match=r"tensors of GPU \[0\] elsewhere"):
        run(path, [first, first, second])
