"""Event streams: never silent, one event a line, ended with their client."""

import asyncio
import errno
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import httpx2
import pytest
from fake_engine import FakeLLM
from live_server import live_server
from starlette.types import Message
from waiting import HANG_S

from hybridmoe.serve import ServeConfig, Server, Service
from hybridmoe.serve.event_stream import EventStreamResponse
from hybridmoe.serve.json_response import encode_json
from hybridmoe.serve.routes.anthropic_events import AnthropicEvents
from hybridmoe.serve.server import log_loop_error

HEAD = "http.response.start"


class Client:
    """Client of a stream: receives, and disconnects when told."""

    def __init__(self) -> None:
        self.types: list[str] = []
        self.bodies: list[bytes] = []
        self.got = asyncio.Condition()
        self.has_left = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.types.append(message["type"])
        if message["type"] != HEAD:
            self.bodies.append(message["body"])
        async with self.got:
            self.got.notify_all()

    async def receive(self) -> Message:
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def has(self, body: bytes, count: int) -> None:
        async with self.got:
            await self.got.wait_for(lambda: self.bodies.count(body) >= count)


def stream_to(
    client: Client, events: AsyncIterator[bytes], ended: list[str]
) -> EventStreamResponse:
    return EventStreamResponse(events, lambda: ended.append("end"), 0.001, lambda: b"ping")


def test_silence_is_filled_until_the_end_and_not_after() -> None:
    ended: list[str] = []

    async def run() -> Client:
        client = Client()

        async def events() -> AsyncIterator[bytes]:
            await client.has(b"ping", 2)  # also before the first event
            yield b"a"
            await client.has(b"ping", client.bodies.count(b"ping") + 3)
            yield b"b"

        await stream_to(client, events(), ended)({"type": "http"}, client.receive, client.send)
        count = len(client.bodies)
        await asyncio.sleep(0.01)  # ten times the silence that would be filled
        assert len(client.bodies) == count
        return client

    client = asyncio.run(run())
    assert (client.types[0], client.types.count(HEAD)) == (HEAD, 1)
    assert client.bodies.index(b"a") >= 2
    assert client.bodies[client.bodies.index(b"a") :].count(b"ping") >= 3
    assert client.bodies[-2:] == [b"b", b""]
    assert ended == ["end"]


def test_a_client_that_leaves_in_silence_ends_the_stream() -> None:
    ended: list[str] = []

    async def run() -> None:
        client = Client()

        async def events() -> AsyncIterator[bytes]:
            yield b"a"
            await client.has(b"ping", 1)
            client.has_left.set()
            await asyncio.Event().wait()

        await stream_to(client, events(), ended)({"type": "http"}, client.receive, client.send)
        assert b"" not in client.bodies
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
    assert ended == ["end"]


@pytest.fixture(scope="module")
def http(llm: FakeLLM) -> Iterator[httpx2.Client]:
    with (
        live_server(llm, keep_alive_s=0.05) as server,
        httpx2.Client(base_url=server.url, timeout=HANG_S) as client,
    ):
        yield client


def test_no_event_has_a_line_end_of_unicode_in_it() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x1cf\r\n\u00e9"
    line = encode_json({"text": text}).decode()
    assert line.splitlines() == [line] and "\u00e9" in line
    assert json.loads(line) == {"text": text}


def test_a_lack_of_descriptors_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    Server(Service(ServeConfig(model_name="m")))  # it has the filter, and keeps its log to itself
    log = logging.getLogger("uvicorn.error")
    log.addHandler(caplog.handler)
    lack = OSError(errno.EMFILE, "Too many open files")
    with closing(asyncio.new_event_loop()) as loop:
        for _ in range(9):
            log_loop_error(
                loop, {"message": "socket.accept() out of system resource", "exception": lack}
            )
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        log_loop_error(loop, {"message": "another", "exception": ValueError("x")})
    assert "another" in caplog.text
    log.removeHandler(caplog.handler)


def test_idle_connections_outlive_those_of_clients_and_proxies() -> None:
    assert Server(Service(ServeConfig(model_name="m"))).config.timeout_keep_alive > 90


def test_a_message_that_has_started_is_pinged_too() -> None:
    events = AnthropicEvents()
    assert events.keep_alive() == b": keep-alive\n\n"  # clients expect message_start first
    events.start({})
    assert b"event: ping\n" in events.keep_alive()


# Steps of a prompt, and tokens that may yet be a stop string, come far oftener than what is sent.
@pytest.mark.parametrize(
    ("path", "order", "more"),
    [
        ("chat/completions", "wait", {}),
        ("chat/completions", "read 60", {}),
        ("chat/completions", "slow 60", {"stop": "b" * 99}),
        ("completions", "read 60", {}),
        ("completions", "slow 60", {"stop": ["b" * 99]}),
        ("responses", "read 60", {}),
        ("messages", "read 60", {}),
        ("messages", "slow 60", {"stop_sequences": ["b" * 99]}),
    ],
)
def test_what_makes_no_text_is_kept_alive(
    http: httpx2.Client, path: str, order: str, more: dict[str, Any]
) -> None:
    messages = [{"role": "user", "content": order}]
    given = {"completions": {"prompt": order}, "responses": {"input": messages}}
    body: dict[str, Any] = {**given.get(path, {"messages": messages}), **more}
    if path != "responses":
        body["max_tokens"] = 100
    body |= {"model": "test", "stream": True}
    with http.stream("POST", f"/v1/{path}", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines.count(": keep-alive") >= 2
    assert not [line for line in lines if "ping" in line]
    if path != "responses":  # whose first events say only that it is in progress
        assert lines[0] == ": keep-alive"  # nothing that a client takes for the first token
    if path.endswith("completions"):
        assert lines[-1] == "data: [DONE]"
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert all(event["choices"] for event in events)
