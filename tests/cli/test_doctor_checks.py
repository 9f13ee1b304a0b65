"""Marks and advice of `hybridmoe doctor` on made-up machines."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_machine import FakeMachine

from hybridmoe.cli.doctor_bounds import bounds
from hybridmoe.cli.doctor_checks import Check, check_machine
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.hardware import topology
from hybridmoe.hardware.limits import Limits, Rate, Units
from hybridmoe.hardware.machine import Machine
from hybridmoe.hardware.memory_modules import MemoryModules, NoModules
from hybridmoe.hardware.settings import Clock, CpuModel, NumaNode, read_settings
from hybridmoe.planning.kernel_rates import MEASURED_ON, PRODUCT_BYTES

GIB = 1 << 30
AVX2 = ("avx2", "f16c", "fma")
AVX512 = (*AVX2, "avx512_vnni", "avx512bw", "avx512dq", "avx512f", "avx512vl", "bmi2")
AMX = (*AVX512, "amx_bf16", "amx_int8", "amx_tile", "avx512_bf16", "avx512vbmi")
ISA = ("amx", "avx512", "avx_vnni", "avx2", "scalar")
LIMITS = Limits(read=Rate(10e9, 118.9e9), int8=Rate(1e12, 8e12), float32=Rate(1e11, 8e11))
UNITS = Units({1: 10e9, 2: 40e9, 4: 113e9, 8: 118.9e9}, 1e11, 1e12, {})


def machine_of(fake: FakeMachine, root: Path) -> Machine:
    """A machine on which all is well."""
    here = topology.detect(root, range(fake.num_cpus))
    return Machine(
        cpu="a CPU",
        cores=here.num_cores,
        hardware_threads=fake.num_cpus,
        nodes=len(here.nodes),
        cpu_quota=here.cpu_quota,
        kernel_threads=here.default_threads,
        isa_compiled=ISA,
        isa_supported=ISA[1:],
        isa_active="avx512",
        available_bytes=fake.num_nodes * fake.node_bytes,
        gpu="a GPU",
    )


def checks(
    root: Path,
    fake: FakeMachine | None = None,
    *,
    machine: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    limits: Limits = LIMITS,
) -> dict[str, Check]:
    fake = fake or FakeMachine(cores_per_node=8)
    fake.write(root)
    facts = replace(read_settings(root, range(fake.num_cpus)), cpu=CpuModel(flags=AVX512))
    made = replace(machine_of(fake, root), **(machine or {}))
    found = check_machine(made, replace(facts, **(settings or {})), limits)
    return {check.name: check for check in found}


THP = "sys/kernel/mm/transparent_hugepage"


def test_a_good_machine_has_nothing_to_change(tmp_path: Path) -> None:
    pages = {f"{THP}/enabled": "always [madvise] never", f"{THP}/defrag": "always [madvise] never"}
    fake = FakeMachine(cores_per_node=8, threads_per_core=2, files=pages)
    found = checks(tmp_path, fake, settings={"modules": MemoryModules(4, 8, 4800)})
    marks = {name: check.mark for name, check in found.items()}
    assert marks.pop("CPU") == marks.pop("clock") == ""
    assert set(marks.values()) == {"ok"}, marks
    assert not any(check.command for check in found.values())


def mark_of(check: Check, *words: str) -> str:
    text = f"{check.value} | {check.advice} | {check.command}"
    for word in words:
        assert word in text, text
    return check.mark


@pytest.mark.parametrize(
    ("quota", "mark"), [("max 100000", "ok"), ("600000 100000", "warn"), ("150000 100000", "bad")]
)
def test_a_quota_of_a_container(quota: str, mark: str, tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": quota}
    found = checks(tmp_path, FakeMachine(cores_per_node=8, files=files))["cores"]
    words = () if mark == "ok" else ("of 8 cores", "docker update --cpus 8")
    assert mark_of(found, *words) == mark


def test_an_affinity_mask(tmp_path: Path) -> None:
    found = checks(tmp_path, settings={"allowed_cpus": 6})["cores"]
    assert mark_of(found, "6 of 8 CPUs", "taskset -c 0-7") == "warn"
    assert checks(tmp_path, settings={"allowed_cpus": 3})["cores"].mark == "bad"


@pytest.mark.parametrize(
    ("threads", "scale", "mark", "words"),
    [
        (8, 7.0, "ok", "7.0 x"),
        (16, 8.0, "warn", "(SMT) share its units"),
        (4, 4.0, "warn", "cores that stay idle: 4"),
        (8, 4.5, "warn", "not every thread has a core of its own"),
    ],
)
def test_threads(threads: int, scale: float, mark: str, words: str, tmp_path: Path) -> None:
    limits = replace(LIMITS, int8=Rate(1e12, scale * 1e12))
    found = checks(tmp_path, machine={"kernel_threads": threads}, limits=limits)["kernel threads"]
    assert mark_of(found, words) == mark


@pytest.mark.parametrize(
    ("nodes", "sockets", "value"),
    [
        (1, 1, "1, in use: 1"),
        (2, 2, "2, in use: 2"),
        (4, 4, "4, in use: 4"),
        (4, 2, "4, in use: 4 (sub-NUMA clustering: 2 a socket)"),
    ],
)
def test_nodes_that_are_all_used(nodes: int, sockets: int, value: str, tmp_path: Path) -> None:
    found = checks(tmp_path, FakeMachine(num_nodes=nodes, num_sockets=sockets))["NUMA nodes"]
    assert (found.value, found.mark) == (value, "ok")
    assert ("drop_caches" in found.command) == (nodes > 1)


@pytest.mark.parametrize(
    ("machine", "settings", "mark", "words"),
    [
        ({"nodes": 1}, {}, "bad", "channels of 1 nodes are idle"),
        ({"kernel_threads": 1}, {}, "bad", "leave nodes without one"),
        ({}, {"allowed_nodes": (0,)}, "bad", "from 1 of 2 nodes"),
        ({}, {"balances_nodes": True}, "warn", "kernel.numa_balancing=0"),
    ],
)
def test_nodes_that_are_not_used_well(
    machine: dict[str, object], settings: dict[str, object], mark: str, words: str, tmp_path: Path
) -> None:
    fake = FakeMachine(num_nodes=2, num_sockets=2)
    found = checks(tmp_path, fake, machine=machine, settings=settings)["NUMA nodes"]
    assert mark_of(found, words) == mark


def test_simulated_nodes(tmp_path: Path) -> None:
    found = checks(tmp_path, machine={"nodes": 3})["NUMA nodes"]
    assert mark_of(found, "1, in use: 3 (simulated by HYBRIDMOE_NUMA_NODES)") == "ok"


def test_a_node_without_memory(tmp_path: Path) -> None:
    nodes = (NumaNode(0, (0, 1), 64 * GIB, GIB), NumaNode(1, (2, 3), 0, 0))
    fake = FakeMachine(num_nodes=2, num_sockets=2)
    found = checks(tmp_path, fake, settings={"nodes": nodes})["NUMA nodes"]
    assert mark_of(found, "node 1 has no memory") == "bad"
    far = (*checks_nodes(tmp_path), NumaNode(2, (), 512 * GIB, GIB))  # memory alone, such as CXL
    assert checks(tmp_path, fake, settings={"nodes": far})["NUMA nodes"].mark == "ok"


def checks_nodes(root: Path) -> tuple[NumaNode, ...]:
    return read_settings(root, range(4)).nodes


@pytest.mark.parametrize(
    ("active", "supported", "compiled", "cpu", "mark", "words"),
    [
        ("avx2", ISA[1:], ISA, CpuModel(flags=AVX512), "warn", "though avx512 works here"),
        ("scalar", ISA[1:], ISA, CpuModel(flags=AVX512), "bad", "unset HYBRIDMOE_ISA"),
        ("avx2", ISA[3:], ISA[3:], CpuModel(flags=AVX512), "warn", "HYBRIDMOE_BUILD_ISA=all"),
        ("scalar", ISA[4:], ISA[4:], CpuModel(flags=AVX2), "bad", "this CPU has avx2"),
        ("avx512", ISA[1:], ISA, CpuModel(flags=AMX), "warn", "refuses AMX tiles"),
        ("avx2", ISA[3:], ISA, CpuModel("GenuineIntel", 6, 143, AVX2), "warn", "have amx, which"),
        ("avx2", ISA[3:], ISA, CpuModel("AuthenticAMD", 25, 33, AVX2), "ok", "int8 dot product"),
        ("avx2", ISA[3:], ISA, CpuModel("AuthenticAMD", 25, 97, AVX2), "warn", "have avx512"),
        ("scalar", ISA[4:], ISA, CpuModel("GenuineIntel", 6, 60), "bad", "the virtual machine"),
        ("scalar", ISA[4:], ISA, CpuModel("", 0, 0), "bad", "without AVX2"),
        ("avx512", ISA[1:], ISA, CpuModel("AuthenticAMD", 26, 2, AVX512), "ok", "avx512"),
    ],
)
def test_instruction_sets(
    active: str,
    supported: tuple[str, ...],
    compiled: tuple[str, ...],
    cpu: CpuModel,
    mark: str,
    words: str,
    tmp_path: Path,
) -> None:
    found = checks(
        tmp_path,
        machine={"isa_active": active, "isa_supported": supported, "isa_compiled": compiled},
        settings={"cpu": cpu, "is_virtual": True},
    )["instruction sets"]
    assert mark_of(found, words) == mark


@pytest.mark.parametrize(
    ("name", "settings", "mark", "words"),
    [
        ("transparent huge pages", {"huge_pages": "never"}, "warn", "echo madvise | sudo tee /sys"),
        ("transparent huge pages", {"huge_pages": "always", "compaction": "never"}, "warn", "defr"),
        ("transparent huge pages", {"huge_pages": "always"}, "ok", "always"),
        ("transparent huge pages", {}, "", "unknown"),
        ("clock", {"clock": Clock("acpi-cpufreq", "powersave")}, "bad", "cpupower frequency-set"),
        ("clock", {"clock": Clock("intel_pstate", "powersave")}, "ok", "powersave"),
        ("clock", {"clock": Clock("amd-pstate-epp", "powersave", "power")}, "warn", "saves power"),
        (
            "clock",
            {"clock": Clock("x", "performance", "", 2_000_000, 3_500_000)},
            "warn",
            "2.00 of",
        ),
        ("memory modules", {"modules": MemoryModules(4, 8, 4800)}, "ok", "154 GB/s, read 77%"),
        ("memory modules", {"modules": MemoryModules(6, 8, 4800)}, "warn", "6 of 8 slots"),
        ("memory modules", {"modules": MemoryModules(8, 8, 4800)}, "bad", "dmidecode"),
        ("memory modules", {}, "", "not shown here"),
        ("memory modules", {"modules": NoModules("a reason", "a command")}, "", "a command"),
        ("swap", {"swap_bytes": 8 * GIB}, "ok", "of 8.00 GiB in use"),
        ("swap", {"swap_bytes": 8 * GIB, "used_swap_bytes": 7 * GIB}, "warn", "vm.swappiness=1"),
        ("free memory", {"total_bytes": 200 * GIB}, "warn", "64.00 GiB of 200.00 GiB"),
        ("free memory", {"total_bytes": None}, "ok", "64.00 GiB"),
    ],
)
def test_settings(
    name: str, settings: dict[str, object], mark: str, words: str, tmp_path: Path
) -> None:
    assert mark_of(checks(tmp_path, settings=settings)[name], words) == mark


def test_what_the_system_does_not_say_is_no_fault(tmp_path: Path) -> None:
    """Every file is missing."""
    settings = replace(read_settings(tmp_path, range(8)), cpu=CpuModel(flags=AVX512))
    machine = replace(machine_of(FakeMachine(cores_per_node=8), tmp_path), available_bytes=None)
    marks = {check.mark for check in check_machine(machine, settings, LIMITS)}
    assert marks <= {"", "ok"}


def bounds_of(root: Path, product_bytes: float = 1e12, **changes: object) -> dict[str, Check]:
    machine = replace(machine_of(FakeMachine(cores_per_node=8), root), **changes)
    limits = LIMITS
    if machine.isa_active == "amx":
        limits = replace(limits, amx_int8=Rate(4e12, 60e12), amx_bf16=Rate(2e12, 30e12))
    return {check.name: check for check in bounds(machine, limits, UNITS, product_bytes)}


def test_bounds_of_decode_and_prompts(tmp_path: Path) -> None:
    FakeMachine(cores_per_node=8).write(tmp_path)
    found = bounds_of(tmp_path, available_bytes=10**12)
    decode = "bound by memory: 118.9 GB/s, 4 of 8 threads saturate it; at most 10.0 tokens/s"
    assert mark_of(found["decode"], decode) == "ok" and not found["decode"].advice
    prompts = "bound by int8 products (avx512): 8.00 TOPS, at most 189 tokens/s of Kimi K2;"
    assert mark_of(found["prompts"], prompts, "memory below about 910 tokens") == "ok"
    few = bounds_of(tmp_path, available_bytes=24 * 10**9)["decode"]
    assert mark_of(few, "531.56 GiB; 22.35 GiB are free", "hybridmoe plan kimi-k2") == "ok"
    slow = bounds_of(tmp_path, product_bytes=11.89e9)["decode"]
    assert mark_of(slow, "bound by products: 11.9 GB/s", "at most 1.0 tokens/s") == "warn"
    tiles = bounds_of(tmp_path, isa_active="amx")["prompts"]
    assert mark_of(tiles, "bfloat16 tiles (amx): 30.00 TFLOPS") == "ok"


def test_what_the_plan_assumes_of_the_kernels_is_said(tmp_path: Path) -> None:
    FakeMachine(cores_per_node=8).write(tmp_path)
    for active in ("avx512", "amx"):  # both decode by int8 products of AVX-512
        rate = PRODUCT_BYTES["avx512"][QuantType.Q4_K] * 8e12 / 1e12
        words = f"{MEASURED_ON}", f"Q4_K {rate:.1f} GB/s (here 11.9)"
        found = bounds_of(tmp_path, product_bytes=11.89e9, isa_active=active)["kernels"]
        assert mark_of(found, *words) == ""
