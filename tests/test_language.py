"""Summary lines of docstrings and help texts: a verb or a noun phrase that names its subject."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hybridmoe.cli.app import COMMANDS, cli

ROOT = Path(__file__).parent.parent

RIDDLE = re.compile(r"\b(who|whom|nobody|somebody|so many|there (is|are))\b", re.IGNORECASE)
QUESTION = re.compile(r"(what|how|whether|where|which|when)\b", re.IGNORECASE)


def is_riddle(line: str) -> bool:
    return bool(RIDDLE.search(line) or QUESTION.match(line))


def summaries(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and first line of each docstring of a module."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text.splitlines()[0]


def helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """Name and text of a command, of its parameters, and of its subcommands."""
    yield name, command.help or ""
    for parameter in command.params:
        yield f"{name} {parameter.opts[0]}", getattr(parameter, "help", None) or ""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for sub in command.list_commands(context):
            child = command.get_command(context, sub)
            assert child is not None
            yield from helps(child, f"{name} {sub}")


@pytest.mark.parametrize("folder", ["hybridmoe", "tests", "bench", ".ci"])
def test_docstrings_begin_with_their_subject(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in summaries(path)
        if is_riddle(text)
    ]
    assert not found, "\n".join(["", *found])


def test_help_texts_begin_with_their_subject() -> None:
    texts = [*helps(cli, "hybridmoe"), *((name, e.summary) for name, e in COMMANDS.items())]
    assert len(texts) > 50
    found = [f"{name}: {text}" for name, text in texts if is_riddle(text)]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    "line",
    [
        "Who runs in the next step.",
        "Where a model's weights are.",
        "The pages that nobody holds.",
        "Run so many steps.",
        "Wait until there is time.",
    ],
)
def test_riddles_are_seen(line: str) -> None:
    assert is_riddle(line)


@pytest.mark.parametrize(
    "line", ["Scheduler of one step.", "Return the pages whose tokens are known.", "Whole pages."]
)
def test_plain_summaries_pass(line: str) -> None:
    assert not is_riddle(line)
