"""One style for all JSON that is written under a constraint: at most one space behind , and :.

White space is free in JSON, and a small model that may write any fills its answer with it. The
style admits what models are trained on, Python's `json.dumps` with its default and with its
compact separators; llguidance takes it from a schema's `x-guidance`, for the schema as a whole.
"""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["set_json_whitespace", "set_lark_whitespace"]

_STYLE: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}
_LENIENT: "JsonCompileOptions" = {"lenient": True, "coerce_one_of": True}
# Tokens of llguidance's Lark in which `%json` would not be the directive, and the directive.
_LARK_TOKENS = re.compile(
    r"""(?://|\#)[^\n]*+ | "(?:\\.|[^"\\])*+" | /(?:\\.|[^/\\])++/ | <[^<>\s]++> | %json\s*+""",
    re.VERBOSE | re.DOTALL,
)


def set_json_whitespace(schema: Mapping[str, Any], *, is_strict: bool = True) -> dict[str, Any]:
    """The schema, with the style in place of its own, if any.

    is_strict: keywords that cannot be kept are errors; otherwise they are left out.
    """
    given = schema.get("x-guidance")
    options = dict(given) if isinstance(given, Mapping) else {}
    options.pop("whitespace_pattern", None)  # it would count for more than whitespace_flexible
    return {**schema, "x-guidance": {**options, **_STYLE, **({} if is_strict else _LENIENT)}}


def set_lark_whitespace(text: str) -> str:
    """The grammar with the style in every `%json`; what is malformed stays, for the compiler."""
    decoder = json.JSONDecoder()
    parts, start, at = [], 0, 0
    while match := _LARK_TOKENS.search(text, at):
        at = match.end()
        if not match.group().startswith("%json"):
            continue
        try:
            schema, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if schema is True:
            schema = {}
        if isinstance(schema, dict):
            parts += [text[start:at], json.dumps(set_json_whitespace(schema))]
            start = at = end
    return "".join([*parts, text[start:]])
