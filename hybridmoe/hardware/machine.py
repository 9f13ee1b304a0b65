"""What this machine can reach at most, and what that means for a large model.

The limits are measured with the instructions that the kernels use: a read of memory, and loops of
multiply-adds in registers. `advice` turns the facts into sentences.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybridmoe import _C
from hybridmoe.hardware import isa, topology
from hybridmoe.hardware.gpu import CudaGpu, driver_version, find_gpu

__all__ = ["Limits", "Machine", "Rate", "advice", "inspect_machine", "measure"]

# Kimi K2 (moonshotai/Kimi-K2-Instruct, config.json): 60 MoE layers, 384 experts of which 8 work on
# a token, three matrices of 7168 x 2048 each. Q4_K is 144 bytes for 256 weights.
_EXPERT_BYTES = 3 * 7168 * 2048 * 144 // 256
_K2_BYTES, _K2_TOKEN_BYTES = 60 * 384 * _EXPERT_BYTES, 60 * 8 * _EXPERT_BYTES


@dataclass(frozen=True, slots=True)
class Rate:
    """Per second: of one core, and of all threads of the kernels together."""

    one: float
    all: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Measured; the best of several turns, since what else runs can only take away."""

    read: Rate
    """Bytes from memory, far more of them than a cache holds."""
    int8: Rate
    """Operations (a multiply-add is two) on int8 as the active kernels do them."""
    float32: Rate
    """Operations of float32 FMA."""
    amx_int8: Rate | None = None
    """Operations of AMX tiles on int8; None where the active kernels have no tiles."""
    amx_bf16: Rate | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts read from the system."""

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
    gpu: str | None  # one that can be used
    no_gpu: str | None = None  # else why not


def inspect_machine(root: Path = Path("/")) -> Machine:
    """Facts about this machine; `root` holds proc/ and sys/."""
    here = topology.current()
    card = find_gpu()
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
        gpu=_describe(card, driver_version(root)) if isinstance(card, CudaGpu) else None,
        no_gpu=None if isinstance(card, CudaGpu) else card.reason,
    )


def measure(*, quick: bool = False) -> Limits:
    """Measure them with the active instruction set and threads, for about 4 s or, `quick`, 1 s."""
    turns, seconds = (2, 0.02) if quick else (5, 0.1)
    num_bytes = (256 if quick else 1024) << 20
    if (available := topology.available_bytes()) is not None:
        num_bytes = max(1 << 20, min(num_bytes, available // 4))
    memory = np.ones(num_bytes, np.uint8)  # written, so that every page is there
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
    """Sentences on what will be slow, and why."""
    said = []
    speed = limits.read.all / _K2_TOKEN_BYTES
    said.append(
        f"A token of Kimi K2 in Q4_K reads {_K2_TOKEN_BYTES / 1e9:.1f} GB of experts: "
        f"memory allows at most {speed:.1f} tokens/s here."
    )
    if machine.available_bytes is not None and machine.available_bytes < _K2_BYTES:
        said.append(
            f"Its experts are {_K2_BYTES / 1e9:.0f} GB and "
            f"{machine.available_bytes / 1e9:.0f} GB can be filled: the rest would come from "
            "disk, at the disk's speed."
        )
    if machine.isa_active != machine.isa_supported[0]:
        said.append(
            f"The kernels run as {machine.isa_active} though {machine.isa_supported[0]} works "
            "here: HYBRIDMOE_ISA chose it."
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
            f"Each of the {machine.nodes} NUMA nodes has its own rows of every matrix; what "
            "another program brought into memory stays where that ran, and is read across."
        )
    if machine.gpu is None:
        why = machine.no_gpu or "no NVIDIA card was found"
        said.append(f"Attention and the output head run on the CPU, too: {why}.")
    return said


def _best(run: Callable[[], int], turns: int) -> float:
    """The highest amount per second."""
    rates = []
    for _ in range(turns):
        start = time.perf_counter()
        amount = run()
        rates.append(amount / (time.perf_counter() - start))
    return max(rates)


def _rounds(kind: str, seconds: float) -> int:
    """Rounds of a loop that take about `seconds`."""
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
    """The chosen one of "always [madvise] never"."""
    text = _text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _describe(card: CudaGpu, driver: str | None) -> str:
    capability = ".".join(map(str, card.capability))
    return (
        f"{card.name}, {card.free_bytes / 2**30:.1f} of {card.total_bytes / 2**30:.1f} GiB free,"
        f" {card.num_multiprocessors} multiprocessors, compute capability {capability},"
        f" driver {driver or 'of an unknown version'}"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
