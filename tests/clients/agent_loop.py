"""Let an agent work on an endpoint whose engine calls the agent's own tool, without a network.

Run in an empty folder as `unshare -rn python agent_loop.py AGENT CONTEXT_TOKENS PROGRAM...`. The
engine asks for fruit.txt, then for what it says to be written to answer.txt, and ends with a
sentence. Prints as JSON what the agent printed last, the number of its requests, and what the
endpoint logged: the fields of requests that it does not know.
"""

import fcntl
import json
import logging
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from fake_engine import FakeEngine, FakeLLM
from live_server import live_server

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
TOOLS = {"codex": ("exec_command", "cmd"), "claude": ("Bash", "command")}
CALL = (
    "say Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0"
    "<|tool_call_argument_begin|>{arguments}<|tool_call_end|><|tool_calls_section_end|>"
)
CODEX = """
model = "demo"
model_provider = "here"
approval_policy = "never"
sandbox_mode = "danger-full-access"

[model_providers.here]
name = "here"
base_url = "{url}/v1"
wire_api = "responses"
"""


class AgentEngine(FakeEngine):
    """Calls a shell tool twice, and then answers: by what the prompt holds already."""

    agent = "codex"

    def _order(self, prompt: str) -> str:
        name, argument = TOOLS[self.agent]
        if f'"{name}"' not in prompt:
            return "say A title"  # the agents ask for such things beside their work
        results = prompt[prompt.rindex("<|im_user|>") :].split("## Return of")[1:]
        fruit = re.search("PEAR[0-9]+", "".join(results[:1]))
        if len(results) > 1:
            return f"say The file says {fruit[0] if fruit else 'nothing'}."
        command = f"echo {fruit[0] if fruit else 'nothing'} > answer.txt" if results else None
        arguments = {argument: command or "cat fruit.txt"}
        if self.agent == "claude":
            arguments["description"] = "Work on a file"
        return CALL.format(name=name, arguments=json.dumps(arguments))


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def command(agent: str, program: list[str], url: str) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of an agent that uses the endpoint and nothing else."""
    home = Path("home").absolute()
    (home / ".codex").mkdir(parents=True)
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home)}
    question = "Write what fruit.txt says to answer.txt."
    if agent == "codex":
        (home / ".codex" / "config.toml").write_text(CODEX.format(url=url))
        return [*program, "exec", "--skip-git-repo-check", question], env
    model = dict.fromkeys(("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL"), "demo")
    env |= {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": "none", **model}
    env |= {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
    return [*program, "-p", question, "--allowedTools", "Bash"], env


def main() -> None:
    agent, context, *program = sys.argv[1:]
    context_tokens = int(context)
    raise_loopback()
    unknown: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: unknown.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("hybridmoe").addHandler(handler)
    Path("fruit.txt").write_text("PEAR42\n")
    llm = FakeLLM(context_tokens)
    engine: Any = AgentEngine(llm.tokenizer, context_tokens)
    engine.agent = agent
    llm.engine = engine
    with live_server(llm, model_name="demo") as server:
        line, env = command(agent, program, server.url)
        done = subprocess.run(
            line, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
        )
    llm.close()
    found = {
        "said": done.stdout.strip().splitlines()[-1:],
        "stderr": done.stderr[-1500:],
        "returncode": done.returncode,
        "requests": len(engine.requests),
        "warnings": unknown,
    }
    print(json.dumps(found))


main()
