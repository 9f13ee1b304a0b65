"""The tool calls of an answer that is whole, as OpenAI's structure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hybridmoe.text.response_parser import ArgumentsPart, CallStart, ResponseParser
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["split_tool_calls"]


def split_tool_calls(
    token_ids: Iterable[int], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[int], list[dict[str, Any]]]:
    """The ids outside of calls, and the calls. tools: the declared ones; any if there are none."""
    parser = ResponseParser(tokenizer, may_call=True, tools=tools)
    visible: list[int] = []
    calls: list[dict[str, Any]] = []
    parts = []
    for token_id in token_ids:
        if parser.is_text(token_id):
            visible.append(token_id)
        parts += parser.push(token_id)
    for part in [*parts, *parser.finish()]:
        if isinstance(part, CallStart):
            name = {"name": part.name, "arguments": ""}
            calls.append({"id": part.id, "type": "function", "function": name})
        elif isinstance(part, ArgumentsPart):
            calls[-1]["function"]["arguments"] += part.text
    return visible, calls
