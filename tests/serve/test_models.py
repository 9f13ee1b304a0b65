"""Several models in one server: loaded when asked for, unloaded when idle or to make room."""

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from fake_engine import FakeLLM
from gated_models import GatedModels
from live_server import LiveServer, live_server
from waiting import HANG_S, eventually

from hybridmoe.errors import ConfigError, GGUFError
from hybridmoe.serve import ModelPool, ScheduleRules
from hybridmoe.serve.model_slot import Waiter
from hybridmoe.serve.served_model import Lease

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
BOTH = ScheduleRules(fit=lambda names: True)


@contextmanager
def serving(
    models: GatedModels, rules: ScheduleRules | None = None, **settings: Any
) -> Iterator[tuple[LiveServer, httpx2.Client, ModelPool]]:
    names = ("hold_s", "retry_after_s", "max_held")
    pool = models.pool(rules, **{name: settings.pop(name) for name in names if name in settings})
    try:
        with (
            live_server(None, models=pool, model_name="a", **settings) as server,
            httpx2.Client(base_url=server.url, timeout=HANG_S) as http,
        ):
            yield server, http, pool
    finally:
        models.open(*models.gates)
        pool.close()


def hello(model: str | None, content: str = "say Hi", **more: Any) -> dict[str, Any]:
    named = {} if model is None else {"model": model}
    return {**named, "messages": [{"role": "user", "content": content}], **more}


def statuses(http: httpx2.Client) -> dict[str, str]:
    """Statuses by model, from /health."""
    models = http.get("/health").json()["models"]
    return {name: state["status"] for name, state in models.items()}


class Asked(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, server: LiveServer, body: dict[str, Any], path: str = CHAT) -> None:
        super().__init__()
        self._request = (server.url + path, body)
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        url, body = self._request
        self.answer = httpx2.post(url, json=body, timeout=HANG_S)

    @property
    def status(self) -> int:
        self.join()
        return int(self.answer.status_code)


def test_models_take_turns_where_one_fits() -> None:
    models = GatedModels("a", "b")
    with serving(models) as (_, http, _):
        for name in ("a", "b", "b", "a", None):
            answer = http.post(CHAT, json=hello(name))
            assert answer.status_code == 200
            assert answer.json()["model"] == (name or "a")
        assert statuses(http) == {"a": "loaded", "b": "unloaded"}
        listed = http.get("/v1/models").json()["data"]
        assert [(card["id"], card["meta"]["status"]) for card in listed] == [
            ("a", "loaded"), ("b", "unloaded"),
        ]  # fmt: skip
        assert http.get("/v1/models/b").json()["max_model_len"] == 1024  # as it was
        answer = http.post(CHAT, json=hello("c"))
        assert answer.status_code == 404 and "served: a, b" in answer.text
    room = "(another one is wanted)"
    assert models.events == [
        "load a", "close a", f"unloaded: a {room}",
        "load b", "close b", f"unloaded: b {room}", "load a", "close a",
    ]  # fmt: skip


def test_models_that_fit_stay_loaded() -> None:
    models = GatedModels("a", "b")
    with serving(models, BOTH) as (_, http, _):
        for name in ("a", "b", "a", "b"):
            assert http.post(CHAT, json=hello(name)).status_code == 200
        assert statuses(http) == {"a": "loaded", "b": "loaded"}
    assert models.events == ["load a", "load b", "close a", "close b"] or models.events == [
        "load a", "load b", "close b", "close a",
    ]  # fmt: skip


def test_a_response_under_way_ends_before_its_model_goes() -> None:
    models = GatedModels("a", "b")
    with serving(models) as (server, http, _):
        body = hello("a", "slow 40", stream=True)
        with http.stream("POST", CHAT, json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            asked = Asked(server, hello("b"))
            rest = "".join(lines)
        assert '"finish_reason":"stop"' in rest and "error" not in rest
        assert asked.status == 200
    assert models.events.index("close a") < models.events.index("load b")


def test_requests_that_come_later_wait_for_the_one_before_them() -> None:
    models = GatedModels("a", "b")
    with serving(models) as (server, http, pool):
        with http.stream("POST", CHAT, json=hello("a", "slow", stream=True)) as stream:
            lines = stream.iter_lines()  # whose end would end the stream
            next(lines)
            first = Asked(server, hello("b"))
            eventually(lambda: pool.slot("a").is_leaving)
            second = Asked(server, hello("a"))
            eventually(lambda: len(pool.slot("a").waiters) == 1)
        assert (first.status, second.status) == (200, 200)
    loads = [event for event in models.events if event.startswith("load")]
    assert loads == ["load a", "load b", "load a"]


def test_counters_go_on_where_a_model_was_unloaded() -> None:
    def counters(http: httpx2.Client) -> dict[str, float]:
        lines = http.get("/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs if "_created" not in name}

    models = GatedModels("a", "b")
    with serving(models) as (_, http, pool):
        served = pool.slot("a").model
        assert served is not None and isinstance(served.llm, FakeLLM)
        served.llm.engine.num_steps = 7
        stored = http.post(RESPONSES, json={"model": "a", "input": "say Hi"}).json()
        before = counters(http)
        assert before["hybridmoe_engine_steps_total"] == 7
        assert http.post(CHAT, json=hello("b")).status_code == 200
        after = counters(http)
        totals = [name for name in before if name.endswith("_total")]
        assert totals and all(after[name] >= before[name] for name in totals)
        assert after["hybridmoe_num_requests_running"] == 0
        again = {"model": "b", "input": "say Ho", "previous_response_id": stored["id"]}
        assert http.post(RESPONSES, json=again).status_code == 200


def test_a_request_may_be_refused_while_its_model_loads() -> None:
    models = GatedModels("a", "b")
    with serving(models, hold_s=None, retry_after_s=3) as (_, http, _):
        models.shut("b")
        answer = http.post(CHAT, json=hello("b"))
        assert answer.status_code == 503 and answer.headers["retry-after"] == "3"
        assert answer.json()["error"]["code"] == "model_loading"
        eventually(lambda: statuses(http)["b"] == "loading")
        assert http.get("/health").json()["models"]["b"]["progress"] == 0.5
        assert http.get("/ready").status_code == 200
        assert http.post(CHAT, json=hello("b")).status_code == 503
        models.open("b")
        eventually(lambda: http.post(CHAT, json=hello("b")).status_code == 200)


def test_a_wait_for_a_model_has_an_end() -> None:
    models = GatedModels("a", "b")
    with serving(models, hold_s=0.05) as (server, http, pool):
        with http.stream("POST", CHAT, json=hello("a", "slow", stream=True)) as stream:
            lines = stream.iter_lines()  # whose end would end the stream
            next(lines)
            asked = Asked(server, hello("b"))
            assert asked.status == 503 and "retry-after" in asked.answer.headers
            assert "another one is in use" in asked.answer.text
            assert not pool.slot("b").waiters
        eventually(lambda: statuses(http)["b"] == "loaded")  # for the client to come again
        assert http.post(CHAT, json=hello("b")).status_code == 200


def test_so_many_may_wait() -> None:
    models = GatedModels("a", "b")
    with serving(models, max_held=1) as (server, http, pool):
        models.shut("b")
        asked = Asked(server, hello("b"))
        eventually(lambda: len(pool.slot("b").waiters) == 1)
        assert http.post(CHAT, json=hello("b")).status_code == 429
        models.open("b")
        assert asked.status == 200


def test_who_leaves_while_it_waits_holds_no_model() -> None:
    models = GatedModels("a", "b")
    with serving(models) as (_, http, pool):
        models.shut("b")
        with pytest.raises(httpx2.ReadTimeout):
            http.post(CHAT, json=hello("b"), timeout=httpx2.Timeout(HANG_S, read=0.2))
        eventually(lambda: not pool.slot("b").waiters)
        models.open("b")
        assert http.post(CHAT, json=hello("a")).status_code == 200
        eventually(lambda: pool.num_active == 0)


def test_an_idle_model_is_unloaded_and_loaded_again() -> None:
    models = GatedModels("a")
    with serving(models, ScheduleRules(idle_unload_s=0.05)) as (_, http, pool):
        for _ in range(2):
            assert http.post(CHAT, json=hello(None)).status_code == 200
            eventually(lambda: pool.slot("a").status == "unloaded")
            assert pool.slot("a").model is None
            assert http.get("/health").json()["status"] == "ok"
            assert http.get("/ready").status_code == 200
        with http.stream("POST", CHAT, json=hello("a", "slow 30", stream=True)) as stream:
            assert '"finish_reason":"stop"' in "".join(stream.iter_lines())  # longer than idle


def test_nothing_of_an_unloaded_model_stays_while_its_clients_are_connected() -> None:
    models = GatedModels("a")
    with serving(models, ScheduleRules(idle_unload_s=0.2)) as (_, http, pool):
        model = weakref.ref(pool.slot("a").model)
        assert http.post(CHAT, json=hello("a")).status_code == 200
        assert http.post(CHAT, json=hello("a", stream=True)).status_code == 200
        with http.stream("POST", CHAT, json=hello("a", "slow", stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
        assert http.post(CHAT, json=hello("a")).status_code == 200
        eventually(lambda: pool.slot("a").status == "unloaded")
        gc.collect()
        assert model() is None


def test_time_without_use_begins_at_the_end_of_the_last_use() -> None:
    models = GatedModels("a")
    with serving(models) as (_, http, pool):
        before_s = pool.slot("a").used_s
        assert http.post(CHAT, json=hello("a")).status_code == 200
        eventually(lambda: pool.num_active == 0)
        assert pool.slot("a").used_s > before_s


def test_who_leaves_at_the_moment_of_the_grant_holds_no_model() -> None:
    released: list[str] = []

    async def test(*, is_granted_first: bool) -> None:
        waiter = Waiter(0.0)
        model: Any = None
        waiter.grant(Lease(model, lambda: released.append("lease")))
        if is_granted_first:
            await asyncio.sleep(0)
        waiter.give_up()
        waiter.give_up()
        await asyncio.sleep(0.01)

    for is_granted_first in (True, False):
        asyncio.run(test(is_granted_first=is_granted_first))
        assert released.pop() == "lease" and not released


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again() -> None:
    models = GatedModels("a", "b")
    models.failures["b"] = GGUFError("b.gguf: damaged")
    with serving(models, BOTH, retry_after_s=1) as (_, http, _):
        for _ in range(2):  # the second one does not wait for another load
            answer = http.post(CHAT, json=hello("b"))
            assert answer.status_code == 503
            assert "could not be loaded: b.gguf: damaged" in answer.text
        assert statuses(http) == {"a": "loaded", "b": "failed"}
        assert http.post(CHAT, json=hello("a")).status_code == 200
        eventually(lambda: http.post(CHAT, json=hello("b")).status_code == 200)
    assert models.events.count("load b") == 2


def test_a_model_that_finds_no_room_beside_another_gets_it_alone() -> None:
    models = GatedModels("a", "b")
    models.failures["b"] = ConfigError("the KV cache needs 9 GiB, 1 GiB is free")
    with serving(models, BOTH) as (_, http, _):
        assert http.post(CHAT, json=hello("b")).status_code == 200
        assert statuses(http) == {"a": "unloaded", "b": "loaded"}


def test_the_end_comes_while_a_model_loads_and_requests_wait() -> None:
    models = GatedModels("a", "b")
    with serving(models) as (server, _, pool):
        models.shut("b")
        asked = Asked(server, hello("b"))
        eventually(lambda: pool.slot("b").status == "loading")
        server.server.stop()
        assert asked.status == 503
        assert asked.answer.json()["error"]["code"] == "server_ending"
        pool.close()
    assert "load b" in models.events


@pytest.mark.parametrize(
    ("path", "last", "error"),
    [
        (CHAT, '"finish_reason":"stop"', 'data: {"error":{'),
        (MESSAGES, "message_stop", 'event: error\ndata: {"type":"error","error":{'),
        (RESPONSES, "response.completed", 'event: error\ndata: {"type":"error",'),
    ],
)
def test_a_stream_is_kept_alive_while_its_model_loads(path: str, last: str, error: str) -> None:
    body = {"model": "b", "stream": True, "max_tokens": 9, **hello("b")}
    if path == RESPONSES:
        body = {"model": "b", "stream": True, "input": "say Hi"}
    models = GatedModels("a", "b")
    with serving(models, keep_alive_s=0.02) as (_, http, _):
        for fails in (False, True):
            assert http.post(CHAT, json=hello("a")).status_code == 200
            models.shut("b")
            if fails:
                models.failures["b"] = GGUFError("b.gguf: damaged")
            with http.stream("POST", path, json=body) as stream:
                assert stream.status_code == 200
                assert stream.headers["content-type"].startswith("text/event-stream")
                text = ""
                for piece in stream.iter_text():
                    text += piece
                    if text.count(": keep-alive\n\n") == 2:
                        models.open("b")
            assert text.startswith(": keep-alive\n\n")
            assert (last in text) != fails
            if fails:
                assert error in text and "could not be loaded: b.gguf: damaged" in text


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_lines_are_kept_alive_by_spaces_while_their_model_loads(path: str) -> None:
    body = {"model": "b", "prompt": "say Hi", "messages": hello("b")["messages"]}
    models = GatedModels("a", "b")
    with serving(models, keep_alive_s=0.02) as (_, http, _):
        for fails in (False, True):
            assert http.post(CHAT, json=hello("a")).status_code == 200
            models.shut("b")
            if fails:
                models.failures["b"] = GGUFError("b.gguf: damaged")
            with http.stream("POST", path, json=body) as stream:
                assert stream.headers["content-type"] == "application/x-ndjson"
                raw = b""
                for piece in stream.iter_raw():
                    raw += piece
                    if raw.startswith(b"  "):
                        models.open("b")
            assert raw.startswith(b"  ")
            last = json.loads(raw.splitlines()[-1])
            assert ("error" in last) == fails
            assert "b.gguf: damaged" in last["error"] if fails else last["done"]


def test_who_leaves_a_stream_that_waits_ends_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = GatedModels("a", "b")
    with serving(models, keep_alive_s=0.01) as (_, http, pool):
        models.shut("b")
        with http.stream("POST", CHAT, json=hello("b", stream=True)) as stream:
            assert next(stream.iter_raw()).startswith(b": keep-alive")
        eventually(lambda: not pool.slot("b").waiters)
        models.open("b")
        assert http.post(CHAT, json=hello("b")).status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_response_in_one_piece_is_not_begun_early() -> None:
    models = GatedModels("a", "b")
    with serving(models, keep_alive_s=0.01) as (server, _, pool):
        models.shut("b")
        asked = Asked(server, hello("b"))
        eventually(lambda: pool.slot("b").status == "loading")
        asked.join(0.1)
        models.open("b")
        assert asked.status == 200
        assert json.loads(asked.answer.content)["choices"][0]["message"]["content"] == "Hi"
