"""GPUs and rates that `hybridmoe plan` predicts with: given, of a data sheet, or measured here."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hybridmoe.errors import ConfigError
from hybridmoe.experts.disk.disk_rate import measure_disk
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.outline import Outline
from hybridmoe.gguf.split import part_path
from hybridmoe.hardware import isa
from hybridmoe.hardware.gpu import CudaGpu, Gpus, NoGpu, choose_gpus
from hybridmoe.hardware.limits import measure
from hybridmoe.library.find import known_models
from hybridmoe.option import gpu_numbers
from hybridmoe.planning.gpu_specs import GpuSpec, spec_like, spec_named
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.rates import GpuRates, Rates, rates_of

__all__ = ["PlannedGpus", "gpus_of", "rates_for"]


_ASSUMED_DISK = 3e9  # bytes/s: an NVMe disk of PCIe 3.0, or a slow one of PCIe 4.0


class PlannedGpus(NamedTuple):
    """GPUs to plan for, as `load` would see them."""

    gpus: Gpus
    rates: tuple[GpuRates, ...] = ()  # of each
    note: str | None = None


def gpus_of(device: str, given: Mapping[str, Any]) -> PlannedGpus:
    """Choose the GPUs that were named or described, or this machine's.

    device: as `load` takes it. given: options of the command.
    Errors: ConfigError where the speed is unknown.
    """
    if given["gpu"] is not None and device == "cpu":
        raise ConfigError("--gpu: --device cpu uses none, leave one of both out")
    is_described = given["gpu"] is not None or given["vram"] is not None
    if device == "cpu" or not is_described:
        return _gpus_here(device, given)
    vram = given["vram"]
    sizes = vram if isinstance(vram, tuple) else (vram,)
    if given["gpu"] is None:
        named = [("GPU", GpuSpec(0, 0.0, 0.0, 0.0))] * len(sizes)
    else:
        named = [(name, spec_named(name)) for name in _names(given["gpu"])]
    if vram is None:
        sizes = tuple(spec.vram_gib << 30 for _, spec in named)
    if len(sizes) != len(named):
        count = "1 size" if len(named) == 1 else f"{len(named)} sizes"
        raise ConfigError(f"--vram: expected {count}, one for each of --gpu")
    numbers = gpu_numbers(device)
    if numbers and len(numbers) != len(named):
        raise ConfigError(
            f"device={device}: expected {len(named)}, as many GPUs as --gpu and --vram describe"
        )
    gpus = tuple(
        CudaGpu(number, name, (0, 0), size, size)
        for number, ((name, _), size) in enumerate(zip(named, sizes, strict=True))
    )
    return PlannedGpus(gpus, tuple(_gpu_rates(given, spec) for _, spec in named))


def _gpus_here(device: str, given: Mapping[str, Any]) -> PlannedGpus:
    here = choose_gpus(device)
    if isinstance(here, NoGpu):
        return PlannedGpus(here)
    rates = []
    for gpu in here:
        spec = spec_like(gpu.name)
        if spec is None:
            return PlannedGpus(
                NoGpu(
                    f"{gpu.name} is not planned for, since its data sheet is not known here: give"
                    " --vram, --vram-gbs, --gpu-tflops and --pcie-gbs"
                )
            )
        rates.append(_gpu_rates(given, spec))
    names = " and ".join(gpu.name for gpu in here)
    note = f"The GPU is this machine's {names}; --gpu names another."
    return PlannedGpus(here, tuple(rates), note)


def _names(text: str) -> list[str]:
    """Names of `rtx-4090,rtx-3060` or `2x rtx-4090`. Errors: ConfigError for too many."""
    names: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9][0-9]?)\s*x[\s-]*(.+)", part.strip(), re.IGNORECASE)
        names += [match[2]] * int(match[1]) if match else [part.strip()]
    return names


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
        measured = limits.prompts.all
        float_ops = limits.float32.all * (peak * 1e12 / measured if peak else 1.0)
        dram = dram * 1e9 if dram else limits.read.all
        peak = peak * 1e12 if peak else measured
    disk = given["disk_gbs"] * 1e9 if given["disk_gbs"] else None
    if disk is None and plan.needs_disk:
        disk, origins["disk"] = _disk_rate(outline)
    rates = rates_of(
        isa.active(),
        dram=dram,
        peak_ops=peak,
        float_ops=float_ops,
        disk=disk,
        gpu=gpu,
        has_vbmi=isa.has_vbmi(),
    )
    return rates, origins


def _disk_rate(outline: Outline) -> tuple[float, str]:
    """Measure the disk's bytes/s, on the file or on the largest stored model; else assume it."""
    candidates = [([] if not outline.path.exists() else _files(outline), "measured")]
    stored = max(known_models(), key=lambda model: model.num_bytes, default=None)
    if stored is not None:
        candidates.append((list(stored.files), f"measured on {printable(stored.name, 120)}"))
    for files, origin in candidates:
        if files and (rate := measure_disk(files)) is not None:
            return rate, origin
    return _ASSUMED_DISK, "assumed; --disk-gbs gives another"


def _files(outline: Outline) -> list[Path]:
    numbers = [n for n in range(1, outline.num_parts + 1) if n not in outline.missing_parts]
    if outline.num_parts == 1:
        return [outline.path]
    return [part_path(outline.path, number, outline.num_parts) for number in numbers]
