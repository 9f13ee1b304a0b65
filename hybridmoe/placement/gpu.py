"""Experts over a GPU and the CPU: VRAM expert slots, and streamed experts of prompts.

Needs Triton, so that it is imported only where there is a GPU.
"""

from typing import NamedTuple

import torch

from hybridmoe.device.cuda import CudaDevice
from hybridmoe.device.cuda_errors import loading_onto_gpu
from hybridmoe.device.fake_streams import FakeStream
from hybridmoe.device.interface import Device
from hybridmoe.device.streams import CudaStream, Stream
from hybridmoe.experts.backend import CpuExperts, ExpertBackend
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.gpu.calibrate import measure_gpu, with_cpu
from hybridmoe.experts.gpu.expert_cache import DEFAULT_VRAM_POLICY
from hybridmoe.experts.gpu.host_adapter import HostAdapter
from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.pinned_policy import PinnedPolicy
from hybridmoe.experts.gpu.prefill_experts import HeldExperts, StreamedExperts, Streams
from hybridmoe.experts.gpu.slot_pool import SlotPool, slot_layouts
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.hardware import isa
from hybridmoe.hardware.gpu import CudaGpu
from hybridmoe.kernels.triton.expert_ffn import SlotLayout
from hybridmoe.kernels.triton.expert_prefill import add_expert
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED
from hybridmoe.placement.residency import HotExperts
from hybridmoe.planning.placement_rules import ExpertLayers
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.rates import GpuRates, Rates, rates_of

__all__ = ["GpuExperts", "place_on_gpu"]


class _Streams(NamedTuple):
    """Streams of a GPU; each does its work in order, beside the others."""

    main: Stream
    host: Stream  # the CPU's experts
    uploads: Stream  # to expert slots
    link: Stream  # streamed experts of a prompt

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


class GpuExperts(NamedTuple):
    """Device of the dense weights, and the backend of the experts beside it."""

    experts: ExpertBackend
    device: Device
    cache: HotExperts | None  # whose hot experts the profile remembers


def place_on_gpu(
    experts: RoutedExperts,
    plan: Plan,
    gpu: CudaGpu,
    disk_cache: CachedExperts | None,
    profile: HotProfile | None,
) -> GpuExperts:
    """Make the device and the expert slots of the plan.

    Dense weights go to the GPU as the decoder binds them. disk_cache: computes all experts where
    the plan has it. profile: its hot experts are uploaded first.
    Errors: ConfigError, DeviceError where the GPU has less memory than it said, or fails.
    """
    device = torch.device("cpu" if IS_INTERPRETED else f"cuda:{gpu.number}")
    dense = CudaDevice(device, plan.problem.rules.is_on_cpu)
    if disk_cache is not None:
        return GpuExperts(HostAdapter(disk_cache, dense), dense, disk_cache)
    if not experts.layers:
        return GpuExperts(CpuExperts(experts), dense, None)
    with dense.active(), loading_onto_gpu("expert slots", plan.problem.budgets.vram_bytes):
        streams = _Streams.of(device)
        slots = prefill = None
        if plan.num_vram_slots:
            slots = _slots(experts, plan, streams, device)
            if profile is not None:
                slots.cache.warm(profile.hot_keys())
            slots.cache.fill()
        if plan.streams_experts:
            prefill = _prefill(experts, plan, slots, streams, device)
        backend = HybridExperts(
            experts, streams.main, streams.host, device, slots=slots, prefill=prefill
        )
    return GpuExperts(backend, dense, None if slots is None else slots.cache)


def _prefill(
    experts: RoutedExperts,
    plan: Plan,
    slots: SlotPool | None,
    streams: _Streams,
    device: torch.device,
) -> StreamedExperts:
    layouts = slot_layouts(experts)
    by_prompt = Streams(streams.main, streams.host, streams.link)
    return StreamedExperts(
        experts,
        [
            layout if plan.streams_layer(number) else None
            for number, layout in zip(experts.numbers, layouts, strict=True)
        ],
        add_expert,
        _rates(experts.by_index[0], layouts[0], by_prompt, device),
        by_prompt,
        device,
        max_tokens=plan.max_step_tokens,
        held=None if slots is None else HeldExperts(slots.slots, slots.cache.table.numpy()),
    )


def _slots(experts: RoutedExperts, plan: Plan, streams: _Streams, device: torch.device) -> SlotPool:
    num_slots = plan.num_vram_slots
    pinned, left = (
        frozenset(i for i, number in enumerate(experts.numbers) if number in numbers)
        for numbers in plan.problem.layers
    )
    policy = PinnedPolicy(
        experts.cache_shape(num_slots), ExpertLayers(pinned, left), DEFAULT_VRAM_POLICY
    )
    slots = SlotPool(
        experts, num_slots, streams.main, streams.uploads, device,
        policy=policy if pinned or left else None,
    )  # fmt: skip
    slots.cache.warm(policy.pinned)
    return slots


def _rates(
    experts: ExpertWeights, layout: SlotLayout, streams: Streams, device: torch.device
) -> Rates:
    """Measure this machine in about a second; under the interpreter, rates are made up."""
    if device.type != "cuda":
        gpu = GpuRates(read=1e9, ops=1e12, pcie=1e9)
        return rates_of(isa.active(), dram=1e10, peak_ops=1e12, gpu=gpu)
    return with_cpu(measure_gpu(experts, layout, add_expert, streams, device))
