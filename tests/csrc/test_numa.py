"""Rows divided among NUMA nodes: each exactly once, and the same bits."""

import mmap
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import random_matrix
from waiting import HANG_S

from hybridmoe.errors import ShapeError
from hybridmoe.hardware import isa, topology
from hybridmoe.kernels import ops

CSRC = Path(__file__).parent.parent.parent / "csrc"
T = GGMLQuantizationType


def run_program(folder: Path, name: str, *others: str) -> str:
    """Compile csrc/tests/NAME.cpp, and other sources of csrc/, and return what it prints."""
    compiler = sysconfig.get_config_var("CXX").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    program = folder / name
    sources = [str(CSRC / source) for source in (f"tests/{name}.cpp", *others)]
    command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-pthread", f"-I{CSRC}", *sources]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=HANG_S)
    result = subprocess.run(
        [str(program)], capture_output=True, text=True, check=False, timeout=HANG_S
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize(
    ("name", "least_cases"), [("row_tasks", 1000), ("task_split", 480), ("uneven_tasks", 420)]
)
def test_each_row_is_in_one_task_of_its_node(name: str, least_cases: int, tmp_path: Path) -> None:
    assert int(run_program(tmp_path, name).split()[0]) >= least_cases


def test_slow_nodes_keep_their_chunks(tmp_path: Path) -> None:
    sources = ("base/thread_pool.cpp", "base/job_trace.cpp")
    assert run_program(tmp_path, "pool_nodes", *sources) == "ok\n"


@pytest.mark.parametrize("name", isa.supported())
@pytest.mark.parametrize("tokens", [1, 5, 70])  # straight from the blocks, panels, tiles
def test_nodes_do_not_change_a_bit(tokens: int, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 512, generator=generator)
    ids = torch.randint(-1, 3, (tokens, 2), generator=generator, dtype=torch.int32)
    weights = torch.rand(tokens, 2, generator=generator)
    gate, up = (random_matrix(T.Q4_K, 3, 256, 512, seed=seed) for seed in (1, 2))
    down = random_matrix(T.Q8_0, 3, 512, 256, seed=3)
    heads = x.reshape(1, tokens, 512).expand(3, -1, -1).contiguous()

    def results() -> tuple[torch.Tensor, ...]:
        return (
            ops.expert_ffn(x, ids, weights, gate, up, down),
            ops.dense_ffn(x, gate.slice(0, 1), up.slice(0, 1), down.slice(0, 1), x),
            ops.linear(x, gate.slice(0, 1)),
            ops.batched_linear(heads, gate),
        )

    before = ops.num_threads()
    with isa.forced(name):
        ops.set_num_threads(1)
        want = results()
        try:
            for nodes in (1, 2, 3):
                with topology.simulated(nodes):
                    for threads in (2, 3, 6):
                        ops.set_num_threads(threads)
                        for got, wanted in zip(results(), want, strict=True):
                            assert torch.equal(got, wanted), (nodes, threads)
        finally:
            ops.set_num_threads(before)


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_touching_brings_every_page_into_memory(nodes: int, tmp_path: Path) -> None:
    matrices, rows, row_bytes = 3, 250, 8200  # no row begins where a page does
    path = tmp_path / "weights"
    path.write_bytes(bytes(matrices * rows * row_bytes))
    before = ops.num_threads()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        data = np.frombuffer(mapped, np.uint8)
        start = data.ctypes.data
        assert mapped_kib(start) == 0
        with topology.simulated(nodes):
            ops.set_num_threads(2)
            ops.touch_rows(data, matrices, rows)
        ops.set_num_threads(before)
        assert mapped_kib(start) * 1024 >= data.size
        del data


def mapped_kib(address: int) -> int:
    """KiB of the mapping at `address` that have pages in this process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{address:x}-"):
            return next(int(rest.split()[1]) for rest in lines if rest.startswith("Rss:"))
    raise AssertionError(f"no mapping at {address:x}")


def test_every_page_of_claimed_memory_is_written_with_several_nodes() -> None:
    data = np.ones(3 * 250 * 200, np.uint8)
    ops.claim_rows(data, 3, 250)
    assert data.all()
    with topology.simulated(2):
        ops.claim_rows(data, 3, 250)
    start = -data.ctypes.data % mmap.PAGESIZE
    pages = data[start:][: data[start:].size // mmap.PAGESIZE * mmap.PAGESIZE]
    assert not pages.reshape(-1, mmap.PAGESIZE).all(1).any()


@pytest.mark.parametrize("operation", [ops.touch_rows, ops.claim_rows])
def test_bytes_that_are_not_whole_rows_are_refused(operation: Callable[..., None]) -> None:
    data = np.zeros(100, np.uint8)
    for array, matrices, rows in ((data, 3, 7), (data[::2], 1, 1), (data, 0, 5), (data[:0], 1, 1)):
        with pytest.raises(ShapeError, match=operation.__name__):
            operation(array, matrices, rows)
