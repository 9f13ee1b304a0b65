"""Write bench/results/README.md from the results, and show the newest plot in README.md.

    python bench/plot_roofline.py bench/results/2026-11-28_expert_forward.json
    python bench/summarize.py

Each result is a table of its rows, newest first; that of bench_expert_forward.py one of shares of
the limit, a line for each type and a column for each regime.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import RESULTS

README = Path(__file__).resolve().parent.parent / "README.md"
TARGET = RESULTS / "README.md"
PICTURE = re.compile(r"bench/results/[\w.-]+_expert_forward\.png")
EXPERTS = "_expert_forward"
_EXPERT_ROW = re.compile(r"(\w+) (\w+) (decode|prefill), (\d+) tokens?")

TITLE = """# Results

Written by `bench/summarize.py` from this folder's JSON files; [what figures mean](../README.md).
**Bold**: below its bar. Other programs on a machine make every figure worse.
"""


@click.command(help=__doc__.split("\n\n")[0])
def main() -> None:
    TARGET.write_text(summary(RESULTS), encoding="utf-8")
    pictures = sorted(RESULTS.glob(f"*{EXPERTS}.png"))
    if pictures:
        text = README.read_text(encoding="utf-8")
        link = f"bench/results/{pictures[-1].name}"
        README.write_text(PICTURE.sub(link, text), encoding="utf-8")


def summary(folder: Path) -> str:
    """Render all results of a folder."""
    parts = [TITLE]
    for path in sorted(folder.glob("*.json"), reverse=True):
        report = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        parts.append(_section(path, report))
    return "\n".join(parts)


def _section(path: Path, report: dict[str, Any]) -> str:
    about, rows = report["machine"], report["rows"]
    judged = [row for row in rows if row["holds"] is not None]
    held, missing = sum(row["holds"] for row in judged), sum(row["value"] is None for row in rows)
    facts = [about.get("gpu"), about["cpu"], f"{about['threads']} threads", about["isa"]]
    lines = [
        f"## [{path.stem}]({path.name})",
        "",
        f"{', '.join(filter(None, facts))}; {about['date']}, commit {about['commit']}."
        f" {held} of {len(judged)} bars hold; {missing} rows were not run.",
        "",
        *(_expert_table(rows) if path.stem.endswith(EXPERTS) else _table(rows)),
        "",
    ]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| | value | limit | peer | bar |"
    yield "|---|---|---|---|---|"
    for row in rows:
        value = "not run" if row["value"] is None else f"{_number(row['value'])} {row['unit']}"
        if row["holds"] is False:
            value = f"**{value}**"
        cells = (value, *(_number(row[name]) for name in ("limit", "peer", "bar")))
        note = f" ({row['note']})" if row.get("note") else ""
        yield f"| {row['name']}{note} | {' | '.join(cells)} |"


def _expert_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield shares of the limit, by type and regime."""
    cells: dict[str, dict[str, str]] = {}
    regimes: dict[str, None] = {}
    for row in rows:
        match = _EXPERT_ROW.match(row["name"])
        assert match is not None, row["name"]
        isa, type, kind, tokens = match.groups()
        regime = f"{isa} {kind} {tokens}"
        regimes[regime] = None
        if row["value"] is None:
            text = "not run"
        else:
            text = f"{row['value'] / row['limit']:.2f}"
            if row["holds"] is False:
                text = f"**{text}** of {row['bar'] / row['limit']:.2f}"
        cells.setdefault(type, {})[regime] = text
    yield f"| tokens | {' | '.join(regimes)} |"
    yield "|---" * (len(regimes) + 1) + "|"
    for type, found in cells.items():
        yield f"| {type} | {' | '.join(found.get(regime, '') for regime in regimes)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    main()
