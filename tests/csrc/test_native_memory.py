"""Out of memory in a kernel: MemoryError in the caller, whichever thread fails."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent.parent / "csrc"

# Scratch memory of each worker is allocated in the job. The limit is set when all else is there.
PROGRAM = """
import resource, sys
import torch
from hybridmoe.kernels import ops
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, BlockTables, KvPages, Span
from hybridmoe.kernels.paged_mla import latent_attention, row_bytes

ops.set_num_threads(int(sys.argv[1]))
latent = 300_000
queries, ropes = torch.zeros(1, 1, latent), torch.zeros(1, 1, 2)
data = torch.zeros(8, PAGE_TOKENS, row_bytes("bf16", latent + 2), dtype=torch.uint8)
pages = KvPages(data, "bf16", latent + 2)
table = BlockTables([Span(1, 500, list(range(8)))])
data = torch.zeros(4, PAGE_TOKENS, row_bytes("bf16", 10), dtype=torch.uint8)
small = KvPages(data, "bf16", 10)
seen = BlockTables([Span(1, 255, [0, 1, 2, 3])])
few = (torch.ones(1, 1, 8), torch.ones(1, 1, 2), small, seen, 1.0)
expected = latent_attention(*few)  # starts the threads
for share in range(1, 13):
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + share * (64 << 20), -1))
    try:
        latent_attention(queries, ropes, pages, table, 1.0)
        print("fine")
    except MemoryError:
        print("MemoryError")
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    assert torch.equal(latent_attention(*few), expected)
latent_attention(queries, ropes, pages, table, 1.0)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as on Linux")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="it needs some, too")
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_worker_without_memory_is_an_error_of_the_call(num_threads: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(num_threads)], capture_output=True, text=True
    )
    assert run.returncode == 0, (run.returncode, run.stdout, run.stderr)
    said = run.stdout.split()
    assert said[-1] == "done" and "MemoryError" in said, said


def test_an_exception_of_any_thread_reaches_the_caller(tmp_path: Path) -> None:
    compiler = sysconfig.get_config_var("CXX").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    program = tmp_path / "pool_exceptions"
    names = ("tests/pool_exceptions", "base/thread_pool", "base/job_trace")
    sources = [CSRC / f"{name}.cpp" for name in names]
    options = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{CSRC}"]
    subprocess.run([compiler, *options, "-o", program, *sources], check=True)
    subprocess.run([program], check=True)
