"""Messages and tools: unusable ones are one line, and the caller's are not changed."""

import json
from typing import Any

import pytest
from kimi_chat import HELLO, KIMI, TOKENIZER

from hybridmoe.errors import ConfigError
from hybridmoe.text.chat_encoding import encode_chat


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("hi", "messages is 'hi'"),
        ([7], r"messages\[0\] is 7"),
        ([{"content": "x"}], r"messages\[0\].role is None"),
        ([{"role": 3, "content": "x"}], "role is 3"),
        ([{"role": "user"}], "content is missing"),
        ([{"role": "user", "content": 5}], "content is 5"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url'; expected"),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], "in an assistant's message"),
        ([{"role": "assistant", "tool_calls": [{}]}], "function.name is missing"),
        ([{"role": "assistant", "tool_calls": 7}], "expected a list"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}],
            "arguments is 3",
        ),
        ([{"role": "user", "content": "x", "extra": object()}], "extra is <object"),
    ],
)
def test_unusable_messages_are_one_line(messages: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        encode_chat(KIMI, TOKENIZER, messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tools", ["x", [1], [{}], [{"function": {"name": 3}}]])
def test_unusable_tools_are_one_line(tools: Any) -> None:
    with pytest.raises(ConfigError, match="tools"):
        encode_chat(KIMI, TOKENIZER, HELLO, tools)


def test_the_callers_messages_are_not_changed() -> None:
    messages = [{"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f"}}]}]
    before = json.dumps(messages)
    encode_chat(KIMI, TOKENIZER, messages)
    assert json.dumps(messages) == before
