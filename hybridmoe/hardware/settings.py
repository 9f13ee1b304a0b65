"""Settings of the system that change speed: pages, clock, NUMA, swap, and what a VM shows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridmoe.hardware.memory_modules import MemoryModules, NoModules, find_memory_modules
from hybridmoe.hardware.system_files import (
    ROOT,
    parse_int,
    parse_numbers,
    read_choice,
    read_int,
    read_sizes,
    read_text,
)

__all__ = ["Clock", "CpuModel", "NumaNode", "Settings", "read_settings"]


@dataclass(frozen=True, slots=True)
class CpuModel:
    """CPU as /proc/cpuinfo describes it; zeros and blanks where it does not."""

    vendor: str = ""
    family: int = 0
    model: int = 0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Clock:
    """Frequency scaling of the first CPU; blank where the system does not show it."""

    driver: str = ""
    governor: str = ""
    preference: str = ""  # energy_performance_preference
    limit_khz: int | None = None
    most_khz: int | None = None


@dataclass(frozen=True, slots=True)
class NumaNode:
    """Node of the machine, whether or not this process may use it."""

    id: int
    cpus: tuple[int, ...]  # none: memory alone
    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings and sizes; None or blank where the system does not say."""

    cpu: CpuModel
    clock: Clock
    is_virtual: bool
    huge_pages: str  # always, madvise, never
    compaction: str  # when a huge page may be made by moving others
    file_huge_bytes: int | None  # of the page cache
    nodes: tuple[NumaNode, ...]
    num_sockets: int
    balances_nodes: bool  # the kernel moves pages between nodes
    online_cpus: int
    allowed_cpus: int
    allowed_nodes: tuple[int, ...]  # for memory
    total_bytes: int | None
    swap_bytes: int
    used_swap_bytes: int
    l2_bytes: int | None
    l3_bytes: int | None
    modules: MemoryModules | NoModules


def read_settings(root: Path = ROOT, cpus: Sequence[int] | None = None) -> Settings:
    """Read all; `root` holds proc/ and sys/. cpus: that may be used, None = the affinity mask's."""
    devices = root / "sys/devices/system"
    allowed = sorted(os.sched_getaffinity(0)) if cpus is None else list(cpus)
    online = list(parse_numbers(read_text(devices / "cpu/online"))) or allowed
    first = devices / f"cpu/cpu{allowed[0]}"
    memory = read_sizes(root / "proc/meminfo")
    pages = root / "sys/kernel/mm/transparent_hugepage"
    sockets = {read_text(devices / f"cpu/cpu{n}/topology/physical_package_id") for n in online}
    cpu = _cpu_model(root)
    caches = {
        read_text(index / "level"): _cache_bytes(read_text(index / "size"))
        for index in sorted(first.glob("cache/index*"))
        if read_text(index / "type") in ("Data", "Unified")
    }
    return Settings(
        cpu=cpu,
        clock=_clock(first / "cpufreq"),
        is_virtual="hypervisor" in cpu.flags,
        huge_pages=read_choice(pages / "enabled"),
        compaction=read_choice(pages / "defrag"),
        file_huge_bytes=memory.get("FileHugePages"),
        nodes=_nodes(devices / "node"),
        num_sockets=max(1, len(sockets - {""})),
        balances_nodes=(read_int(root / "proc/sys/kernel/numa_balancing") or 0) > 0,
        online_cpus=len(online),
        allowed_cpus=len(allowed),
        allowed_nodes=_allowed_nodes(root),
        total_bytes=memory.get("MemTotal"),
        swap_bytes=memory.get("SwapTotal", 0),
        used_swap_bytes=max(0, memory.get("SwapTotal", 0) - memory.get("SwapFree", 0)),
        l2_bytes=caches.get("2"),
        l3_bytes=caches.get("3"),
        modules=find_memory_modules(root),
    )


def _cpu_model(root: Path) -> CpuModel:
    """Read the first CPU's lines."""
    found: dict[str, str] = {}
    for line in read_text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())

    def number(name: str) -> int:
        return parse_int(found.get(name, "")) or 0

    flags = tuple(sorted(found.get("flags", "").split()))
    return CpuModel(found.get("vendor_id", ""), number("cpu family"), number("model"), flags)


def _clock(folder: Path) -> Clock:
    return Clock(
        driver=read_text(folder / "scaling_driver"),
        governor=read_text(folder / "scaling_governor"),
        preference=read_text(folder / "energy_performance_preference"),
        limit_khz=read_int(folder / "scaling_max_freq"),
        most_khz=read_int(folder / "cpuinfo_max_freq"),
    )


def _nodes(folder: Path) -> tuple[NumaNode, ...]:
    nodes = []
    for number in parse_numbers(read_text(folder / "online")):
        memory = read_sizes(folder / f"node{number}/meminfo")
        cpus = tuple(parse_numbers(read_text(folder / f"node{number}/cpulist")))
        nodes.append(NumaNode(number, cpus, memory.get("MemTotal"), memory.get("MemFree")))
    return tuple(nodes)


def _allowed_nodes(root: Path) -> tuple[int, ...]:
    for line in read_text(root / "proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "Mems_allowed_list":
            return tuple(parse_numbers(value.strip()))
    return ()


def _cache_bytes(text: str) -> int | None:
    """Parse a size such as 1024K."""
    number, unit = parse_int(text[:-1]), {"K": 1 << 10, "M": 1 << 20}.get(text[-1:])
    return None if number is None or unit is None else number * unit
