"""Compiled constraints: outputs of a random model fit them; unsupported ones are refused."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from constrained import accepts, accepts_ids
from engine_run import request, run
from hostile_grammars import lark_chain, schema_chain
from parsed_response import parse_response

import hybridmoe
from hybridmoe.errors import ConfigError
from hybridmoe.text.grammar_compiler import GrammarCompiler
from hybridmoe.text.matcher_constraint import MatcherConstraint
from hybridmoe.text.output_format import OutputFormat, ToolCallFormat
from hybridmoe.text.thinking import Thinking

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Oslo", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "time-now", "parameters": {"maxProperties": 0}}},
]
DEEP = {"function": {"name": "f", "strict": True, "parameters": schema_chain(3000)}}


pytestmark = pytest.mark.usefixtures("exact_kernels")  # a seed gives the same output everywhere


@pytest.fixture(scope="module")
def llm() -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load() as llm:
        yield llm


@pytest.fixture(scope="module")
def compiler(llm: hybridmoe.LLM) -> GrammarCompiler:
    return GrammarCompiler(llm.tokenizer, llm.tool_syntax)


def write(llm: hybridmoe.LLM, *constraints: MatcherConstraint, **options: Any) -> list[list[int]]:
    """Sample an output under each constraint, in one batch at a high temperature."""
    prompt = llm.encode_chat([{"role": "user", "content": "Hello"}])
    options = {"temperature": 2.0, "num_tokens": 400, **options}
    requests = [
        request(prompt, constraint=constraint, seed=i, **options)
        for i, constraint in enumerate(constraints)
    ]
    responses = run(llm.engine, *requests)
    assert [response.end.reason for response in responses] == ["stop"] * len(responses)
    return [response.ids for response in responses]


def test_output_fits_a_schema(llm: hybridmoe.LLM, compiler: GrammarCompiler) -> None:
    for ids in write(
        llm, *(compiler.compile_format(OutputFormat.json_schema(SCHEMA)) for _ in range(8))
    ):
        data = json.loads(llm.tokenizer.decode(ids))
        assert data.keys() == {"name", "age", "tags"}
        assert len(data["name"]) <= 12
        assert 0 <= data["age"] <= 150
        assert set(data["tags"]) <= {"a", "b"} and len(data["tags"]) <= 3


def test_output_is_an_object(llm: hybridmoe.LLM, compiler: GrammarCompiler) -> None:
    bias = {token_id: 8.0 for mark in '"}' for token_id in llm.tokenizer.encode(mark)}
    (ids,) = write(
        llm, compiler.compile_format(OutputFormat.json_object()), logit_bias=bias
    )  # or it never comes to an end
    assert isinstance(json.loads(llm.tokenizer.decode(ids)), dict)


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('root ::= "x" [0-9] [0-9]? ("." [a-c])?', r"x[0-9]{1,2}(\.[a-c])?"),
        ('start: "yes" | "no" WORD\nWORD: /[a-z]{1,4}/', "yes|no[a-z]{1,4}"),
    ],
)
def test_output_fits_a_grammar(
    llm: hybridmoe.LLM, compiler: GrammarCompiler, grammar: str, pattern: str
) -> None:
    for ids in write(
        llm, *(compiler.compile_format(OutputFormat.lark_or_gbnf(grammar)) for _ in range(4))
    ):
        assert re.fullmatch(pattern, llm.tokenizer.decode(ids))


def test_a_constrained_request_beside_a_free_one(
    llm: hybridmoe.LLM, compiler: GrammarCompiler
) -> None:
    prompt = llm.encode_chat([{"role": "user", "content": "Hello"}])
    free, bound = run(
        llm.engine,
        request(prompt, 30),
        request(prompt, 30, constraint=compiler.compile_format(OutputFormat.regex("[ab]{7}é?"))),
    )
    assert free.ids == run(llm.engine, request(prompt, 30))[0].ids
    assert re.fullmatch("[ab]{7}é?", llm.tokenizer.decode(bound.ids))


def test_masks_of_the_thread_equal_those_inline(
    llm: hybridmoe.LLM, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = []
    for budget_s in (-1.0, 1e-4, 1e3):  # in the thread; both; inline
        monkeypatch.setattr("hybridmoe.engine.constraint_masks.INLINE_BUDGET_S", budget_s)
        responses.append(
            write(
                llm, *(compiler.compile_format(OutputFormat.json_schema(SCHEMA)) for _ in range(4))
            )
        )
    assert responses[0] == responses[1] == responses[2]


@pytest.mark.parametrize("choice", ["required", "get_weather", "auto"])
def test_tool_calls_have_the_models_form(
    llm: hybridmoe.LLM, compiler: GrammarCompiler, choice: str
) -> None:
    strict = [{**t, "function": {**t["function"], "strict": True}} for t in TOOLS]
    calls = ToolCallFormat(strict, choice, first_index=3)
    make = (
        compiler.compile_lazy_calls
        if calls.is_auto
        else functools.partial(compiler.compile_response, None)
    )
    constraints = [make(calls) for _ in range(6)]
    bias = {llm.tokenizer.special_id("<|tool_call_begin|>"): 3.0}
    seen = 0
    for ids in write(llm, *constraints, logit_bias=bias, temperature=1.0):
        response = parse_response(ids, llm.tokenizer)
        calls = response.tool_calls
        written = llm.tokenizer.decode(ids, skip_special=False)
        assert choice == "auto" or (calls and not response.text)
        assert choice != "get_weather" or len(calls) == 1
        for i, call in enumerate(calls):
            begin, arguments_begin = "<|tool_call_begin|>", "<|tool_call_argument_begin|>"
            assert f"{begin}functions.{call.name}:{3 + i}{arguments_begin}" in written
            data = json.loads(call.arguments)
            assert data == {} if call.name == "time-now" else data["city"] in ("Oslo", "Rome")
        seen += len(calls)
    assert seen or choice == "auto"


@pytest.mark.parametrize(
    "format",
    [
        OutputFormat.json_schema(SCHEMA),
        OutputFormat.regex('a/b"[0-9]{2}'),
        OutputFormat.lark_or_gbnf('root ::= "yes" | "no"'),
    ],
    ids=lambda format: format.name,
)
def test_a_response_is_a_call_or_fits_the_format(
    llm: hybridmoe.LLM, compiler: GrammarCompiler, format: OutputFormat
) -> None:
    section = llm.tokenizer.special_id("<|tool_calls_section_begin|>")
    strict = [{**t, "function": {**t["function"], "strict": True}} for t in TOOLS]
    for preference in (-100.0, 100.0):
        constraint = compiler.compile_response(format, ToolCallFormat(strict, "auto"))
        bias = {section: preference}
        (ids,) = write(llm, constraint, logit_bias=bias, temperature=1.0)
        response = parse_response(ids, llm.tokenizer)
        calls = response.tool_calls
        assert bool(calls) == (preference > 0) == (not response.text)
        assert calls or accepts_ids(compiler.compile_format(format), llm.tokenizer, ids)
        for call in calls:
            data = json.loads(call.arguments)
            assert data == {} or data["city"] in ("Oslo", "Rome")


CALL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    '<|tool_call_argument_begin|>{"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>'
)


@pytest.mark.parametrize(
    ("thinking", "text", "expected"),
    [
        ("none", "12", True),
        ("none", CALL, True),
        ("none", f"12{CALL}", False),
        ("none", "<think>so</think>12", False),
        ("may", "12", True),
        ("may", "<think>so</think>12", True),
        ("may", "<think></think>12", True),
        ("may", f"<think>so</think>{CALL}", True),
        ("may", "<think>so</think>", False),
        ("may", "<think>so</think>so", False),
        ("may", "<think>so</think><think>so</think>12", False),
        ("may", "so</think>12", False),
        ("open", "so\nso</think>12", True),
        ("open", "</think>12", True),
        ("open", f"so</think>{CALL}", True),
        ("open", "12", False),
        ("open", "<think>so</think>12", False),
    ],
)
def test_thinking_comes_first_and_ends(
    llm: hybridmoe.LLM, compiler: GrammarCompiler, thinking: Thinking, text: str, expected: bool
) -> None:
    constraint = compiler.compile_response(
        OutputFormat.regex("[0-9]{2}"), ToolCallFormat(TOOLS, "auto"), thinking
    )
    assert accepts(constraint, llm.tokenizer, text) == expected


def test_parallel_calls_can_be_forbidden(llm: hybridmoe.LLM, compiler: GrammarCompiler) -> None:
    constraint = compiler.compile_response(
        None, ToolCallFormat(TOOLS, "required", is_parallel=False)
    )
    bias = {llm.tokenizer.special_id("<|tool_call_begin|>"): 100.0}
    (ids,) = write(llm, constraint, logit_bias=bias)
    assert len(parse_response(ids, llm.tokenizer).tool_calls) == 1


def test_only_strict_tools_need_supported_schemas(
    llm: hybridmoe.LLM, compiler: GrammarCompiler
) -> None:
    schema = {
        "properties": {"a": {"oneOf": [{"type": "string"}, {"type": "integer"}]}},
        "required": ["a"],
        "additionalProperties": False,
        "if": {"required": ["a"]},
    }
    tool = {"name": "f", "parameters": schema}
    constraint = compiler.compile_response(None, ToolCallFormat([{"function": tool}], "required"))
    head = "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
    for value, expected in (("3", True), ('"x"', True), ("3.5", False), ("[]", False)):
        call = (
            f'{head}<|tool_call_argument_begin|>{{"a": {value}}}'
            "<|tool_call_end|><|tool_calls_section_end|>"
        )
        assert accepts(constraint.copy(), llm.tokenizer, call) == expected, value
    assert constraint.relaxed == ("f: $.if",)
    strict = ToolCallFormat([{"function": {**tool, "strict": True}}], "required")
    assert compiler.compile_response(None, strict).relaxed == ("f: $.if",)


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_an_error_names_the_tool_and_the_path(compiler: GrammarCompiler, choice: str) -> None:
    none = {"type": "integer", "minimum": 5, "maximum": 1}
    schema = {"type": "object", "properties": {"a": none}, "required": ["a"]}
    inner = {"type": "object", "properties": {"b": {}, "c": schema}, "required": ["c"]}
    for parameters, path in ((schema, "$.properties.a"), (inner, "$.properties.c.properties.a")):
        tools = [*TOOLS, {"function": {"name": "f", "strict": True, "parameters": parameters}}]
        calls = ToolCallFormat(tools, choice)
        with pytest.raises(ConfigError) as caught:
            if choice == "auto":
                compiler.compile_lazy_calls(calls)
            else:
                compiler.compile_response(None, calls)
        assert str(caught.value).startswith(f"tools: f: {path}: "), caught.value
        assert "section" not in str(caught.value)  # which the client has not written


def test_a_copy_has_its_own_state(llm: hybridmoe.LLM, compiler: GrammarCompiler) -> None:
    first = compiler.compile_format(OutputFormat.regex("a[bc]"))
    second = first.copy()
    (a,) = llm.tokenizer.encode("a")
    before = second.mask().copy()
    first.accept(a)
    assert np.array_equal(second.mask(), before)
    assert not np.array_equal(first.mask(), before)


def test_a_forbidden_token_is_an_error(compiler: GrammarCompiler) -> None:
    with pytest.raises(ConfigError, match="regex: "):
        compiler.compile_format(OutputFormat.regex("a")).accept(0)


def test_an_unusable_format_is_refused_in_one_line(compiler: GrammarCompiler) -> None:
    def text(format: OutputFormat) -> MatcherConstraint:
        return compiler.compile_format(format)

    for refused, message in (
        (lambda: text(OutputFormat.regex("(")), "regex: .*unclosed group"),
        (
            lambda: text(OutputFormat.json_schema({"type": "integer", "minimum": 2, "maximum": 1})),
            "json_schema: .*minimum",
        ),
        (lambda: text(OutputFormat.json_schema({"enum": [{1, 2}]})), "json_schema: "),
        (lambda: text(OutputFormat.lark_or_gbnf("root ::= foo")), "grammar: .*foo"),
        (lambda: text(OutputFormat.lark_or_gbnf("")), "grammar: "),
        (
            lambda: text(OutputFormat.lark_or_gbnf('start: "' + "x" * (1 << 20) + '"')),
            "grammar: more than",
        ),
        (
            lambda: compiler.compile_response(None, ToolCallFormat(TOOLS, "nope")),
            "tool_choice 'nope': no such tool",
        ),
        (lambda: compiler.compile_lazy_calls(ToolCallFormat([], "auto")), "no such tool"),
        (
            lambda: compiler.compile_response(None, ToolCallFormat([DEEP], "required")),
            "tools: nested more than 2000",
        ),
        (
            lambda: compiler.compile_lazy_calls(ToolCallFormat([DEEP], "auto")),
            "tools: nested more than 2000",
        ),
        (
            lambda: text(OutputFormat.json_schema(schema_chain(3000))),
            "json_schema: nested more than 2000",
        ),
        (
            lambda: text(OutputFormat.lark_or_gbnf(lark_chain(3000, "T"))),
            "grammar: nested more than 2000",
        ),
        (
            lambda: text(OutputFormat.lark_or_gbnf('start: A\nA: "x" & "y"')),
            "grammar: no text fits it",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            refused()
        assert "\n" not in str(caught.value)
