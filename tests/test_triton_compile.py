"""The CUDA kernels as machine code: compiled for two cards here, which needs neither of them."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton (pip install hybridmoe[cuda])")

TESTS = Path(__file__).parent


ARCHS = (89, 90)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[int, str, str]]:
    """Exit status and output of the compilation for each card, both at once."""
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = {**os.environ, "TRITON_CACHE_DIR": cache, "PYTHONPATH": str(TESTS.parent)}
    environment.pop("TRITON_INTERPRET", None)
    script, pipe = str(TESTS / "triton_compile.py"), subprocess.PIPE
    running = {
        arch: subprocess.Popen(
            [sys.executable, script, str(arch)],
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=environment,
        )
        for arch in ARCHS
    }
    said = {arch: process.communicate() for arch, process in running.items()}
    return {arch: (running[arch].returncode, *said[arch]) for arch in ARCHS}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ptxas is looked for as on x86-64")
@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_compile_without_spilling(
    arch: int, compiled: dict[int, tuple[int, str, str]]
) -> None:
    status, output, errors = compiled[arch]
    assert status == 0, errors
    reports = [json.loads(line) for line in output.splitlines()]
    assert len(reports) == 46
    for report in reports:
        assert report["cubin_bytes"] > 0 and report["spilled_bytes"] == 0, report
        assert report["shared_bytes"] <= 99 * 1024, report  # of a consumer card's block
    one_token = [r for r in reports if r["constants"].get("IS_ONE") == "True"]
    wide = {r["constants"]["KIND"] for r in one_token if r["has_16_byte_loads"]}
    assert wide >= {"Q4_K", "Q5_K", "BF16", "F16"}
    registers = {r["constants"]["KIND"]: r["registers"] for r in one_token}
    assert max(registers.values()) <= 168, registers  # three programs of a multiprocessor's 65 536
