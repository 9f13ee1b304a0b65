"""A model over a card and the CPU: what every token uses, latents and some experts on the card.

Needs Triton, so that it is imported only where there is a card. Has run in Triton's interpreter
only.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from hybridmoe.config import ModelConfig
from hybridmoe.device.cuda import CudaDevice
from hybridmoe.device.cuda_errors import loading_onto_gpu
from hybridmoe.device.fake_streams import FakeStream
from hybridmoe.device.streams import CudaStream, Stream
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.experts.gpu.calibrate import measure_gpu, with_cpu
from hybridmoe.experts.gpu.expert_cache import DEFAULT_VRAM_POLICY
from hybridmoe.experts.gpu.host_adapter import HostAdapter
from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.pinned_policy import PinnedPolicy
from hybridmoe.experts.gpu.prefill_experts import HeldExperts, StreamedExperts, Streams
from hybridmoe.experts.gpu.slot_pool import SlotPool, slot_layouts
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware import isa
from hybridmoe.hardware.gpu import CudaGpu
from hybridmoe.kernels.triton.expert_ffn import SlotLayout
from hybridmoe.kernels.triton.expert_prefill import add_expert
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.placement.residency import Residency
from hybridmoe.planning.memory_plan import Plan
from hybridmoe.planning.placement_rules import ExpertLayers, PlacementRules
from hybridmoe.planning.rates import GpuRates, Rates, rates_of

__all__ = ["place_on_gpu"]


class _Streams(NamedTuple):
    """What a card does in turn, and at once."""

    main: Stream
    host: Stream  # the CPU's experts
    uploads: Stream  # experts that come to stay
    link: Stream  # those of a prompt

    @classmethod
    def of(cls, device: torch.device) -> "_Streams":
        if device.type != "cuda":  # the interpreter
            return cls(
                FakeStream(is_lazy=False, is_current=True),
                *(FakeStream(is_lazy=False) for _ in range(3)),
            )
        return cls(CudaStream(), *(CudaStream(_new_stream(device)) for _ in range(3)))


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def place_on_gpu(
    file: GGUFFile,
    config: ModelConfig,
    card: CudaGpu,
    plan: Plan,
    placing: PlacementRules,
    *,
    step_tokens: int,
    num_deferred: int = 0,
    on_cpu: Residency | None = None,
    profile_path: Path | None = None,
) -> Residency:
    """Make what the decoder runs on; dense weights go to the card as the decoder binds them.

    plan: says how many experts the card holds. step_tokens: of a step, at most. on_cpu: who
    computes experts where they do not all fit into RAM, which leaves none to the card; it becomes
    the result. profile_path: hot experts, for the card's slots.
    Errors: GGUFError; ConfigError, DeviceError where the card has less room than it said, or fails.
    """
    device = torch.device("cpu" if IS_INTERPRETED else f"cuda:{card.number}")
    dense = CudaDevice(device, placing.is_on_cpu)
    experts = routed_experts(Weights(file), config)
    if on_cpu is not None:
        on_cpu.experts = HostAdapter(on_cpu.experts, dense)
        on_cpu.device, on_cpu.num_deferred = dense, num_deferred
        return on_cpu
    if not experts.layers:
        return Residency(CpuExperts(experts), device=dense)
    profile = None
    if profile_path is not None:
        profile = HotProfile.load(profile_path, experts.num_layers, experts.num_experts)
    placed = placing.expert_layers(file.tensors, config.num_layers)
    with dense.active(), loading_onto_gpu("expert slots", plan.problem.vram_bytes):
        streams = _Streams.of(device)
        slots = None
        if plan.num_vram_slots:
            slots = _slots(experts, plan.num_vram_slots, placed, streams, device)
            if profile is not None:
                slots.cache.warm(profile.hot_keys())
            slots.cache.fill()
        prefill = None
        may_stream = len(placed.left) < experts.num_layers
        if may_stream and not plan.problem.sizes.types_without_slots:  # as the plan says
            prefill = _prefill(experts, placed, slots, step_tokens, streams, device)
        backend = HybridExperts(
            experts,
            streams.main,
            streams.host,
            device,
            slots=slots,
            prefill=prefill,
        )
    return Residency(
        backend,
        cache=None if slots is None else slots.cache,
        profile=profile,
        profile_path=profile_path,
        device=dense,
        num_deferred=num_deferred,
    )


def _prefill(
    experts: RoutedExperts,
    placed: ExpertLayers,
    slots: SlotPool | None,
    step_tokens: int,
    streams: _Streams,
    device: torch.device,
) -> StreamedExperts:
    layouts = slot_layouts(experts)
    by_prompt = Streams(streams.main, streams.host, streams.link)
    return StreamedExperts(
        experts,
        [
            None if number in placed.left else layout
            for number, layout in zip(experts.numbers, layouts, strict=True)
        ],
        add_expert,
        _rates(experts.by_index[0], layouts[0], by_prompt, device),
        by_prompt,
        device,
        max_tokens=step_tokens,
        held=None if slots is None else HeldExperts(slots.slots, slots.cache.table.numpy()),
    )


def _slots(
    experts: RoutedExperts,
    num_slots: int,
    placed: ExpertLayers,
    streams: _Streams,
    device: torch.device,
) -> SlotPool:
    shape = experts.cache_shape(num_slots)
    pinned, left = (
        frozenset(i for i, number in enumerate(experts.numbers) if number in numbers)
        for numbers in placed
    )
    policy = PinnedPolicy(shape, ExpertLayers(pinned, left), DEFAULT_VRAM_POLICY)
    slots = SlotPool(
        experts, num_slots, streams.main, streams.uploads, device,
        policy=policy if pinned or left else None,
    )  # fmt: skip
    slots.cache.warm(policy.pinned)
    return slots


def _rates(
    experts: ExpertWeights, layout: SlotLayout, streams: Streams, device: torch.device
) -> Rates:
    """This machine's, measured in about a second; under the interpreter made up."""
    if device.type != "cuda":
        gpu = GpuRates(read=1e9, ops=1e12, pcie=1e9)
        return rates_of(isa.active(), dram=1e10, peak_ops=1e12, gpu=gpu)
    return with_cpu(measure_gpu(experts, layout, add_expert, streams, device))
