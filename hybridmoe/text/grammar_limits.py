"""Limits of a client's grammar, and a thread with a stack for the deepest one that is accepted.

llguidance bounds its lexer, its rows and its symbols, but not its recursion while it compiles: one
level for each reference of a schema and each rule or terminal of a grammar, of 2 to 9 KB (1.9.1;
masks, copies and drops do not recurse). So what a text of `CHEAP_CHARS` can nest fits the stack
used here many times over, and what is larger is tried first in a process of its own
(hybridmoe/text/grammar_process.py), on half the stack.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hybridmoe.errors import ConfigError

__all__ = [
    "CHEAP_CHARS",
    "MAX_CHARS",
    "MAX_DEPTH",
    "CompileLimits",
    "check_depth",
    "on_deep_stack",
]

T = TypeVar("T")
Levels = Iterator["Levels"]  # what is inside, and what is inside that

MAX_CHARS = 1 << 20  # of one grammar
CHEAP_CHARS = 4096  # compiled without a trial: a second at worst, nested 800 deep at most
MAX_DEPTH = 2000  # references, rules, objects and lists inside one another
_STACK_BYTES = 128 << 20  # only what is used becomes memory
_starting = threading.Lock()  # the size of new stacks is the process's

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
    """Of a trial: compiling one grammar and its first mask."""

    cpu_s: int = 5
    wall_s: float = 30.0  # more than cpu_s: other programs may have the cores
    memory_bytes: int = 512 << 20  # of address space, besides what the process begins with
    stack_bytes: int = _STACK_BYTES // 2


def on_deep_stack(function: Callable[[], T], stack_bytes: int = _STACK_BYTES) -> T:
    """Run a function in a thread that may recurse deeply; return or raise what it does."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(function())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="hybridmoe-grammar", daemon=True)
    with _starting:
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
    """Raise ConfigError where a grammar's parts, as llguidance takes them, nest too deep.

    References are followed in the compiler's order, each once, which gives about its own depth.
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
    """Iterate over the containers in a schema's value; definitions only where referred to."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        target = value
        if key == "$ref" and isinstance(value, str) and value not in seen:
            seen.add(value)
            target = _resolve(root, value)
        if isinstance(target, dict | list) and key not in ("$defs", "definitions"):
            yield _in_json(root, target, seen)


def _resolve(root: Any, reference: str) -> Any:
    """Look a local reference up; None where it is none, or leads nowhere."""
    node = root if reference.startswith("#") else None
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _in_lark(text: str) -> Levels:
    """Iterate over the rules and schemas of a grammar, from `start` on."""
    decoder = json.JSONDecoder()
    rules: dict[str, list[Any]] = {}
    body: list[Any] = []  # names, and schemas
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
                continue  # the compiler's to tell
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
