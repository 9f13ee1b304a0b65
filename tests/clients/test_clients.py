"""Clients that people use, each with its usual jobs, against the endpoint on the embedded model.

They run in environments of their own, which `make clients` fills with the versions that
python/requirements.txt and node/package-lock.json pin.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer, live_server
from thinking_templates import OPENS
from waiting import HANG_S, eventually

import hybridmoe
from hybridmoe.llm.progress import ProgressCallback
from hybridmoe.serve import ModelPool, ModelSource, ScheduleRules
from hybridmoe.text.chat_template import ChatTemplate

ROOT = Path(__file__).parents[2]
JOBS = Path(__file__).parent / "jobs"
CLIENTS = ROOT / "build" / "clients"

ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "",  # the next script reads what is compiled
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks for it, again and again
}

# How many jobs each client has, and those that fail, with the reason.
PYTHON: dict[str, tuple[int, dict[str, str]]] = {
    "openai": (28, {}),
    "responses": (7, {}),
    "anthropic": (31, {}),
    "litellm": (12, {}),
    "langchain": (8, {}),
    "instructor": (
        6,
        {"answers_in_json": "this mode asks for fields in words, which the model does not read"},
    ),
    "agents": (5, {}),
    "pydantic_ai": (5, {}),
    "llm": (5, {}),
    "ollama": (9, {}),
    "thinking": (9, {}),
}


def load(progress: ProgressCallback) -> hybridmoe.LLM:
    return hybridmoe.load(context_tokens=1024, max_running=4, max_waiting=8, progress=progress)


def load_thinker(progress: ProgressCallback) -> hybridmoe.LLM:
    """Load the embedded model with a chat template that opens thoughts."""
    llm = load(progress)
    llm._template = lambda has_tools: ChatTemplate(OPENS)  # type: ignore[method-assign]
    return llm


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    sources = [
        ModelSource(name="hybridmoe-demo", load=load),
        ModelSource(name="thinker", load=load_thinker),
    ]
    pool = ModelPool(sources, ScheduleRules(fit=lambda names: True))
    settings: Any = {"model_name": "hybridmoe-demo", "api_keys": ("key",), "retry_after_s": 1}
    pool.start()
    try:
        eventually(lambda: pool.has_started)
        with live_server(None, models=pool, **settings) as server:
            yield server
    finally:
        pool.close()


def failures(command: list[str], server: LiveServer) -> tuple[int, dict[str, str]]:
    """Run a script of jobs. Returns how many it has, and the reasons of those that failed."""
    done = subprocess.run(
        [*command, server.url, "key"],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reasons = json.loads(done.stdout.splitlines()[-1])
    return len(reasons), {name: reason for name, reason in reasons.items() if reason}


def is_installed(name: str) -> bool:
    return (CLIENTS / name / "installed").is_file()


@pytest.mark.skipif(not is_installed("python"), reason="no build/clients/python: make clients")
@pytest.mark.parametrize("client", PYTHON)
def test_a_client_of_python_does_its_jobs(
    client: str, server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    python = str(CLIENTS / "python" / "bin" / "python")
    script = str(JOBS / f"{client}_jobs.py")
    num_jobs, failed = failures([python, str(JOBS / "loopback.py"), script], server)
    assert num_jobs == PYTHON[client][0]
    assert failed.keys() == PYTHON[client][1].keys(), json.dumps(failed, indent=1)
    unknown = [record.message for record in caplog.records if record.name.endswith("field_check")]
    assert unknown == []  # the endpoint knows every field that clients send


@pytest.mark.skipif(not is_installed("node"), reason="no build/clients/node: make clients")
def test_vercels_ai_sdk_does_its_jobs(server: LiveServer, tmp_path: Path) -> None:
    script = tmp_path / "ai_jobs.mjs"  # node looks for packages beside the script
    script.write_bytes((JOBS / "ai_jobs.mjs").read_bytes())
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node" / "node_modules")
    num_jobs, failed = failures(["node", str(script)], server)
    assert num_jobs == 7
    assert not failed, json.dumps(failed, indent=1)
