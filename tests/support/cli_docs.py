"""Page of the command line, from the commands themselves; run it to rewrite docs/cli.md."""

import inspect
from collections.abc import Iterator
from pathlib import Path

from click import Command, Context, Group, Option

from hybridmoe.cli.app import cli

__all__ = ["PAGE", "command_line_page"]

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
_HEAD = """# Command line

Written from the code by `tests/support/cli_docs.py`. `hybridmoe COMMAND --help` prints the same.
"""


def command_line_page() -> str:
    """Write the page: a section for each command, a table for each group of options."""
    sections = [_section(name, command) for name, command in _commands(cli, "hybridmoe")]
    return "\n".join([_HEAD, *sections])


def _commands(group: Group, path: str) -> Iterator[tuple[str, Command]]:
    yield path, group
    context = Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, Group):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _section(name: str, command: Command) -> str:
    context = Context(command, info_name=name, **cli.context_settings)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    help_text = inspect.cleandoc(command.help or "").partition("\f")[0].replace("\b\n", "")
    tables: dict[str, list[str]] = {}
    for option in command.get_params(context):
        record = option.get_help_record(context) if isinstance(option, Option) else None
        if record is not None:
            row = f"| `{_cell(record[0])}` | {_cell(record[1])} |"
            tables.setdefault(getattr(option, "section", "Options"), []).append(row)
    parts = [f"## {name}\n", f"    {usage}\n", f"{help_text}\n"]
    parts += [
        f"| {title} | |\n|---|---|\n" + "\n".join(rows) + "\n" for title, rows in tables.items()
    ]
    return "\n".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(command_line_page(), encoding="utf-8")
