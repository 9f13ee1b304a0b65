"""Agents with their own programs: a loop over their shell tool, with no network but loopback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import HANG_S

ROOT = Path(__file__).parents[2]
AGENTS = ROOT / "build" / "clients" / "agents"
PACKAGES = AGENTS / "node_modules"
PROGRAMS = {
    "codex": [str(PACKAGES / ".bin" / "codex")],
    "claude": ["node", str(PACKAGES / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs")],
}
UNSHARE = ["unshare", "--map-root-user", "--net"]


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.skipif(not (AGENTS / "installed").is_file(), reason="no agents: make clients"),
    pytest.mark.skipif(not can_unshare(), reason="no network namespaces"),
]


def run_agent(agent: str, context_tokens: int, folder: Path) -> Any:
    script = Path(__file__).parent / "agent_loop.py"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        [*UNSHARE, sys.executable, str(script), agent, str(context_tokens), *PROGRAMS[agent]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("agent", PROGRAMS)
def test_an_agent_loops_over_its_tool(agent: str, tmp_path: Path) -> None:
    found = run_agent(agent, 200_000, tmp_path)
    assert found["returncode"] == 0, found
    assert found["said"] == ["The file says PEAR42."], found
    assert (tmp_path / "answer.txt").read_text() == "PEAR42\n"
    assert found["requests"] >= 3
    # A field in no table is logged; an effort, too, as the fake model does not think.
    assert [line for line in found["warnings"] if "output_config.effort" not in line] == []


@pytest.mark.parametrize(
    ("agent", "words"), [("codex", "ran out of room"), ("claude", "Prompt is too long")]
)
def test_an_agent_knows_that_its_context_is_full(agent: str, words: str, tmp_path: Path) -> None:
    found = run_agent(agent, 4000, tmp_path)
    assert words in found["stderr"] + str(found["said"]), found
    assert found["requests"] == 0
