"""The field table as a page's tables. Run as a script it writes them into docs/serving.md."""

from pathlib import Path

from hybridmoe.serve.field_row import Row
from hybridmoe.serve.field_table import ROWS, TABLE

__all__ = ["PAGE", "field_tables", "section"]

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
_BEGIN, _END = "<!-- fields: begin -->\n", "<!-- fields: end -->\n"
_TITLES = {"done": "Done", "refused": "Refused (400, unless neutral)", "harmless": "Harmless"}


def field_tables() -> str:
    """Write a table for each fate."""
    out = []
    for fate, title in _TITLES.items():
        rows = [_line(row) for row in ROWS if row.fate == fate]
        out.append(f"| {title} | in | |\n|---|---|---|\n" + "".join(rows))
    return "\n".join(out)


def section(page: str) -> str:
    """Get the tables of a page's text."""
    return page.partition(_BEGIN)[2].partition(_END)[0]


def _line(row: Row) -> str:
    apis = "all" if len(row.apis) == len(TABLE) else ", ".join(row.apis)
    return f"| {' '.join(f'`{name}`' for name in row.names)} | {apis} | {row.why} |\n"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    PAGE.write_text(before + _BEGIN + field_tables() + _END + after, encoding="utf-8")
