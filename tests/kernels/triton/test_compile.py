"""GPU kernels as machine code, compiled for three architectures without a GPU.

What is compiled is what models of every type launch (tests/support/model_launches.py).
"""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from triton_layouts import lane_bits, reduction_fault

pytest.importorskip("triton", reason="needs triton")

from hybridmoe.kernels.triton.dequant import KINDS

ROOT = Path(__file__).parent.parent.parent.parent


ARCHS = (89, 90)
OTHER_ARCHS = (80,)  # of which `make triton-versions` compiles all, this file one of each kernel


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[int, str, str]]:
    """Exit status and output of the compilation for each architecture, all at once."""
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = {**os.environ, "TRITON_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    script, pipe = str(ROOT / "tests/support/triton_compile.py"), subprocess.PIPE
    running = {
        arch: subprocess.Popen(
            [sys.executable, script, str(arch), *(["few"] if arch in OTHER_ARCHS else [])],
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=environment,
        )
        for arch in (*ARCHS, *OTHER_ARCHS)
    }
    said = {arch: process.communicate() for arch, process in running.items()}
    return {arch: (process.returncode, *said[arch]) for arch, process in running.items()}


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="ptxas is looked for as on x86-64")
@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_compile_and_hardly_spill(
    arch: int, compiled: dict[int, tuple[int, str, str]]
) -> None:
    status, output, errors = compiled[arch]
    assert status == 0, errors
    reports = [json.loads(line) for line in output.splitlines()]
    assert {r["constants"]["KIND"] for r in reports if r["kernel"] == "_gemv_kernel"} == set(KINDS)
    for report in reports:
        assert report["cubin_bytes"] > 0, report
        assert report["spilled_bytes"] <= 48, report  # ptxas does so for one more block at a time
        assert report["shared_bytes"] <= 99 * 1024, report  # of a block on a consumer GPU
    one_token = [r for r in reports if r["constants"].get("IS_ONE") == "True"]
    wide = {r["constants"]["KIND"] for r in one_token if r["has_16_byte_loads"]}
    assert wide >= {"BF16", "F16"}
    registers = {r["constants"]["KIND"]: r["registers"] for r in one_token}
    for kind in ("Q3_K", "IQ3_K", "IQ3_KS", "IQ5_KS"):
        assert registers.pop(kind) <= 224  # two programs of a multiprocessor
    assert max(registers.values()) <= 168, registers  # three programs of its 65 536


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="ptxas is looked for as on x86-64")
@pytest.mark.parametrize("arch", (*ARCHS, *OTHER_ARCHS))
def test_no_kernel_is_launched_that_is_not_compiled(
    arch: int, compiled: dict[int, tuple[int, str, str]]
) -> None:
    """A kernel that no model launches here would not be in the list: models have to be added."""
    status, output, errors = compiled[arch]
    assert status == 0, errors
    sources = "".join(p.read_text() for p in (ROOT / "hybridmoe").rglob("*.py"))
    launched = set(re.findall(r"\b(\w+_kernel)\[", sources))
    assert len(launched) > 15
    assert {json.loads(line)["kernel"] for line in output.splitlines()} == launched


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="ptxas is looked for as on x86-64")
@pytest.mark.parametrize("arch", ARCHS)
def test_threads_keep_their_vectors_to_themselves(
    arch: int, compiled: dict[int, tuple[int, str, str]]
) -> None:
    """Triton may load x for each row, or exchange it through shared memory: a choice of layout."""
    status, output, errors = compiled[arch]
    assert status == 0, errors
    reports = [json.loads(line) for line in output.splitlines()]
    reports = [report for report in reports if report["kernel"] == "_vector_kernel"]
    assert len(reports) == 36  # five types, two or three tiles of each; 1, 2 and 4 tokens
    for report in reports:
        tokens = int(report["constants"]["TOKENS"])
        assert report["loads_of_x"] == 8 * tokens, report
        assert report["shared_bytes"] <= 1024, report  # sums of warps, at the end
        assert report["barriers"] <= 3, report
        assert report["registers"] <= (128 if tokens == 1 else 192), report


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="ptxas is looked for as on x86-64")
@pytest.mark.parametrize("arch", ARCHS)
def test_threads_keep_the_vectors_of_experts_to_themselves(
    arch: int, compiled: dict[int, tuple[int, str, str]]
) -> None:
    status, output, errors = compiled[arch]
    assert status == 0, errors
    reports = [json.loads(line) for line in output.splitlines()]
    reports = [r for r in reports if r["kernel"].endswith("_vectors_kernel")]
    assert len(reports) == 22  # (five types, and one pair of types; five types) x lanes
    for report in reports:
        types = {report["constants"].get(name) for name in ("GATE", "UP", "DOWN")} - {None}
        assert report["loads_of_x"] == 8 * len(types), report  # for gate and up at once
        assert report["spilled_bytes"] == 0 and report["shared_bytes"] <= 32, report
        assert report["barriers"] <= (4 if report["warps"] == 1 else 9), report  # at the end
        assert report["registers"] <= 168, report


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="ptxas is looked for as on x86-64")
@pytest.mark.parametrize("arch", (*ARCHS, *OTHER_ARCHS))
def test_reductions_shuffle_the_lanes_of_their_axis(
    arch: int, compiled: dict[int, tuple[int, str, str]]
) -> None:
    """A fault that only a GPU showed: sums of other rows' products, without a warning."""
    status, output, errors = compiled[arch]
    assert status == 0, errors
    reports = [json.loads(line) for line in output.splitlines()]
    assert sum(bool(report["wanted"]) for report in reports) >= (8 if arch in OTHER_ARCHS else 50)
    assert [report for report in reports if reduction_fault(report)] == []


def test_lanes_of_every_kind_of_layout() -> None:
    """The first is what Triton 3.6 made of Q4_K and 8 rows; it shuffled 1 and 2, not 1 and 16."""
    aliases = {
        "#linear": "#ttg.linear<{register = [[0, 1], [0, 2], [0, 4], [0, 8]], lane = [[0, 16],"
        " [1, 0], [2, 0], [4, 0], [0, 32]], warp = [[0, 64], [0, 128]], block = []}>",
        "#blocked": "#ttg.blocked<{sizePerThread = [1, 1, 16], threadsPerWarp = [8, 2, 2],"
        " warpsPerCTA = [1, 4, 1], order = [2, 0, 1]}>",
        "#mma": "#ttg.nvidia_mma<{versionMajor = 2, versionMinor = 0, warpsPerCTA = [1, 8],"
        " instrShape = [16, 8]}>",
    }
    assert lane_bits("#linear", (8, 256), 1, aliases) == {0, 4}
    assert lane_bits("#blocked", (8, 8, 32), 2, aliases) == {0}
    assert lane_bits("#blocked", (8, 8, 32), 0, aliases) == {1, 2, 3}
    assert lane_bits("#blocked", (8, 8, 16), 2, aliases) == set()  # both lanes hold the same
    inner = "#ttg.slice<{dim = 2, parent = #blocked}>"
    assert lane_bits(inner, (8, 8), 1, aliases) == {4}
    assert lane_bits(f"#ttg.slice<{{dim = 0, parent = {inner}}}>", (8,), 0, aliases) == {4}
    assert lane_bits("#mma", (16, 32), 1, aliases) == {0, 1}
