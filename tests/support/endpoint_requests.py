"""Requests, messages, tools and schemas of the endpoint's tests."""

from typing import Any

import httpx2
from fake_engine import FakeLLM
from pydantic import BaseModel

CALL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    '<|tool_call_argument_begin|>{"city":"Oslo"}<|tool_call_end|>'
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class City(BaseModel):
    name: str
    people: int


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


CHAT = "/v1/chat/completions"
REQUESTS: dict[str, Any] = {  # the shortest of each API
    CHAT: {"messages": user("say Hi")},
    "/v1/completions": {"prompt": "say Hi"},
    "/v1/responses": {"input": "say Hi"},
    "/v1/messages": {"model": "test", "max_tokens": 99, "messages": user("say Hi")},
}


def ask(http: httpx2.Client, path: str, **fields: Any) -> dict[str, Any]:
    """Post the shortest request of an API, with more fields. Returns the response."""
    answer = http.post(path, json={**REQUESTS[path], **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def prompt(llm: FakeLLM, at: int = -1) -> str:
    """Decode the prompt of a request that the engine got."""
    return llm.tokenizer.decode(llm.engine.requests[at].prompt_ids, skip_special=False)
