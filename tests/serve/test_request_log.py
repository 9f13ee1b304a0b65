"""The line of each request in the log: figures, and never a text."""

import asyncio
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import pytest
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from waiting import HANG_S, eventually

from hybridmoe.serve.request_log import RequestLogMiddleware, json_line, text_line

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SECRET = "xyzzy"
TIMES = ("total_s", "queue_s", "tokens_per_s", "request_id")

Lines = list[Mapping[str, Any]]


@pytest.fixture
def lines() -> Lines:
    return []


@pytest.fixture
def server(llm: FakeLLM, lines: Lines) -> Iterator[LiveServer]:
    with live_server(llm, log_request=lines.append, model_aliases=("other",)) as server:
        yield server


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=HANG_S) as http:
        yield http


def chat(content: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def without_times(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in TIMES}


def only(lines: Lines) -> Mapping[str, Any]:
    eventually(lambda: len(lines) > 0)  # a line comes after the response
    (line,) = lines
    return line


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_is_logged_with_its_tokens(
    http: httpx2.Client, lines: Lines, stream: bool
) -> None:
    body = chat("count 7", model="other", stream=stream)
    answer = http.post(CHAT, json=body, headers={"x-request-id": "own-1"})
    assert answer.status_code == 200
    line = only(lines)
    num_prompt = 14
    assert without_times(line) | {"prompt_tokens": num_prompt} == {
        "method": "POST", "path": CHAT, "status": 200, "model": "other",
        "prompt_tokens": num_prompt, "cached_tokens": 1, "completion_tokens": 7,
        "finish_reason": "stop",
    }  # fmt: skip
    assert line["prompt_tokens"] > 5
    assert line["request_id"] == "own-1"
    assert line["tokens_per_s"] == 30.0  # six steps in the fake engine's 0.2 s
    assert line["total_s"] >= 0.0 and line["queue_s"] == 0.0


def test_choices_are_added_up_and_a_cut_is_told(http: httpx2.Client, lines: Lines) -> None:
    http.post(CHAT, json=chat("count 9", n=2, max_tokens=3))
    line = only(lines)
    assert (line["completion_tokens"], line["finish_reason"]) == (6, "length")


def test_a_client_that_leaves_is_told(server: LiveServer, lines: Lines) -> None:
    body = json.dumps(chat("slow", stream=True)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        link.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        link.recv(1)
    line = only(lines)
    assert (line["status"], line["finish_reason"]) == (200, "cancelled")


def test_a_failure_is_told(http: httpx2.Client, lines: Lines) -> None:
    http.post(CHAT, json=chat("break", stream=True))
    line = only(lines)
    assert (line["status"], line["finish_reason"]) == (200, "error")


def test_refusals_are_logged_and_probes_are_not(http: httpx2.Client, lines: Lines) -> None:
    for path in ("/health", "/ready", "/metrics"):
        assert http.get(path).status_code == 200
    http.get(f"/nothing?key={SECRET}")
    http.post(CHAT, json=chat(SECRET, model=SECRET))
    http.post(CHAT, json={"messages": SECRET})
    http.post(TEXT, content=b"x" * 10, headers={"content-type": f"text/{SECRET}"})
    eventually(lambda: len(lines) == 4)
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/nothing", 404), (CHAT, 404), (CHAT, 400), (TEXT, 415),
    ]  # fmt: skip
    assert not any("model" in line for line in lines)


def test_no_text_gets_into_a_line(http: httpx2.Client, lines: Lines) -> None:
    http.post(CHAT, json=chat(f"say {SECRET}"))
    http.post(TEXT, json={"prompt": SECRET})
    http.post("/v1/responses", json={"input": f"say {SECRET}", "instructions": SECRET})
    http.post("/v1/messages", json={**chat(f"say {SECRET}"), "model": "test", "max_tokens": 9})
    eventually(lambda: len(lines) == 4)
    assert all(line["status"] == 200 for line in lines)
    for line in lines:
        assert SECRET not in text_line(line) and SECRET not in json_line(line)


def test_nothing_from_outside_can_forge_a_line() -> None:
    lines: Lines = []

    async def respond(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})

    async def drop(_: Any) -> None:
        pass

    path = b"/a\nhybridmoe: forged\x1b[31m" + b"x" * 999
    scope = {
        "type": "http", "method": "GET", "path": "", "raw_path": path,
        "state": {"request_id": "a\nb"},
    }  # fmt: skip
    asyncio.run(RequestLogMiddleware(respond, lines.append)(scope, drop, drop))  # type: ignore[arg-type]
    line = text_line(only(lines))
    assert line.isprintable() and len(line) < 300


def test_lines_of_both_formats() -> None:
    fields = {
        "method": "POST", "path": CHAT, "status": 200, "model": "m", "prompt_tokens": 812,
        "cached_tokens": 780, "completion_tokens": 34, "tokens_per_s": 41.24,
        "finish_reason": "stop", "queue_s": 0.02, "total_s": 1.307, "request_id": "req_1",
    }  # fmt: skip
    assert text_line(fields) == (
        f"POST {CHAT} 200 m, 812 tokens (780 cached) + 34 at 41.2/s (stop), queued 0.02 s,"
        " 1.31 s, req_1"
    )
    assert json.loads(json_line(fields)) == fields
    refused = {"method": "GET", "path": "/x", "status": 404, "total_s": 0.001}
    assert text_line(refused) == "GET /x 404, 0.00 s"
