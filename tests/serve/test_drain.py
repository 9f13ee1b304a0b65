"""The end of a server in order: what runs is finished, up to a limit, and the rest is refused."""

import time

import httpx2
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from waiting import HANG_S, eventually

CHAT = "/v1/chat/completions"
NO_LIMIT_S = HANG_S


def hello(content: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}], **more}


def client(server: LiveServer) -> httpx2.Client:
    return httpx2.Client(base_url=server.url, timeout=HANG_S)


def test_what_runs_is_finished_and_the_rest_is_refused(llm: FakeLLM) -> None:
    with live_server(llm) as server, client(server) as http:
        assert http.get("/ready").json() == {"status": "ok"}
        with http.stream("POST", CHAT, json=hello("slow 60", stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.server.drain(NO_LIMIT_S)
            with client(server) as other:
                answer = other.get("/ready")
                assert (answer.status_code, answer.json()) == (503, {"status": "ending"})
                assert other.get("/health").json() == {"status": "ok"}  # alive
                answer = other.post(CHAT, json=hello("say Hi"))
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "server_ending"
            rest = "".join(lines)
        assert '"finish_reason":"stop"' in rest and "server_ending" not in rest
        eventually(lambda: not server.is_running)


def test_what_takes_longer_than_the_limit_is_told(llm: FakeLLM) -> None:
    with live_server(llm) as server, client(server) as http:
        with http.stream("POST", CHAT, json=hello("slow", stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            began_s = time.monotonic()
            server.server.drain(0.3)
            rest = "".join(lines)
        assert "server_ending" in rest
        assert time.monotonic() - began_s >= 0.3
        eventually(lambda: not server.is_running)


def test_a_second_signal_ends_the_wait(llm: FakeLLM) -> None:
    with live_server(llm) as server, client(server) as http:
        with http.stream("POST", CHAT, json=hello("slow", stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.server.drain(NO_LIMIT_S)
            server.server.stop()
            assert "server_ending" in "".join(lines)
        eventually(lambda: not server.is_running)


def test_a_server_without_requests_ends_at_once(llm: FakeLLM) -> None:
    with live_server(llm) as server, client(server) as http:
        assert http.post(CHAT, json=hello("say Hi")).status_code == 200
        server.server.drain(NO_LIMIT_S)
        eventually(lambda: not server.is_running)
