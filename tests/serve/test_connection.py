"""Idle connections are closed; warnings that a client can repeat do not fill the log."""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from waiting import HANG_S, eventually

from hybridmoe.serve import server as server_module
from hybridmoe.serve.connection import Connection, WarningRateLimit

HALF_A_HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm) as server:
        yield server


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port))


def rest_of(link: socket.socket) -> bytes:
    """Bytes received until the server closes."""
    data = b""
    while piece := link.recv(1 << 16):
        data += piece
    return data


def head_of(link: socket.socket) -> bytes:
    """Status line of one response."""
    data = b""
    while b"}" not in data:
        data += link.recv(1 << 16)
    return data.split(b"\r\n")[0]


def test_a_head_that_does_not_come_ends_the_connection(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "head_timeout_s", 1e-3)
    with live_server(llm) as server:
        for sent in (b"", HALF_A_HEAD):
            with connect(server) as link:
                link.sendall(sent)
                assert rest_of(link) == b""


def test_a_client_that_does_not_read_gives_its_model_back(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_small_buffer(self: Connection, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection_made(self, transport)

    connection_made = Connection.connection_made
    monkeypatch.setattr(Connection, "connection_made", with_small_buffer)
    monkeypatch.setattr(Connection, "read_timeout_s", 0.01)
    message = {"role": "user", "content": "count 1000"}
    body = json.dumps({"messages": [message], "stream": True}).encode()
    with live_server(llm) as server, socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", server.port))
        link.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        assert link.recv(15) == b"HTTP/1.1 200 OK"
        eventually(lambda: server.service.models.num_active == 0)


def test_half_of_a_second_head_ends_the_connection_too(server: LiveServer) -> None:
    with connect(server) as link:
        link.sendall(HALF_A_HEAD + b"\r\n")
        assert head_of(link).endswith(b"200 OK")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Connection, "head_timeout_s", 1e-3)
            link.sendall(HALF_A_HEAD)
            assert rest_of(link) == b""


def test_the_one_that_is_idle_for_longest_makes_room(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "max_connections", lambda: 4)
    with live_server(llm) as server:
        links = [connect(server) for _ in range(3)]
        for link in links:  # each is known to the server
            link.sendall(HALF_A_HEAD + b"\r\n")
            head_of(link)
        with connect(server) as new:
            assert rest_of(links[0]) == b""
            new.sendall(HALF_A_HEAD + b"\r\n")
            assert head_of(new).endswith(b"200 OK")
        for link in links:
            link.close()


def test_many_at_once_leave_room_too(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "max_connections", lambda: 4)
    is_made, may_go_on = threading.Event(), threading.Event()
    made = Connection.connection_made

    def stand_still(self: Connection, transport: asyncio.Transport) -> None:
        made(self, transport)
        is_made.set()
        may_go_on.wait()

    monkeypatch.setattr(Connection, "connection_made", stand_still)
    with live_server(llm) as server, ExitStack() as links:
        links.enter_context(connect(server))
        is_made.wait()
        for _ in range(8):  # all are accepted before one of the closed ones is gone
            links.enter_context(connect(server))
        may_go_on.set()
        new = links.enter_context(connect(server))
        new.sendall(HALF_A_HEAD + b"Connection: close\r\n\r\n")
        assert rest_of(new).startswith(b"HTTP/1.1 200 OK")


def test_two_lengths_are_refused_and_end_the_connection(server: LiveServer) -> None:
    smuggled = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as link:
        link.sendall(
            b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + smuggled
        )
        answer = rest_of(link)
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1
    assert b"expected one" in answer


def test_malformed_requests_make_one_line(
    server: LiveServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_module.warning_limit.reset()
    for _ in range(5):
        with connect(server) as link:
            link.sendall(b"\x16\x03\x01\r\n\r\n")
            head, _, body = rest_of(link).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400")
            assert json.loads(body)["error"]["type"] == "invalid_request_error"
    with httpx2.Client(base_url=server.url, timeout=HANG_S) as http:
        assert http.get("/health").status_code == 200
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]
    assert lines == ["Invalid HTTP request received."]


def test_a_wish_for_a_websocket_is_one_line_of_ours(
    server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    server_module.warning_limit.reset()
    for _ in range(3):
        with connect(server) as link:
            upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n")
            assert head_of(link) == b"HTTP/1.1 200 OK"
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]
    assert lines == ["a client has asked for a WebSocket, which this server has not"]


def test_clients_who_are_gone_make_one_line(
    server: LiveServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_module.warning_limit.reset()
    for _ in range(5):  # as asyncio says where what is sent finds no connection
        logging.getLogger("asyncio").warning("socket.send() raised exception.")
    lines = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert lines == ["socket.send() raised exception."]


def test_a_warning_is_told_again_with_how_many_were_not() -> None:
    now_s = 0.0
    few = WarningRateLimit(lambda: now_s)

    def told(level: int, text: str) -> str | None:
        record = logging.LogRecord("x", level, "", 0, text, None, None)
        return record.getMessage() if few.filter(record) else None

    assert told(logging.WARNING, "bad") == "bad"
    assert [told(logging.WARNING, "bad") for _ in range(3)] == [None] * 3
    assert told(logging.WARNING, "other") == "other"
    assert told(logging.ERROR, "bad") == told(logging.ERROR, "bad") == "bad"
    now_s = 60.0
    assert told(logging.WARNING, "bad") == "bad (3 more since the last such line)"
    assert told(logging.WARNING, "bad") is None
