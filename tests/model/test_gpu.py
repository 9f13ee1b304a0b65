"""Whole models on a GPU, or without one in Triton's interpreter."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from host_adapter import HostAdapter
from logit_distance import kl_divergence, relative_error
from small_model import SMALL
from tiny_gguf import write_tiny

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.device.interface import Device
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.errors import ConfigError
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.router import Routing
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.planning.kv_plan import plan_kv

pytest.importorskip("triton", reason="needs triton")

from interpreted_gpu import gpu_device

VARIANTS = {
    "k2": {"q_lora": 64},
    "v3": {"q_lora": 64, "n_group": 2, "topk_group": 1},
    "mistral4": {"q_lora": 64},
    "glm5": {"q_lora": 64, "index_top_k": 12, "index_dim": 16},
    "v2lite": {"q_lora": None},
    "k2, one tensor for keys and values": {"q_lora": 64, "split_kv_b": False},
}
IDS = np.random.default_rng(1).integers(0, 256, 31).tolist()
CHUNKS = [IDS[:20], IDS[20:23], *[[i] for i in IDS[23:]]]


def write(path: Path, variant: str, type: Type) -> Path:
    name = variant.split(",")[0]
    write_tiny(path, variant=name, type=type, **{**SMALL, **VARIANTS[variant]})
    return path


def logits(
    file: GGUFFile,
    device: Device,
    chunks: Sequence[Sequence[int]] = CHUNKS,
    trace: list[Routing] | None = None,
) -> np.ndarray:
    """Compute a sequence's logits, chunk by chunk."""
    config = ModelConfig.from_metadata(file.metadata)
    experts = HostAdapter(
        CpuExperts(routed_experts(Weights(file), config)), [device] * config.num_layers
    )
    model = Decoder(Weights(file, device=device), config, experts)
    cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=200), 0), device)
    rows, start = [], 0
    for chunk in chunks:
        span = Span(len(chunk), start, range(cache.plan.num_pages))
        rows.append(model.logits(model.forward(chunk, [span], cache.layers, trace)).numpy())
        start += len(chunk)
    return np.concatenate(rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_cpus_within_rounding(variant: str, tmp_path: Path) -> None:
    """Both keep a bf16 KV cache; the GPU also rounds products of several tokens to bf16."""
    with GGUFFile.open(write(tmp_path / "m.gguf", variant, Type.F32)) as file:
        ours, theirs = list[Routing](), list[Routing]()
        got = logits(file, gpu_device(), trace=ours)
        want = logits(file, CpuDevice(), trace=theirs)
    assert relative_error(want, got) < 0.03
    assert np.median(kl_divergence(want, got)) < 1e-5
    same = [torch.equal(a.sort()[0], b.cpu().sort()[0])
            for (a, _), (b, _) in zip(theirs, ours, strict=True)]  # fmt: skip
    assert np.mean(same) > 0.8  # some scores of a random router are nearly equal


def test_sequences_share_steps(tmp_path: Path) -> None:
    """Prefill and decode mixed, pages in any order, a prompt in two chunks."""
    long = np.random.default_rng(2).integers(0, 256, 70).tolist()
    steps = [
        [(long, 0, [3, 0]), (IDS[5:6], 0, [5])],
        [(IDS[6:7], 1, [5]), (IDS[:17], 70, [3, 0]), (IDS[9:12], 0, [1])],
        [(IDS[3:4], 87, [3, 0]), (IDS[8:9], 3, [1]), (IDS[7:8], 2, [5])],
    ]
    with GGUFFile.open(write(tmp_path / "m.gguf", "k2", Type.F32)) as file:
        found = []
        for device in (CpuDevice(), gpu_device()):
            config = ModelConfig.from_metadata(file.metadata)
            experts = HostAdapter(
                CpuExperts(routed_experts(Weights(file), config)), [device] * config.num_layers
            )
            model = Decoder(Weights(file, device=device), config, experts)
            cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=384), 0), device)
            rows = []
            for step in steps:
                ids = [i for part, _, _ in step for i in part]
                spans = [Span(len(part), start, pages) for part, start, pages in step]
                rows.append(model.logits(model.forward(ids, spans, cache.layers)).numpy())
            found.append(np.concatenate(rows))
    assert np.median(kl_divergence(*found)) < 1e-5
    assert relative_error(*found) < 0.05


def test_quantized_logits_equal_the_cpus_within_its_rounding(tmp_path: Path) -> None:
    """Compare with the CPU, which rounds activations to int8: coarser than the GPU's bf16."""
    types = {"default": Type.Q8_0, "attn_output": Type.Q4_0, "output": Type.F16}
    path = tmp_path / "m.gguf"
    write_tiny(path, type=types, **{**SMALL, "q_lora": 64})
    with GGUFFile.open(path) as file:
        device = gpu_device()
        got, want = (logits(file, on, CHUNKS[:4]) for on in (device, CpuDevice()))
    assert not device.converted
    assert np.median(kl_divergence(want, got)) < 1e-3


def test_types_without_a_kernel_are_converted_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    types = {"default": Type.F32, "attn_output": Type.NVFP4}
    write_tiny(path, type=types, scaled=True, **SMALL, q_lora=64)
    with GGUFFile.open(path) as file:
        device = gpu_device()
        got, want = logits(file, device), logits(file, CpuDevice())
    assert device.converted == [f"blk.{i}.attn_output.weight" for i in range(2)]
    assert relative_error(want, got) < 0.03


def test_products_can_be_pinned_to_the_cpu(tmp_path: Path) -> None:
    with GGUFFile.open(write(tmp_path / "m.gguf", "k2", Type.F32)) as file:
        want = logits(file, gpu_device(), CHUNKS[:2])
        device = gpu_device(lambda name: "attn" in name)
        got = logits(file, device, CHUNKS[:2])
    assert not device.is_capturable
    assert "blk.0.attn_k_b.weight" in device.on_cpu
    assert relative_error(want, got) < 0.03


def test_a_kv_cache_of_another_type_is_refused() -> None:
    device = gpu_device()
    with pytest.raises(ConfigError, match="kv_type=int8: expected f16 or bf16 on a GPU"):
        device.pages(device.empty_bytes(1, 64, 20), "int8", 16)
