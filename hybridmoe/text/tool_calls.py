"""Kimi K2's tool calls: special tokens in what the model writes, and OpenAI's structure.

    <|tool_calls_section_begin|>
      <|tool_call_begin|>functions.NAME:N<|tool_call_argument_begin|>{JSON}<|tool_call_end|> ...
    <|tool_calls_section_end|>

Found by token id: the same names written out as text are text. Lenient where the model is known
to stray (the singular section name, a missing `functions.` or section end); source: Moonshot's
tool_call_guidance.md and the reports of those who parsed it.
"""

import json
from collections.abc import Iterable
from typing import Any

from hybridmoe.text.tokenizer import Tokenizer

__all__ = [
    "ARGUMENTS_BEGIN",
    "CALL_BEGIN",
    "CALL_END",
    "SECTION_BEGIN",
    "SECTION_END",
    "function_name",
    "split_tool_calls",
]

SECTION_BEGIN = ("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>")
SECTION_END = ("<|tool_calls_section_end|>", "<|tool_call_section_end|>")
CALL_BEGIN = "<|tool_call_begin|>"
ARGUMENTS_BEGIN = "<|tool_call_argument_begin|>"
CALL_END = "<|tool_call_end|>"


def split_tool_calls(
    token_ids: Iterable[int], tokenizer: Tokenizer
) -> tuple[list[int], list[dict[str, Any]]]:
    """The ids outside tool call sections, and the calls as OpenAI's `tool_calls`.

    A call that was cut off counts if its arguments are whole; text between the calls of a section
    is dropped.
    """
    marks = {
        token_id: name
        for name in (*SECTION_BEGIN, *SECTION_END, CALL_BEGIN, ARGUMENTS_BEGIN, CALL_END)
        if (token_id := tokenizer.special_id(name)) is not None
    }
    visible: list[int] = []
    calls: list[dict[str, Any]] = []
    is_section = False
    call_id: list[int] = []
    arguments: list[int] = []
    target: list[int] | None = visible

    def finish(*, is_whole: bool) -> None:
        if target is not arguments:
            return
        call = _as_call(tokenizer.decode(call_id), tokenizer.decode(arguments))
        if call is not None and (is_whole or _is_json(call["function"]["arguments"])):
            calls.append(call)

    for token_id in token_ids:
        mark = marks.get(token_id)
        if mark is None:
            if target is not None:
                target.append(token_id)
            continue
        finish(is_whole=mark == CALL_END)
        if mark == CALL_BEGIN:
            target = call_id = []
        elif mark == ARGUMENTS_BEGIN and target is call_id:
            target = arguments = []
        else:
            if mark in SECTION_BEGIN or mark in SECTION_END:
                is_section = mark in SECTION_BEGIN
            target = None if is_section else visible
    finish(is_whole=False)
    return visible, calls


def function_name(call_id: str) -> str:
    """NAME of `functions.NAME:N`, where the prefix, the number or both may be missing."""
    call_id = call_id.strip()
    name, _, number = call_id.rpartition(":")
    return (name if number.isdecimal() else call_id).removeprefix("functions.").strip()


def _as_call(call_id: str, arguments: str) -> dict[str, Any] | None:
    name = function_name(call_id)
    if not name:
        return None
    function = {"name": name, "arguments": arguments.strip() or "{}"}
    return {"id": call_id.strip(), "type": "function", "function": function}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
