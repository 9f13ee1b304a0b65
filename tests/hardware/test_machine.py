"""Facts about a machine come from the system, limits from the kernels."""

from pathlib import Path

import pytest

from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.hardware import isa, topology
from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.hardware.limits import measure_units
from hybridmoe.hardware.machine import inspect_machine


def test_facts_are_read_from_the_system(tmp_path: Path) -> None:
    for name, text in {
        "proc/cpuinfo": "processor : 0\nmodel name\t: Made-up 9000\n",
        "proc/meminfo": "MemAvailable:   1000 kB\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    machine = inspect_machine(tmp_path)
    assert (machine.cpu, machine.available_bytes) == ("Made-up 9000", 1_024_000)
    assert machine.kernel_threads == topology.num_threads()
    empty = inspect_machine(tmp_path / "nothing")
    assert (empty.cpu, empty.available_bytes) == ("unknown", None)


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = CudaGpu(0, "RTX 4090", (8, 9), 24 << 30, 22 << 30, 128)
    monkeypatch.setattr("hybridmoe.hardware.machine.find_gpu", lambda: gpu)
    machine = inspect_machine()
    assert machine.no_gpu is None and machine.gpu is not None
    assert machine.gpu.startswith(
        "RTX 4090, 22.00 GiB of 24.00 GiB free, 128 multiprocessors, compute"
    )
    monkeypatch.setattr("hybridmoe.hardware.machine.find_gpu", lambda: NoGpu("it is too old"))
    machine = inspect_machine()
    assert (machine.gpu, machine.no_gpu) == (None, "it is too old")


@pytest.mark.parametrize("name", isa.supported())
def test_operations_are_counted_by_the_width_of_the_registers(name: str) -> None:
    lanes = {"amx": 16, "avx512": 16, "avx_vnni": 8, "avx2": 8}
    with isa.forced(name):
        floats, bytes_ = _C.run_limit("float", 3, 5), _C.run_limit("int8", 3, 5)
    assert bytes_ == 4 * floats
    if name in lanes:
        assert floats == 3 * 5 * 10 * 2 * lanes[name]


def test_bad_limits_are_refused() -> None:
    for arguments in (("int4", 1, 1), ("int8", -1, 1), ("int8", 1, 0)):
        with pytest.raises(ShapeError):
            _C.run_limit(*arguments)
    with pytest.raises(ShapeError):
        _C.read_memory(0, 511, 1)


def test_panels_win_from_a_number_of_tokens_on() -> None:
    costs = _C.matmul_costs()
    assert 1 < costs["panels_from_tokens"] < 64
    if isa.active() == "amx":
        assert 1 < costs["matrix_tiles_from_tokens"] < 16


def test_units_of_all_instruction_sets_and_caches_are_measured() -> None:
    threads, active = topology.num_threads(), isa.active()
    units = measure_units(l2_bytes=1 << 20, l3_bytes=None, quick=True)
    assert set(units.other_isa) == set(isa.supported()) - {active, "scalar"}
    assert all(found.int8.all > 1e8 for found in units.other_isa.values())
    assert list(units.read_by_threads)[-1] == threads and 1 in units.read_by_threads
    assert units.l2 is not None and units.l2 > 1e8 and units.l3 is None
    assert isa.active() == active


def test_each_node_reads_memory_of_its_own(restore_threads: None) -> None:
    topology.set_num_threads(2)
    with topology.simulated(2):
        _C.begin_read_log(False)
        try:
            measure_units(l2_bytes=None, l3_bytes=None, quick=True)
        finally:
            touches = _C.end_read_log()
    touched = [sum(num_bytes for _, num_bytes, node, _ in touches if node == n) for n in range(2)]
    assert touched[0] > 0 and touched[0] == pytest.approx(touched[1], rel=0.01)
