"""Experts over a GPU and the CPU: VRAM expert slots, and streamed experts of prompts.

What is not in slots is in the memory map, or in the cache of experts that the file is read into.

Needs Triton, so that it is imported only where there is a GPU.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch

from hybridmoe.device.cuda import CudaDevice
from hybridmoe.device.cuda_errors import loading_onto_gpu
from hybridmoe.device.interface import Device
from hybridmoe.env import uses_host_functions
from hybridmoe.experts.backend import CpuExperts, ExpertBackend
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.gpu.calibrate_decode import DenseMatrices
from hybridmoe.experts.gpu.expert_cache import DEFAULT_VRAM_POLICY, GpuExpertCache
from hybridmoe.experts.gpu.hand_over import HandOver
from hybridmoe.experts.gpu.host_registration import HostRegistration, Span
from hybridmoe.experts.gpu.hybrid_experts import HybridExperts, PrefillExecutor
from hybridmoe.experts.gpu.pinned_policy import PinnedPolicy
from hybridmoe.experts.gpu.prefill_experts import ResidentExperts, StreamedExperts
from hybridmoe.experts.gpu.ram_tier import HostPrefill, RamTier
from hybridmoe.experts.gpu.slot_pool import SlotPool, slot_layouts
from hybridmoe.experts.gpu.staged_experts import StagedCache, StagedExperts, StageExperts
from hybridmoe.experts.gpu.tier_prefill import TierPrefill
from hybridmoe.experts.gpu.weight_stream import WeightStream
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.hardware.gpu import CudaGpu
from hybridmoe.hardware.topology import available_bytes
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.expert_prefill import add_experts
from hybridmoe.kernels.triton.matrix import DeviceMatrix
from hybridmoe.placement.calibration import Calibration, GpuCalibration
from hybridmoe.placement.gpu_runtime import GpuRuntime, GpuStreams, Measured
from hybridmoe.placement.kernel_checks import KernelChecks
from hybridmoe.placement.profile import HotExperts
from hybridmoe.placement.ram import Progress
from hybridmoe.placement.self_check import SelfCheck
from hybridmoe.planning.placement_rules import ExpertLayers
from hybridmoe.planning.plan import Plan

__all__ = ["GpuExperts", "place_on_gpus"]

_LOCKED_SHARE = 0.9  # of the memory that is available when a model is loaded
_LEAST_SHARE = 0.7  # of the link's rate, for copies from registered memory


class GpuExperts(NamedTuple):
    """Devices of the dense weights, and the backend of the experts beside them."""

    experts: ExpertBackend
    devices: tuple[Device, ...]  # of each layer
    cache: HotExperts | None  # whose hot experts the profile remembers
    checks: KernelChecks
    calibration: Calibration | None = None


def place_on_gpus(
    experts: RoutedExperts,
    plan: Plan,
    gpus: Sequence[CudaGpu],
    disk_cache: CachedExperts | None,
    profile: HotProfile | None,
    progress: Progress = lambda done, total: None,
) -> GpuExperts:
    """Make the devices and the expert slots of the plan, of one GPU or several.

    Dense weights go to a GPU as the decoder binds them. disk_cache: where the plan has it, for the
    experts that are not in slots; closed with the backend. profile: its hot experts are uploaded
    first. progress: called with bytes while slots are filled, GPU by GPU.
    Errors: ConfigError, DeviceError where a GPU has less memory than it said, or fails;
    KernelError where its attention or routing is wrong.
    """
    found = KernelChecks()
    opened = [_open(gpu, stage, found) for gpu, stage in zip(gpus, plan.stages, strict=True)]
    devices: list[Device] = []
    for gpu in opened:
        devices += [gpu.dense] * len(gpu.plan.problem.sizes.layers)
    if not experts.layers:
        return GpuExperts(CpuExperts(experts), tuple(devices), None, found)
    stages: list[StageExperts] = []
    calibrations: list[GpuCalibration] = []
    caches: list[tuple[GpuExpertCache | None, int]] = []
    may_lock = int(_LOCKED_SHARE * (available_bytes() or 0))
    with ExitStack() as placed:
        for gpu in opened:
            own = experts.of_layers(gpu.plan.problem.sizes.layers)
            if not own.layers:
                continue
            first = experts.index_of[own.numbers[0]]
            hot = None if profile is None else profile.of_layers(first, own.num_layers)
            locked_bytes = may_lock * own.num_layers // experts.num_layers
            ram = None if disk_cache is None else RamTier(disk_cache, own, first)
            backend, cache, calibration = _place_stage(own, gpu, hot, locked_bytes, progress, ram)
            placed.callback(backend.close)
            stages.append(StageExperts(backend, gpu.dense, own.numbers))
            caches.append((cache, own.num_layers * own.num_experts))
            if calibration is not None:
                calibrations.append(calibration)
        placed.pop_all()
    calibrated = Calibration(plan, calibrations)
    has_slots = any(cache is not None for cache, _ in caches)
    return GpuExperts(
        stages[0].backend if len(stages) == 1 else StagedExperts(stages),
        tuple(devices),
        StagedCache(caches) if has_slots else None,
        found,
        calibrated,
    )


class _Gpu(NamedTuple):
    """A GPU that was checked, and the plan of its layers."""

    plan: Plan
    runtime: GpuRuntime
    check: SelfCheck
    dense: CudaDevice
    matrices: DenseMatrices


def _open(gpu: CudaGpu, plan: Plan, found: KernelChecks) -> _Gpu:
    runtime = GpuRuntime(gpu)
    check = runtime.self_check(found)
    matrices = DenseMatrices()

    def is_right(on_gpu: DeviceMatrix, w: QuantMatrix, name: str) -> bool:
        if not check.is_right(on_gpu, w, name):
            return False
        matrices.note(on_gpu, w)
        return True

    dense = runtime.device(plan.problem.rules.is_on_cpu, is_right)
    with dense.active(), loading_onto_gpu("the self-check", plan.problem.budgets.vram_bytes):
        check.check_network(plan.problem.sizes.config, plan.engine.kv_type)
    return _Gpu(plan, runtime, check, dense, matrices)


def _place_stage(
    experts: RoutedExperts,
    gpu: _Gpu,
    profile: HotProfile | None,
    locked_bytes: int,
    progress: Progress,
    ram: RamTier | None,
) -> tuple[HybridExperts, GpuExpertCache | None, GpuCalibration | None]:
    """Make the expert slots of one GPU, for the layers of its plan.

    locked_bytes: RAM that may be locked for its copies.
    """
    plan, runtime, check, dense, matrices = gpu
    device = runtime.torch
    with dense.active(), loading_onto_gpu("expert slots", plan.problem.budgets.vram_bytes):
        streams = runtime.open_streams()
        slots = measured = registration = None
        prefill: PrefillExecutor | None = None if ram is None else HostPrefill(ram)
        wrong = check.wrong_layers(experts, plan.problem.layers.cpu)
        is_any_right = len(wrong) < experts.num_layers
        if plan.num_vram_slots and is_any_right:
            slots = _slots(experts, plan, wrong, streams, device, ram)
            if profile is not None:
                slots.cache.warm(profile.most_used_keys())
            slots.cache.fill_up()
            slots.cache.fill(progress)
        if is_any_right and (slots is not None or plan.streams_experts):
            layout = slot_layouts(experts)[0]
            measured = runtime.measure(experts.by_index[0], layout, streams.prefill)
            assert measured.rates.gpu is not None
            spans = _mapped(experts) if ram is None else ram.spans()
            least_rate = _LEAST_SHARE * measured.rates.gpu.pcie
            registration = runtime.register(spans, locked_bytes, least_rate)
            if slots is not None:
                slots.uploader.registration = registration
            if plan.streams_experts:
                prefill = _prefill(
                    experts, plan, wrong, slots, streams, measured, registration, device, ram
                )
            if ram is not None:
                ram.registration = registration
        hand_over = _hand_over(experts, streams, runtime, check.found)
        backend = HybridExperts(
            experts,
            streams.main,
            streams.host,
            device,
            slots=slots,
            prefill=prefill,
            hand_over=hand_over,
            ram=ram,
        )
    calibration = None
    if measured is not None and registration is not None:
        calibration = GpuCalibration(
            plan=plan, runtime=runtime, device=dense, dense=matrices, experts=experts,
            streams=streams, slots=slots, hand_over=hand_over, rates=measured.rates,
            registration=registration,
        )  # fmt: skip
    return backend, None if slots is None else slots.cache, calibration


def _mapped(experts: RoutedExperts) -> list[Span]:
    """List the experts' memory in the file's map, layer by layer."""
    return [span for layer in experts.by_index for span in layer.spans]


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
    measured: Measured,
    registration: HostRegistration,
    device: torch.device,
    ram: RamTier | None,
) -> PrefillExecutor:
    layouts = slot_layouts(experts)
    weights = WeightStream(
        plan.num_stream_buffers,
        max(layout.slot_bytes for layout in layouts),
        device,
        streams.main,
        streams.link,
        measured.threads,
        registration,
    )
    on_gpu = [
        layout if plan.streams_layer(number) and number not in wrong else None
        for number, layout in zip(experts.numbers, layouts, strict=True)
    ]
    resident = None
    if slots is not None:
        resident = ResidentExperts(slots.slots, slots.cache.table.numpy())
    if ram is not None:
        return TierPrefill(
            ram.cache,
            experts,
            on_gpu,
            add_experts,
            streams.main,
            weights,
            device,
            first=ram.first,
            max_tokens=plan.max_step_tokens,
            resident=resident,
        )
    return StreamedExperts(
        experts,
        on_gpu,
        add_experts,
        measured.rates,
        streams.prefill,
        weights,
        device,
        max_tokens=plan.max_step_tokens,
        resident=resident,
    )


def _slots(
    experts: RoutedExperts,
    plan: Plan,
    wrong: frozenset[int],
    streams: GpuStreams,
    device: torch.device,
    ram: RamTier | None,
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
        policy=policy if on_gpu or on_cpu else None, ram=ram,
    )  # fmt: skip
    slots.cache.warm(policy.pinned)
    return slots
