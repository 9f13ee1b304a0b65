"""Instruction sets of the kernels: compiled, supported on this machine, and active.

The best supported one is chosen at import; `HYBRIDMOE_ISA` forces another, so that every path can
be tested on one machine. Results are the same bits for avx2, avx_vnni and avx512, whatever else is
in a batch; scalar has no fused multiply-add and differs within the rounding of float32. amx has
avx512's kernels for steps of fewer than 16 tokens, and tiles of bfloat16 for longer ones: closer to
exact arithmetic, but a prompt's bits then depend on its chunks. Where that matters, force avx512,
and set `HYBRIDMOE_EXPAND=0`, without which a long prompt's bits depend on what is cached.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridmoe import _C
from hybridmoe.env import forced_isa
from hybridmoe.errors import ConfigError
from hybridmoe.hardware.system_files import ROOT, read_text

__all__ = ["active", "compiled", "forced", "has_vbmi", "supported"]


def compiled() -> tuple[str, ...]:
    """Instruction sets in this build, best first."""
    return _C.isa_compiled()


def supported() -> tuple[str, ...]:
    """Instruction sets that this CPU and operating system can run, best first."""
    return _C.isa_supported()


def active() -> str:
    """Instruction set in use."""
    return _C.isa_active()


def has_vbmi(root: Path = ROOT) -> bool:
    """Tell whether AVX-512's kernels look codes up by byte permutes, which IQ1 and IQ2 gain by."""
    return "avx512vbmi" in read_text(root / "proc/cpuinfo").split()


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Run the block with instruction set `name`, for the whole process. Raises `ConfigError`."""
    before = active()
    _select(name, "instruction set")
    try:
        yield
    finally:
        _C.set_isa(before)


def _select(name: str, what: str) -> None:
    if name not in supported():
        choices = ", ".join(supported())
        raise ConfigError(f"{what} {name!r} cannot run on this machine (supported: {choices})")
    _C.set_isa(name)


if (_name := forced_isa()) is not None:
    _select(_name, "HYBRIDMOE_ISA:")
