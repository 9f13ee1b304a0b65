"""A response has one set of rules for reasoning, call ids, cut-off calls and finish reasons."""

from typing import Any, Literal

import pytest
from parsed_response import tiny_kimi_tokenizer

from hybridmoe.text.response import FinishReason, Response, ToolCall
from hybridmoe.text.response_parser import ResponseParser, numbered_call_id

TOKENIZER = tiny_kimi_tokenizer()
CALL = '<|tool_call_begin|>functions.time:0<|tool_call_argument_begin|> {"a": 1} <|tool_call_end|>'


def pushed(text: str, *, is_parallel: bool = True, **options: Any) -> Response:
    """Response to which all tokens are pushed, up to the one that finishes it."""
    parser = ResponseParser(TOKENIZER, **{"may_call": True, "may_think": True} | options)
    response = Response(parser, is_parallel=is_parallel)
    for token_id in TOKENIZER.encode(text, parse_special=True):
        if response.finish_reason is None:
            response.push(token_id)
    return response


def test_text_and_reasoning_are_apart() -> None:
    response = pushed("<think>why°</think>so°")
    response.finish("stop")
    assert (response.text, response.reasoning, response.finish_reason) == ("so°", "why°", "stop")


@pytest.mark.parametrize(
    ("text", "options", "engine", "expected"),
    [
        ("plain", {}, "stop", "stop"),
        ("plain", {}, "length", "length"),
        ("plain", {}, "cancelled", "cancelled"),
        (CALL, {}, "stop", "tool_calls"),
        (CALL, {}, "length", "length"),
        (f"{CALL}one two", {"stop": ["two"]}, "length", "stop"),
        (f"{CALL}{CALL}", {"is_parallel": False}, "length", "tool_calls"),
    ],
)
def test_finish_reasons(
    text: str,
    options: dict[str, Any],
    engine: Literal["stop", "length", "cancelled"],
    expected: FinishReason,
) -> None:
    response = pushed(text, **options)
    response.finish(engine)
    assert response.finish_reason == expected
    assert response.finish("stop") == []
    assert response.finish_reason == expected


def test_a_single_call_ends_the_response() -> None:
    assert len(pushed(f"{CALL}{CALL}", is_parallel=False).tool_calls) == 1
    assert len(pushed(f"{CALL}{CALL}").tool_calls) == 2


@pytest.mark.parametrize(
    ("engine", "num_complete"), [("stop", 2), ("length", 1), ("cancelled", 1), (None, 1)]
)
def test_a_call_that_is_cut_off_is_not_complete(engine: Any, num_complete: int) -> None:
    response = pushed(CALL + CALL[: CALL.index("1}")])
    if engine is not None:
        response.finish(engine)
    assert len(response.tool_calls) == 2
    assert len(response.complete_tool_calls) == num_complete


def test_a_whole_last_call_is_complete_at_any_end() -> None:
    response = pushed(CALL)
    response.finish("length")
    assert response.complete_tool_calls == response.tool_calls
    assert response.tool_calls == [ToolCall("functions.time:0", "time", '{"a": 1}')]


def test_call_ids_are_the_callers() -> None:
    response = pushed(
        f"{CALL}{CALL}", make_call_id=lambda name, index: numbered_call_id(name, 5 + index)
    )
    assert [call.id for call in response.tool_calls] == ["functions.time:5", "functions.time:6"]
    assert response.tool_calls[0].to_openai() == {
        "id": "functions.time:5",
        "type": "function",
        "function": {"name": "time", "arguments": '{"a": 1}'},
    }
