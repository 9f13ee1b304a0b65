"""Checks of `hybridmoe doctor`: settings of the machine that make a large model slow."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hybridmoe.hardware.limits import Limits
from hybridmoe.hardware.machine import Machine
from hybridmoe.hardware.memory_modules import NoModules
from hybridmoe.hardware.settings import CpuModel, Settings
from hybridmoe.units import format_bytes

__all__ = ["Check", "Mark", "check_machine"]

Mark = Literal["", "ok", "warn", "bad"]
"""Verdict on a line; "" is a fact."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    value: str
    mark: Mark = ""
    advice: str = ""  # the reason why it is slow
    command: str = ""  # that changes it


_PAGES = "/sys/kernel/mm/transparent_hugepage"
_HALF = 0.5  # of CPUs or of a rate: less than that is bad
_CHANNELS_SHARE = 0.7  # of the modules' peak, which a plain read reaches at least
_OWN_CORES_SHARE = 0.7  # of the threads that products scale to, if each has a core
_SWAPPED_SHARE = 0.1  # of RAM

# Flags in /proc/cpuinfo that each instruction set needs: those that setup.py compiles with.
_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"bmi2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
_FLAGS = {
    "amx": _AVX512 | {"avx512vbmi", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"},
    "avx512": _AVX512,
    "avx_vnni": _AVX2 | {"avx_vnni"},
    "avx2": _AVX2,
}

# Best instruction sets by vendor and family, of these models (Linux: intel-family.h, amd.c).
_BEST_ISA = (
    ("GenuineIntel", 6, {143, 173, 174, 207}, "amx"),  # Sapphire, Emerald, Granite Rapids
    ("GenuineIntel", 6, {106, 108, 125, 126, 140, 141, 167}, "avx512"),  # Ice, Tiger, Rocket Lake
    ("GenuineIntel", 6, {151, 154, 170, 183, 186, 189, 191, 197, 198}, "avx_vnni"),  # from Alder
    ("GenuineIntel", 6, {60, 61, 63, 69, 70, 71, 78, 79, 85, 86, 94, 142, 158, 165, 166}, "avx2"),
    ("AuthenticAMD", 26, None, "avx512"),  # Zen 5
    ("AuthenticAMD", 25, {*range(0x10, 0x20), *range(0x60, 0x80), *range(0xA0, 0xB0)}, "avx512"),
    ("AuthenticAMD", 25, None, "avx2"),  # Zen 3
    ("AuthenticAMD", 23, None, "avx2"),
)  # fmt: skip


def check_machine(machine: Machine, settings: Settings, limits: Limits) -> Iterator[Check]:
    """Judge what the system says, one line each."""
    yield Check("CPU", machine.cpu)
    yield _instruction_sets(machine, settings.cpu, is_virtual=settings.is_virtual)
    yield _cores(machine, settings)
    yield _threads(machine, limits)
    yield _numa(machine, settings)
    yield _pages(settings)
    yield _clock(settings)
    yield _channels(settings, limits)
    yield _memory(machine, settings)
    yield _swap(settings)


def _instruction_sets(machine: Machine, cpu: CpuModel, *, is_virtual: bool) -> Check:
    active, best = machine.isa_active, machine.isa_supported[0]

    def check(mark: Mark, advice: str = "", command: str = "") -> Check:
        value = f"{', '.join(machine.isa_supported)}; in use: {active}"
        return Check("instruction sets", value, mark, advice, command)

    if active != best:
        why = f"the kernels run with {active}, though {best} works here: HYBRIDMOE_ISA forces it"
        return check("bad" if active == "scalar" else "warn", why, "unset HYBRIDMOE_ISA")
    flags = set(cpu.flags)
    fitting = next((name for name, needed in _FLAGS.items() if needed <= flags), "scalar")
    if fitting not in (*machine.isa_compiled, "scalar"):
        why = f"this CPU has {fitting}, which this build was made without"
        command = "HYBRIDMOE_BUILD_ISA=all pip install --force-reinstall --no-deps ."
        return check("bad" if active == "scalar" else "warn", why, command)
    if fitting == "amx" and active != "amx":
        return check("warn", "the kernel refuses AMX tiles: Linux 5.16 or later grants them")
    expected = _best_isa(cpu)
    if is_virtual and expected and not _FLAGS[expected] <= flags:
        why = (
            f"CPUs of this model have {expected}, which the virtual machine hides: start it with"
            " -cpu host (QEMU) or <cpu mode='host-passthrough'/> (libvirt)"
        )
        return check("bad" if active == "scalar" else "warn", why)
    if active == "scalar":
        return check("bad", "without AVX2 every product is many times slower: use another CPU")
    if active == "avx2":
        return check("ok", "no int8 dot product: prompts are slower than with AVX-VNNI or AVX-512")
    return check("ok")


def _best_isa(cpu: CpuModel) -> str:
    """Name the best instruction set of CPUs of this model; "" where that is not known."""
    for vendor, family, models, name in _BEST_ISA:
        if (vendor, family) == (cpu.vendor, cpu.family) and (models is None or cpu.model in models):
            return name
    return ""


def _cores(machine: Machine, settings: Settings) -> Check:
    value = f"{machine.cores} ({machine.hardware_threads} hardware threads)"
    quota = machine.cpu_quota
    if quota is not None:
        value += f", quota of {quota:g} CPUs"
    if quota is not None and quota < machine.cores:
        why = (
            f"the control group gives {quota:g} CPUs of {machine.cores} cores: more threads than"
            " that would wait for each other"
        )
        command = (
            f"docker update --cpus {machine.cores} CONTAINER"
            f"  # or: systemctl set-property UNIT CPUQuota={100 * machine.cores}%"
        )
        return Check(
            "cores", value, "bad" if quota < _HALF * machine.cores else "warn", why, command
        )
    if settings.allowed_cpus < settings.online_cpus:
        allowed = f"{settings.allowed_cpus} of {settings.online_cpus} CPUs"
        why = f"the affinity mask (taskset, cpuset) allows {allowed}"
        few = settings.allowed_cpus < _HALF * settings.online_cpus
        command = f"taskset -c 0-{settings.online_cpus - 1} hybridmoe ..."
        return Check("cores", value, "bad" if few else "warn", why, command)
    return Check("cores", value, "ok")


def _threads(machine: Machine, limits: Limits) -> Check:
    threads, cores = machine.kernel_threads, machine.cores
    scale = limits.int8.all / limits.int8.one
    value = f"{threads}; products are {scale:.1f} x as fast as with one" if threads > 1 else "1"
    allowed = cores if machine.cpu_quota is None else max(1, min(cores, int(machine.cpu_quota)))
    if threads != allowed:
        why = (
            "threads of one core (SMT) share its units, and wait for each other"
            if threads > cores
            else "more threads than the quota wait for each other"
            if threads > allowed
            else f"cores that stay idle: {allowed - threads}"
        )
        return Check("kernel threads", value, "warn", why, "unset HYBRIDMOE_THREADS")
    if scale < _OWN_CORES_SHARE * threads:
        why = (
            "not every thread has a core of its own: a virtual machine may show the hardware"
            " threads (SMT) of a core as cores, the clock may fall, or other programs run; compare"
            " the speed of half as many"
        )
        command = f"HYBRIDMOE_THREADS={max(1, threads // 2)} hybridmoe bench"
        return Check("kernel threads", value, "warn", why, command)
    return Check("kernel threads", value, "ok")


def _numa(machine: Machine, settings: Settings) -> Check:
    nodes = [node for node in settings.nodes if node.cpus]
    clusters = len(nodes) // settings.num_sockets
    value = f"{max(1, len(nodes))}, in use: {machine.nodes}"
    if clusters > 1:
        value += f" (sub-NUMA clustering: {clusters} a socket)"
    if machine.nodes > max(1, len(nodes)):
        value += " (simulated by HYBRIDMOE_NUMA_NODES)"

    def check(mark: Mark, advice: str = "", command: str = "") -> Check:
        return Check("NUMA nodes", value, mark, advice, command)

    if len(nodes) < 2:
        return check("ok")
    bare = [node.id for node in nodes if node.total_bytes == 0]
    if bare:
        why = (
            f"node {bare[0]} has no memory, and its cores read another node's: put modules into its"
            " channels"
        )
        return check("bad", why)
    if machine.nodes < len(nodes):
        why = f"the memory channels of {len(nodes) - machine.nodes} nodes are idle"
        command = "unset HYBRIDMOE_NUMA_NODES; numactl --all --physcpubind=all hybridmoe ..."
        return check("bad", why, command)
    if settings.allowed_nodes and len(settings.allowed_nodes) < len(nodes):
        why = f"memory may be taken from {len(settings.allowed_nodes)} of {len(nodes)} nodes"
        return check("bad", why, "numactl --all --interleave=all hybridmoe ...")
    if machine.kernel_threads < len(nodes):
        why = f"{machine.kernel_threads} threads leave nodes without one"
        return check("bad", why, "unset HYBRIDMOE_THREADS")
    if settings.balances_nodes:
        why = "the kernel unmaps pages to see who uses them, though each node reads its own rows"
        return check("warn", why, "sudo sysctl kernel.numa_balancing=0")
    why = (
        "each node computes its own rows of every matrix. A file that another program brought into"
        " memory stays on that program's node, and is read across: drop it before the first start,"
        " or spread it with numactl --interleave=all"
    )
    command = "echo 1 | sudo tee /proc/sys/vm/drop_caches"
    return check("ok", why, command)


def _pages(settings: Settings) -> Check:
    name, mode = "transparent huge pages", settings.huge_pages
    value = mode or "unknown"
    if settings.file_huge_bytes:
        value += f"; {format_bytes(settings.file_huge_bytes)} of mapped files in such pages"
    if not mode:
        return Check(name, value)
    if mode == "never":
        why = "expert slots and buffers lie in pages of 4 KiB: more address look-ups in decode"
        return Check(name, value, "warn", why, f"echo madvise | sudo tee {_PAGES}/enabled")
    if settings.compaction == "never":
        why = "no huge pages are made once memory is fragmented"
        return Check(name, value, "warn", why, f"echo madvise | sudo tee {_PAGES}/defrag")
    return Check(name, value, "ok")


def _clock(settings: Settings) -> Check:
    clock = settings.clock
    if not clock.governor:
        return Check("clock", "not shown here (a virtual machine, or no frequency scaling)")
    value = f"governor {clock.governor} ({clock.driver or 'unknown driver'})"
    if clock.preference:
        value += f", preference {clock.preference}"
    # With these drivers the CPU chooses its clock, and powersave only lets it.
    is_own = clock.driver in ("intel_pstate", "amd-pstate-epp")
    command = "sudo cpupower frequency-set -g performance"
    if clock.governor in ("powersave", "conservative", "userspace") and not is_own:
        return Check("clock", value, "bad", "the clock stays low, or rises late", command)
    if clock.preference in ("power", "balance_power"):
        return Check("clock", value, "warn", "the CPU saves power before it is fast", command)
    if clock.limit_khz and clock.most_khz and clock.limit_khz < clock.most_khz:
        limit, most = clock.limit_khz / 1e6, clock.most_khz / 1e6
        why = f"the clock is limited to {limit:.2f} of {most:.2f} GHz"
        return Check("clock", value, "warn", why, f"sudo cpupower frequency-set -u {most:.2f}GHz")
    return Check("clock", value, "ok")


def _channels(settings: Settings, limits: Limits) -> Check:
    modules = settings.modules
    if isinstance(modules, NoModules):
        return Check("memory modules", modules.reason, command=modules.command)
    peak = modules.peak_bytes
    share = limits.read.all / peak
    value = (
        f"{modules.num_modules} of {modules.num_slots} slots, {modules.transfers} MT/s: at most"
        f" {peak / 1e9:.0f} GB/s, read {share:.0%}"
    )
    if share >= _CHANNELS_SHARE:
        return Check("memory modules", value, "ok")
    why = (
        "several modules share a channel, nodes or cores are left out (see above), or the firmware"
        " runs them below their speed"
    )
    mark: Mark = "bad" if share < _HALF else "warn"
    return Check("memory modules", value, mark, why, "sudo dmidecode --type memory")


def _memory(machine: Machine, settings: Settings) -> Check:
    free = machine.available_bytes
    if free is None:
        return Check("free memory", "unknown")
    value, total = format_bytes(free), settings.total_bytes
    if total is not None:
        value += f" of {format_bytes(total)}"
    if total is not None and free < _HALF * total:
        why = "a control group or other programs leave less than half: experts are read from disk"
        command = "ps aux --sort=-rss  # or: docker update --memory ... CONTAINER"
        return Check("free memory", value, "warn", why, command)
    return Check("free memory", value, "ok")


def _swap(settings: Settings) -> Check:
    used, total = settings.used_swap_bytes, settings.total_bytes
    if settings.swap_bytes == 0:
        return Check("swap", "none", "ok")
    value = f"{format_bytes(used)} of {format_bytes(settings.swap_bytes)} in use"
    if total is None or used <= _SWAPPED_SHARE * total:
        return Check("swap", value, "ok")
    why = "what was swapped out is read back slowly, and expert slots may be among it"
    return Check("swap", value, "warn", why, "sudo sysctl vm.swappiness=1")
