"""Settings of the system, as the /proc and /sys of other machines would show them."""

import os
import struct
from pathlib import Path
from unittest.mock import Mock

import pytest
from fake_machine import FakeMachine

from hybridmoe.hardware import topology
from hybridmoe.hardware.machine import inspect_machine
from hybridmoe.hardware.memory_modules import MemoryModules, NoModules, find_memory_modules
from hybridmoe.hardware.settings import Settings, read_settings
from hybridmoe.hardware.system_files import parse_numbers

GIB = 1 << 30


def settings_of(machine: FakeMachine, root: Path) -> Settings:
    return read_settings(machine.write(root), range(machine.num_cpus))


@pytest.mark.parametrize(
    ("nodes", "sockets", "threads"),
    [(1, 1, 1), (1, 1, 2), (2, 2, 2), (4, 4, 1), (4, 2, 2), (8, 2, 1)],
    ids=["1 node", "SMT", "2 sockets", "4 sockets", "SNC", "SNC of 4"],
)
def test_nodes_sockets_and_cpus(nodes: int, sockets: int, threads: int, tmp_path: Path) -> None:
    machine = FakeMachine(num_nodes=nodes, num_sockets=sockets, threads_per_core=threads)
    found = settings_of(machine, tmp_path)
    assert [node.id for node in found.nodes] == list(range(nodes))
    assert sorted(cpu for node in found.nodes for cpu in node.cpus) == list(range(machine.num_cpus))
    assert (found.num_sockets, found.online_cpus) == (sockets, machine.num_cpus)
    assert {node.total_bytes for node in found.nodes} == {64 * GIB}
    cores = topology.detect(tmp_path, range(machine.num_cpus)).nodes
    assert [len(node.cores) for node in cores] == [machine.cores_per_node] * nodes
    assert {len(core) for node in cores for core in node.cores} == {threads}


def test_pages_clock_caches_and_swap(tmp_path: Path) -> None:
    machine = FakeMachine(
        files={
            "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]",
            "sys/kernel/mm/transparent_hugepage/defrag": "always defer defer+madvise [madvise] x",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "acpi-cpufreq",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2000000",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3500000",
            "sys/devices/system/cpu/cpu0/cache/index0/level": "1",
            "sys/devices/system/cpu/cpu0/cache/index0/type": "Instruction",
            "sys/devices/system/cpu/cpu0/cache/index2/level": "2",
            "sys/devices/system/cpu/cpu0/cache/index2/type": "Unified",
            "sys/devices/system/cpu/cpu0/cache/index2/size": "1024K",
            "sys/devices/system/cpu/cpu0/cache/index3/level": "3",
            "sys/devices/system/cpu/cpu0/cache/index3/type": "Unified",
            "sys/devices/system/cpu/cpu0/cache/index3/size": "32M",
            "proc/meminfo": "MemTotal: 64 kB\nSwapTotal: 8 kB\nSwapFree: 3 kB\nFileHugePages: 2 kB",
            "proc/sys/kernel/numa_balancing": "1",
            "proc/self/status": "Name: x\nMems_allowed_list:\t0,2-3",
        }
    )
    found = settings_of(machine, tmp_path)
    assert (found.huge_pages, found.compaction) == ("never", "madvise")
    assert (found.clock.driver, found.clock.governor) == ("acpi-cpufreq", "powersave")
    assert (found.clock.limit_khz, found.clock.most_khz) == (2_000_000, 3_500_000)
    assert (found.l2_bytes, found.l3_bytes) == (1 << 20, 32 << 20)
    assert (found.swap_bytes, found.used_swap_bytes) == (8192, 5120)
    assert (found.total_bytes, found.file_huge_bytes) == (65536, 2048)
    assert found.balances_nodes and found.allowed_nodes == (0, 2, 3)


@pytest.mark.parametrize(
    "text", ["", "\0\xff", "x", "0-", "-1", "9" * 5000, "0-99999999999", ":::"]
)
def test_malformed_files_are_as_missing_ones(text: str, tmp_path: Path) -> None:
    machine = FakeMachine(num_nodes=2)
    machine.write(tmp_path)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        path.write_bytes(text.encode("latin-1") + b"\n")
    found = read_settings(tmp_path, range(2))
    assert found.allowed_cpus == 2 and isinstance(found.modules, NoModules)
    assert topology.detect(tmp_path, range(2)).num_cores >= 1
    topology.available_bytes(tmp_path)
    inspect_machine(tmp_path)


def test_missing_and_unreadable_files_are_unknown(tmp_path: Path) -> None:
    nothing = read_settings(tmp_path / "nothing", range(3))
    assert (nothing.nodes, nothing.huge_pages, nothing.total_bytes) == ((), "", None)
    assert (nothing.online_cpus, nothing.num_sockets) == (3, 1)
    machine = FakeMachine()
    machine.write(tmp_path)
    for path in list(tmp_path.rglob("*")):  # a folder of that name reads as an error
        if path.is_file():
            os.remove(path)
            path.mkdir()
    assert read_settings(tmp_path, range(3)).nodes == ()


def test_lists_of_numbers() -> None:
    assert [*parse_numbers("0-2,5, 7-8")] == [0, 1, 2, 5, 7, 8]
    assert [*parse_numbers("a,3,4-x,-2,,5-4")] == [3]


def memory_device(size: int, speed: int, configured: int) -> bytes:
    fields = bytearray(0x28)
    fields[0], fields[1] = 17, len(fields)
    struct.pack_into("<H", fields, 0x0C, size)
    struct.pack_into("<H", fields, 0x15, speed)
    struct.pack_into("<H", fields, 0x20, configured)
    return bytes(fields) + b"DIMM A\0Bank 0\0\0"


def test_memory_modules(tmp_path: Path) -> None:
    table = tmp_path / "sys/firmware/dmi/tables/DMI"
    absent = find_memory_modules(tmp_path)
    assert isinstance(absent, NoModules) and "not shown" in absent.reason and not absent.command
    table.parent.mkdir(parents=True)
    other = bytes([1, 4, 0, 0]) + b"\0\0"
    slots = [memory_device(32768, 5600, 4800), memory_device(32768, 5600, 0)]
    slots += [memory_device(0, 5600, 0)]
    table.write_bytes(other + b"".join(slots) + bytes([127, 4, 0, 0, 0, 0]))
    found = find_memory_modules(tmp_path)
    assert found == MemoryModules(2, 3, 4800) and found.peak_bytes == 2 * 4800e6 * 8
    whole = table.read_bytes()
    for length in range(len(whole)):  # cut anywhere
        table.write_bytes(whole[:length])
        find_memory_modules(tmp_path)
    table.write_bytes(memory_device(0, 0, 0))
    assert find_memory_modules(tmp_path) == NoModules(
        "the firmware's table names none with a speed"
    )


def test_memory_modules_that_only_root_may_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=PermissionError))
    found = find_memory_modules()
    assert isinstance(found, NoModules) and "only root" in found.reason
    assert found.command == "sudo dmidecode --type memory"
