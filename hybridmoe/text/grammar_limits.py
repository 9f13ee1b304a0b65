"""Limits of client grammars, and a thread with a stack for the deepest one accepted.

llguidance bounds its lexer, rows and symbols, but not the recursion of its compiler: one level, of
2 to 9 KB, for each reference of a schema and each rule or terminal of a grammar (1.9.1; masks,
copies and drops do not recurse). A grammar of `CHEAP_CHARS` fits the stack used here many times
over. Larger ones are tried first in another process (text/grammar_process.py), on half the stack.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hybridmoe.errors import ConfigError
from hybridmoe.text.argument_types import local_reference

__all__ = [
    "CHEAP_CHARS",
    "MAX_CHARS",
    "MAX_DEPTH",
    "CompileLimits",
    "check_depth",
    "on_deep_stack",
]

T = TypeVar("T")
Levels = Iterator["Levels"]  # nested elements, each with its own

MAX_CHARS = 1 << 20  # of one grammar
CHEAP_CHARS = 4096  # compiled without a trial: at most a second and 800 levels
MAX_DEPTH = 2000  # nested references, rules, objects and lists
_STACK_BYTES = 128 << 20  # reserved; committed as used
_stack_size_lock = threading.Lock()  # the size of new stacks is a setting of the process

_LARK_PARTS = re.compile(
    r"""
    (?://|\#)[^\n]*+ | "(?:\\.|[^"\\])*+" | /(?:\\.|[^/\\])++/ | <[^<>\s]++>
    | (?P<json>%json\s*+)
    | ^[ \t]*+[?!]?(?P<rule>[A-Za-z_]\w*+)(?:\.-?\d++)?(?:\[[^\]\n]*+\])?[ \t]*+:
    | (?P<name>[A-Za-z_]\w*+)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class CompileLimits:
    """Limits of a trial: compiling one grammar and its first mask."""

    cpu_s: int = 5
    wall_s: float = 30.0  # above cpu_s: other programs may use the cores
    memory_bytes: int = 512 << 20  # of address space, above that at the start
    stack_bytes: int = _STACK_BYTES // 2


def on_deep_stack(function: Callable[[], T], stack_bytes: int = _STACK_BYTES) -> T:
    """Run a function in a thread with a large stack. Returns its result, raises its errors."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(function())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="hybridmoe-grammar", daemon=True)
    with _stack_size_lock:
        before = threading.stack_size(stack_bytes)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def check_depth(parts: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError for a grammar, in llguidance's parts, that nests too deep.

    Follows references in the compiler's order, each once, which gives about its own depth.
    """
    for part in parts:
        path = [_in_lark(part["lark_grammar"]) if "lark_grammar" in part
                else _in_json(part["json_schema"], part["json_schema"], set())]  # fmt: skip
        while path:
            inner = next(path[-1], None)
            if inner is None:
                path.pop()
            elif len(path) == MAX_DEPTH:
                raise ConfigError(f"nested more than {MAX_DEPTH} deep")
            else:
                path.append(inner)


def _in_json(root: Any, node: Any, seen: set[str]) -> Levels:
    """Iterate over the containers in a schema; over definitions only by reference."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        target = value
        if key == "$ref" and isinstance(value, str) and value not in seen:
            seen.add(value)
            target = local_reference(root, value)
        if isinstance(target, dict | list) and key not in ("$defs", "definitions"):
            yield _in_json(root, target, seen)


def _in_lark(text: str) -> Levels:
    """Iterate over the rules and schemas of a grammar, starting at `start`."""
    decoder = json.JSONDecoder()
    rules: dict[str, list[Any]] = {}
    body: list[Any] = []  # names and schemas
    at = 0
    while match := _LARK_PARTS.search(text, at):
        at = match.end()
        if match["rule"]:
            body = rules.setdefault(match["rule"], [])
        elif match["name"]:
            body.append(match["name"])
        elif match["json"]:
            try:
                schema, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                continue  # the compiler reports it
            body.append(schema)
    return _in_rule("start", rules, {"start"})


def _in_rule(name: str, rules: Mapping[str, list[Any]], seen: set[str]) -> Levels:
    for item in rules.get(name, ()):
        if not isinstance(item, str):
            if isinstance(item, dict):
                yield _in_json(item, item, set())
        elif item not in seen:
            seen.add(item)
            yield _in_rule(item, rules, seen)
