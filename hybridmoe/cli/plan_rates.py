"""GPU and rates that `hybridmoe plan` predicts with: given, of a data sheet, or measured here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import Outline
from hybridmoe.gguf.split import part_path
from hybridmoe.hardware import isa
from hybridmoe.hardware.disk import measure_disk
from hybridmoe.hardware.gpu import CudaGpu, NoGpu, choose_gpu
from hybridmoe.hardware.machine import measure
from hybridmoe.planning.gpu_specs import GpuSpec, spec_like, spec_named
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.rates import GpuRates, Rates, rates_of

__all__ = ["PlannedGpu", "gpu_of", "rates_for"]


class PlannedGpu(NamedTuple):
    """GPU to plan for, as `load` would see it."""

    gpu: CudaGpu | NoGpu
    rates: GpuRates | None = None  # None: no GPU
    note: str | None = None


def gpu_of(device: str, given: Mapping[str, Any]) -> PlannedGpu:
    """Choose the GPU that was named or described, or this machine's.

    device: as `load` takes it. given: options of the command.
    Errors: ConfigError where the speed is unknown.
    """
    is_described = given["gpu"] is not None or given["vram"] is not None
    if device == "cpu" or not is_described:
        here = choose_gpu(device)
        if not isinstance(here, CudaGpu):
            return PlannedGpu(here)
        spec = spec_like(here.name)
        if spec is None:
            return PlannedGpu(
                NoGpu(
                    f"{here.name} is not planned for, since its data sheet is not known here: give"
                    " --vram, --vram-gbs, --gpu-tflops and --pcie-gbs"
                )
            )
        note = f"The GPU is this machine's {here.name}; --gpu names another."
        return PlannedGpu(here, _gpu_rates(given, spec), note)
    spec = GpuSpec(0, 0.0, 0.0, 0.0) if given["gpu"] is None else spec_named(given["gpu"])
    vram = given["vram"] or spec.vram_gib << 30
    gpu = CudaGpu(0, given["gpu"] or "GPU", (0, 0), vram, vram)
    return PlannedGpu(gpu, _gpu_rates(given, spec))


def _gpu_rates(given: Mapping[str, Any], spec: GpuSpec) -> GpuRates:
    figures = {
        "--vram-gbs": given["vram_gbs"] or spec.vram_gbs,
        "--gpu-tflops": given["gpu_tflops"] or spec.tflops,
        "--pcie-gbs": given["pcie_gbs"] or spec.pcie_gbs,
    }
    if missing := [name for name, value in figures.items() if not value]:
        raise ConfigError(f"--vram without a speed: give --gpu NAME, or {', '.join(missing)}")
    return GpuRates.assumed(*figures.values())


def rates_for(
    plan: Plan, outline: Outline, given: Mapping[str, Any], gpu: GpuRates | None
) -> tuple[Rates, dict[str, str]]:
    """Rates that were given, or else measured; and by name, which of both."""
    active = isa.active()
    dram, peak = given["dram_gbs"], given["tops"]
    origins = {
        "DRAM": "given" if dram else "measured",
        "products": "given" if peak else "measured",
        "disk": "given",
    }
    float_ops = None
    if dram and peak:
        dram, peak = dram * 1e9, peak * 1e12
    else:
        limits = measure()
        tiles = limits.amx_bf16 if active == "amx" else None
        measured = (tiles or limits.int8).all
        float_ops = limits.float32.all * (peak * 1e12 / measured if peak else 1.0)
        dram = dram * 1e9 if dram else limits.read.all
        peak = peak * 1e12 if peak else measured
    disk = given["disk_gbs"] * 1e9 if given["disk_gbs"] else None
    if disk is None and plan.needs_disk:
        disk = measure_disk(_files(outline))
        origins["disk"] = "measured"
    rates = rates_of(active, dram=dram, peak_ops=peak, float_ops=float_ops, disk=disk, gpu=gpu)
    return rates, origins


def _files(outline: Outline) -> list[Path]:
    numbers = [n for n in range(1, outline.num_parts + 1) if n not in outline.missing_parts]
    if outline.num_parts == 1:
        return [outline.path]
    return [part_path(outline.path, number, outline.num_parts) for number in numbers]
