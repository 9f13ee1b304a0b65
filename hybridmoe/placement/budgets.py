"""Memory plan for the options of `load` and the memory that is free on this machine."""

from collections.abc import Iterable
from dataclasses import replace

import psutil

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.accounting import TensorLike
from hybridmoe.hardware.gpu import CudaGpu, Gpus, NoGpu
from hybridmoe.hardware.topology import available_bytes
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.draft_gain import plan_with_drafts
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.placement_rules import PlacementRules
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets, GpuBudget
from hybridmoe.units import format_bytes

__all__ = ["budgets_of", "free_ram_bytes", "plan_for", "plan_within"]


def plan_for(
    config: ModelConfig,
    tensors: Iterable[TensorLike],
    options: LoadOptions,
    gpus: Gpus,
    ram_bytes: int | None = None,
) -> Plan:
    """Plan memory, for `load` and for `hybridmoe plan` alike.

    ram_bytes: None = what is free now. Errors: ConfigError, GGUFError.
    """
    return plan_within(config, tensors, options, budgets_of(options, gpus, ram_bytes))


def plan_within(
    config: ModelConfig, tensors: Iterable[TensorLike], options: LoadOptions, budgets: Budgets
) -> Plan:
    """Plan memory within these budgets, whatever is free. Errors: ConfigError, GGUFError."""
    rules, tensors = PlacementRules(options.place), list(tensors)

    def plan(config: ModelConfig) -> Plan:
        return plan_memory(config, tensors, options.engine_config(config), budgets, rules)

    names = {tensor.name for tensor in tensors}
    return plan_with_drafts(config, names, options.speculate, plan)


def budgets_of(options: LoadOptions, gpus: Gpus, ram_bytes: int | None = None) -> Budgets:
    """Turn options into budgets.

    ram_bytes: None = what is free now.
    Errors: ConfigError where more VRAM was asked for than is free.
    """
    budgets = Budgets(
        ram_bytes=free_ram_bytes() if ram_bytes is None else ram_bytes,
        expert_ram_bytes=options.expert_ram,
        num_ahead=options.expert_prefetch or 0,
        is_gpu_optional=not options.needs_gpu,
    )
    if isinstance(gpus, NoGpu):
        return replace(budgets, no_gpu_note=_no_gpu_note(options, gpus))
    asked = _asked_vram(options, len(gpus))
    return budgets.with_gpus(*map(_gpu_budget, gpus, asked))


def free_ram_bytes() -> int:
    """Bytes of RAM that are free now, within this process's limits."""
    free = available_bytes()
    return psutil.virtual_memory().available if free is None else free  # it may not be Linux


def _asked_vram(options: LoadOptions, num_gpus: int) -> tuple[int | None, ...]:
    """Budget of each GPU; None = all that is free. Errors: ConfigError for another number."""
    asked = options.vram
    if asked is None:
        return (None,) * num_gpus
    sizes = asked if isinstance(asked, tuple) else (asked,)
    if len(sizes) != num_gpus:
        given = ",".join(format_bytes(size).replace(" ", "") for size in sizes)
        raise ConfigError(
            f"vram={given}: expected {num_gpus} sizes, one for each GPU"
            if num_gpus > 1
            else f"vram={given}: expected one size for one GPU; --device cuda:0,cuda:1 names more"
        )
    return sizes


def _gpu_budget(gpu: CudaGpu, asked: int | None) -> GpuBudget:
    if asked is not None and asked > gpu.free_bytes:
        raise ConfigError(
            f"vram={format_bytes(asked)}: {gpu.name} has {format_bytes(gpu.free_bytes)} free"
        )
    return GpuBudget(gpu.name, gpu.free_bytes if asked is None else asked)


def _no_gpu_note(options: LoadOptions, gpu: NoGpu) -> str:
    if options.vram is not None or (options.place and options.device != "cpu"):
        return f"on the CPU alone, so that vram and place have no effect: {gpu.reason}"
    return "" if gpu.is_silent else f"on the CPU alone: {gpu.reason}"
