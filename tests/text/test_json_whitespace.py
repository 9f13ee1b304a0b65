"""White space in constrained JSON: at most one space after a comma and a colon, none elsewhere."""

import json
from collections.abc import Iterator

import pytest
from constrained import accepts

from hybridmoe.demo import demo_path
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.text.grammar_compiler import GrammarCompiler
from hybridmoe.text.json_whitespace import set_json_whitespace, set_lark_whitespace
from hybridmoe.text.output_format import OutputFormat, ToolCallFormat
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_syntax import choose_syntax

ALLOWED = ('{"a":1,"b":[1,2]}', '{"a": 1, "b": [1, 2]}', '{"a": 1,"b":[]}', '{"a":{"b": {}}}')
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
def tokenizer() -> Iterator[Tokenizer]:
    with GGUFFile.open(demo_path()) as file:
        tokenizer = Tokenizer(file.path, file.metadata)
        yield tokenizer
        tokenizer.close()


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, choose_syntax(tokenizer))


@pytest.mark.parametrize(
    "format",
    [
        OutputFormat.json_object(),
        OutputFormat.json_schema(SCHEMA),
        OutputFormat.json_schema(NESTED),
        OutputFormat.lark_or_gbnf(LARK),
        OutputFormat.lark_or_gbnf(
            'start: %json {"type": "object", "x-guidance": {"whitespace_flexible": true}}'
        ),
    ],
    ids=["object", "schema", "nested", "lark", "lark options"],
)
def test_all_json_formats_have_the_same_white_space(
    compiler: GrammarCompiler, tokenizer: Tokenizer, format: OutputFormat
) -> None:
    for text in (*ALLOWED, *REFUSED):
        assert accepts(compiler.compile_format(format), tokenizer, text) == (text in ALLOWED), text


@pytest.mark.parametrize("choice", ["auto", "required", "f"])
@pytest.mark.parametrize("strict", [False, True])
def test_so_do_arguments_of_calls(
    compiler: GrammarCompiler, tokenizer: Tokenizer, choice: str, strict: bool
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": NESTED, "strict": strict}}
    head = "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
    for text in (*ALLOWED, *REFUSED):
        call = (
            f"{head}<|tool_call_argument_begin|>{text}<|tool_call_end|><|tool_calls_section_end|>"
        )
        constraint = compiler.compile_response(
            OutputFormat.json_object(), ToolCallFormat([tool], choice)
        )
        assert accepts(constraint, tokenizer, call) == (text in ALLOWED), text


def test_other_options_are_kept() -> None:
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
def test_a_grammar_without_a_schema_is_not_changed(text: str) -> None:
    assert set_lark_whitespace(text) == text


def test_all_schemas_of_a_grammar_are_changed() -> None:
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
