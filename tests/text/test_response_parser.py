"""A response's tokens become text, reasoning and tool calls, also with malformed calls."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed_response import parse_response, tiny_kimi_tokenizer
from tiny_vocab import make_vocabulary

from hybridmoe.text.response_parser import (
    ArgumentsPart,
    CallEnd,
    CallStart,
    ReasoningPart,
    ResponseParser,
    TextPart,
)
from hybridmoe.text.tokenizer import Tokenizer

TOKENIZER = tiny_kimi_tokenizer()
CALL = '<|tool_call_begin|>functions.time:0<|tool_call_argument_begin|> {"a": 1} <|tool_call_end|>'
BEGIN, END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


def parsed(text: str, **options: Any) -> tuple[str, str, list[tuple[str, str]], ResponseParser]:
    """Text, reasoning and calls of a response written with its marks."""
    parts = ResponseParser(TOKENIZER, **{"may_call": True, "may_think": True} | options)
    shown = {TextPart: "", ReasoningPart: ""}
    calls: list[tuple[str, str]] = []
    open_call = None
    out = [part for i in TOKENIZER.encode(text, parse_special=True) for part in parts.push(i)]
    for part in [*out, *parts.finish()]:
        if isinstance(part, TextPart | ReasoningPart):
            assert part.text
            shown[type(part)] += part.text
        elif isinstance(part, CallStart):
            assert open_call is None
            assert part.index == len(calls)
            open_call = part.index
            calls.append((part.name, ""))
        elif isinstance(part, ArgumentsPart):
            assert part.index == open_call
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
        elif isinstance(part, CallEnd):
            assert part.index == open_call
            open_call = None
    assert open_call is None
    return shown[TextPart], shown[ReasoningPart], calls, parts


ONE = [("time", '{"a": 1}')]


@pytest.mark.parametrize(
    ("text", "visible", "reasoning", "calls"),
    [
        ("plain °é text", "plain °é text", "", []),
        ("<think>why</think>so", "so", "why", []),
        ("<think>why", "", "why", []),
        ("a</think>b", "ab", "", []),
        (f"Look: {BEGIN}{CALL}{END} done", "Look:  done", "", ONE),
        (f"{BEGIN}{CALL}{CALL}", "", "", ONE * 2),
        (f"<think>hm{BEGIN}{CALL}{END}", "", "hm", ONE),
        (f"<think>hm{CALL}</think>x", "x", "hm", ONE),
        (f"{BEGIN}junk{CALL}junk{END}b", "b", "", ONE),
        (f"a{CALL}b", "ab", "", ONE),
        (f"<|tool_call_section_begin|>{CALL}", "", "", ONE),
        (CALL.replace("functions.", "").replace(":0", ""), "", "", ONE),
        (CALL.replace("time", "get-time"), "", "", [("get-time", '{"a": 1}')]),
        (CALL.replace('{"a": 1}', ""), "", "", [("time", "{}")]),
        (CALL.replace("<|tool_call_end|>", ""), "", "", ONE),
        (CALL.replace("functions.time:0", ""), ' {"a": 1} ', "", []),
        (CALL.replace("functions.time:0", "3"), '3 {"a": 1} ', "", []),
        (
            f"{BEGIN}<|tool_call_begin|>functions.time:0<|tool_call_end|>{CALL}",
            "",
            "",
            [("time", "{}"), *ONE],
        ),
        (CALL.replace("<|tool_call_argument_begin|>", ""), "", "", ONE),
        (CALL.replace('{"a": 1}', '```json\n{"a": 1}\n```'), "", "", ONE),
        (CALL.replace('{"a": 1}', '```\n{"a": 1}```'), "", "", ONE),
        (CALL.replace('{"a": 1}', "``"), "", "", [("time", "``")]),
        ("Well<|tool_call_begin|>functions.ti", "Well", "", []),
        ("a<|tool_call_end|>b<|tool_call_argument_begin|>c", "abc", "", []),
        (CALL[:-18], "", "", [("time", '{"a": 1}')]),
    ],
)
def test_strays_that_models_are_known_for(
    text: str, visible: str, reasoning: str, calls: list[tuple[str, str]]
) -> None:
    assert parsed(text)[:3] == (visible, reasoning, calls)


MARKS = [BEGIN, END, "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"]


@given(st.lists(st.sampled_from([*MARKS, "functions.f:1", "g", '{"a":1}', "°", "```"])))
def test_parts_are_in_order_however_marks_are_mixed(pieces: list[str]) -> None:
    ids = TOKENIZER.encode("".join(pieces), parse_special=True)
    text, _, calls, _ = parsed("".join(pieces))
    whole = parse_response(ids, TOKENIZER).tool_calls
    assert [(call.name, call.arguments) for call in whole] == calls
    assert "<|" not in text


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {key: {} for key in keys},
                "required": list(keys),
            },
        },
    }
    for name, keys in (("get_weather", ["city"]), ("get-Time", ["zone"]), ("md5", ["text"]))
]
OSLO = '{"city":"Oslo"}'


@pytest.mark.parametrize(
    ("call_id", "arguments", "expected"),
    [
        ("functions.get_weather:0", OSLO, "get_weather"),
        ("functions.get_weather5", OSLO, "get_weather"),
        ("functionsget_weather5", OSLO, "get_weather"),
        ("functions_get_weather_1", OSLO, "get_weather"),
        ("Functions.Get_Weather:0", OSLO, "get_weather"),
        ("tool.get_weather#12", OSLO, "get_weather"),
        ("get_weather", OSLO, "get_weather"),
        ("get weather:0", OSLO, "get_weather"),
        ("functions.get_time:3", "{}", "get-Time"),
        ("functions.md5:0", "{}", "md5"),
        ("functions.md5", "{}", "md5"),
        ("functions.md51", "{}", "md5"),
        ("3", OSLO, "get_weather"),
        ("call00003", '{"zone":1}', "get-Time"),
        ("toolu_01abc", OSLO, "get_weather"),
        ("functions.weather:0", OSLO, "get_weather"),
        ("3", "{}", None),
        ("3", '{"city":"Oslo","zone":1}', None),
        ("3", "[1]", None),
        ("3", '{"city":', None),
        ("functions.delete_all:0", '{"path":"/"}', None),
        ("functions.md:0", "{}", None),
        ("", "", None),
        ("1" * 5000 + "x", "{}", None),
    ],
)
def test_a_call_is_of_a_declared_tool_or_text(
    call_id: str, arguments: str, expected: str | None
) -> None:
    written = f"<|tool_call_begin|>{call_id}<|tool_call_argument_begin|>{arguments}"
    for text in (f"{BEGIN}{written}<|tool_call_end|>{END}", f"Hm.{written}", f"{BEGIN}{written}"):
        visible, _, calls, _ = parsed(text, tools=TOOLS)
        if expected is None:
            assert (visible.removeprefix("Hm."), calls) == (call_id + arguments, [])
        else:
            assert (visible.removeprefix("Hm."), calls) == ("", [(expected, arguments)])


@pytest.mark.parametrize(
    "parameters", [None, 3, {}, {"properties": 3}, {"properties": {"a": {}}, "required": [{}, 3]}]
)
def test_schemas_that_are_none_do_no_harm(parameters: object) -> None:
    given = (parameters, {"properties": {"b": {}}, "required": ["b"]})
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in zip("fg", given, strict=True)
    ]
    calls = parsed('<|tool_call_begin|>3<|tool_call_argument_begin|>{"a":1}', tools=tools)[2]
    assert len(calls) == (isinstance(parameters, dict) and "required" in parameters)


def test_calls_of_deepseek_are_calls() -> None:
    vocabulary = make_vocabulary("deepseek-v3")
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",  # how text is cut does not matter here
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.types,
        "tokenizer.ggml.merges": vocabulary.merges,
        "tokenizer.ggml.eos_token_id": vocabulary.eos_id,
    }
    tokenizer = Tokenizer(Path("tiny.gguf"), keys)
    newer = f"<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{OSLO}<｜tool▁call▁end｜>"
    older = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>md5\n```json\n{}\n```<｜tool▁call▁end｜>"
    text = f"So: <｜tool▁calls▁begin｜>{newer}\n{older}<｜tool▁calls▁end｜>"
    response = parse_response(tokenizer.encode(text, parse_special=True), tokenizer, TOOLS)
    assert response.text == "So: "
    calls = [(call.name, call.arguments) for call in response.tool_calls]
    assert calls == [("get_weather", OSLO), ("md5", "{}")]


def test_a_stop_string_ends_the_answer_and_is_named() -> None:
    text, _, calls, parts = parsed(f"one two three{CALL}", stop=["wo", "three"])
    assert (text, calls) == ("one t", [])
    assert parts.has_stopped
    assert parts.stop_string == "wo"


def test_stop_strings_do_not_look_into_thoughts_and_arguments() -> None:
    text, reasoning, calls, parts = parsed(f"<think>a b</think>b{CALL}", stop=["a"])
    assert (text, reasoning, calls) == ("b", "a b", ONE)
    assert parts.stop_string is None


def test_marks_that_are_not_asked_for_are_hidden_or_text() -> None:
    text = parsed(f"<think>x</think>{CALL}", may_call=False, may_think=False)[0]
    assert text.startswith("<think>x</think>")
    assert "<|" not in text


def test_a_prompt_may_have_opened_the_thinking() -> None:
    assert parsed("why</think>so", is_thinking=True)[:2] == ("so", "why")


def test_only_tokens_of_the_text_are_text() -> None:
    parts = ResponseParser(TOKENIZER, may_call=True, may_think=True)
    seen = ""
    for token_id in TOKENIZER.encode(f"<think>x</think>yes{CALL}no", parse_special=True):
        if parts.is_text(token_id):
            seen += TOKENIZER.decode([token_id])
        parts.push(token_id)
    assert seen == "yesno"
