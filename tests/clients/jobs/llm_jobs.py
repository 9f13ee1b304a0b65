"""Jobs of `llm`, the command line tool, with models in its extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from joblist import ASK_WEATHER, KEY, MODEL, RESULT, SUM, V1, job, run

os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()
HERE = {"model_name": MODEL, "api_base": V1, "api_key_name": "demo"}
MODELS = [
    {"model_id": "demo", **HERE, "supports_tools": True, "supports_schema": True},
    {"model_id": "raw", **HERE, "completion": True},
]
(Path(os.environ["LLM_USER_PATH"]) / "extra-openai-models.yaml").write_text(json.dumps(MODELS))

import llm  # noqa: E402  reads the folder

GREEDY: Any = {"temperature": 0, "max_tokens": 90, "key": KEY}


def get_weather(city: str) -> str:
    """Get the weather in a city"""
    return RESULT


@job
def prompts_from_a_shell() -> None:
    command = [sys.executable, "-m", "llm", "prompt", "-m", "demo", "-o", "temperature", "0"]
    done = subprocess.run(
        [*command, "--key", KEY, SUM], capture_output=True, text=True, timeout=100
    )
    assert done.stdout.strip().endswith("85"), done


@job
def continues_a_conversation() -> None:
    conversation = llm.get_model("demo").conversation()
    conversation.prompt("My name is Bokira.", **GREEDY).text()
    assert "Bokira" in conversation.prompt("What is my name?", **GREEDY).text()


@job
def calls_a_tool() -> None:
    chain = llm.get_model("demo").chain(
        ASK_WEATHER, tools=[get_weather], key=KEY, options={"temperature": 0}
    )
    assert "foggy" in chain.text()


@job
def answers_by_schema() -> None:
    schema = llm.schema_dsl("first int, second int")
    said = llm.get_model("demo").prompt(SUM, schema=schema, **GREEDY).text()
    assert json.loads(said).keys() == {"first", "second"}, said


@job
def completes_text() -> None:
    prompt = llm.get_model("raw").prompt("What is", temperature=0, max_tokens=8, key=KEY)
    assert prompt.text()


run()
