"""Cores, CPU quota and memory of this process, and the thread plan of the kernels.

Cores by NUMA node come from sysfs and the affinity mask (taskset, cpusets); CPU quota and free
memory from the control groups, v1 and v2, of this process and all above it. `root` holds /proc and
/sys; a file that cannot be read there sets no limit.

A machine can be treated as one of several nodes: HYBRIDMOE_NUMA_NODES, or `simulated` in a test.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from hybridmoe import _C, env
from hybridmoe.errors import ShapeError
from hybridmoe.hardware.system_files import (
    ROOT,
    parse_int,
    parse_numbers,
    read_int,
    read_sizes,
    read_text,
)

__all__ = [
    "Node",
    "Topology",
    "available_bytes",
    "cpu_quota",
    "current",
    "detect",
    "num_threads",
    "plan_threads",
    "set_num_threads",
    "simulated",
]

ThreadPlan = list[list[list[int]]]
"""CPUs that each thread may run on, by node; an empty list is any CPU."""


@dataclass(frozen=True, slots=True)
class Node:
    """NUMA node: its number in the system (None: simulated) and its usable cores."""

    id: int | None
    cores: tuple[tuple[int, ...], ...]  # the hardware threads of each physical core


@dataclass(frozen=True, slots=True)
class Topology:
    """Nodes with usable cores, and the CPU quota of the control group (None: no quota)."""

    nodes: tuple[Node, ...]
    cpu_quota: float | None = None

    @property
    def num_cores(self) -> int:
        return sum(len(node.cores) for node in self.nodes)

    @property
    def default_threads(self) -> int:
        """One thread per physical core, but no more than the CPU quota."""
        quota = self.num_cores if self.cpu_quota is None else int(self.cpu_quota)
        return min(max(1, min(self.num_cores, quota)), env.MAX_THREADS)

    def divided(self, num_nodes: int) -> "Topology":
        """Distribute the same cores over `num_nodes` simulated nodes; some may have none."""
        if num_nodes == len(self.nodes):
            return self
        cores = tuple(chain.from_iterable(node.cores for node in self.nodes))
        nodes = tuple(Node(None, cores[n::num_nodes]) for n in range(num_nodes))
        return Topology(nodes, self.cpu_quota)


def detect(root: Path = ROOT, cpus: Sequence[int] | None = None) -> Topology:
    """Read the topology within the given CPUs (None: those of the affinity mask)."""
    if cpus is None:
        cpus = sorted(os.sched_getaffinity(0))
    devices = root / "sys/devices/system"
    node_of = {}
    for number in parse_numbers(read_text(devices / "node/online")):
        for cpu in parse_numbers(read_text(devices / f"node/node{number}/cpulist")):
            node_of[cpu] = number
    nodes: dict[int, dict[str, list[int]]] = {}  # node -> its cores, by the names of their threads
    for cpu in cpus:
        siblings = read_text(devices / f"cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        nodes.setdefault(node_of.get(cpu, 0), {}).setdefault(siblings, []).append(cpu)
    found = (Node(i, tuple(map(tuple, cores.values()))) for i, cores in sorted(nodes.items()))
    return Topology(tuple(found), cpu_quota(root))


def plan_threads(topology: Topology, num_threads: int, *, pin: bool = True) -> ThreadPlan:
    """Distribute `num_threads` threads over the nodes, in proportion to their cores.

    With one thread per core, each is pinned to its own. With more or fewer, threads or other
    programs share cores, and the system places the threads within their node.
    """
    nodes = topology.nodes
    weights = [max(1, len(node.cores)) for node in nodes]
    ends = [num_threads * sum(weights[: n + 1]) // sum(weights) for n in range(len(nodes))]
    plan: ThreadPlan = []
    for node, start, end in zip(nodes, [0, *ends], ends, strict=False):
        if pin and num_threads == topology.num_cores and end - start == len(node.cores):
            plan.append([list(core) for core in node.cores])
        else:
            shared = [*chain(*node.cores)] if pin and len(nodes) > 1 else []
            plan.append([shared] * (end - start))
    return plan


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPU quota of the control groups, in CPUs; None without a limit."""
    quotas = []
    for folder in _groups(root, "cpu"):
        words = read_text(folder / "cpu.max").split() or [
            read_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")
        ]
        quota, period = (parse_int(word) for word in (*words, "")[:2])
        if quota is not None and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def available_bytes(root: Path = ROOT) -> int | None:
    """Memory that can be filled without swapping or an OOM kill, page cache included."""
    available = []
    if (size := read_sizes(root / "proc/meminfo").get("MemAvailable")) is not None:
        available.append(size)
    for folder in _groups(root, "memory"):
        limit, used = (
            _first_int(folder, *names)
            for names in (
                ("memory.max", "memory.limit_in_bytes"),
                ("memory.current", "memory.usage_in_bytes"),
            )
        )
        if limit is None or used is None:
            continue
        stat = read_sizes(folder / "memory.stat", " ")
        cache = stat.get("total_cache", stat.get("cache", stat.get("file", 0)))
        available.append(max(0, limit - used + cache))
    return min(available, default=None)


def current() -> Topology:
    """Topology in use."""
    return _current


def num_threads() -> int:
    """Number of kernel threads, the caller's included."""
    return sum(map(len, _C.threads()))


def set_num_threads(n: int) -> None:
    """Use `n` threads (1..1024) from the next call on. Raises `ShapeError`."""
    if not 1 <= n <= env.MAX_THREADS:
        raise ShapeError(f"num_threads is {n}, expected 1 to {env.MAX_THREADS}")
    _C.set_threads(plan_threads(_current, n, pin=env.pins_threads()))


@contextmanager
def simulated(num_nodes: int) -> Iterator[None]:
    """Run the block as if the machine had `num_nodes` nodes, for the whole process."""
    global _current
    before, threads = _current, num_threads()
    _current = detect().divided(num_nodes)
    set_num_threads(threads)
    try:
        yield
    finally:
        _current = before
        set_num_threads(threads)


def _first_int(folder: Path, *names: str) -> int | None:
    """Read the number of the first file that has one."""
    numbers = (read_int(folder / name) for name in names)
    return next((number for number in numbers if number is not None), None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of control groups that may limit `controller`, ancestors included."""
    mount = root / "sys/fs/cgroup"
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / controller if controllers else mount
        # In a container the path may be the host's: a folder that does not exist limits nothing.
        group = base / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))


_nodes = env.num_nodes()
_current = detect() if _nodes is None else detect().divided(_nodes)
set_num_threads(env.num_threads() or _current.default_threads)
