"""The installer's checks come before the long part, each as one line."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from native_build import SETUP

ROOT = Path(__file__).parent.parent
INSTALL = runpy.run_path(str(ROOT / ".ci" / "install.py"))


def install(folder: Path, **env: str) -> str:
    """Run a copy of the installer that must refuse. Returns its message."""
    (folder / ".ci").mkdir()
    script = folder / ".ci" / "install.py"
    script.write_text((ROOT / ".ci" / "install.py").read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, str(script), "chat"]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and not (folder / ".venv").exists()
    return done.stderr


def fake_compiler(folder: Path, version: str) -> str:
    compiler = folder / "fake-c++"
    compiler.write_text(f"#!/bin/sh\necho '{version}'\n", encoding="utf-8")
    compiler.chmod(0o755)
    return str(compiler)


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    message = install(tmp_path, CXX="no-such-c++")
    assert message == (
        "hybridmoe: no C++ compiler (no-such-c++); on Debian and Ubuntu: apt install g++\n"
    )


@pytest.mark.parametrize(
    "version, expected",
    [
        ("c++ (Debian 11.4.0-1) 11.4.0", "gcc 11.4 is too old; expected 12 or newer"),
        ("Ubuntu clang version 13.0.1", "clang 13.0 is too old; expected 14 or newer"),
    ],
)
def test_an_old_compiler_is_refused(tmp_path: Path, version: str, expected: str) -> None:
    assert expected in install(tmp_path, CXX=fake_compiler(tmp_path, version))


def test_llama_cpp_is_built_without_what_no_test_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    options = INSTALL["llama_cpp_options"]().split()
    assert "-DLLAVA_BUILD=OFF" in options and options[-1] == "-DGGML_CUDA=ON"
    include = next(o for o in options if o.startswith("-DCMAKE_PROJECT_llama.cpp_INCLUDE="))
    text = Path(include.partition("=")[2]).read_text(encoding="utf-8")
    assert "set(LLAMA_BUILD_COMMON OFF)" in text


@pytest.mark.parametrize(
    "cpu, expected",
    [
        ("fpu sse2", ["scalar"]),
        ("fma f16c avx2", ["avx2", "scalar"]),
        ("fma f16c avx2 avx_vnni", ["avx_vnni", "scalar"]),
        ("fma f16c avx2 bmi2 avx512f avx512bw avx512vl avx512dq", ["avx2", "scalar"]),
        (
            "fma f16c avx2 bmi2 avx512f avx512bw avx512vl avx512dq avx512_vnni",
            ["avx512", "scalar"],
        ),
        (
            "fma f16c avx2 bmi2 avx512f avx512bw avx512vl avx512dq avx512_vnni avx512vbmi",
            ["avx512", "avx512_vbmi", "scalar"],
        ),
        (
            "fma f16c avx2 bmi2 avx512f avx512bw avx512vl avx512dq avx512_vnni avx512vbmi"
            " avx512_bf16 amx_tile amx_int8 amx_bf16",
            ["amx", "scalar"],
        ),
    ],
)
def test_the_best_instruction_set_is_built(cpu: str, expected: list[str]) -> None:
    assert SETUP.isa_for(cpu.split()) == expected
