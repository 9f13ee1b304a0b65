"""An answer's tokens become text, reasoning and tool calls, however the model strays."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_vocab import make_vocabulary

from hybridmoe.text.answer_parts import (
    AnswerParts,
    ArgumentsPart,
    CallEnd,
    CallStart,
    ReasoningPart,
    TextPart,
)
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_calls import split_tool_calls


def _tokenizer() -> Tokenizer:
    vocabulary = make_vocabulary("kimi-k2")
    tokens = [*vocabulary.tokens, "<|tool_call_section_begin|>"]
    return Tokenizer(
        Path("tiny.gguf"),
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "kimi-k2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [*vocabulary.types, 3],
            "tokenizer.ggml.merges": vocabulary.merges,
            "tokenizer.ggml.eos_token_id": vocabulary.eos_id,
        },
    )


TOKENIZER = _tokenizer()
CALL = '<|tool_call_begin|>functions.time:0<|tool_call_argument_begin|> {"a": 1} <|tool_call_end|>'
BEGIN, END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


def sorted_out(text: str, **options: Any) -> tuple[str, str, list[tuple[str, str]], AnswerParts]:
    """Text, reasoning and calls of an answer written with its marks."""
    parts = AnswerParts(TOKENIZER, **{"may_call": True, "may_think": True} | options)
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
        (CALL.replace("functions.time:0", ""), "", "", []),
        (f"{BEGIN}<|tool_call_begin|>functions.time:0<|tool_call_end|>{CALL}", "", "", ONE),
        ("a<|tool_call_end|>b<|tool_call_argument_begin|>c", "abc", "", []),
        (CALL[:-18], "", "", [("time", '{"a": 1}')]),
    ],
)
def test_strays_that_models_are_known_for(
    text: str, visible: str, reasoning: str, calls: list[tuple[str, str]]
) -> None:
    assert sorted_out(text)[:3] == (visible, reasoning, calls)


MARKS = [BEGIN, END, "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"]


@given(st.lists(st.sampled_from([*MARKS, "functions.f:1", "g", '{"a":1}', "°"]), max_size=12))
def test_whole_calls_are_those_of_the_parser_that_sees_all_at_once(pieces: list[str]) -> None:
    ids = TOKENIZER.encode("".join(pieces), parse_special=True)
    expected = [
        (call["function"]["name"], call["function"]["arguments"])
        for call in split_tool_calls(ids, TOKENIZER)[1]
    ]
    calls = sorted_out("".join(pieces))[2]
    assert [call for call in calls if call in expected] == expected


def test_a_stop_string_ends_the_answer_and_is_named() -> None:
    text, _, calls, parts = sorted_out(f"one two three{CALL}", stop=["wo", "three"])
    assert (text, calls) == ("one t", [])
    assert parts.has_stopped
    assert parts.stop_string == "wo"


def test_stop_strings_do_not_look_into_thoughts_and_arguments() -> None:
    text, reasoning, calls, parts = sorted_out(f"<think>a b</think>b{CALL}", stop=["a"])
    assert (text, reasoning, calls) == ("b", "a b", ONE)
    assert parts.stop_string is None


def test_marks_that_are_not_asked_for_are_hidden_or_text() -> None:
    text = sorted_out(f"<think>x</think>{CALL}", may_call=False, may_think=False)[0]
    assert text.startswith("<think>x</think>")
    assert "<|" not in text


def test_a_prompt_may_have_opened_the_thinking() -> None:
    assert sorted_out("why</think>so", is_thinking=True)[:2] == ("so", "why")


def test_only_tokens_of_the_text_are_text() -> None:
    parts = AnswerParts(TOKENIZER, may_call=True, may_think=True)
    seen = ""
    for token_id in TOKENIZER.encode(f"<think>x</think>yes{CALL}no", parse_special=True):
        if parts.is_text(token_id):
            seen += TOKENIZER.decode([token_id])
        parts.push(token_id)
    assert seen == "yesno"
