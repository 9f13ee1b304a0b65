"""ollama's API: chat and generate, streams of JSON lines, tools, formats, durations, errors."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx2
import pytest
from endpoint_requests import CALL, WEATHER, prompt, user
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from waiting import HANG_S


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm, keep_alive_s=0.05) as server:
        yield server


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=HANG_S) as client:
        yield client


def post(http: httpx2.Client, path: str, **body: Any) -> Any:
    answer = http.post(f"/api/{path}", json={"model": "test", "stream": False, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def lines(http: httpx2.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    with http.stream("POST", f"/api/{path}", json={"model": "test", **body}) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.iter_lines()]  # no line is empty


def refused(http: httpx2.Client, path: str, status: int = 400, **body: Any) -> str:
    answer = http.post(f"/api/{path}", json={"model": "test", "stream": False, **body})
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    return str(answer.json()["error"])


def test_a_chat_whole_and_streamed(http: httpx2.Client) -> None:
    whole = post(http, "chat", messages=user("say Hi there"))
    assert whole["message"] == {"role": "assistant", "content": "Hi there"}
    assert (whole["model"], whole["done"], whole["done_reason"]) == ("test", True, "stop")
    assert datetime.fromisoformat(whole["created_at"]).utcoffset() is not None
    *pieces, last = lines(http, "chat", messages=user("say Hi there"))
    assert "".join(piece["message"]["content"] for piece in pieces) == "Hi there"
    assert all(piece["done"] is False and piece["message"]["content"] for piece in pieces)
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last.keys() == whole.keys()


def test_a_prompt_is_a_conversation_unless_it_is_raw(http: httpx2.Client, llm: FakeLLM) -> None:
    whole = post(http, "generate", prompt="say Hi", system="Be brief.")
    assert whole["response"] == "Hi" and "message" not in whole
    assert "Be brief." in prompt(llm) and "<|im_user|>" in prompt(llm)
    *pieces, last = lines(http, "generate", prompt="say Hi you")
    assert "".join(piece["response"] for piece in pieces) == "Hi you"
    assert last["response"] == "" and last["done"]
    assert post(http, "generate", prompt="say Hi", raw=True)["response"] == "Hi"
    assert prompt(llm) == "say Hi"


def test_durations_are_in_nanoseconds_and_add_up(http: httpx2.Client) -> None:
    began = time.perf_counter()
    whole = post(http, "chat", messages=user("count 7"))
    took_ns = (time.perf_counter() - began) * 1e9
    assert whole["eval_count"] == 7
    assert (whole["prompt_eval_duration"], whole["eval_duration"]) == (100_000_000, 200_000_000)
    assert 0 <= whole["load_duration"] <= whole["total_duration"] <= took_ns
    usage = http.post("/v1/chat/completions", json={"messages": user("count 7")}).json()["usage"]
    assert whole["prompt_eval_count"] == usage["prompt_tokens"]


def test_options_reach_the_engine(http: httpx2.Client, llm: FakeLLM) -> None:
    options = {
        "temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.9, "seed": 3,
        "stop": ["x"], "repeat_penalty": 1.5, "repeat_last_n": 8, "presence_penalty": 0.5,
        "frequency_penalty": 0.25, "num_predict": 2, "num_gpu": 1, "num_ctx": 512, "mirostat": 0,
    }  # fmt: skip
    answer = http.post(
        "/api/chat", json={"model": "test", "messages": user("count 9"), "options": options}
    )
    assert "x-ignored-fields" not in answer.headers
    params = llm.engine.requests[-1].params
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.0, 5, 0.5, 0.1)
    assert (params.typical_p, params.seed, list(params.stop)) == (0.9, 3, ["x"])
    assert (params.repetition_penalty, params.repeat_last_n) == (1.5, 8)
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, 0.25)
    last = json.loads(answer.text.splitlines()[-1])
    assert (last["done_reason"], last["eval_count"]) == ("length", 2)
    for num_predict in (-1, -2):
        whole = post(http, "generate", prompt="count 9", options={"num_predict": num_predict})
        assert (whole["done_reason"], whole["eval_count"]) == ("stop", 9)


def test_what_has_no_effect_is_told(http: httpx2.Client) -> None:
    body = {"model": "test", "messages": user("say Hi"), "stream": False, "keep_alive": "5m"}
    for options, ignored in (
        ({"num_ctx": 4096, "penalize_newline": True}, "options.num_ctx"),
        ({"speed": 1}, "options.speed"),
        ({"speed": 1, "num_ctx": 4096}, "options.speed, options.num_ctx"),
    ):
        answer = http.post("/api/chat", json={**body, "options": options})
        assert answer.headers["x-ignored-fields"] == ignored
    raw = {"model": "test", "prompt": "say Hi", "raw": True, "think": True, "stream": False}
    assert http.post("/api/generate", json=raw).headers["x-ignored-fields"] == "think"


@pytest.mark.parametrize(
    ("path", "fields", "word"),
    [
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ("chat", {"messages": user("x"), "options": {"mirostat": 2}}, "options.mirostat"),
        ("chat", {"messages": user("x"), "options": {"temperature": "hot"}}, "temperature"),
        ("chat", {"messages": user("x"), "format": "xml"}, "format"),
        ("chat", {"messages": [{"role": "owl", "content": "x"}]}, "messages[0].role"),
        ("generate", {"prompt": "x", "images": ["aGk="]}, "images"),
        ("generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}, "system"),
        ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        ("generate", {"prompt": "x", "context": [1, 2]}, "context"),
    ],
)
def test_what_changes_the_answer_and_is_not_there_is_refused(
    http: httpx2.Client, path: str, fields: dict[str, Any], word: str
) -> None:
    assert word in refused(http, path, **fields)


def test_formats(http: httpx2.Client, llm: FakeLLM) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for path, asked in (("chat", {"messages": user("say Hi")}), ("generate", {"prompt": "say Hi"})):
        for form in ("json", schema):
            post(http, path, **asked, format=form, options={"num_predict": 1})
            assert llm.engine.requests[-1].constraint is not None
        post(http, path, **asked, format="")
        assert llm.engine.requests[-1].constraint is None


def test_a_call_has_its_arguments_as_an_object(http: httpx2.Client) -> None:
    asked = {"messages": user(f"say Hm.{CALL}"), "tools": [WEATHER]}
    message = post(http, "chat", **asked)["message"]
    assert message["content"] == "Hm."
    (call,) = message["tool_calls"]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}}
    *pieces, last = lines(http, "chat", **asked)
    (streamed,) = [call for piece in pieces for call in piece["message"].get("tool_calls", ())]
    assert streamed["function"] == call["function"]
    messages = [piece["message"] for piece in pieces]
    assert all(message["content"] or "tool_calls" in message for message in messages)
    assert last["done_reason"] == "stop"
    untyped = {"messages": asked["messages"], "tools": [{"function": WEATHER["function"]}]}
    assert post(http, "chat", **untyped)["message"]["tool_calls"]


def test_a_call_that_is_cut_off_is_not_lost(http: httpx2.Client) -> None:
    asked = {"messages": user(f"say {CALL}"), "tools": [WEATHER], "options": {"num_predict": 12}}
    whole = post(http, "chat", **asked)
    assert whole["done_reason"] == "length"
    arguments = whole["message"]["tool_calls"][0]["function"]["arguments"]
    assert arguments.keys() == {"_unparsed"}
    streamed = [
        call
        for line in lines(http, "chat", **asked)
        for call in line["message"].get("tool_calls", ())
    ]
    assert [call["function"]["arguments"] for call in streamed] == [arguments]


def test_results_find_their_calls_without_ids(http: httpx2.Client, llm: FakeLLM) -> None:
    def call(name: str, **arguments: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": arguments}}

    history = [
        *user("weather and time?"),
        {"role": "assistant", "content": "", "tool_calls": [call("weather"), call("time", at="x")]},
        {"role": "tool", "content": "noon", "tool_name": "time"},
        {"role": "tool", "content": "sunny"},
        {"role": "user", "content": "say Hi"},
    ]
    assert post(http, "chat", messages=history)["message"]["content"] == "Hi"
    text = prompt(llm)
    assert "## Return of functions.time:1\nnoon" in text
    assert "## Return of functions.weather:0\nsunny" in text
    assert '{"at":"x"}' in text


def test_thoughts_are_apart(http: httpx2.Client) -> None:
    asked = {"messages": user("say <think>why</think>Hi")}
    message = post(http, "chat", **asked)["message"]
    assert (message["thinking"], message["content"]) == ("why", "Hi")
    pieces = lines(http, "chat", **asked)
    assert "".join(piece["message"].get("thinking", "") for piece in pieces) == "why"
    whole = post(http, "generate", prompt="say <think>why</think>Hi")
    assert (whole["thinking"], whole["response"]) == ("why", "Hi")


def test_log_probabilities(http: httpx2.Client) -> None:
    whole = post(http, "chat", messages=user("say Hi you"), logprobs=True, top_logprobs=2)
    assert "".join(entry["token"] for entry in whole["logprobs"]) == "Hi you"
    assert [len(entry["top_logprobs"]) for entry in whole["logprobs"]] == [2] * len(
        whole["logprobs"]
    )
    pieces = lines(http, "generate", prompt="say Hi you", logprobs=True)
    assert "".join(e["token"] for piece in pieces for e in piece.get("logprobs", ())) == "Hi you"
    assert "logprobs" not in post(http, "chat", messages=user("say Hi"))


def test_a_request_for_nothing_loads_the_model(http: httpx2.Client, llm: FakeLLM) -> None:
    num_requests = len(llm.engine.requests)
    for path, content in (
        ("chat", {"message": {"role": "assistant", "content": ""}}), ("generate", {"response": ""}),
    ):  # fmt: skip
        for more in ({}, {"keep_alive": 0}, {"messages": []}):
            answer = post(http, path, **more)
            assert answer.items() >= {"done": True, "done_reason": "load", **content}.items()
    assert len(llm.engine.requests) == num_requests


def test_names_of_models(http: httpx2.Client) -> None:
    answer = post(http, "chat", messages=user("say Hi"), model="test:latest")
    assert answer["model"] == "test:latest"
    for name in ("none", "none:latest", "test:7b"):
        assert "does not exist" in refused(http, "chat", 404, messages=user("x"), model=name)
    assert "model" in refused(http, "generate", prompt="x", model=None)


def test_the_version_is_one_that_clients_take(http: httpx2.Client) -> None:
    major, minor, _ = http.get("/api/version").json()["version"].split(".")
    assert (int(major), int(minor)) >= (0, 12)


def test_silence_is_filled_within_the_lines(http: httpx2.Client) -> None:
    body = {"model": "test", "messages": user("read 60")}
    with http.stream("POST", "/api/chat", json=body) as answer:
        raw = answer.read()
    assert raw.startswith(b"  ")
    assert [json.loads(line)["done"] for line in raw.splitlines()][-1]


def test_a_failure_is_the_last_line(http: httpx2.Client) -> None:
    *_, last = lines(http, "chat", messages=user("break"))
    assert last == {"error": "the engine failed: out of order"}
    assert "out of order" in refused(http, "chat", 500, messages=user("break"))
