"""Processes that are killed while they write a KV cache to disk: a spell of the soak."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_after_kills_no_token_is_wrong_and_the_folder_within_its_limit() -> None:
    command = [sys.executable, str(ROOT / "bench" / "soak_kv_disk.py"), "--kills", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["faults"] == [] and counts["kills"] >= 9
    assert counts["tokens from disk"] > 0
