"""The field table as a page's tables. Run as a script it writes them into docs/serving.md."""

from pathlib import Path

from page_blocks import Block, rewrite

from hybridmoe.serve.field_row import Row
from hybridmoe.serve.field_table import ROWS, TABLE

__all__ = ["BLOCKS"]

_TITLES = {"done": "Done", "refused": "Refused (400, unless neutral)", "harmless": "Harmless"}


def field_tables() -> str:
    """Write a table for each fate."""
    out = []
    for fate, title in _TITLES.items():
        rows = [_line(row) for row in ROWS if row.fate == fate]
        out.append(f"| {title} | in | |\n|---|---|---|\n" + "".join(rows))
    return "\n".join(out)


def _line(row: Row) -> str:
    apis = "all" if len(row.apis) == len(TABLE) else ", ".join(row.apis)
    return f"| {' '.join(f'`{name}`' for name in row.names)} | {apis} | {row.why} |\n"


_PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
BLOCKS = (Block(_PAGE, "tests/support/field_docs.py", field_tables),)

if __name__ == "__main__":
    rewrite(BLOCKS)
