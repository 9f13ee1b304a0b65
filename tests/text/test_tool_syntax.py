"""Tool calls of every family: read token by token, and constrained to what is read again."""

import itertools
import json
import random
import re
from typing import Any

import numpy as np
import pytest
from constrained import accepts
from family_tokenizers import FAMILIES, family

from hybridmoe.text.grammar_compiler import GrammarCompiler
from hybridmoe.text.output_format import ToolCallFormat
from hybridmoe.text.response import Response
from hybridmoe.text.response_parser import ResponseParser

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1},
                "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
TOOLS = [TOOL, NOW]
ARGUMENTS = {"city": 'Os"lo\n 5 °', "days": 3, "tags": ["a"]}


def kimi(name: str, arguments: dict[str, Any], number: int) -> str:
    written = json.dumps(arguments, ensure_ascii=False)
    head = f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>"
    return f"{head}{written}<|tool_call_end|>"


def deepseek_v3(name: str, arguments: dict[str, Any], number: int) -> str:
    written = f"{name}\n```json\n{json.dumps(arguments, ensure_ascii=False)}\n```"
    line = "\n" if number else ""
    return f"{line}<｜tool▁call▁begin｜>function<｜tool▁sep｜>{written}<｜tool▁call▁end｜>"


def deepseek_v31(name: str, arguments: dict[str, Any], number: int) -> str:
    written = json.dumps(arguments, ensure_ascii=False)
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{written}<｜tool▁call▁end｜>"


def dsml(name: str, arguments: dict[str, Any], number: int) -> str:
    out = f'<｜DSML｜invoke name="{name}">\n'
    for key, value in arguments.items():
        is_string = isinstance(value, str)
        written = value if is_string else json.dumps(value)
        kind = "true" if is_string else "false"
        out += f'<｜DSML｜parameter name="{key}" string="{kind}">{written}</｜DSML｜parameter>\n'
    return f"{out}</｜DSML｜invoke>\n"


def glm(name: str, arguments: dict[str, Any], number: int) -> str:
    line = "\n" if number else ""
    out = f"{line}<tool_call>{name}\n"
    for key, value in arguments.items():
        written = value if isinstance(value, str) else json.dumps(value)
        out += f"<arg_key>{key}</arg_key>\n<arg_value>{written}</arg_value>\n"
    return f"{out}</tool_call>"


SECTIONS = {
    "kimi": ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", kimi),
    "deepseek-v3": ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", deepseek_v3),
    "deepseek-v3.1": ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", deepseek_v31),
    "dsml": ("<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>", dsml),
    "glm": ("", "", glm),
}


def written(name: str, *calls: tuple[str, dict[str, Any]]) -> str:
    begin, end, write = SECTIONS[name]
    return begin + "".join(write(*call, i) for i, call in enumerate(calls)) + end


def read(name: str, text: str, *, is_cut: bool = False, **options: Any) -> Response:
    tokenizer, syntax = family(name)
    options = {"tools": TOOLS, "may_call": True, "may_think": True, **options}
    response = Response(ResponseParser(tokenizer, syntax=syntax, **options))
    for token_id in tokenizer.encode(text, parse_special=True):
        response.push(token_id)
    response.finish("length" if is_cut else "stop")
    return response


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_are_read_from_the_text_around_them(name: str) -> None:
    response = read(name, f"Well.{written(name, ('look_up', ARGUMENTS), ('now', {}))}")
    assert response.text == "Well."
    calls = [(call.name, json.loads(call.arguments)) for call in response.tool_calls]
    assert calls == [("look_up", ARGUMENTS), ("now", {})]


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_may_begin_in_thoughts(name: str) -> None:
    response = read(name, f"Hm.{written(name, ('now', {}))}", is_thinking=True)
    assert (response.reasoning, response.text) == ("Hm.", "")
    assert [call.name for call in response.tool_calls] == ["now"]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_undeclared_call_stays_visible(name: str) -> None:
    response = read(name, written(name, ("delete_all", {"path": "/tmp"}), ("now", {})))
    assert [call.name for call in response.tool_calls] == ["now"]
    assert "delete_all" in response.text and "/tmp" in response.text
    assert read(name, written(name, ("delete_all", {}))).tool_calls == []


@pytest.mark.parametrize("name", FAMILIES)
def test_marks_written_as_text_are_text(name: str) -> None:
    tokenizer, syntax = family(name)
    text = written(name, ("now", {}))
    parser = ResponseParser(tokenizer, syntax=syntax, may_call=True, tools=TOOLS)
    response = Response(parser)
    for token_id in tokenizer.encode_untrusted(text):
        response.push(token_id)
    response.finish("stop")
    assert (response.text, response.tool_calls) == (text, [])


@pytest.mark.parametrize("name", FAMILIES)
def test_arguments_are_streamed(name: str) -> None:
    city = "abc " * 100
    whole = written(name, ("look_up", {"city": city}))
    half = whole[: whole.index(city) + 200]
    response = read(name, half, is_cut=True)
    (call,) = response.tool_calls
    assert call.arguments.replace(" ", "").startswith('{"city":"abcabcabc')
    assert len(call.arguments) > 150 and not call.arguments.endswith("}")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("choice", ["required", "look_up", "auto"])
def test_a_grammar_accepts_what_the_family_writes(name: str, choice: str) -> None:
    tokenizer, syntax = family(name)
    compiler = GrammarCompiler(tokenizer, syntax)
    calls = ToolCallFormat(TOOLS, choice)
    if choice == "auto":
        lazy = compiler.compile_lazy_calls(calls)
        assert lazy is not None
        constraint: Any = lazy
    else:
        constraint = compiler.compile_response(None, calls)
    fits = {
        "plain": ({"city": "Oslo"}, True),
        "all": ({"city": "x<y> & \n", "days": 12, "tags": ["a", "b"], "unit": "C"}, True),
        "no city": ({"days": 1}, False),
        "no integer": ({"city": "x", "days": 1.5}, False),
        "no tag": ({"city": "x", "tags": ["c"]}, False),
        "no unit": ({"city": "x", "unit": "K"}, False),
        "undeclared": ({"city": "x", "other": 1}, False),
    }
    before = "Hm. " if choice == "auto" else ""
    for why, (arguments, expected) in fits.items():
        text = before + written(name, ("look_up", arguments))
        assert accepts(constraint.copy(), tokenizer, text) == expected, why
    for calls_written, expected in (
        ([("now", {})], choice != "look_up"),
        ([("now", {"any": 1})], choice != "look_up"),
        ([("nope", {})], False),
        ([("look_up", {"city": "x"}), ("now", {})], choice != "look_up"),
    ):
        text = before + written(name, *calls_written)
        assert accepts(constraint.copy(), tokenizer, text) == expected, calls_written


LIMITED = {
    "type": "object",
    "properties": {
        "short": {"type": "string", "maxLength": 5},
        "letters": {"type": "string", "pattern": "^[a-c]+$"},
        "maybe": {"type": ["string", "null"]},
        "days": {"type": "integer", "minimum": 3, "maximum": 40},
        "unit": {"enum": ["x", "yy", 3, None]},
        "flags": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
    "required": ["short", "letters", "days", "flags"],
    "additionalProperties": False,
}


def fits_limits(arguments: dict[str, Any]) -> bool:
    return (
        arguments.keys() <= LIMITED["properties"].keys()
        and len(arguments["short"]) <= 5
        and re.fullmatch("[a-c]+", arguments["letters"]) is not None
        and isinstance(arguments.get("maybe"), str | None)
        and arguments["days"] in range(3, 41)
        and arguments.get("unit") in ("x", "yy", 3, None)
        and arguments["flags"] in ({"on": True}, {"on": False})
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_any_output_of_a_grammar_is_calls_that_fit_their_schema(name: str) -> None:
    tokenizer, syntax = family(name)
    tools = [
        {"type": "function", "function": {"name": n, "strict": True, "parameters": LIMITED}}
        for n in ("aa", "aab")
    ]
    compiler = GrammarCompiler(tokenizer, syntax)
    grammar = compiler.compile_response(None, ToolCallFormat(tools, "required"))
    closing = {b'"', b"}", b"<", b"</", *(tokenizer.token_bytes(i) for i in syntax.token_ids)}
    num_whole = 0
    for seed in range(12):
        draw, constraint, ids = random.Random(seed), grammar.copy(), []
        while not constraint.is_done() and len(ids) < 500:
            bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
            allowed = [int(i) for i in bits.nonzero()[0]]
            ends = [i for i in allowed if tokenizer.token_bytes(i) in closing]
            if tokenizer.eos_ids.intersection(allowed) and draw.random() < 0.5:
                break
            others = [i for i in allowed if i not in tokenizer.eos_ids]
            ids.append(draw.choice(ends if ends and draw.random() < 0.6 else others))
            constraint.accept(ids[-1])
        else:
            if not constraint.is_done():
                continue
        num_whole += 1
        response = read(name, tokenizer.decode(ids, skip_special=False), tools=tools)
        assert response.tool_calls and not response.text
        for call in response.tool_calls:
            assert fits_limits(json.loads(call.arguments)), call
    assert num_whole >= 1


VALUES = [
    ({"type": "string"}, "5", "5"),
    ({"type": "string"}, " a\n", " a\n"),
    ({"type": "string"}, '"a"', '"a"'),
    ({"type": "string"}, "", ""),
    ({"type": "integer"}, "5", 5),
    ({"type": "integer"}, " 5\n", 5),
    ({"type": "integer"}, '"5"', 5),
    ({"type": "integer"}, "five", "five"),
    ({"type": "number"}, "-1.5e3", -1500.0),
    ({"type": "number"}, "NaN", "NaN"),
    ({"type": "boolean"}, "True", True),
    ({"type": "boolean"}, "false", False),
    ({"type": "object"}, '{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
    ({"type": "object"}, '{"a": ', '{"a": '),
    ({"type": "array"}, "[" * 5000, "[" * 5000),
    ({"type": ["string", "null"]}, "null", None),
    ({"type": ["string", "null"]}, "5", "5"),
    ({"type": ["string", "integer"]}, "5", 5),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "None", None),
    ({"enum": ["1", "2"]}, "1", "1"),
    ({"enum": [1, 2]}, "1", 1),
    ({"const": "true"}, "true", "true"),
    ({"$ref": "#/$defs/s"}, "7", "7"),
    ({"$ref": "#/$defs/loop"}, "x", "x"),
    ({}, "5", 5),
    ({}, "five", "five"),
    ({}, '"a"', "a"),
    (None, "[1]", [1]),
]


@pytest.mark.parametrize("name", ["glm", "dsml"])
@pytest.mark.parametrize(("schema", "text", "expected"), VALUES)
def test_a_value_has_the_declared_type(name: str, schema: Any, text: str, expected: Any) -> None:
    parameters = {
        "type": "object",
        "properties": {} if schema is None else {"a": schema},
        "$defs": {
            "s": {"type": "string"},
            "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/loop"}]},
        },
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    call = {
        "glm": f"<tool_call>f<arg_key>a</arg_key><arg_value>{text}</arg_value></tool_call>",
        "dsml": f'<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a">{text}'
        "</｜DSML｜parameter>\n</｜DSML｜invoke>",
    }[name]
    (found,) = read(name, call, tools=tools).tool_calls
    value = json.loads(found.arguments)["a"]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("kind", "schema", "text", "expected"),
    [
        ("true", {}, "5", "5"),
        ("true", {"type": "integer"}, "5", 5),
        ("false", {"type": "string"}, "5", "5"),
        ("false", {"type": "string"}, '"5"', "5"),
        ("false", {}, '"5"', "5"),
        ("false", {}, "x", "x"),
    ],
)
def test_dsml_marks_strings(kind: str, schema: Any, text: str, expected: Any) -> None:
    parameters = {"type": "object", "properties": {"a": schema}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    call = (
        f'<｜DSML｜invoke name="f"><｜DSML｜parameter name="a" string="{kind}">{text}'
        "</｜DSML｜parameter></｜DSML｜invoke>"
    )
    (found,) = read("dsml", call, tools=tools).tool_calls
    assert json.loads(found.arguments) == {"a": expected}


OSLO = {"city": "Oslo"}
STRAYS = [
    ("glm", "<tool_call>look_up<arg_key>city<arg_value>Oslo</arg_value></tool_call>", OSLO),
    ("glm", "<tool_call>look_up<arg_key>city</arg_key><arg_value>Oslo</tool_call>", OSLO),
    ("glm", "<tool_call>look_up<arg_key>city</arg_key><arg_value>Oslo</arg_value>", OSLO),
    ("glm", '<tool_call>look_up\n{"city": "Oslo"}</tool_call>', OSLO),
    ("glm", '<tool_call>look_up{"city": "Oslo"}\n</tool_call>\n', OSLO),
    ("glm", "<tool_call>look_up:0<arg_key> city </arg_key>x<arg_value>Oslo</arg_value>", OSLO),
    ("glm", "<tool_call>now</tool_call>", {}),
    ("glm", "<tool_call>now", {}),
    ("glm", "<tool_call>\nnow\n</tool_call>", {}),
    ("dsml", '<｜DSML｜invoke name="now"/>', {}),
    ("dsml", "<｜DSML｜invoke name='now'>", {}),
    ("dsml", '<｜DSML｜invoke name="look_up">\n{"city": "Oslo"}\n</｜DSML｜invoke>', OSLO),
    ("dsml", '<｜DSML｜tool_calls><｜DSML｜invoke name="now"></｜DSML｜tool_calls>', {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), STRAYS)
def test_strays_of_xml(name: str, text: str, expected: Any) -> None:
    response = read(name, text)
    (call,) = response.tool_calls
    assert (json.loads(call.arguments), response.text) == (expected, "")


def test_marks_in_a_value_are_text() -> None:
    value = "<think> and <tool_call>x<arg_key>"
    call = f"<tool_call>look_up<arg_key>city</arg_key><arg_value>{value}</arg_value></tool_call>"
    (found,) = read("glm", call).tool_calls
    assert json.loads(found.arguments) == {"city": value}


@pytest.mark.parametrize("name", FAMILIES)
def test_marks_alone_are_no_calls(name: str) -> None:
    begin = family(name).syntax.form.call[0].removesuffix("functions.").removesuffix("function")
    assert read(name, begin * 3).tool_calls == []


@pytest.mark.parametrize("name", FAMILIES)
def test_no_order_of_marks_fails_or_loses_the_end(name: str) -> None:
    marks = [*FAMILIES[name][0][:-1], "now", "{}"]
    if name == "dsml":
        marks = [
            "<｜DSML｜function_calls>",
            "</｜DSML｜invoke>",
            '<｜DSML｜invoke name="now">',
            '<｜DSML｜parameter name="x">',
            "</｜DSML｜parameter>",
            "</｜DSML｜function_calls>",
        ]
    for pieces in itertools.product(marks, repeat=3):
        for is_cut in (False, True):
            response = read(name, "".join(pieces), is_cut=is_cut)
            assert all(call.name in ("now", "look_up") for call in response.tool_calls)
