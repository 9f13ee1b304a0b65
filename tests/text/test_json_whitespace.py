"""White space in constrained JSON: at most one space behind a comma and a colon, nowhere else."""

import json
from collections.abc import Iterator

import pytest

import hybridmoe
from hybridmoe.text.grammar_compiler import (
    GrammarCompiler,
    MatcherConstraint,
    OutputFormat,
    ToolCallFormat,
)
from hybridmoe.text.json_whitespace import set_json_whitespace, set_lark_whitespace

KEPT = ('{"a":1,"b":[1,2]}', '{"a": 1, "b": [1, 2]}', '{"a": 1,"b":[]}', '{"a":{"b": {}}}')
REFUSED = (
    '{ "a":1}', '{"a":1 }', '{"a" :1}', '{"a":  1}', '{"a":\n1}', '{"a":1,\n"b":2}',
    '{"a":1 ,"b":2}', '{"a":[ 1]}', '{"a":{ "b":1}}', '{"a":\t1}', ' {"a":1}', '{"a":1} ',
    '{"a":1}\n',
)  # fmt: skip
LOOSE = {"whitespace_flexible": True, "whitespace_pattern": "[ \n]*", "key_separator": " *: *"}
SCHEMA = {"type": "object"}
NESTED = {
    **SCHEMA,
    "x-guidance": LOOSE,
    "properties": {"a": {"x-guidance": LOOSE}, "b": {"$ref": "#/$defs/any"}},
    "$defs": {"any": {"x-guidance": LOOSE}},
}
LARK = "start: %json " + json.dumps(NESTED)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    with hybridmoe.load() as llm:
        yield GrammarCompiler(llm.tokenizer)


def fits(compiler: GrammarCompiler, constraint: MatcherConstraint, text: str) -> bool:
    """True where the text may be written, and end there."""
    tokenizer = compiler._tokenizer

    def allows(token_id: int) -> bool:
        return bool(constraint.mask()[token_id // 32] >> (token_id % 32) & 1)

    for token_id in tokenizer.encode(text, parse_special=True):
        if constraint.is_done() or not allows(token_id):
            return False
        constraint.accept(token_id)
    return constraint.is_done() or any(map(allows, tokenizer.eos_ids))


@pytest.mark.parametrize(
    "form",
    [
        OutputFormat.json_object(),
        OutputFormat.json_schema(SCHEMA),
        OutputFormat.json_schema(NESTED),
        OutputFormat.grammar(LARK),
        OutputFormat.grammar(
            'start: %json {"type": "object", "x-guidance": {"whitespace_flexible": true}}'
        ),
    ],
    ids=["object", "schema", "nested", "lark", "lark options"],
)
def test_every_json_form_is_written_in_one_style(
    compiler: GrammarCompiler, form: OutputFormat
) -> None:
    for text in (*KEPT, *REFUSED):
        assert fits(compiler, compiler.compile_format(form), text) == (text in KEPT), text


@pytest.mark.parametrize("choice", ["auto", "required", "f"])
@pytest.mark.parametrize("strict", [False, True])
def test_arguments_of_calls_are_too(compiler: GrammarCompiler, choice: str, strict: bool) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": NESTED, "strict": strict}}
    head = "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
    for text in (*KEPT, *REFUSED):
        call = (
            f"{head}<|tool_call_argument_begin|>{text}<|tool_call_end|><|tool_calls_section_end|>"
        )
        constraint = compiler.compile_response(
            OutputFormat.json_object(), ToolCallFormat([tool], choice)
        )
        assert fits(compiler, constraint, call) == (text in KEPT), text


def test_other_options_stay() -> None:
    options = set_json_whitespace({"type": "object", "x-guidance": {"lenient": True, **LOOSE}})[
        "x-guidance"
    ]
    assert options["lenient"] is True
    assert options["whitespace_flexible"] is False
    assert options["key_separator"] == ": ?"
    assert set_json_whitespace({"x-guidance": 3})["x-guidance"]["item_separator"] == ", ?"


@pytest.mark.parametrize(
    "text",
    [
        'start: "%json {}"',
        r'start: "\"%json {}"',
        "start: /%json {}/",
        r"start: /\/%json {}/",
        "start: A // %json {}",
        "start: A # %json {}",
        "start: <%json> {}",
        "start: %json {",
        "start: %json [1]",
        "start: %json",
        'start: "',
    ],
)
def test_text_that_is_no_schema_is_left_alone(text: str) -> None:
    assert set_lark_whitespace(text) == text


def test_every_schema_of_a_grammar_is_styled() -> None:
    text = 'start: a "%json {}" | %json{"const": "}"}\na: %json\n{"enum": ["%json {}", 1]} /x/ // y'
    first, second = (
        json.dumps(set_json_whitespace(s)) for s in ({"const": "}"}, {"enum": ["%json {}", 1]})
    )
    assert (
        set_lark_whitespace(text)
        == f'start: a "%json {{}}" | %json{first}\na: %json\n{second} /x/ // y'
    )
    assert set_lark_whitespace("start: %json true") == "start: %json " + json.dumps(
        set_json_whitespace({})
    )
