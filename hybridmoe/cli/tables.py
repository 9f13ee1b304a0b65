"""Sections of facts and tables: rich on a terminal, plain aligned text in a pipe."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Section", "print_sections"]


@dataclass(frozen=True, slots=True)
class Section:
    """Table to print; without title and header, a list of facts."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def print_sections(sections: Sequence[Section]) -> None:
    """Print sections for the kind of standard output. Text must be printable already."""
    (_print_rich if sys.stdout.isatty() else _print_plain)(sections)


def _print_plain(sections: Sequence[Section]) -> None:
    for i, section in enumerate(sections):
        if i:
            click.echo("")
        rows = [row for row in (section.header, *section.rows) if row]
        num_columns = max((len(row) for row in rows), default=0)
        widths = [max(len(row[column]) for row in rows) for column in range(num_columns)]
        for row in rows:
            cells = [
                cell.ljust(width) if _is_left(section, column) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            click.echo("  ".join(cells).rstrip())


def _print_rich(sections: Sequence[Section]) -> None:
    console = Console()
    for section in sections:
        table = Table(
            title=section.title or None,
            title_justify="left",
            box=None,
            show_header=bool(section.header),
            pad_edge=False,
        )
        num_columns = len(section.rows[0]) if section.rows else len(section.header)
        for column in range(num_columns):
            table.add_column(
                Text(section.header[column]) if section.header else "",
                justify="left" if _is_left(section, column) else "right",
                style="cyan" if column == 0 else None,
            )
        for row in section.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()


def _is_left(section: Section, column: int) -> bool:
    """Return True for columns of text; numbers, with units or not, are flush right."""
    cells = (row[column] for row in section.rows)
    return column == 0 or not section.header or not all(map(_is_number, cells))


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("+-")[:1].isdigit()
