"""Grammar of tool calls in Lark, in the form of any family.

Rules: `section`, all calls with what is around them; `calls_0`, the calls from the first on. The
arguments are JSON by the tool's schema, or its values in XML (text/xml_call_grammar.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridmoe.text.json_whitespace import set_json_whitespace
from hybridmoe.text.output_format import ToolCallFormat, to_json
from hybridmoe.text.schema_relaxing import relax_schema
from hybridmoe.text.tool_syntax import ToolSyntax
from hybridmoe.text.xml_call_grammar import xml_arguments

__all__ = ["CallRules", "make_call_rules"]

_MAX_CALLS = 16  # of one response


@dataclass(frozen=True, slots=True)
class CallRules:
    """Lark rules of tool calls."""

    rules: list[str]
    lazy_start: str  # what begins with a trigger
    num_chars: int  # from the client
    relaxed: list[str]  # what was left out of schemas


@dataclass(frozen=True, slots=True)
class _Arguments:
    schema: dict[str, Any] | None  # None: any object
    is_strict: bool
    relaxed: list[str]


def make_call_rules(syntax: ToolSyntax, calls: ToolCallFormat) -> CallRules:
    """Make the rules. Errors: ConfigError without a tool to call."""
    form = syntax.form
    groups: dict[str, list[str]] = {}  # names by arguments
    arguments: dict[str, _Arguments] = {}
    num_chars = 0
    for function in calls.functions:
        own = _arguments(calls, function)
        key = to_json("tools", [own.schema, own.is_strict])
        arguments.setdefault(key, own)
        groups.setdefault(key, []).append(function["name"])
        num_chars += len(function["name"]) + (len(key) if own.schema is not None else 0)
    rules = ['BREAK: "\\n"'] if form.may_break else []
    may_break = "BREAK?" if form.may_break else ""
    relaxed = []
    terminals: dict[str, str] = {}
    for i, (key, names) in enumerate(groups.items()):
        heads = (syntax.lark(form.call[0] + name) for name in names)
        rules.append(f"head_{i}: {' | '.join(heads)}")
        rules += _argument_rules(syntax, f"arguments_{i}", arguments[key], terminals)
        relaxed += [f"{names[0]}: {path}" for path in arguments[key].relaxed]
    begin, end = map(syntax.lark, form.section)
    rules.append(f"section: {begin} calls_0 {end}")
    num_calls = _MAX_CALLS if calls.is_parallel and not calls.is_single else 1
    for n in range(num_calls):
        middle = syntax.lark(form.call[1].replace("{number}", str(calls.first_index + n)))
        call = " | ".join(
            f"head_{i} {middle} {may_break} arguments_{i}" for i in range(len(groups))
        )
        between = f"{syntax.lark(form.between)} {may_break}"
        more = f" ({between} calls_{n + 1})?" if n + 1 < num_calls else ""
        rules.append(f"calls_{n}: ({call}) {syntax.lark(form.call[2])}{more}")
    return CallRules(rules, _lazy_start(syntax), num_chars, relaxed)


def _arguments(calls: ToolCallFormat, function: Mapping[str, Any]) -> _Arguments:
    is_strict = bool(function.get("strict"))
    if calls.is_auto and not is_strict:
        return _Arguments(None, False, [])
    schema, relaxed = relax_schema({"type": "object", **(function.get("parameters") or {})})
    return _Arguments(schema, is_strict, relaxed)


def _argument_rules(
    syntax: ToolSyntax, rule: str, own: _Arguments, terminals: dict[str, str]
) -> list[str]:
    if syntax.form.xml is not None:
        return xml_arguments(syntax, rule, own.schema, is_strict=own.is_strict, terminals=terminals)
    given = own.schema if own.schema is not None else {"type": "object"}
    schema = set_json_whitespace(given, is_strict=own.is_strict)
    return [f"{rule}: %json {to_json('tools', schema)}"]


def _lazy_start(syntax: ToolSyntax) -> str:
    """Make the start of a grammar that begins with a trigger."""
    if len(syntax.triggers) == 0:
        return ""
    form = syntax.form
    section = form.section[0]
    at = min((section.find(token) for token in form.trigger if token in section), default=-1)
    if at < 0:
        return "calls_0"
    rest = f"{syntax.lark(section[at:])} calls_0 {syntax.lark(form.section[1])}"
    return rest if at else f"{rest} | calls_0"
