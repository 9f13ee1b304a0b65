"""Small experts, and backends of their prefill on fake streams; needs Triton."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import closeness
import numpy as np
import torch
from fake_registrar import FakeRegistrar
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as T
from kernel_device import DEVICE, moved
from random_weights import random_matrix
from triton_bounds import U, expert_of_rows

from hybridmoe import _C
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.experts.gpu.host_registration import HostRegistration
from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.prefill_experts import (
    AddExperts,
    ResidentExperts,
    StreamedExperts,
    Streams,
)
from hybridmoe.experts.gpu.weight_stream import HostExperts, WeightStream
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.kernels.triton.expert_ffn import pack_slot
from hybridmoe.kernels.triton.expert_prefill import add_experts, layout_of
from hybridmoe.planning.rates import GpuRates, Rates

__all__ = [
    "ALL_CPU",
    "ALL_GPU",
    "BUFFERS",
    "EXPERTS",
    "GPU",
    "MIXED",
    "RESIDENT",
    "ROUTED",
    "TOKENS",
    "TOP_K",
    "Make",
    "check",
    "fakes",
    "inputs",
    "make_layer",
    "makers",
    "registered",
    "resident",
    "submitted",
]

EXPERTS, HIDDEN, INTER, TOKENS, TOP_K = 6, 64, 32, 40, 3
BUFFERS = 4  # in groups of two
GPU = GpuRates(read=1e9, ops=1e12, pcie=1e15, copy=1e15, copy_cpu=0.0, expert_s=0.0)
RATES = Rates("avx512", dram=1e8, ops=1e8, attention_ops=1e8, gpu=GPU)
ALL_GPU = RATES
ALL_CPU = replace(RATES, gpu=replace(GPU, copy=1.0))
MIXED = replace(RATES, gpu=replace(GPU, read=6e6))


def make_layer(seed: int, down: T = T.Q4_0) -> ExpertWeights:
    return ExpertWeights(
        random_matrix(T.Q4_0, EXPERTS, INTER, HIDDEN, seed=seed),
        random_matrix(T.Q8_0, EXPERTS, INTER, HIDDEN, seed=seed + 1),
        random_matrix(down, EXPERTS, HIDDEN, INTER, seed=seed + 2),
    )


def make_fused_layer(seed: int, down: T) -> ExpertWeights:
    """Gate and up are views of one tensor."""
    both = random_matrix(T.Q8_0, EXPERTS, 2 * INTER, HIDDEN, seed=seed)
    gate, up = both.slice_rows(0, INTER), both.slice_rows(INTER, 2 * INTER)
    return ExpertWeights(gate, up, random_matrix(down, EXPERTS, HIDDEN, INTER, seed=seed + 1))


LAYERS = {3: make_layer(0), 4: make_layer(10, T.F16), 7: make_fused_layer(20, T.BF16)}
ROUTED = RoutedExperts(LAYERS, TOP_K)


def inputs(seed: int = 0, tokens: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make states, distinct experts for each token, some -1, and weights, NaN where the id is -1.

    Experts with lower numbers are chosen more often.
    """
    generator = torch.Generator().manual_seed(seed)
    x = 0.02 * torch.randn((tokens, HIDDEN), generator=generator)
    chance = 1.0 / torch.arange(1, EXPERTS + 1).repeat(tokens, 1)
    ids = torch.multinomial(chance, TOP_K, generator=generator).int()
    ids[torch.rand(ids.shape, generator=generator) < 0.1] = -1
    weights = torch.rand(ids.shape, generator=generator)
    return x, ids, weights.masked_fill(ids < 0, float("nan"))


RESIDENT = {(3, 0): 2, (3, 2): 0, (4, 5): 1}  # (layer, expert) -> slot


def resident() -> ResidentExperts:
    layouts = {layer: layout_of(*experts) for layer, experts in ROUTED.layers.items()}
    size = max(v.packed.slot_bytes for v in layouts.values() if v)
    slots = torch.full((3, size), 0xFF, dtype=torch.uint8, device=DEVICE)
    table = np.full((ROUTED.num_layers, EXPERTS + 1), -1, np.int32)
    for (layer, expert), slot in RESIDENT.items():
        layout = layouts[layer]
        assert layout is not None
        table[ROUTED.index_of[layer], expert] = slot
        streamed = torch.empty(layout.slot_bytes, dtype=torch.uint8, device=DEVICE)
        for offset, data in HostExperts(ROUTED.layers[layer], layout).parts(expert):
            streamed[offset : offset + data.nbytes] = data
        slots[slot, : layout.packed.slot_bytes] = pack_slot(streamed, layout)
    return ResidentExperts(slots, table)


def fakes(*, is_lazy: bool) -> Streams:
    main = FakeStream(is_lazy=is_lazy, is_current=True)
    return Streams(main, FakeStream(is_lazy=is_lazy), FakeStream(is_lazy=is_lazy))


Make = Callable[..., StreamedExperts]


def makers() -> Iterator[Make]:
    """Yield what makes backends, and close them; for a fixture."""
    made = []

    def run(
        rates: Rates,
        streams: Streams | None = None,
        *,
        routed: RoutedExperts = ROUTED,
        resident: ResidentExperts | None = None,
        add: AddExperts = add_experts,
        registration: HostRegistration | None = None,
    ) -> StreamedExperts:
        streams = streams or fakes(is_lazy=True)
        layouts = [layout_of(*weights) for weights in routed.by_index]
        size = max((layout.slot_bytes for layout in layouts if layout), default=0)
        threads = _C.CopyThreads(2)
        weights = WeightStream(
            BUFFERS, size, DEVICE, streams.main, streams.link, threads, registration
        )
        made.append(
            StreamedExperts(
                routed,
                layouts,
                add,
                rates,
                streams,
                weights,
                DEVICE,
                max_tokens=TOKENS,
                resident=resident,
            )
        )
        return made[-1]

    yield run
    for experts in made:
        experts.close()


def registered(num_pages: int = 1 << 20) -> HostRegistration:
    """Register the experts' memory page by page, so that every expert's is cut."""
    spans = [span for weights in ROUTED.by_index for span in weights.spans]
    registration = HostRegistration(
        spans, FakeRegistrar(num_pages), most_bytes=1 << 30, piece_bytes=4096
    )
    registration.begin(60.0)
    return registration


def submitted(
    experts: StreamedExperts | HybridExperts,
    layer: int,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Compute a layer on the device; returns its result on the CPU."""
    return experts.submit(layer, *moved(x, ids, weights)).result().cpu()


def check(
    experts: StreamedExperts,
    layer: int,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    got: torch.Tensor,
) -> None:
    """Check that the CPU's part equals `CpuExperts`, and the GPU's part is within its bound."""
    plan = experts.tally.splits[layer]
    chosen = {int(e) for e in ids.unique() if e >= 0}
    assert {*plan.gpu, *plan.cpu} == chosen
    left = torch.where(torch.isin(ids, torch.tensor(plan.cpu, dtype=torch.int32)), ids, -1)
    want = CpuExperts(ROUTED).submit(layer, x, left, weights).result().double().numpy()
    bound, size = np.full(want.shape, 2.0**-140), np.abs(want)
    for expert in plan.gpu:
        rows, place = np.nonzero(ids.numpy() == expert)
        factor = weights.double().numpy()[rows, place][:, None]
        y, error = expert_of_rows(ROUTED.layers[layer], expert, x.numpy()[rows])
        want[rows] += factor * y
        bound[rows] += factor * error
        size[rows] += factor * (np.abs(y) + error)
    closeness.assert_close(got, want, bound + (EXPERTS + 2) * U * size, f"layer {layer}, {plan}")
