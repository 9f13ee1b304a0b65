"""GPUs by name, with the figures of their data sheets that a plan needs. Sources: docs/plan.md."""

from typing import NamedTuple

from hybridmoe.errors import ConfigError

__all__ = ["GPUS", "GpuSpec", "spec_like", "spec_named"]


class GpuSpec(NamedTuple):
    """Figures of one data sheet."""

    vram_gib: int
    vram_gbs: float  # GB/s of its memory
    tflops: float  # dense, 16-bit tensor cores, sums in float32
    pcie_gbs: float  # GB/s, one direction: 4.0 x8 15.8, 4.0 x16 31.5, 5.0 x16 63


GPUS = {
    "rtx-4060": GpuSpec(8, 272, 30, 15.8),
    "rtx-3060": GpuSpec(12, 360, 25, 31.5),
    "rtx-4070": GpuSpec(12, 504, 58, 31.5),
    "rtx-4060-ti-16gb": GpuSpec(16, 288, 44, 15.8),
    "rtx-4080": GpuSpec(16, 717, 97, 31.5),
    "rtx-5080": GpuSpec(16, 960, 112, 63),
    "rtx-3090": GpuSpec(24, 936, 71, 31.5),
    "rtx-4090": GpuSpec(24, 1008, 165, 31.5),
    "rtx-5090": GpuSpec(32, 1792, 209, 63),
    "rtx-a6000": GpuSpec(48, 768, 155, 31.5),
    "rtx-6000-ada": GpuSpec(48, 960, 364, 31.5),
    "h100-pcie": GpuSpec(80, 2039, 756, 63),
    "rtx-pro-6000": GpuSpec(96, 1792, 503, 63),
}

# Words of drivers' names that set no two GPUs apart; `ti`, `super` and `laptop` do.
_FILLERS = frozenset(
    ("nvidia", "geforce", "generation", "blackwell", "workstation", "server", "edition")
)


def spec_named(name: str) -> GpuSpec:
    """Find a GPU; any case, spaces for dashes, `4090` for `rtx-4090`. Errors: ConfigError."""
    wanted = "-".join(name.lower().split())
    spec = GPUS.get(wanted) or GPUS.get(f"rtx-{wanted}")
    if spec is None:
        raise ConfigError(f"--gpu {name!r:.40}: known are {', '.join(GPUS)}; or give --vram")
    return spec


def spec_like(name: str) -> GpuSpec | None:
    """Find a GPU by the driver's name, such as `NVIDIA GeForce RTX 4090`; None if unknown."""
    words = [w for w in name.lower().split() if w not in _FILLERS]
    return GPUS.get("-".join(words))
