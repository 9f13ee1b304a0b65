"""Facts about this machine that every load and `hybridmoe doctor` can tell."""

from dataclasses import dataclass
from pathlib import Path

from hybridmoe.hardware import isa, topology
from hybridmoe.hardware.gpu import CudaGpu, driver_version, find_gpu
from hybridmoe.hardware.system_files import ROOT, read_text

__all__ = ["Machine", "inspect_machine"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about a machine, read from its system."""

    cpu: str
    cores: int
    hardware_threads: int
    nodes: int
    cpu_quota: float | None
    kernel_threads: int
    isa_compiled: tuple[str, ...]
    isa_supported: tuple[str, ...]
    isa_active: str
    available_bytes: int | None
    gpu: str | None  # that is used
    no_gpu: str | None = None  # reason for none


def inspect_machine(root: Path = ROOT) -> Machine:
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
        isa_compiled=isa.compiled(),
        isa_supported=isa.supported(),
        isa_active=isa.active(),
        available_bytes=topology.available_bytes(root),
        gpu=_describe(gpu, driver_version(root)) if isinstance(gpu, CudaGpu) else None,
        no_gpu=None if isinstance(gpu, CudaGpu) else gpu.reason,
    )


def _cpu_name(root: Path) -> str:
    for line in read_text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


def _describe(gpu: CudaGpu, driver: str | None) -> str:
    return f"{gpu.facts}, driver {driver or 'of an unknown version'}"
