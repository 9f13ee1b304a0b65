"""Facts about this machine, its measured limits, and advice for a large model.

The limits are measured with the instructions that the kernels use: reads of memory, and loops of
multiply-adds in registers.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybridmoe import _C
from hybridmoe.hardware import isa, topology
from hybridmoe.hardware.gpu import CudaGpu, driver_version, find_gpu
from hybridmoe.units import format_bytes

__all__ = ["Limits", "Machine", "Rate", "advice", "inspect_machine", "measure"]

# Kimi K2 (moonshotai/Kimi-K2-Instruct, config.json): 60 MoE layers, 8 of 384 experts per token,
# three matrices of 7168 x 2048 each. Q4_K is 144 bytes for 256 weights.
_EXPERT_BYTES = 3 * 7168 * 2048 * 144 // 256
_K2_BYTES, _K2_TOKEN_BYTES = 60 * 384 * _EXPERT_BYTES, 60 * 8 * _EXPERT_BYTES


@dataclass(frozen=True, slots=True)
class Rate:
    """Amount per second, of one core and of all kernel threads together."""

    one: float
    all: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Measured limits: the best of several turns, since other programs can only slow them."""

    read: Rate
    """Bytes from memory, far more than a cache holds."""
    int8: Rate
    """Operations (a multiply-add is two) on int8 as the active kernels do them."""
    float32: Rate
    """Operations of float32 FMA."""
    amx_int8: Rate | None = None
    """Operations of AMX tiles on int8; None without tiles in the active kernels."""
    amx_bf16: Rate | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about a machine, read from its system."""

    cpu: str
    cores: int
    hardware_threads: int
    nodes: int
    cpu_quota: float | None
    kernel_threads: int
    isa_supported: tuple[str, ...]
    isa_active: str
    available_bytes: int | None
    huge_pages: str
    gpu: str | None  # that is used
    no_gpu: str | None = None  # reason for none


def inspect_machine(root: Path = Path("/")) -> Machine:
    """Read the facts about this machine; `root` holds proc/ and sys/."""
    here = topology.current()
    gpu = find_gpu()
    return Machine(
        cpu=_cpu_name(root),
        cores=here.num_cores,
        hardware_threads=sum(len(core) for node in here.nodes for core in node.cores),
        nodes=len(here.nodes),
        cpu_quota=here.cpu_quota,
        kernel_threads=topology.num_threads(),
        isa_supported=isa.supported(),
        isa_active=isa.active(),
        available_bytes=topology.available_bytes(root),
        huge_pages=_huge_pages(root),
        gpu=_describe(gpu, driver_version(root)) if isinstance(gpu, CudaGpu) else None,
        no_gpu=None if isinstance(gpu, CudaGpu) else gpu.reason,
    )


def measure(*, quick: bool = False) -> Limits:
    """Measure with the active instruction set and threads, for about 4 s or, `quick`, 1 s."""
    turns, seconds = (2, 0.02) if quick else (5, 0.1)
    num_bytes = (256 if quick else 1024) << 20
    if (available := topology.available_bytes()) is not None:
        num_bytes = max(1 << 20, min(num_bytes, available // 4))
    memory = np.ones(num_bytes, np.uint8)  # written, so that every page is resident
    chunks = 16 * topology.num_threads()

    def read(parts: int) -> Callable[[], int]:
        def run() -> int:
            _C.read_memory(memory.ctypes.data, num_bytes, parts)
            return num_bytes

        return run

    def arithmetic(kind: str, parts: int) -> Callable[[], int]:
        rounds = _rounds(kind, seconds)
        if parts > 1:
            rounds = max(1, rounds // 16)
        return lambda: _C.run_limit(kind, rounds, parts)

    def rate(kind: str) -> Rate:
        return Rate(_best(arithmetic(kind, 1), turns), _best(arithmetic(kind, chunks), turns))

    has_tiles = isa.active() == "amx"
    return Limits(
        read=Rate(_best(read(1), turns), _best(read(chunks), turns)),
        int8=rate("int8"),
        float32=rate("float"),
        amx_int8=rate("tile_int8") if has_tiles else None,
        amx_bf16=rate("tile_bf16") if has_tiles else None,
    )


def advice(machine: Machine, limits: Limits) -> list[str]:
    """List what will be slow, and why, as sentences."""
    said = []
    speed = limits.read.all / _K2_TOKEN_BYTES
    said.append(
        f"A token of Kimi K2 in Q4_K reads {format_bytes(_K2_TOKEN_BYTES)} of experts: "
        f"memory allows at most {speed:.1f} tokens/s here."
    )
    if machine.available_bytes is not None and machine.available_bytes < _K2_BYTES:
        said.append(
            f"Its experts take {format_bytes(_K2_BYTES)}, and "
            f"{format_bytes(machine.available_bytes)} are free: the others are read from disk, "
            "at the disk's speed."
        )
    if machine.isa_active != machine.isa_supported[0]:
        said.append(
            f"The kernels run with {machine.isa_active}, though {machine.isa_supported[0]} works "
            "here: HYBRIDMOE_ISA forces it."
        )
    if machine.isa_active in {"scalar", "avx2"}:
        said.append(
            f"Prompts will be slow: {machine.isa_active} has no int8 dot product "
            f"({limits.int8.all / 1e12:.2f} TOPS with all threads)."
        )
    if machine.cpu_quota is not None and machine.cpu_quota < machine.cores:
        said.append(
            f"The control group gives {machine.cpu_quota:g} CPUs of {machine.cores} cores: "
            "more threads than that would wait for each other."
        )
    if machine.nodes > 1:
        said.append(
            f"Each of the {machine.nodes} NUMA nodes computes its own rows of every matrix; pages "
            "that another program brought into memory stay on its node, and are read across."
        )
    if machine.gpu is None:
        why = machine.no_gpu or "no NVIDIA GPU was found"
        said.append(f"Attention and the output head run on the CPU, too: {why}.")
    return said


def _best(run: Callable[[], int], turns: int) -> float:
    """Return the highest amount per second."""
    rates = []
    for _ in range(turns):
        start = time.perf_counter()
        amount = run()
        rates.append(amount / (time.perf_counter() - start))
    return max(rates)


def _rounds(kind: str, seconds: float) -> int:
    """Find how many rounds of a loop take about `seconds`."""
    rounds = 1000
    while True:
        start = time.perf_counter()
        _C.run_limit(kind, rounds, 1)
        if (taken := time.perf_counter() - start) > 0.002:
            return max(1, int(rounds * seconds / taken))
        rounds *= 4


def _cpu_name(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


def _huge_pages(root: Path) -> str:
    """Read the chosen mode of "always [madvise] never"."""
    text = _text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _describe(gpu: CudaGpu, driver: str | None) -> str:
    return f"{gpu.facts}, driver {driver or 'of an unknown version'}"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
