"""Responses and events are valid for the types of the official clients, which their users check."""

import json
from typing import Any

import anthropic.types as messages
import httpx2
import openai.types as openai_types
import openai.types.chat as chat
import openai.types.responses as responses
import pytest
from endpoint_requests import CALL, WEATHER, user
from pydantic import TypeAdapter

ORDERS = ["say <think>hm</think>Hi", f"say ok {CALL}", "say "]
FUNCTION = WEATHER["function"]
SCHEMA = FUNCTION["parameters"]


def post(http: httpx2.Client, path: str, body: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Get a whole response, and the events of a stream."""
    whole = http.post(path, json=body)
    assert whole.status_code == 200, whole.text
    stream = http.post(path, json={**body, "stream": True})
    lines = [line[6:] for line in stream.text.split("\n") if line.startswith("data: {")]
    return whole.json(), [json.loads(line) for line in lines]


def check(kind: Any, value: Any) -> None:
    TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize("order", ORDERS)
def test_chat_completions(http: httpx2.Client, order: str) -> None:
    body = {
        "messages": user(order), "tools": [WEATHER], "logprobs": True, "top_logprobs": 2,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    whole, events = post(http, "/v1/chat/completions", body)
    check(chat.ChatCompletion, whole)
    check(list[chat.ChatCompletionChunk], events)


def test_completions(http: httpx2.Client) -> None:
    whole, events = post(http, "/v1/completions", {"prompt": "Hi", "logprobs": 2})
    check(openai_types.Completion, whole)
    for event in events:  # the type has no null, which OpenAI's chunks have
        for choice in event["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
    check(list[openai_types.Completion], events)


@pytest.mark.parametrize("order", ORDERS)
def test_responses(http: httpx2.Client, order: str) -> None:
    body = {
        "input": order, "tools": [{"type": "function", **FUNCTION}], "top_logprobs": 2,
        "include": ["message.output_text.logprobs"], "user": "u", "prompt_cache_key": "k",
        "instructions": "x", "metadata": {"a": "b"},
    }  # fmt: skip
    whole, events = post(http, "/v1/responses", body)
    check(responses.Response, whole)
    check(list[responses.ResponseStreamEvent], events)
    assert (whole["user"], whole["prompt_cache_key"]) == ("u", "k")
    assert whole["completed_at"] >= whole["created_at"]
    required = {"background", "service_tier", "truncation", "top_logprobs", "max_tool_calls"}
    assert required <= whole.keys()


@pytest.mark.parametrize("order", ORDERS)
def test_messages(http: httpx2.Client, order: str) -> None:
    tools = [{"name": "get_weather", "input_schema": SCHEMA}]
    body = {"model": "test", "max_tokens": 60, "messages": user(order), "tools": tools}
    whole, events = post(http, "/v1/messages", body)
    check(messages.Message, whole)
    check(list[messages.RawMessageStreamEvent], events)
    assert {"container", "stop_details"} <= whole.keys()
    assert "timings" not in whole


def test_models_and_counts(http: httpx2.Client) -> None:
    check(list[openai_types.Model], http.get("/v1/models").json()["data"])
    body = {"model": "test", "messages": user("Hi")}
    check(messages.MessageTokensCount, http.post("/v1/messages/count_tokens", json=body).json())
