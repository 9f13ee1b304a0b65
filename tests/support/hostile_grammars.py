"""Grammars that are small to send and much to compile."""

from typing import Any


def schema_chain(length: int) -> dict[str, Any]:
    """Make a schema that is flat in brackets, and nested by references."""
    inner = {
        f"d{i}": {
            "type": "object",
            "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}},
            "required": ["a"],
        }
        for i in range(length)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**inner, f"d{length}": {"type": "string"}}}


def lark_chain(length: int, prefix: str = "r") -> str:
    """Make rules that lead to one another; terminals where the prefix is upper case."""
    rules = [f"{prefix}{i}: {prefix}{i + 1}" for i in range(length)]
    return "\n".join([f"start: {prefix}0", *rules, f'{prefix}{length}: "a"'])


def optional_lark(length: int) -> str:
    """Make rules that may all be left out, so that all are in the parser's first row."""
    rules = [f'r{i}: "{chr(97 + i % 26)}"' for i in range(length)]
    return "\n".join(["start: " + " ".join(f"r{i}?" for i in range(length)), *rules])


def slow_lark(length: int) -> str:
    """Nest repeats, each of which is expanded: time grows with the square at least."""
    rules = [f"r{i}: r{i + 1}{{0,1000}}" for i in range(length)]
    return "\n".join(["start: r0", *rules, f'r{length}: "a"'])
