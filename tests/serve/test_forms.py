"""Requests as clients write them: older names, empty messages, whole numbers with a point."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from endpoint_requests import CALL, WEATHER, prompt
from fake_engine import FakeLLM
from live_server import live_server
from waiting import HANG_S

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "say Hi"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "x", "function": {"name": "get_weather", "arguments": "{}"}}],
}


@pytest.fixture(scope="module")
def http(llm: FakeLLM) -> Iterator[httpx2.Client]:
    with live_server(llm) as server, httpx2.Client(base_url=server.url, timeout=HANG_S) as client:
        yield client


def ask(http: httpx2.Client, **body: Any) -> dict[str, Any]:
    answer = http.post(CHAT, json={"messages": [USER], **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 40.0}, {"seed": 7.0}, {"n": 1.0}, {"stop": ""}, {"stop": ["", "END"]},
        {"logprobs": False, "top_logprobs": 0}, {"stream_options": {"include_usage": True}},
        {"store": True}, {"function_call": "auto"}, {"web_search_options": {}}, {"model": ""},
        {"tools": [WEATHER], "tool_choice": {"type": "auto"}},
    ],
)  # fmt: skip
def test_fields_that_ask_for_nothing_more(http: httpx2.Client, fields: dict[str, Any]) -> None:
    choice = ask(http, **fields)
    assert choice["message"]["content"] == "Hi"
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(("limit", "num_tokens"), [(-1, 30), (0, 30), (4.0, 4)])
def test_limits(http: httpx2.Client, name: str, limit: float, num_tokens: int) -> None:
    messages = [{"role": "user", "content": "count 30"}]
    answer = http.post(CHAT, json={"messages": messages, name: limit}).json()
    assert answer["usage"]["completion_tokens"] == num_tokens
    text = http.post("/v1/completions", json={"prompt": "count 30", "max_tokens": limit}).json()
    assert text["usage"]["completion_tokens"] == (num_tokens if limit else 0)


def may_begin_with(llm: FakeLLM, text: str) -> bool:
    """True if the constraint of the last request allows that first token."""
    constraint = llm.engine.requests[-1].constraint
    (token_id,) = llm.tokenizer.encode(text, parse_special=True)
    if constraint is None or constraint.is_inactive():
        return True
    return bool(constraint.mask()[token_id // 32] >> (token_id % 32) & 1)


@pytest.mark.parametrize(
    ("wanted", "is_forced"), [("any", True), ({"type": "any"}, True), ({"type": "auto"}, False)]
)
def test_choices_of_tools(
    http: httpx2.Client, llm: FakeLLM, wanted: object, is_forced: bool
) -> None:
    ask(http, tools=[WEATHER], tool_choice=wanted, max_tokens=1)
    assert may_begin_with(llm, "<|tool_calls_section_begin|>")
    assert may_begin_with(llm, "7") != is_forced


def test_only_the_allowed_tools_are_shown(http: httpx2.Client, llm: FakeLLM) -> None:
    other = {"type": "function", "function": {"name": "get_time"}}
    named = {"type": "function", "function": {"name": "get_time"}}
    allowed = {"mode": "auto", "tools": [named]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    ask(http, tools=[WEATHER, other], tool_choice=choice)
    assert "get_time" in prompt(llm)
    assert "get_weather" not in prompt(llm)
    answer = http.post(CHAT, json={"messages": [USER], "tools": [WEATHER], "tool_choice": choice})
    assert answer.status_code == 400
    assert "'get_time'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "format",
    [
        {"type": "json_schema", "schema": {"type": "integer"}},
        {"type": "json_object", "schema": {"type": "integer"}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}},
    ],
)
def test_places_of_a_schema(http: httpx2.Client, llm: FakeLLM, format: dict[str, Any]) -> None:
    ask(http, response_format=format)
    assert may_begin_with(llm, "7")
    assert not may_begin_with(llm, "{")


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": []},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
    ],
)
def test_an_empty_turn_is_an_empty_turn(
    http: httpx2.Client, llm: FakeLLM, turn: dict[str, Any]
) -> None:
    ask(http, messages=[USER, turn, USER])
    assert "<|im_assistant|>assistant<|im_middle|><|im_end|><|im_user|>" in prompt(llm)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ([], ""),
        ({"temp": 3, "sky": "°"}, '{"temp":3,"sky":"°"}'),
        (17, "17"),
        (False, "false"),
        ([1, {"a": 2}], '[1,{"a":2}]'),
        ([{"type": "output_text", "text": "rain"}], "rain"),
    ],
)
def test_what_a_tool_returns_may_be_any_json(
    http: httpx2.Client, llm: FakeLLM, content: object, text: str
) -> None:
    ask(http, messages=[USER, CALLED, {"role": "tool", "tool_call_id": "x", "content": content}])
    assert f"## Return of functions.get_weather:0\n{text}<|im_end|>" in prompt(llm)


def test_older_names_of_calls_and_results(http: httpx2.Client, llm: FakeLLM) -> None:
    call = {"name": "get_weather", "arguments": '{"city":"Oslo"}'}
    ask(
        http,
        messages=[
            USER,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "get_weather", "content": "rain"},
        ],
    )
    assert CALL in prompt(llm)
    assert "## Return of functions.get_weather:0\nrain<|im_end|>" in prompt(llm)


@pytest.mark.parametrize("null", [{"id": None}, {"type": None}, {"arguments": None}])
def test_parts_of_a_call_may_be_absent(
    http: httpx2.Client, llm: FakeLLM, null: dict[str, None]
) -> None:
    function = {"name": "get_weather", "arguments": "{}"} | (null if "arguments" in null else {})
    call = {"id": "x", "type": "function", **null, "function": function}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "rain"}
    ask(http, messages=[USER, {"role": "assistant", "tool_calls": [call]}, result])
    assert "functions.get_weather:0<|tool_call_argument_begin|>{}<|tool_call_end|>" in prompt(llm)
    assert "## Return of functions.get_weather:0\nrain" in prompt(llm)


def test_text_by_its_other_names(http: httpx2.Client, llm: FakeLLM) -> None:
    parts = [{"type": "input_text", "text": "say H"}, {"type": "text", "text": "o"}]
    refusal = [{"type": "refusal", "refusal": "I will not."}]
    answer = ask(
        http,
        messages=[
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": refusal},
            {"role": "user", "content": parts},
        ],
    )
    assert answer["message"]["content"] == "Ho"
    assert "assistant<|im_middle|>I will not.<|im_end|>" in prompt(llm)
