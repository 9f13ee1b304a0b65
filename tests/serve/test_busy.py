"""A busy endpoint: slow work delays no other request, and ends when its client disconnects."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fake_engine import FakeLLM
from live_server import LiveServer, live_server

from hybridmoe.serve import ServeConfig, service, strict_json
from hybridmoe.serve.app import create_app
from hybridmoe.serve.request_body import LARGE_BYTES

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "say Hi"}]}
LARGE = {"messages": [{"role": "user", "content": "say " + "a" * LARGE_BYTES}]}
HALF_A_BODY = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode()
OBJECT = {**HELLO, "response_format": {"type": "json_object"}}


class Gate:
    """Holds up whoever passes until it is opened."""

    def __init__(self) -> None:
        self.num_inside = threading.Semaphore(0)
        self.is_open = threading.Event()

    def wrap(self, function: Any) -> Any:
        def held(*arguments: Any, **named: Any) -> Any:
            self.num_inside.release()
            self.is_open.wait()
            return function(*arguments, **named)

        return held


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.is_open.set()


def client(server: LiveServer) -> httpx2.Client:
    return httpx2.Client(base_url=server.url, timeout=None)


def rest_of(link: socket.socket) -> bytes:
    """Bytes received until the server closes."""
    data = b""
    with link:
        while piece := link.recv(1 << 16):
            data += piece
    return data


def asked(server: LiveServer, body: Any) -> tuple[threading.Thread, list[int]]:
    """Send a request from a thread; its status is in the list when the thread has ended."""
    status: list[int] = []

    def ask() -> None:
        with client(server) as http:
            status.append(http.post(CHAT, json=body).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, status


def test_others_are_answered_while_a_large_body_is_parsed(
    llm: FakeLLM, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = strict_json.parse_body
    held = gate.wrap(parse)
    monkeypatch.setattr(
        strict_json,
        "parse_body",
        lambda model, body: (parse, held)[len(body) > 60_000](model, body),
    )
    with live_server(llm) as server, client(server) as http:
        thread, status = asked(server, LARGE)
        gate.num_inside.acquire()
        assert http.get("/health").status_code == 200
        assert http.post(CHAT, json=HELLO).status_code == 200
        assert status == []
        gate.is_open.set()
        thread.join()
    assert status == [400]  # longer than the context


def test_a_full_pool_refuses_and_short_requests_still_pass(
    llm: FakeLLM, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = service.prepare_chat
    held = gate.wrap(prepare)
    monkeypatch.setattr(
        service,
        "prepare_chat",
        lambda llm, grammar, chat, *more: (prepare, held)[chat.format is not None](
            llm, grammar, chat, *more
        ),
    )
    with live_server(llm, max_preparing=1) as server, client(server) as http:
        num_threads = server.service.pool.num_threads - 1
        threads = []
        for _ in range(num_threads):
            threads.append(asked(server, OBJECT)[0])
            gate.num_inside.acquire()
        # One may wait. Of two more, one does; the other is told at once.
        more = [asked(server, OBJECT) for _ in range(2)]
        while all(thread.is_alive() for thread, _ in more):
            more[0][0].join(0.01)
        (told,) = [status for thread, status in more if not thread.is_alive()]
        assert told == [429]
        assert http.post(CHAT, json=HELLO).status_code == 200
        gate.is_open.set()
        for thread in (*threads, *(thread for thread, _ in more)):
            thread.join()


def test_clients_are_told_when_the_server_ends_whatever_is_under_way(
    llm: FakeLLM, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "prepare_chat", gate.wrap(service.prepare_chat))  # polls no token
    with live_server(llm) as server:
        thread, status = asked(server, HELLO)
        gate.num_inside.acquire()
        link = socket.create_connection(("127.0.0.1", server.port))
        link.sendall(HALF_A_BODY)
        while not server.service.bodies.num_awaited:
            thread.join(0.01)
    thread.join()
    assert status == [503]
    assert not gate.is_open.is_set()
    answer = rest_of(link)
    assert answer.startswith(b"HTTP/1.1 503") and b"the server is ending" in answer


def test_a_client_that_reads_nothing_is_cut_at_the_end_without_an_error() -> None:
    async def test() -> None:
        ending = service.Service(ServeConfig(model_name="m"))
        is_stuck = asyncio.Event()

        async def send(_: Any) -> None:
            is_stuck.set()
            await asyncio.Event().wait()

        async def receive() -> Any:
            if not messages:
                await asyncio.Event().wait()
            return messages.pop()

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/health",
            "headers": [],
            "query_string": b"",
        }
        for is_shutting_down in (False, True):
            messages = [{"type": "http.request", "body": b"", "more_body": False}]
            task = asyncio.ensure_future(create_app(ending)(scope, receive, send))
            await is_stuck.wait()
            if is_shutting_down:
                ending.shut_down()
            task.cancel()
            (left,) = await asyncio.gather(task, return_exceptions=True)
            assert (
                left is None
            ) == is_shutting_down  # uvicorn logs what is raised, with a traceback
            is_stuck.clear()

    asyncio.run(test())


def test_a_body_that_does_not_come_ends_the_connection(llm: FakeLLM) -> None:
    with live_server(llm, body_idle_timeout_s=1e-3) as server:
        link = socket.create_connection(("127.0.0.1", server.port))
        link.sendall(HALF_A_BODY)
        assert rest_of(link).startswith(b"HTTP/1.1 408")


def test_work_for_a_client_that_left_is_cancelled(
    llm: FakeLLM, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def endless(llm: Any, grammar: Any, turn: Any, config: Any, token: Any) -> None:
        begun.set()
        while not gate.is_open.wait(0.001):
            if token.is_cancelled:
                cancelled.set()
            token.check()

    monkeypatch.setattr(service, "prepare_chat", endless)
    body = json.dumps(HELLO).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with live_server(llm, prepare_timeout_s=1e9) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as link:
            link.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            begun.wait()
        cancelled.wait()
