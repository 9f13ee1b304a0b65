"""Experts over a GPU and the CPU: VRAM expert slots, and streamed experts of prompts.

Needs Triton, so that it is imported only where there is a GPU.
"""

from typing import NamedTuple

import torch

from hybridmoe.device.cuda_errors import loading_onto_gpu
from hybridmoe.device.interface import Device
from hybridmoe.env import uses_host_functions
from hybridmoe.experts.backend import CpuExperts, ExpertBackend
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.gpu.expert_cache import DEFAULT_VRAM_POLICY
from hybridmoe.experts.gpu.hand_over import HandOver
from hybridmoe.experts.gpu.host_adapter import HostAdapter
from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.pinned_policy import PinnedPolicy
from hybridmoe.experts.gpu.prefill_experts import ResidentExperts, StreamedExperts
from hybridmoe.experts.gpu.slot_pool import SlotPool, slot_layouts
from hybridmoe.experts.gpu.weight_stream import WeightStream
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.hardware.gpu import CudaGpu
from hybridmoe.hardware.topology import available_bytes
from hybridmoe.kernels.triton.expert_prefill import add_experts
from hybridmoe.placement.gpu_runtime import GpuRuntime, GpuStreams
from hybridmoe.placement.kernel_checks import KernelChecks
from hybridmoe.placement.profile import HotExperts
from hybridmoe.planning.layer_cost import upload_hits
from hybridmoe.planning.placement_rules import ExpertLayers
from hybridmoe.planning.plan import Plan

__all__ = ["GpuExperts", "place_on_gpu"]

_LOCKED_SHARE = 0.9  # of the memory that is available when a model is loaded


class GpuExperts(NamedTuple):
    """Device of the dense weights, and the backend of the experts beside it."""

    experts: ExpertBackend
    device: Device
    cache: HotExperts | None  # whose hot experts the profile remembers
    checks: KernelChecks


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
    Errors: ConfigError, DeviceError where the GPU has less memory than it said, or fails;
    KernelError where its attention or routing is wrong.
    """
    runtime = GpuRuntime(gpu)
    device, check = runtime.torch, runtime.self_check()
    dense = runtime.device(plan.problem.rules.is_on_cpu, check.is_right)
    with dense.active(), loading_onto_gpu("the self-check", plan.problem.budgets.vram_bytes):
        check.check_network(plan.problem.sizes.config, plan.engine.kv_type)
    if disk_cache is not None:
        return GpuExperts(HostAdapter(disk_cache, dense), dense, disk_cache, check.found)
    if not experts.layers:
        return GpuExperts(CpuExperts(experts), dense, None, check.found)
    with dense.active(), loading_onto_gpu("expert slots", plan.problem.budgets.vram_bytes):
        streams = runtime.open_streams()
        slots = prefill = None
        wrong = check.wrong_layers(experts, plan.problem.layers.cpu)
        is_any_right = len(wrong) < experts.num_layers
        if plan.num_vram_slots and is_any_right:
            slots = _slots(experts, plan, wrong, streams, device)
            if profile is not None:
                slots.cache.warm(profile.most_used_keys())
            slots.cache.fill_up()
            slots.cache.fill()
        if plan.streams_experts and is_any_right:
            prefill = _prefill(experts, plan, wrong, slots, streams, runtime)
        if slots is not None and prefill is not None:
            sizes, share = plan.problem.sizes, plan.num_vram_slots / plan.num_experts
            cost = upload_hits(sizes.experts[0], prefill.rates, sizes.config.top_k, share)
            slots.cache.price_uploads(cost)
        backend = HybridExperts(
            experts,
            streams.main,
            streams.host,
            device,
            slots=slots,
            prefill=prefill,
            hand_over=_hand_over(experts, streams, runtime, check.found),
        )
    return GpuExperts(backend, dense, None if slots is None else slots.cache, check.found)


def _hand_over(
    experts: RoutedExperts, streams: GpuStreams, runtime: GpuRuntime, found: KernelChecks
) -> HandOver | None:
    """Make the hand-over of decode steps; None = host functions, by wish or since it failed."""
    if uses_host_functions():
        return None
    hand_over = runtime.open_hand_over(experts, streams.main)
    if hand_over is None:
        found.notes.append(
            "self-check: memory of the host does not reach the GPU while kernels run; its driver"
            " calls the CPU instead, which takes longer"
        )
    return hand_over


def _prefill(
    experts: RoutedExperts,
    plan: Plan,
    wrong: frozenset[int],
    slots: SlotPool | None,
    streams: GpuStreams,
    runtime: GpuRuntime,
) -> StreamedExperts:
    layouts = slot_layouts(experts)
    measured = runtime.measure(experts.by_index[0], layouts[0], streams.prefill)
    free_bytes = available_bytes() or 0
    weights = WeightStream(
        plan.num_stream_buffers,
        max(layout.slot_bytes for layout in layouts),
        runtime.torch,
        streams.main,
        streams.link,
        measured.threads,
        runtime.register(experts, int(_LOCKED_SHARE * free_bytes)),
    )
    return StreamedExperts(
        experts,
        [
            layout if plan.streams_layer(number) and number not in wrong else None
            for number, layout in zip(experts.numbers, layouts, strict=True)
        ],
        add_experts,
        measured.rates,
        streams.prefill,
        weights,
        runtime.torch,
        max_tokens=plan.max_step_tokens,
        resident=None if slots is None else ResidentExperts(slots.slots, slots.cache.table.numpy()),
    )


def _slots(
    experts: RoutedExperts,
    plan: Plan,
    wrong: frozenset[int],
    streams: GpuStreams,
    device: torch.device,
) -> SlotPool:
    num_slots, pinned = plan.num_vram_slots, plan.problem.layers
    on_gpu, on_cpu = (
        frozenset(i for i, number in enumerate(experts.numbers) if number in numbers)
        for numbers in (pinned.gpu - wrong, pinned.cpu | wrong)
    )
    policy = PinnedPolicy(
        experts.cache_shape(num_slots), ExpertLayers(on_gpu, on_cpu), DEFAULT_VRAM_POLICY
    )
    slots = SlotPool(
        experts, num_slots, streams.main, streams.uploads, device,
        policy=policy if on_gpu or on_cpu else None,
    )  # fmt: skip
    slots.cache.warm(policy.pinned)
    return slots
