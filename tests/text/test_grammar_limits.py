"""Grammar limits: nesting is measured without recursion; deep stacks."""

import itertools
import json
import threading
from typing import Any

import pytest
from hostile_grammars import lark_chain, schema_chain

from hybridmoe.errors import ConfigError
from hybridmoe.text.grammar_limits import CHEAP_CHARS, MAX_DEPTH, check_depth, on_deep_stack

TREE: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "properties": {"left": {"$ref": "#/$defs/node"}, "right": {"$ref": "#/$defs/node"}}
        }
    },
}


def is_refused(part: dict[str, Any]) -> bool:
    try:
        check_depth([{"name": "format", **part}])
    except ConfigError as error:
        assert str(error) == f"nested more than {MAX_DEPTH} deep"
        return True
    return False


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"json_schema": TREE}, False),
        ({"json_schema": {"$ref": "#"}}, False),
        ({"json_schema": {"$ref": "#/nowhere/at~1all"}}, False),
        ({"json_schema": schema_chain(MAX_DEPTH // 3 - 1)}, False),
        ({"json_schema": schema_chain(MAX_DEPTH // 3 + 1)}, True),
        ({"json_schema": {"allOf": [schema_chain(3)], "$defs": {"a/b": [{}] * 9999}}}, False),
        ({"lark_grammar": lark_chain(MAX_DEPTH - 2)}, False),
        ({"lark_grammar": lark_chain(MAX_DEPTH)}, True),
        ({"lark_grammar": lark_chain(MAX_DEPTH, "T")}, True),
        ({"lark_grammar": 'start: a\na: b | "start" a?\nb: /a: b/ a <[7]> // c\n'}, False),
        ({"lark_grammar": "start: a\na.2[lazy]: %json " + json.dumps(schema_chain(9999))}, True),
        ({"lark_grammar": "start: %json {"}, False),
        ({"lark_grammar": "%json [" * 1000}, False),
    ],
    ids=str,
)
def test_references_count_as_nesting(part: dict[str, Any], expected: bool) -> None:
    assert is_refused(part) == expected


def test_cheap_grammars_cannot_nest_deeper_than_the_limit() -> None:
    names = [chr(97 + i // 676) + chr(97 + i // 26 % 26) + chr(97 + i % 26) for i in range(9999)]
    shortest = "\n".join(f"{a}:{b}" for a, b in itertools.pairwise(names))
    assert shortest[:CHEAP_CHARS].count(":") < MAX_DEPTH


def test_a_deep_stack_is_of_one_thread_alone() -> None:
    before = threading.stack_size()
    assert on_deep_stack(lambda: threading.current_thread() is not threading.main_thread())
    with pytest.raises(ZeroDivisionError):
        on_deep_stack(lambda: 1 // 0)
    assert threading.stack_size() == before
