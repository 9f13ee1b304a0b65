"""Messages, tools and schemas of the endpoint's tests."""

from typing import Any

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
