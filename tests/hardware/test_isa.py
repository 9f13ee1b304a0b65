"""Choice of the instruction set: at import, by name, and what is refused."""

from pathlib import Path

import pytest
from subprocesses import run_python

from hybridmoe.env import ISA_NAMES
from hybridmoe.errors import ConfigError
from hybridmoe.hardware import isa

PRINT_ACTIVE = "from hybridmoe.hardware import isa; print(isa.active())"


def test_lists_are_ordered_and_end_with_scalar() -> None:
    best_first = tuple(reversed(ISA_NAMES))
    assert isa.compiled() == tuple(name for name in best_first if name in isa.compiled())
    assert isa.supported() == tuple(name for name in isa.compiled() if name in isa.supported())
    assert isa.supported()[-1] == "scalar"
    assert isa.active() in isa.supported()


def test_supported_follows_the_cpu_flags() -> None:
    try:
        with open("/proc/cpuinfo") as file:
            flags = next(line for line in file if line.startswith("flags")).split()
    except (OSError, StopIteration):
        pytest.skip("no x86 flags in /proc/cpuinfo")
    needs = {
        "avx2": {"avx2", "fma", "f16c"},
        "avx_vnni": {"avx2", "fma", "f16c", "avx_vnni"},
        "avx512": {"bmi2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    }
    for name in needs.keys() & isa.compiled():
        assert (name in isa.supported()) == (needs[name] <= {*flags})
    if not {"amx_tile", "amx_int8", "amx_bf16"} <= {*flags}:
        assert "amx" not in isa.supported()


def test_forced_restores_even_after_an_error() -> None:
    before = isa.active()
    with pytest.raises(ZeroDivisionError), isa.forced("scalar"):
        assert isa.active() == "scalar"
        raise ZeroDivisionError
    assert isa.active() == before


def test_forcing_what_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="'neon' cannot run on this machine"), isa.forced("neon"):
        pass


def test_environment_forces_an_instruction_set() -> None:
    result = run_python(PRINT_ACTIVE, HYBRIDMOE_ISA="scalar")
    assert (result.returncode, result.stdout.strip()) == (0, "scalar")


def test_environment_refuses_what_cannot_run() -> None:
    missing = [name for name in ISA_NAMES if name not in isa.supported()]
    for name in [*missing[:1], "avx3"]:
        result = run_python(PRINT_ACTIVE, HYBRIDMOE_ISA=name)
        assert result.returncode != 0
        assert "ConfigError: HYBRIDMOE_ISA" in result.stderr and name in result.stderr


def test_environment_sets_the_number_of_threads() -> None:
    code = "from hybridmoe.kernels import ops; print(ops.num_threads())"
    assert run_python(code, HYBRIDMOE_THREADS="3").stdout.strip() == "3"


def test_vbmi_is_read_from_the_cpu(tmp_path: Path) -> None:
    info = tmp_path / "proc/cpuinfo"
    assert not isa.has_vbmi(tmp_path)
    info.parent.mkdir()
    info.write_text("flags\t\t: fpu avx512_vbmi2 avx512f\n")
    assert not isa.has_vbmi(tmp_path)
    info.write_text("flags\t\t: fpu avx512vbmi avx512_vbmi2\n")
    assert isa.has_vbmi(tmp_path)
