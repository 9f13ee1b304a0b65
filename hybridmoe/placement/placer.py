"""Carry a memory plan out: weights are read or mapped, experts get their backend."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from hybridmoe.config import ModelConfig
from hybridmoe.device.interface import Device
from hybridmoe.experts.backend import CpuExperts, ExpertBackend
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.gguf.names import MTP_EMBEDDING, parse_name, part_of
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware.gpu import CudaGpu, Gpus, NoGpu
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.placement.budgets import plan_within
from hybridmoe.placement.kernel_checks import KernelChecks
from hybridmoe.placement.options import LoadOptions
from hybridmoe.placement.prefetch import Prefetch, decide_prefetch
from hybridmoe.placement.profile import OFF, HotExperts, HotTiers, open_profile
from hybridmoe.placement.ram import Progress, load_hot, read_weights
from hybridmoe.placement.residency import Residency
from hybridmoe.planning.conversation import Conversation
from hybridmoe.planning.expert_shares import ExpertShare
from hybridmoe.planning.fewer_gpus import fewer_gpus
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets
from hybridmoe.planning.rates import Rates

if TYPE_CHECKING:
    from hybridmoe.placement.calibration import Calibration  # needs Triton

__all__ = ["place"]


def place(
    file: GGUFFile,
    plan: Plan,
    gpus: Gpus,
    options: LoadOptions | None = None,
    progress: Progress = lambda done, total: None,
    share: ExpertShare | None = None,
) -> Residency:
    """Put weights where the plan has them.

    gpus: used where the plan has VRAM. options: those of `load`. progress: called while weights are
    read here, or uploaded to VRAM slots. share: the plan's experts, where it is for a part of them.
    Errors: ConfigError, DeviceError, DiskError, GGUFError; KernelError where the model cannot run
    on this GPU.
    """
    options = options or LoadOptions()
    config = _whole_config(plan, share)
    profile_path = options.expert_profile
    if profile_path is not None and profile_path != OFF:
        HotProfile.check_writable(profile_path)  # not after hours of work
    routed = routed_experts(Weights(file), config)
    if share is not None:
        routed = routed.of_experts(share.experts)
    kept = None
    if plan.disk_cache is not None or plan.num_vram_slots:
        shape = (routed.num_layers, routed.num_experts)
        has_slots = plan.num_vram_slots > 0 and share is None  # the automatic one is a model's
        kept = open_profile(profile_path, file, *shape, has_slots=has_slots)
    profile = None if kept is None else kept.found
    with ExitStack() as resources:
        ram, prefetch = None, Prefetch()
        if plan.disk_cache is not None:
            if options.expert_prefetch is None:
                prefetch = decide_prefetch(file, plan)
            ram = read_weights(
                file,
                routed,
                plan.disk_cache,
                None if plan.vram is not None else profile,
                progress,
                is_kept=_stays_in_ram(plan),
                num_ahead=prefetch.num_ahead,
            )
            resources.callback(ram.experts.close)
        disk_cache = None if ram is None else ram.experts
        experts: ExpertBackend = disk_cache or CpuExperts(routed)
        devices: tuple[Device, ...] = ()
        cache: HotExperts | None = disk_cache
        checks: KernelChecks | None = None
        calibration: Calibration | None = None
        if plan.vram is not None:
            assert not isinstance(gpus, NoGpu), gpus
            from hybridmoe.placement.gpu import place_on_gpus  # needs Triton, an extra

            placed = place_on_gpus(routed, plan, gpus, disk_cache, profile, progress)
            experts, devices, cache, checks, calibration = placed
            if calibration is not None:
                calibration.remarks = partial(_remarks, file, plan, gpus, options)
            if disk_cache is not None:
                cache = HotTiers(placed.cache, disk_cache)
                if profile is not None:
                    load_hot(disk_cache, cache.absent(profile.hot_keys()), progress)
        record = None
        if kept is not None and cache is not None:
            record = kept.record(cache)
        resources.pop_all()
    return Residency(
        plan=plan,
        config=config,
        experts=experts,
        devices=devices,
        private={} if ram is None else ram.private,
        disk_cache=disk_cache,
        prefetch_note=prefetch.note,
        profile=record,
        checks=checks,
        calibration=calibration,
    )


def _whole_config(plan: Plan, share: ExpertShare | None) -> ModelConfig:
    """Configuration of the network, of which the plan may have a part of the experts."""
    planned = plan.problem.sizes.config
    if share is None:
        return planned
    return share.model.with_mtp() if planned.runs_mtp else share.model


def _stays_in_ram(plan: Plan) -> Callable[[str], bool]:
    """Tell the tensors that the CPU uses, by name; a GPU's are uploaded from the memory map."""
    if plan.vram is None:
        return lambda name: True
    is_on_cpu = plan.problem.rules.is_on_cpu

    def stays(name: str) -> bool:
        role = parse_name(name).role
        return part_of(role) == "embedding" or role == MTP_EMBEDDING or is_on_cpu(name)

    return stays


def _remarks(
    file: GGUFFile,
    plan: Plan,
    gpus: Sequence[CudaGpu],
    options: LoadOptions,
    rates: Sequence[Rates],
) -> Iterator[str]:
    """Yield a line if fewer GPUs are predicted to be faster, by their measured rates."""
    by_gpu = [known.gpu for known in rates if known.gpu is not None]
    if not plan.split or len(by_gpu) < len(gpus) or plan.needs_disk:  # whose rate is unknown
        return
    config, tensors = plan.problem.sizes.config, file.tensors.values()

    def within(budgets: Budgets) -> Plan:
        return plan_within(config, tensors, options, budgets)

    found = fewer_gpus(plan, within, rates[0], by_gpu, Conversation())
    if found is not None:
        yield found.line([gpu.number for gpu in gpus])
