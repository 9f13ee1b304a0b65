"""A study in files: table, JSON, CSV and, where matplotlib is installed, plots."""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

from hybridmoe.cachebench.study import Row, Study

__all__ = ["table", "write_study"]


def table(study: Study, cycles: float = 1.0) -> str:
    """Policies at the size nearest to so many token cycles, the best net first (Markdown)."""
    at = min({row.cycles for row in study.rows}, key=lambda c: abs(c - cycles), default=0.0)
    rows = [row for row in study.rows if row.cycles == at]
    slots = rows[0].slots if rows else 0
    lines = [
        f"{slots} slots = {at:.2f} token cycles; per decoded token, from an empty cache;"
        " in brackets 95 % of a bootstrap over conversations",
        "",
        "| policy | hits | uploads | net = hits - uploads | net, warm | net, after a shift"
        " | experts' time, us |",
        "|---|---|---|---|---|---|---|",
    ]
    others = {(row.policy, row.protocol): row.net for row in rows}
    for row in sorted(rows, key=lambda row: -row.net):
        if row.protocol != "cold":
            continue
        warm, shift = (
            f"{others[row.policy, name]:.2f}" if (row.policy, name) in others else "-"
            for name in ("warm", "shift")
        )
        lines.append(
            f"| {row.policy} | {row.hits:.2f} | {row.uploads:.2f} | {row.net:.2f}"
            f" [{row.net_low:.2f}, {row.net_high:.2f}] | {warm} | {shift}"
            f" | {row.token_s * 1e6:.1f} |"
        )
    best = study.upload_optimum.get(slots)
    if best is not None:
        word = "the optimum" if best[1] else "a bound"
        lines.append(
            f"| *any that knows the future, of decode alone* | | | {best[0]:.2f}, {word} | | | |"
        )
    return "\n".join(lines)


def write_study(study: Study, folder: Path) -> list[Path]:
    """Write everything; the files. Errors: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "table.md", folder / "study.json", folder / "rows.csv"]
    text = "\n\n".join(_title(study) + table(study, cycles) for cycles in (0.5, 1.0, 2.0))
    recalls = "".join(
        f"| {name} | {values.mean():.3f} | {', '.join(f'{v:.2f}' for v in values)} |\n"
        for name, values in study.recalls.items()
    )
    text += "\n\n| predictor | recall of top-k guesses | by layer |\n|---|---|---|\n" + recalls
    written[0].write_text(text)
    written[1].write_text(json.dumps(study.as_json()))
    with written[2].open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(_dicts(study.rows))
    return written


def _title(study: Study) -> str:
    return f"Source: {study.header.get('source', 'unknown')}\n\n"


def _dicts(rows: Iterable[Row]) -> Iterable[dict[str, object]]:
    return (asdict(row) for row in rows)
