"""`hybridmoe doctor`: facts come from the system, limits from the kernels, sentences from both."""

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from hybridmoe import _C
from hybridmoe.cli import doctor, doctor_gpus
from hybridmoe.cli.doctor_command import doctor_command
from hybridmoe.demo import demo_path
from hybridmoe.errors import ConfigError, DeviceError, ShapeError
from hybridmoe.hardware import isa, topology
from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.hardware.machine import Limits, Machine, Rate, advice, inspect_machine
from hybridmoe.placement.kernel_checks import KernelCheck

MACHINE = Machine(
    cpu="a CPU",
    cores=8,
    hardware_threads=16,
    nodes=1,
    cpu_quota=None,
    kernel_threads=8,
    isa_supported=("avx512", "avx2", "scalar"),
    isa_active="avx512",
    available_bytes=10**12,
    huge_pages="madvise",
    gpu="a GPU",
)
LIMITS = Limits(read=Rate(10e9, 118.9e9), int8=Rate(1e12, 8e12), float32=Rate(1e11, 8e11))


def test_a_good_machine_is_told_its_speed_alone() -> None:
    (sentence,) = advice(MACHINE, LIMITS)
    assert "11.07 GiB" in sentence and "at most 10.0 tokens/s" in sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"available_bytes": 24 * 10**9}, "531.56 GiB, and 22.35 GiB are free"),
        ({"cpu_quota": 2.5}, "2.5 CPUs of 8 cores"),
        ({"nodes": 2}, "2 NUMA nodes"),
        ({"gpu": None, "no_gpu": "Triton is missing"}, "on the CPU, too: Triton is missing."),
        ({"isa_active": "avx2"}, "though avx512 works"),
        ({"isa_active": "avx2"}, "no int8 dot product"),
    ],
)
def test_what_is_slow_is_said(change: dict[str, object], words: str) -> None:
    said = advice(dataclasses.replace(MACHINE, **change), LIMITS)  # type: ignore[arg-type]
    assert any(words in sentence for sentence in said)


def test_facts_are_read_from_the_system(tmp_path: Path) -> None:
    for name, text in {
        "proc/cpuinfo": "processor : 0\nmodel name\t: Made-up 9000\n",
        "proc/meminfo": "MemAvailable:   1000 kB\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    machine = inspect_machine(tmp_path)
    assert (machine.cpu, machine.available_bytes) == ("Made-up 9000", 1_024_000)
    assert machine.huge_pages == "madvise"
    assert machine.kernel_threads == topology.num_threads()
    empty = inspect_machine(tmp_path / "nothing")
    assert (empty.cpu, empty.huge_pages, empty.available_bytes) == ("unknown", "unknown", None)


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


def test_doctor_prints_facts_limits_and_sentences() -> None:
    result = CliRunner().invoke(doctor_command, ["--quick"], catch_exceptions=False)
    assert result.exit_code == 0
    for words in (
        "expert reads",
        "memory read",
        "GB/s",
        "TOPS",
        "tokens of an expert on",
        "- A token of Kimi K2",
    ):
        assert words in result.output
    result = CliRunner().invoke(doctor_command, ["--quick", "--json"], catch_exceptions=False)
    printed = json.loads(result.output)
    assert printed["machine"]["isa_active"] == isa.active()
    assert printed["limits"]["read"]["one"] > 1e8
    assert printed["limits"]["int8"]["all"] > 1e8


A, B = (CudaGpu(i, "A", (9, 0), 2 << 30, 1 << 30, 132) for i in (0, 2))
OTHER = CudaGpu(3, "B", (8, 9), 2 << 30, 1 << 30, 128)
OLD = NoGpu("C has compute capability 7.0; 8.0 is needed (Ampere or later)")


@pytest.mark.parametrize(("load", "is_busy"), [(50_000.0, True), (0.0, False)])
def test_doctor_says_when_other_programs_lower_the_rates(
    load: float, is_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(doctor, "measure", lambda quick: LIMITS)
    result = CliRunner().invoke(doctor_command, ["--quick"], catch_exceptions=False)
    assert ("other programs were running (load average 50000.0 on" in result.output) == is_busy


def doctor_of(
    monkeypatch: pytest.MonkeyPatch, *gpus: CudaGpu | NoGpu
) -> tuple[list[tuple[str, int]], list[str]]:
    """Let `doctor` find these GPUs; notes what it compiles on which, and the devices it loads on.

    On GPU 3 one kernel is wrong.
    """
    pytest.importorskip("triton", reason="needs triton")
    from hybridmoe.kernels.triton import compiling
    from hybridmoe.placement import gpu_compile

    compiled: list[tuple[str, int]] = []
    loaded: list[str] = []

    def compile_for_file(path: Path, on: CudaGpu, progress: object) -> int:
        compiled.append((path.name, on.number))
        return 20

    def load(*, device: str, **options: object) -> nullcontext[SimpleNamespace]:
        loaded.append(device)
        error = float("nan") if device == "cuda:3" else 0.125
        checks = [
            KernelCheck("products of 1 token", "Q8_0, 8 x 32", 0.25),
            KernelCheck("products of 5 tokens", "Q8_0, 8 x 32", error),
        ]
        notes = ("a plan", "self-check: the CPU computes that")
        llm = SimpleNamespace(kernel_checks=checks, notes=notes[: 1 + (device == "cuda:3")])
        return nullcontext(llm)

    monkeypatch.setattr(doctor_gpus, "load", load)
    monkeypatch.setattr(doctor, "find_gpu", lambda: gpus[0])
    monkeypatch.setattr(doctor, "find_gpus", lambda: list(gpus))
    monkeypatch.setattr(gpu_compile, "compile_for_file", compile_for_file)
    monkeypatch.setattr(compiling, "choose_cache_folder", lambda: Path("/cache"))
    return compiled, loaded


def test_doctor_compiles_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, loaded = doctor_of(monkeypatch, A)
    arguments = ["--quick", "--compile", "a.gguf"]
    result = CliRunner().invoke(doctor_command, arguments, catch_exceptions=False)
    assert compiled == [(demo_path().name, 0), ("a.gguf", 0)] and loaded == ["cuda:0"]
    assert "A (cuda:0): 40 compiled or cached in" in result.output
    assert "A (cuda:0): 2 of 2 right, at most 0.25 times the error that" in result.output
    assert "GPU cuda:" not in result.output and "WRONG" not in result.output


def test_doctor_lists_all_gpus_and_checks_each_kind_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, loaded = doctor_of(monkeypatch, A, OLD, B, OTHER)
    result = CliRunner().invoke(doctor_command, ["--quick"], catch_exceptions=False)
    assert [number for _, number in compiled] == [0, 3] and loaded == ["cuda:0", "cuda:3"]
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    for line in (
        "GPU cuda:0 A, 1.00 GiB of 2.00 GiB free, 132 multiprocessors, compute capability 9.0",
        f"GPU cuda:1 unused: {OLD.reason}",
        "GPU cuda:3 B, 1.00 GiB of 2.00 GiB free, 128 multiprocessors, compute capability 8.9",
        "GPU self-check A (cuda:0, cuda:2): 2 of 2 right, at most 0.25 times the error that"
        " rounding explains",
        "GPU self-check B (cuda:3): 1 of 2 right, at most 0.25 times the error that rounding"
        " explains",
        "products of 5 tokens (Q8_0, 8 x 32): nan times the error that rounding explains: WRONG",
        "- cuda:3 (B): self-check: the CPU computes that",
    ):
        assert line in lines, (line, result.output)
    result = CliRunner().invoke(doctor_command, ["--quick", "--json"], catch_exceptions=False)
    printed = json.loads(result.output)
    assert [gpu.get("name") for gpu in printed["gpus"]] == ["A", None, "A", "B"]
    assert [len(kind["gpus"]) for kind in printed["gpu_kernels"]] == [2, 1]
    errors = [kind["checks"][1]["error"] for kind in printed["gpu_kernels"]]
    assert errors == [0.125, None] and "NaN" not in result.output


def test_doctor_says_why_a_gpu_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    doctor_of(monkeypatch, A, OTHER)

    def fail(**options: object) -> None:
        raise DeviceError("the GPU failed")

    monkeypatch.setattr(doctor_gpus, "load", fail)
    result = CliRunner().invoke(doctor_command, ["--quick"], catch_exceptions=False)
    for name in ("cuda:0 (A)", "cuda:3 (B)"):
        assert f"- the embedded model does not load on {name}: the GPU failed" in result.output


def test_doctor_compiles_for_no_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_gpu", lambda: NoGpu("there is none"))
    with pytest.raises(ConfigError, match="--compile: there is none"):
        CliRunner().invoke(doctor_command, ["--compile", "a.gguf"], catch_exceptions=False)
