"""`hybridmoe doctor`: its report of this machine and of made-up GPUs."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from hybridmoe.cli import doctor, doctor_gpus
from hybridmoe.cli.doctor_command import doctor_command
from hybridmoe.demo import demo_path
from hybridmoe.errors import ConfigError, DeviceError
from hybridmoe.hardware import isa
from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.hardware.limits import Limits, Rate, Units
from hybridmoe.placement.kernel_checks import KernelCheck

LIMITS = Limits(read=Rate(10e9, 20e9), int8=Rate(1e12, 2e12), float32=Rate(1e11, 2e11))
UNITS = Units({1: 10e9, 2: 20e9}, 1e11, 1e12, {})


def test_doctor_prints_facts_limits_and_sentences() -> None:
    result = CliRunner().invoke(doctor_command, ["--quick"], catch_exceptions=False)
    assert result.exit_code == 0
    for words in (
        "ok    expert reads",
        "memory read",
        "GB/s",
        "TOPS",
        "tokens of an expert on",
        "tokens/s of Kimi K2 in Q4_K",
    ):
        assert words in result.output
    for line in result.output.splitlines():
        assert line[:6].strip() in ("", "ok", "warn", "bad"), line
    result = CliRunner().invoke(doctor_command, ["--quick", "--json"], catch_exceptions=False)
    printed = json.loads(result.output)
    assert printed["machine"]["isa_active"] == isa.active()
    assert printed["limits"]["read"]["one"] > 1e8
    assert printed["limits"]["int8"]["all"] > 1e8 and printed["units"]["q4_k_products"] > 1e8
    names = {check["name"]: check["mark"] for check in printed["checks"]}
    assert names["CPU"] == "" and {"NUMA nodes", "swap", "decode", "prompts"} <= set(names)


A, B = (CudaGpu(i, "A", (9, 0), 2 << 30, 1 << 30, 132) for i in (0, 2))
OTHER = CudaGpu(3, "B", (8, 9), 2 << 30, 1 << 30, 128)
OLD = NoGpu("C has compute capability 7.0; 8.0 is needed (Ampere or later)")


@pytest.mark.usefixtures("known_rates")
@pytest.mark.parametrize(("load", "is_busy"), [(50_000.0, True), (0.0, False)])
def test_doctor_says_when_other_programs_lower_the_rates(
    load: float, is_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    result = CliRunner().invoke(doctor_command, ["--quick"], catch_exceptions=False)
    assert ("load average 50000.0 on" in result.output) == is_busy


@pytest.fixture
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `doctor` measure nothing."""
    monkeypatch.setattr(doctor, "measure", lambda quick: LIMITS)
    monkeypatch.setattr(doctor, "measure_units", lambda **sizes: UNITS)
    monkeypatch.setattr(doctor, "measure_products", lambda num_bytes: 1e11)


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


@pytest.mark.usefixtures("known_rates")
def test_doctor_compiles_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, loaded = doctor_of(monkeypatch, A)
    arguments = ["--quick", "--compile", "a.gguf"]
    result = CliRunner().invoke(doctor_command, arguments, catch_exceptions=False)
    assert compiled == [(demo_path().name, 0), ("a.gguf", 0)] and loaded == ["cuda:0"]
    assert "A (cuda:0): 40 compiled or cached in" in result.output
    assert "A (cuda:0): 2 of 2 right, at most 0.25 times the error that" in result.output
    assert "GPU cuda:" not in result.output and "WRONG" not in result.output


@pytest.mark.usefixtures("known_rates")
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
        "bad GPU self-check cuda:3 (B): self-check: the CPU computes that",
    ):
        assert line in lines, (line, result.output)
    result = CliRunner().invoke(doctor_command, ["--quick", "--json"], catch_exceptions=False)
    printed = json.loads(result.output)
    assert [gpu.get("name") for gpu in printed["gpus"]] == ["A", None, "A", "B"]
    assert [len(kind["gpus"]) for kind in printed["gpu_kernels"]] == [2, 1]
    errors = [kind["checks"][1]["error"] for kind in printed["gpu_kernels"]]
    assert errors == [0.125, None] and "NaN" not in result.output


@pytest.mark.usefixtures("known_rates")
def test_doctor_says_why_a_gpu_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    doctor_of(monkeypatch, A, OTHER)

    def fail(**options: object) -> None:
        raise DeviceError("the GPU failed")

    monkeypatch.setattr(doctor_gpus, "load", fail)
    result = CliRunner().invoke(doctor_command, ["--quick"], catch_exceptions=False)
    for name in ("cuda:0 (A)", "cuda:3 (B)"):
        fault = f"the embedded model does not load on {name}: the GPU failed"
        assert fault in result.output


def test_doctor_compiles_for_no_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_gpu", lambda: NoGpu("there is none"))
    with pytest.raises(ConfigError, match="--compile: there is none"):
        CliRunner().invoke(doctor_command, ["--compile", "a.gguf"], catch_exceptions=False)
