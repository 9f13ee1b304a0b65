"""Grammar of a call's arguments in XML, by the tool's schema.

A property comes in the order of the schema. A string's value is free text, within what its schema
says of enumerated values, lengths and patterns; other values are JSON. A value that may be both is
one of either, and what text/argument_types.py reads decides.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher

from hybridmoe.text.argument_types import argument_types, local_reference
from hybridmoe.text.json_whitespace import set_json_whitespace
from hybridmoe.text.output_format import to_json
from hybridmoe.text.tool_syntax import ToolSyntax

__all__ = ["xml_arguments"]

_DEFINITIONS = ("$defs", "definitions")
_MAX_VARIANTS = 16
_MAX_STEPS = 256

Variant = tuple[dict[str, Any], set[str]]


def xml_arguments(
    syntax: ToolSyntax,
    rule: str,
    schema: Mapping[str, Any] | None,
    *,
    is_strict: bool,
    terminals: dict[str, str],
) -> list[str]:
    """Make the rule of a call's arguments, and those that it needs.

    schema: of an object; None for any values. terminals: names by pattern, of all tools; each is
    made once, since many of them make a slow grammar.
    """
    maker = _RuleMaker(syntax, rule, terminals, is_strict=is_strict)
    variants = [] if schema is None else _variants(schema)
    if schema is None or not variants:
        maker.add_any()
    else:
        maker.add(schema, variants)
    return maker.rules


class _RuleMaker:
    def __init__(
        self, syntax: ToolSyntax, rule: str, terminals: dict[str, str], *, is_strict: bool
    ) -> None:
        xml = syntax.form.xml
        assert xml is not None
        self._lark = syntax.lark
        self._key = xml.key
        self._begins = [syntax.lark(begin) for begin in xml.value_begin]
        self._break = "BREAK?" if syntax.form.may_break else ""
        # A terminal is as long as can be: it has to contain what comes before the next token.
        self._lead, rest = syntax.split_at_token(xml.value_end)
        self._end = f"{syntax.lark(rest)} {self._break}"
        self._rule = rule
        self._terminals = terminals
        self._is_strict = is_strict
        self.rules: list[str] = []

    def add_any(self) -> None:
        """Allow values of any names."""
        name, value = self._add("NAME", r'/[^"<>\n]+/'), self._text({})
        begins = " | ".join(dict.fromkeys(self._begins))
        key = f"{self._lark(self._key[0])} {name} {self._lark(self._key[1])}"
        pair = f"{key} {self._break} ({begins}) {value} {self._end}"
        self.rules.append(f"{self._rule}: ({pair})*")

    def add(self, schema: Mapping[str, Any], alternatives: list[Variant]) -> None:
        """Allow the values of a schema."""
        values: dict[str, str] = {}  # rules by name and schema
        variants = []
        for properties, required in alternatives:
            items = []
            for name, part in properties.items():
                key = to_json("tools", [name, part])
                if key not in values:
                    values[key] = self._pair(schema, name, part)
                items.append(values[key] + ("" if name in required else "?"))
            variants.append(" ".join(items) or '""')
        self.rules.append(f"{self._rule}: {' | '.join(dict.fromkeys(variants))}")

    def _pair(self, root: Mapping[str, Any], name: str, schema: Any) -> str:
        """Add the rule of a name and its value. Returns the rule's name."""
        values: dict[str, list[str]] = {}
        for begin, value in zip(self._begins, self._values(root, schema), strict=True):
            if value:
                values.setdefault(begin, []).append(value)
        either = " | ".join(f"{begin} ({' | '.join(of)})" for begin, of in values.items())
        key = self._lark(self._key[0] + name + self._key[1])
        return self._add("pair", f"{key} {self._break} ({either}) {self._end}")

    def _values(self, root: Mapping[str, Any], schema: Any) -> tuple[str, str]:
        """Make what a value may be: as text, and as JSON; "" for what it may not be."""
        types = argument_types(root, schema)
        given = schema if isinstance(schema, Mapping) else {}
        listed = [given["const"]] if "const" in given else given.get("enum")
        if isinstance(listed, list) and listed:
            texts = [v for v in listed if isinstance(v, str)]
            others = [json.dumps(v, separators=(",", ":")) for v in listed if v not in texts]
            return self._literals(texts), self._literals(others)
        if "string" not in types:
            return "", f"{self._json(root, schema)} {self._lark(self._lead)}"
        if types == {"string"}:
            return self._text(given), ""
        if self._begins[0] == self._begins[1]:
            return self._text(given), self._literals(["null"] if "null" in types else [])
        return self._text(given), f"{self._json(root, schema)} {self._lark(self._lead)}"

    def _literals(self, texts: Sequence[str]) -> str:
        return " | ".join(json.dumps(text + self._lead, ensure_ascii=False) for text in texts)

    def _json(self, root: Mapping[str, Any], schema: Any) -> str:
        part = dict(schema) if isinstance(schema, Mapping) else {}
        if "$ref" in to_json("tools", part):
            part = {**{key: root[key] for key in _DEFINITIONS if key in root}, **part}
        schema = set_json_whitespace(part, is_strict=self._is_strict)
        return self._add("json", f"%json {to_json('tools', schema)}")

    def _text(self, schema: Mapping[str, Any]) -> str:
        """Make a string's text, within its schema's lengths and pattern."""
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        patterns = [rf"(.|\n){{{least},{most}}}"] if least or most != "" else [r"(.|\n)*"]
        if isinstance(schema.get("pattern"), str):
            patterns.append(_whole(schema["pattern"]))
        lead = re.escape(self._lead)
        bodies = list(filter(None, (_terminal(f"(?:{pattern}){lead}") for pattern in patterns)))
        if self._lead:
            return self._add("TEXT", " & ".join(bodies))
        if patterns == [r"(.|\n)*"]:
            return self._add("TEXT", r"/(.|\n)+/") + "?"
        may_be_empty = least == 0 and "pattern" not in schema
        text = self._add("TEXT", " & ".join([*bodies, r"/(.|\n)+/"]))
        return f"{text}?" if may_be_empty else text

    def _add(self, kind: str, body: str) -> str:
        """Add a rule, or a terminal in capital letters. Returns its name."""
        is_terminal = kind.isupper()
        if is_terminal and body in self._terminals:
            return self._terminals[body]
        prefix = self._rule.upper() if is_terminal else self._rule
        name = f"{prefix}_{kind}_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        if is_terminal:
            self._terminals[body] = name
        return name


def _whole(pattern: str) -> str:
    """Convert an unanchored pattern to one of the whole text."""
    backslashes = len(pattern[:-1]) - len(pattern[:-1].rstrip("\\"))
    has_end = pattern.endswith("$") and backslashes % 2 == 0
    head = "" if pattern.startswith("^") else r"(.|\n)*"
    inner = pattern.removeprefix("^")[: -1 if has_end else None]
    return f"{head}(?:{inner})" + ("" if has_end else r"(.|\n)*")


def _terminal(pattern: str) -> str:
    """Write a pattern as Lark; "" if it is not supported."""
    grammar = LLMatcher.grammar_from_regex(pattern)
    if LLMatcher.validate_grammar(grammar):
        return ""
    (entry,) = json.loads(grammar)["grammars"]
    return str(entry["lark_grammar"]).removeprefix("start: ")


class _Variants:
    """Expansion of an object's schema to its alternatives. Bounded; schemas may be cyclic."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._steps = _MAX_STEPS

    def expand(self, schema: Any) -> list[Variant]:
        """List properties and required names of each alternative; empty ones allow any."""
        self._steps -= 1
        if not isinstance(schema, Mapping) or self._steps < 0:
            return [({}, set())]
        properties, required = schema.get("properties"), schema.get("required")
        own = dict(properties) if isinstance(properties, Mapping) else {}
        needed = {n for n in required if isinstance(n, str)} if isinstance(required, list) else ()
        variants: list[Variant] = [(own, set(needed))]
        if "$ref" in schema:
            variants = _joined(variants, self.expand(local_reference(self._root, schema["$ref"])))
        for part in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
            variants = _joined(variants, self.expand(part))
        for key in ("anyOf", "oneOf"):
            parts = schema.get(key)
            if isinstance(parts, list) and parts:
                variants = _joined(variants, [v for part in parts for v in self.expand(part)])
        return variants


def _joined(variants: list[Variant], more: list[Variant]) -> list[Variant]:
    return [
        ({**properties, **others}, needed | also)
        for properties, needed in variants
        for others, also in more
    ][:_MAX_VARIANTS]


def _variants(schema: Mapping[str, Any]) -> list[Variant]:
    """List properties and required names of each alternative; none where any are allowed."""
    out = []
    for properties, needed in _Variants(schema).expand(schema):
        if not (properties or needed) and _is_open(schema):
            return []
        out.append(({**{name: {} for name in sorted(needed)}, **properties}, needed))
    return out


def _is_open(schema: Mapping[str, Any]) -> bool:
    """Test whether an object may have properties that are not declared."""
    return schema.get("additionalProperties") is not False and "maxProperties" not in schema
