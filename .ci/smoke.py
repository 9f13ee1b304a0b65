"""Smoke test: library, commands and endpoint once, with the run-time dependencies only."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import hybridmoe
from hybridmoe.demo import demo_path

with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = free.getsockname()[1]
URL = f"http://127.0.0.1:{PORT}"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "strict": True, "parameters": CITY},
}


def post(path: str, body: dict[str, Any]) -> str:
    data = json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return reply.read().decode()


def chat(text: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 60, **options}
    reply = json.loads(post("/v1/chat/completions", body))
    return reply["choices"][0]["message"]


def command(*arguments: str, text: str = "") -> str:
    line = [sys.executable, "-m", "hybridmoe", *arguments]
    return subprocess.run(line, input=text, text=True, stdout=subprocess.PIPE, check=True).stdout


def check_library() -> None:
    question = [{"role": "user", "content": "What is 47 + 38?"}]
    for options in ({}, {"expert_ram": "8MiB"}):  # in the second, experts are read from the file
        with hybridmoe.load(context_tokens=512, **options) as llm:
            assert llm.chat(question, temperature=0).text.endswith("85")
            assert (llm.expert_plan is not None) == bool(options)


def check_commands() -> None:
    assert "85" in command("chat", "--temperature", "0", text="What is 47 + 38?")
    model = str(demo_path())
    assert json.loads(command("inspect", model, "--json"))["is_supported"]
    assert "finite" in command("inspect", model, "--check")
    assert "tokens/s" in command("plan", model, "--ram", "8GiB", "--dram-gbs", "80", "--tops", "10")


def check_endpoint() -> None:
    assert chat("What is 47 + 38?")["content"].endswith("85")
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    assert set(json.loads(chat("Name a city.", response_format=schema)["content"])) == {"city"}
    digits = {"type": "regex", "pattern": "[0-9]{3}"}
    assert chat("Say a number.", response_format=digits)["content"].isdigit()
    call = chat("Weather in Oslo?", tools=[TOOL], tool_choice="required")["tool_calls"][0]
    assert set(json.loads(call["function"]["arguments"])) == {"city"}
    stream = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
    assert post("/v1/chat/completions", stream).rstrip().endswith("[DONE]")
    claude = {"model": "hybridmoe-demo", "max_tokens": 20, "messages": stream["messages"]}
    assert json.loads(post("/v1/messages", claude))["content"][0]["text"]
    with urllib.request.urlopen(f"{URL}/metrics") as reply:
        assert b"hybridmoe_" in reply.read()


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{URL}/health"):
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    raise SystemExit("the server ended by itself")


check_library()
check_commands()
server = subprocess.Popen([sys.executable, "-m", "hybridmoe", "serve", "--port", str(PORT)])
try:
    wait_until_ready(server)
    check_endpoint()
finally:
    server.terminate()
    server.wait()
print("smoke: library, commands and endpoint respond")
