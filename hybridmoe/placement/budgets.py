"""Memory plan for the options of `load` and the memory that is free on this machine."""

from collections.abc import Iterable
from dataclasses import replace

import psutil

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.accounting import TensorLike
from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.hardware.topology import available_bytes
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.placement_rules import PlacementRules
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.problem import Budgets
from hybridmoe.units import format_bytes

__all__ = ["budgets_of", "plan_for"]


def plan_for(
    config: ModelConfig,
    tensors: Iterable[TensorLike],
    options: LoadOptions,
    gpu: CudaGpu | NoGpu,
    ram_bytes: int | None = None,
) -> Plan:
    """Plan memory, for `load` and for `hybridmoe plan` alike.

    ram_bytes: None = what is free now. Errors: ConfigError, GGUFError.
    """
    budgets = budgets_of(options, gpu, ram_bytes)
    rules = PlacementRules(options.place)
    return plan_memory(config, tensors, options.engine_config(config), budgets, rules)


def budgets_of(options: LoadOptions, gpu: CudaGpu | NoGpu, ram_bytes: int | None = None) -> Budgets:
    """Turn options into budgets.

    ram_bytes: None = what is free now.
    Errors: ConfigError where more VRAM was asked for than is free.
    """
    if ram_bytes is None:
        ram_bytes = available_bytes()
    if ram_bytes is None:  # the system does not say
        ram_bytes = psutil.virtual_memory().available
    budgets = Budgets(
        ram_bytes=ram_bytes,
        expert_ram_bytes=options.expert_ram,
        num_ahead=options.expert_prefetch,
        is_gpu_optional=not options.needs_gpu,
    )
    if isinstance(gpu, NoGpu):
        return replace(budgets, no_gpu_note=_no_gpu_note(options, gpu))
    return replace(budgets, gpu_name=gpu.name, vram_bytes=_vram_bytes(options, gpu))


def _vram_bytes(options: LoadOptions, gpu: CudaGpu) -> int:
    asked = options.vram
    if asked is None:
        return gpu.free_bytes
    if asked > gpu.free_bytes:
        raise ConfigError(
            f"vram={format_bytes(asked)}: {gpu.name} has {format_bytes(gpu.free_bytes)} free"
        )
    return asked


def _no_gpu_note(options: LoadOptions, gpu: NoGpu) -> str:
    if options.vram is not None or (options.place and options.device != "cpu"):
        return f"on the CPU alone, so that vram and place have no effect: {gpu.reason}"
    return "" if gpu.is_silent else f"on the CPU alone: {gpu.reason}"
