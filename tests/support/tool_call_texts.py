"""Generated outputs with tool calls of five families, as models write them and as they stray.

Each has the calls and the text that it stands for, and the ways in which it strays.
"""

import json
import random
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PARSERS", "TOOLS", "Output", "generate_outputs"]

# SGLang's parser of each family.
PARSERS = {
    "kimi": "kimi_k2",
    "deepseek-v3": "deepseekv3",
    "deepseek-v3.1": "deepseekv31",
    "dsml": "deepseekv32",
    "glm": "glm45",
}

_PROPERTIES: dict[str, dict[str, Any]] = {
    "get_weather": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["C", "F"]},
    },
    "write-file": {
        "path": {"type": "string"},
        "content": {"type": "string"},
        "append": {"type": "boolean"},
    },
    "search": {
        "query": {"type": "string"},
        "filters": {"type": "object"},
        "limits": {"type": "array", "items": {"type": "number"}},
    },
    "now": {},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": properties},
        },
    }
    for name, properties in _PROPERTIES.items()
]

_TEXTS = (
    "Oslo", "São Paulo", "北京 weather", 'a "quoted" word', "C:\\temp\\x", "line one\nline two\n",
    "  spaces  ", "", "5", "true", "null", "<b>bold</b> & more", "{not json", "🙂", "x" * 300,
    "def f():\n\treturn '\\n'", "```\ncode\n```",
)  # fmt: skip
_PREAMBLES = ("", "", "Let me look.", "I'll check {that} for you: <now>", "好的。")


@dataclass
class Output:
    """A generated output."""

    family: str
    text: str
    calls: list[tuple[str, dict[str, Any]]]
    visible: str  # what is text
    strays: set[str] = field(default_factory=set)


def generate_outputs(count: int, seed: int = 0) -> list[Output]:
    """Make outputs of all families in turn."""
    draw = random.Random(seed)
    families = list(PARSERS)
    return [_output(draw, families[i % len(families)]) for i in range(count)]


def _output(draw: random.Random, family: str) -> Output:
    visible = draw.choice(_PREAMBLES)
    calls = [_call(draw) for _ in range(draw.choice((0, 1, 1, 1, 2, 3)))]
    out = Output(family, visible, calls, visible)
    if calls:
        writer = {"kimi": _kimi, "glm": _glm, "dsml": _dsml}.get(family, _deepseek)
        out.text += writer(draw, out)
    return out


def _call(draw: random.Random) -> tuple[str, dict[str, Any]]:
    name = draw.choice(list(_PROPERTIES))
    keys = [key for key in _PROPERTIES[name] if draw.random() < 0.7]
    return name, {key: _value(draw, _PROPERTIES[name][key]) for key in keys}


def _value(draw: random.Random, schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return draw.choice(schema["enum"])
    return {
        "string": lambda: draw.choice(_TEXTS),
        "integer": lambda: draw.choice((0, -7, 12, 10**12)),
        "boolean": lambda: draw.random() < 0.5,
        "object": lambda: draw.choice(({}, {"a": [1, {"b": None}]}, {"k": "v } {"})),
        "array": lambda: draw.choice(([], [1, 2.5], [-1])),
    }[schema["type"]]()


def _json(draw: random.Random, value: Any) -> str:
    separators = draw.choice(((",", ":"), (", ", ": ")))
    indent = 2 if isinstance(value, dict) and draw.random() < 0.1 else None
    ascii_only = draw.random() < 0.3
    return json.dumps(value, ensure_ascii=ascii_only, separators=separators, indent=indent)


def _strays(draw: random.Random, out: Output, *names: str) -> str:
    """Choose a way to stray, or none ("")."""
    name = draw.choice(names) if draw.random() < 0.45 else ""
    if name:
        out.strays.add(name)
    return name


def _kimi(draw: random.Random, out: Output) -> str:
    names = ("no section", "singular section", "no end", "bare number", "joined name", "prefix",
             "no prefix", "spaces", "undeclared", "fence")  # fmt: skip
    stray = _strays(draw, out, *names)
    first = draw.randrange(4)
    if stray == "bare number":  # whose arguments tell the tool
        out.calls[:] = [("write-file", {"path": "a", "append": True})]
    written = []
    for i, (name, arguments) in enumerate(out.calls, first):
        call_id = f"functions.{name}:{i}"
        if stray == "bare number":
            call_id = str(i)
        elif stray == "joined name":
            call_id = draw.choice((f"functions.{name}{i}", f"functions_{name}_{i}"))
        elif stray == "prefix":
            call_id = f"tool.{name}:{i}"
        elif stray == "no prefix":
            call_id = f"{name}:{i}"
        elif stray == "spaces":
            call_id = f" functions.{name}:{i}\n"
        elif stray == "undeclared" and i == first:
            call_id = f"functions.delete_all:{i}"
        given = _json(draw, arguments)
        if stray == "fence":
            given = f"```json\n{given}\n```"
        written.append((call_id, given))
    if stray == "undeclared":
        (call_id, given), *_ = written
        out.calls = out.calls[1:]
        out.visible += call_id + given
    text = "".join(
        f"<|tool_call_begin|>{call_id}<|tool_call_argument_begin|>{given}<|tool_call_end|>"
        for call_id, given in written
    )
    if stray == "no end":
        text = text.removesuffix("<|tool_call_end|>")
        return f"<|tool_calls_section_begin|>{text}"
    if stray == "no section":
        return text
    s = "" if stray == "singular section" else "s"
    return f"<|tool_call{s}_section_begin|>{text}<|tool_call{s}_section_end|>"


def _deepseek(draw: random.Random, out: Output) -> str:
    is_older = out.family == "deepseek-v3"
    stray = _strays(draw, out, "no end", "undeclared", "other form", "lines between")
    written = []
    for name, arguments in out.calls:
        given = _json(draw, arguments)
        is_fenced = is_older != (stray == "other form")
        body = f"function<｜tool▁sep｜>{name}\n```json\n{given}\n```"
        written.append(body if is_fenced else f"{name}<｜tool▁sep｜>{given}")
    if stray == "undeclared":
        name = out.calls[0][0]
        written[0] = written[0].replace(name, "delete_all", 1)
        out.visible += written[0].replace("<｜tool▁sep｜>", "")
        out.calls = out.calls[1:]
    line = "\n" if is_older or stray == "lines between" else ""
    calls = line.join(f"<｜tool▁call▁begin｜>{one}<｜tool▁call▁end｜>" for one in written)
    text = f"<｜tool▁calls▁begin｜>{calls}"
    if stray == "no end":
        return text.removesuffix("<｜tool▁call▁end｜>")
    return f"{text}<｜tool▁calls▁end｜>"


def _dsml(draw: random.Random, out: Output) -> str:
    stray = _strays(draw, out, "no section", "json body", "no end", "undeclared", "one line")
    line = "" if stray == "one line" else "\n"
    text = ""
    for i, (name, arguments) in enumerate(out.calls):
        name = "delete_all" if stray == "undeclared" and i == 0 else name
        body = "".join(
            f'<｜DSML｜parameter name="{key}" string="{str(isinstance(value, str)).lower()}">'
            f"{value if isinstance(value, str) else _json(draw, value)}</｜DSML｜parameter>{line}"
            for key, value in arguments.items()
        )
        if stray == "json body":
            body = f"{_json(draw, arguments)}{line}"
        call = f'<｜DSML｜invoke name="{name}">{line}{body}</｜DSML｜invoke>'
        if name == "delete_all":
            out.visible += call
        text += call + line
    if stray == "undeclared":
        out.calls = out.calls[1:]
    gap = "\n\n" if out.visible and stray != "no section" else ""
    if stray == "no section":
        return text
    end = "" if stray == "no end" else "</｜DSML｜function_calls>"
    return f"{gap}<｜DSML｜function_calls>{line}{text}{end}"


def _glm(draw: random.Random, out: Output) -> str:
    stray = _strays(draw, out, "no lines", "no end", "undeclared", "text behind")
    line = "" if stray == "no lines" else "\n"
    text = ""
    for i, (name, arguments) in enumerate(out.calls):
        name = "delete_all" if stray == "undeclared" and i == 0 else name
        pairs = "".join(
            f"<arg_key>{key}</arg_key>{line}<arg_value>"
            f"{value if isinstance(value, str) else _json(draw, value)}</arg_value>{line}"
            for key, value in arguments.items()
        )
        call = f"<tool_call>{name}{line}{pairs}</tool_call>"
        if name == "delete_all":
            out.visible += call
        text += ("\n" if i or (out.visible and name != "delete_all") else "") + call
    if stray == "undeclared":
        out.calls = out.calls[1:]
    if stray == "no end":
        return text.removesuffix("</tool_call>")
    if stray == "text behind":
        out.visible += "\nDone."
        text += "\nDone."
    return text
