"""Run every test that needs, or can use, a CUDA GPU: `make test-gpu`. A skipped test is a failure.

Without a GPU it says so in one line. The same tests run elsewhere in Triton's interpreter.
"""

import os
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATHS = (  # the slowest first: each process takes the next test
    "tests/placement/test_embedded_on_gpu.py", "tests/placement", "tests/model/test_gpu.py",
    "tests/model/test_stages.py", "tests/kernels/triton", "tests/experts/gpu", "tests/bench",
    "tests/device", "tests/hardware/test_gpu.py",
)  # fmt: skip
NO_GPU_NEEDED = "tests/kernels/triton/test_compile.py"
NUM_PROCESSES = 12  # each compiles kernels, on one core, and takes 0.5 GB of the GPU's memory
THREADS = {"HYBRIDMOE_THREADS": "2", "HYBRIDMOE_PIN": "0"}  # processes share the cores


def missing() -> str | None:
    """The reason why these tests cannot run here."""
    sys.path.insert(0, str(ROOT))
    from hybridmoe.hardware.gpu import NoGpu, find_gpu

    found = find_gpu()
    return f"test-gpu needs a CUDA GPU: {found.reason}" if isinstance(found, NoGpu) else None


class Outcomes:
    """A pytest plugin that counts tests by outcome."""

    def __init__(self) -> None:
        self.counts = Counter[str]()

    def pytest_runtest_logreport(self, report) -> None:  # type: ignore[no-untyped-def]
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1


def main(arguments: list[str]) -> int:
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    import pytest

    os.chdir(ROOT)
    os.environ.update(THREADS)
    outcomes = Outcomes()
    processes = min(NUM_PROCESSES, os.cpu_count() or 1)
    options = ["-q", "-n", str(processes), "--dist", "load", f"--ignore={NO_GPU_NEEDED}"]
    options += ["-m", "not interpreter"]
    options += ["-p", "no:benchmark"]  # where installed, it warns of xdist: an error here
    status = int(pytest.main([*options, *arguments, *PATHS], plugins=[outcomes]))
    counts = outcomes.counts
    print(
        f"on the GPU: {counts['passed']} tests passed, {counts['failed']} failed,"
        f" {counts['skipped']} skipped"
    )
    return status or int(counts["skipped"] > 0 or counts["passed"] == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
