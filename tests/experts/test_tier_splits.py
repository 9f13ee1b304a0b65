"""One model in many splits over VRAM, RAM and its file: equal bits, the simulator's counters."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from tiny_gguf import write_tiny

pytest.importorskip("triton", reason="needs triton")

from bench._random_split import RandomSplit, different_counters
from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.experts.backend import CpuExperts, ExpertBackend
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.routing_trace import Trace
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.router import Routing
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.planning.kv_plan import plan_kv

LAYERS, EXPERTS, TOP_K = 3, 12, 3
# Tokens of each step: prompts and chunks of them, and single tokens.
STEPS = [20, *[1] * 10, 3, 2, 16, 40, *[1] * 12]


class Run(NamedTuple):
    states: list[bytes]  # of each step
    routing: list[list[Routing]]  # of each step, by layer


@dataclass(frozen=True)
class Model:
    """A file, and what it computes with all experts in the memory map."""

    file: GGUFFile
    config: ModelConfig
    experts: RoutedExperts
    whole: Run


@pytest.fixture(scope="module", params=["one size", "two sizes"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("splits") / "tiny.gguf"
    types = {"default": Type.Q8_0, "ffn_gate_exps": Type.Q4_K, "ffn_down_exps": Type.Q6_K}
    if request.param == "two sizes":
        types["blk.2.ffn_down_exps"] = Type.Q3_K
    sizes = {"layers": LAYERS + 1, "experts": EXPERTS, "top_k": TOP_K}
    write_tiny(path, type=types, **sizes)
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        experts = routed_experts(Weights(file), config)
        yield Model(file, config, experts, run(file, config, CpuExperts(experts)))


def run(
    file: GGUFFile,
    config: ModelConfig,
    experts: ExpertBackend,
    check: Callable[[list[Routing]], None] = lambda routing: None,
) -> Run:
    """Run the same tokens in the same steps; check after each."""
    decoder = Decoder(Weights(file), config, experts)
    cache = KvCache(config, plan_kv(config, EngineConfig(context_tokens=256, max_running=1), 0))
    random = np.random.default_rng(7)
    states, routing = [], []
    position = 0
    for count in STEPS:
        ids = (random.random(count) ** 2 * 24).astype(int).tolist()
        routing.append([])
        span = Span(count, position, range(cache.plan.num_pages))
        states.append(decoder.forward(ids, [span], cache.layers, routing[-1]).numpy().tobytes())
        position += count
        check(routing[-1])
    return Run(states, routing)


def trace_of(routing: Sequence[Sequence[Routing]]) -> Trace:
    header = {"num_layers": LAYERS, "num_experts": EXPERTS, "top_k": TOP_K}
    ids = np.concatenate([torch.stack([ids for ids, _ in step], 1).numpy() for step in routing])
    ones = np.ones(len(ids), np.int32)
    return Trace(
        header, ids.astype(np.int16), ids.astype(np.float16), np.array(STEPS, np.int32), ones,
        ones.astype(np.uint8),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_a_split_changes_no_bit_and_counts_as_the_simulator(model: Model, seed: int) -> None:
    split = RandomSplit(model.file, model.experts, seed, most_vram=0.5, most_ram=0.9)
    assert len(split.plan.pools) == len(set(split.plan.by_layer))
    try:
        split.load()
        got = run(model.file, model.config, split.card, lambda routing: split.card.check())
    finally:
        split.card.close()
    assert got.states == model.whole.states
    assert not different_counters(split.counters(), split.simulated(trace_of(got.routing)))


@pytest.mark.parametrize("seed", range(6))
def test_tiers_are_those_that_the_caches_counted(model: Model, seed: int) -> None:
    split = RandomSplit(model.file, model.experts, seed, most_vram=0.5, most_ram=0.9)
    before, total = split.counters(), np.zeros(3, np.int64)

    def check(routing: list[Routing]) -> None:
        """Count the step's distinct experts by tier."""
        nonlocal before
        ids = torch.stack([ids for ids, _ in routing], 1).numpy().astype(np.int16)  # (T, L, K)
        tiers = np.full((LAYERS, EXPERTS), 255, np.uint8)
        tiers[np.arange(LAYERS)[:, None], ids] = split.card.tiers(ids)
        found = np.bincount(tiers[tiers < 255], minlength=3)
        after = split.counters()
        vram, ram = (now - then for now, then in zip(after, before, strict=True))
        # What VRAM's policy evicts for an earlier layer was still in its slot.
        assert 0 <= found[0] - (vram.hits - vram.late) <= vram.evictions
        assert ram.misses <= found[2] <= ram.misses + vram.late
        assert found.sum() == vram.hits + vram.misses
        before = after
        total[:] += found

    try:
        split.load()
        before = split.counters()
        run(model.file, model.config, split.card, check)
    finally:
        split.card.close()
    assert (total > 0).sum() > 1
