"""`make test-gpu` on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / ".ci/gpu_tests.py"


def test_without_a_gpu_it_fails_in_one_line() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("test-gpu needs a CUDA GPU: ") and done.stderr.count("\n") == 1
