"""Schemas lose the keywords that have no grammar, each by its path, and keep all others."""

from typing import Any

import pytest
from constrained import accepts
from family_tokenizers import family

from hybridmoe.text.argument_types import ANY_TYPE, argument_types, properties_of
from hybridmoe.text.grammar_compiler import GrammarCompiler
from hybridmoe.text.output_format import OutputFormat
from hybridmoe.text.schema_relaxing import relax_schema


def a(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], **more}


CASES: list[tuple[Any, list[str], str, str]] = [
    # schema, paths left out, JSON that is accepted, JSON that is not
    (a({"type": "string", "pattern": "^(?!x)[a-z]+$"}), ["$.properties.a.pattern"], '"X"', "1"),
    (a({"type": "integer", "not": {"const": 1}}), ["$.properties.a.not"], "1", '"1"'),
    (a({"type": "string", "format": "binary"}), ["$.properties.a.format"], '"x"', "1"),
    (a({"type": "string", "format": "date"}), [], '"2026-01-01"', '"x"'),
    (a({"type": "any"}), ["$.properties.a.type"], "1", "x"),
    (a({"type": "integer"}, **{"if": {}, "then": {}}), ["$.if", "$.then"], "1", '"x"'),
    (
        a({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
        ["$.properties.a.uniqueItems"],
        "[1,1]",
        '["x"]',
    ),
    (a({"type": "array", "uniqueItems": False}), [], "[]", "{}"),
    (
        a({"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "number"}]}),
        ["$.properties.a.oneOf"],
        "1",
        "[]",
    ),
    (a({"oneOf": [{"type": "string"}, {"type": "integer"}]}), [], "1", "[]"),
    (a({"type": "integer", "minimum": 3, "exclusiveMinimum": True}), [], "4", "3"),
    (a({"type": "string", "maxLength": 1.0}), [], '"x"', '"xx"'),
    (a({"type": "array", "items": [{"type": "string"}, {}]}), [], '["x",null]', "[1]"),
    (a({"$ref": "https://x/y"}), ["$.properties.a.$ref"], "1", "x"),
    (a({"$ref": "#/$defs/none"}), ["$.properties.a.$ref"], "1", "x"),
    (a({"type": "string", "enum": "x"}), ["$.properties.a.enum"], '"y"', "1"),
    (a({"type": "integer"}, required=None), [], "1", '"x"'),
    (a({"type": "integer", "multipleOf": 0}), ["$.properties.a.multipleOf"], "1", '"x"'),
    (a([1]), ["$.properties.a"], "1", "x"),
    (a({"items": None, "type": "array"}), [], "[1]", "1"),
    (
        a({"anyOf": [{"type": "string", "contains": {}}]}),
        ["$.properties.a.anyOf[0].contains"],
        '"x"',
        "1",
    ),
    (a({"type": "object", "propertyNames": {"type": "string"}}), [], '{"b":1}', "1"),
    (
        a({"type": "object", "properties": {"b": {}, "c": {}}, "minProperties": 1}),
        ["$.properties.a.minProperties"],
        "{}",
        "1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "paths", "good", "bad"), CASES)
def test_a_keyword_without_a_grammar_is_left_out(
    schema: Any, paths: list[str], good: str, bad: str
) -> None:
    tokenizer, syntax = family("kimi")
    form = OutputFormat.json_schema(schema)
    assert list(form.relaxed) == paths
    constraint = GrammarCompiler(tokenizer, syntax).compile_format(form)
    assert constraint.relaxed == form.relaxed
    assert accepts(constraint.copy(), tokenizer, f'{{"a":{good}}}')
    assert not accepts(constraint.copy(), tokenizer, f'{{"a":{bad}}}')


def test_hostile_schemas_are_bounded() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"properties": {"a": deep}}
    assert relax_schema(deep) == (deep, [])
    wide = {"allOf": [{"not": {}}] * 100_000}
    relaxed, notes = relax_schema(wide)
    assert len(notes) == 64 and len(relaxed["allOf"]) == 100_000
    long_name = {"properties": {"x" * 100_000: {"not": {}}}}
    assert relax_schema(long_name)[1] == ["$.properties." + 64 * "x" + ".not"]


def test_each_part_of_a_cyclic_schema_is_read_once() -> None:
    parts = [{"$ref": "#/$defs/a"} for _ in range(2000)]
    cyclic = {"$defs": {"a": {"anyOf": parts}}, "oneOf": parts, "properties": {"b": {}}}
    assert relax_schema(cyclic)[1] == ["$.oneOf"]
    assert argument_types(cyclic, parts[0]) == ANY_TYPE
    assert list(properties_of(cyclic)) == ["b"]


def test_types_are_those_of_every_alternative() -> None:
    chain = {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(20)} | {"20": {"type": "null"}}
    number = {"anyOf": [*[{"type": "string"}] * 300, {"type": "number"}]}
    root = {"$defs": chain, "anyOf": [number, {"$ref": "#/$defs/0"}]}
    assert argument_types(root, root) == {"string", "number", "null"}


def test_only_the_first_patterns_are_tried_alone() -> None:
    patterns = {str(i): {"pattern": f"(?=a){i}"} for i in range(600)}
    relaxed, _ = relax_schema({"properties": patterns})
    kept = [name for name, part in relaxed["properties"].items() if part]
    assert kept == [str(i) for i in range(512, 600)]
