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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ptxas is looked for as on x86-64")
@pytest.mark.parametrize("arch", [89, 90])
def test_kernels_compile_without_spilling(arch: int, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(TESTS.parent)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(TESTS / "triton_compile.py"), str(arch)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 46
    for report in reports:
        assert report["cubin_bytes"] > 0 and report["spilled_bytes"] == 0, report
        assert report["shared_bytes"] <= 99 * 1024, report  # of a consumer card's block
    one_token = [r for r in reports if r["constants"].get("IS_ONE") == "True"]
    wide = {r["constants"]["KIND"] for r in one_token if r["has_16_byte_loads"]}
    assert wide >= {"Q4_K", "Q5_K", "BF16", "F16"}
    registers = {r["constants"]["KIND"]: r["registers"] for r in one_token}
    assert max(registers.values()) <= 168, registers  # three programs of a multiprocessor's 65 536
