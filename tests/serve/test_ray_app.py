"""Two replicas of the embedded model under a real Ray Serve: what clients see, also of a death."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ranks import free_port
from waiting import HANG_S

pytest.importorskip("ray")  # an extra, which may lack wheels for the newest Python

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CONFIG = """
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: default
    route_prefix: /
    import_path: hybridmoe.serve.ray_app:app
    args: {{min_replicas: 2, num_threads: 1}}
"""
NUM_REQUESTS, NUM_CLIENTS = 200, 8
REPLICA = "ServeReplica:default:replica"


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of this machine, with the application on a port of its own."""

    process: psutil.Process
    http: httpx2.Client

    def replicas(self) -> list[psutil.Process]:
        """Processes of the replicas."""
        children = self.process.children(recursive=True)
        return [one for one in children if REPLICA in " ".join(_command(one))]

    def metric(self, name: str, **labels: str) -> dict[str, float]:
        """Sum a metric's samples by replica."""
        found = Counter[str]()
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                if sample.name == f"hybridmoe_{name}" and labels.items() <= sample.labels.items():
                    found[sample.labels["replica"]] += sample.value
        return dict(found)

    def wait_for_replicas(self) -> None:
        """Wait until both run."""
        until = time.monotonic() + HANG_S
        while not self._has_both():
            assert time.monotonic() < until and self.process.is_running()
            time.sleep(0.2)

    def _has_both(self) -> bool:
        try:
            return bool(self.http.get("/health").json() == {"status": "ok", "replicas": 2})
        except (httpx2.HTTPError, ValueError):  # no proxy yet, or it has no application
            return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray") as name:  # paths of sockets must be short
        folder = Path(name)
        (folder / "serve.yaml").write_text(CONFIG.format(port=port))
        environment = {
            **os.environ,
            "HOME": name,  # for the token that Ray makes
            "RAY_TMPDIR": name,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        with open(folder / "log", "w+") as log:
            serve = Path(sys.executable).parent / "serve"
            command = [str(serve), "run", str(folder / "serve.yaml")]
            process = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG_S) as http:
                    cluster = Cluster(process, http)
                    cluster.wait_for_replicas()
                    yield cluster
            finally:
                children = process.children(recursive=True)
                process.send_signal(signal.SIGTERM)
                process.wait(HANG_S)
                for one in psutil.wait_procs(children, timeout=10)[1]:
                    one.kill()
                print((folder / "log").read_text())


def test_every_api_page_and_error_is_that_of_the_endpoint(cluster: Cluster) -> None:
    http = cluster.http
    asked = [{"role": "user", "content": "What is a router?"}]
    chat = http.post(CHAT, json={"messages": asked}).json()
    answer = chat["choices"][0]["message"]["content"]
    assert answer and chat["choices"][0]["finish_reason"] == "stop"
    claude = http.post(
        "/v1/messages", json={"model": "hybridmoe-demo", "max_tokens": 64, "messages": asked}
    )
    assert claude.json()["content"][0]["text"] == answer
    ollama = http.post("/api/chat", json={"model": "hybridmoe-demo", "messages": asked})
    assert len(ollama.text.splitlines()) > 2  # a stream, where none is asked for
    tool = {"messages": asked, "tools": [TOOL], "tool_choice": "required", "max_tokens": 200}
    called = http.post(CHAT, json=tool).json()["choices"][0]["message"]["tool_calls"]
    assert called[0]["function"]["name"] == "get_weather"
    first = http.post("/v1/responses", json={"input": "What is a router?"}).json()
    for _ in range(3):  # from then on, only one replica will do
        body = {"input": "And an expert?", "previous_response_id": first["id"]}
        first = http.post("/v1/responses", json=body).json()
        assert first["status"] == "completed"
    assert http.get("/v1/models").json()["data"][0]["id"] == "hybridmoe-demo"
    assert "<title>" in http.get("/").text
    assert http.get("/nope").json()["error"]["message"] == "no such path: /nope"
    wrong = http.post(CHAT, json={"messages": asked, "temperature": -1})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")


def test_a_client_that_leaves_ends_its_generation(cluster: Cluster) -> None:
    def cancelled() -> float:
        found = cluster.metric("request_success_total", finished_reason="cancelled")
        return sum(found.values())

    before = cancelled()
    asked = [{"role": "user", "content": "What is a router?"}]
    endless = {"messages": asked, "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with cluster.http.stream("POST", CHAT, json=endless) as response:
        next(response.iter_bytes())  # so it is streamed
    until = time.monotonic() + HANG_S
    while cancelled() == before:
        assert time.monotonic() < until
    assert not any(cluster.metric("num_requests_running").values())


def test_conversations_find_their_prefix_on_both_replicas(cluster: Cluster) -> None:
    def turn(messages: list[dict[str, str]], text: str) -> dict[str, Any]:
        messages.append({"role": "user", "content": text})
        body = {"messages": messages, "max_tokens": 8}
        answer: dict[str, Any] = cluster.http.post(CHAT, json=body).json()
        messages.append(answer["choices"][0]["message"])
        return dict(answer["usage"])

    talks: list[list[dict[str, str]]] = [[] for _ in range(4)]
    past = [turn(talk, f"Talk {i}: what is a router?") for i, talk in enumerate(talks)]
    for _ in range(2):
        for i, talk in enumerate(talks):
            usage = turn(talk, "And an expert?")
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            assert cached >= past[i]["prompt_tokens"] - 1
            past[i] = usage
    assert min(cluster.metric("prefix_cache_hits_total").values()) > 0.0
    assert len(cluster.metric("prefix_cache_hits_total")) == 2


def test_a_replica_that_is_killed_loses_only_streams_that_had_begun(cluster: Cluster) -> None:
    ended = Counter[str]()

    async def ask(client: httpx2.AsyncClient, number: int) -> None:
        asked = [{"role": "user", "content": f"Question {number}: what is a router?"}]
        body = {"messages": asked, "max_tokens": 12, "ignore_eos": True}
        if number % 2:
            answer = (await client.post(CHAT, json=body)).json()
            ended["whole" if answer["usage"]["completion_tokens"] == 12 else str(answer)] += 1
            return
        response = await client.post(CHAT, json={**body, "stream": True})
        *events, done = response.text.strip().split("\n\n")
        assert response.status_code == 200 and done == "data: [DONE]"
        is_cut = "replica_lost" in events[-1]
        assert not is_cut or '"delta"' in events[0]  # it had begun
        ended["cut" if is_cut else "whole"] += 1

    async def run() -> None:
        numbers = iter(range(NUM_REQUESTS))
        url = cluster.http.base_url
        async with httpx2.AsyncClient(base_url=url, timeout=HANG_S) as client:

            async def work() -> None:
                for number in numbers:
                    if number == NUM_REQUESTS // 2:
                        cluster.replicas()[0].kill()
                    await ask(client, number)

            await asyncio.gather(*(work() for _ in range(NUM_CLIENTS)))

    assert len(cluster.replicas()) == 2
    asyncio.run(run())
    assert ended.total() == NUM_REQUESTS
    assert ended.keys() <= {"whole", "cut"}
    assert ended["cut"] <= NUM_CLIENTS
    cluster.wait_for_replicas()
