"""Results of a study as files: Markdown tables, JSON and CSV."""

import csv
import json
from dataclasses import asdict, fields
from pathlib import Path

from hybridmoe.cachebench.predictors import Recall
from hybridmoe.cachebench.study import Row, Study
from hybridmoe.cachebench.tier_study import VRAM_POLICY, TierRow
from hybridmoe.experts.policy import DEFAULT_POLICY
from hybridmoe.planning.hit_curve import write_hit_curve

__all__ = ["advice", "label", "recall_table", "table", "tier_table", "write_study"]


def advice(study: Study) -> str:
    """Say in one sentence what a cache of one working set saves, after other conversations."""
    at = _nearest(study, 1.0)
    rows = {r.policy: r for r in study.rows if r.working_sets == at and r.protocol == "shift"}
    if VRAM_POLICY not in rows:
        return ""
    used, best = rows[VRAM_POLICY], max(rows.values(), key=lambda row: row.saved_s)
    who = f"With {used.slots} slots in VRAM {VRAM_POLICY}, the engine's policy,"
    if best.saved_s <= 0:
        return f"{who} saves no time at these rates, and no other does: leave the VRAM to contexts."
    saved, other = 1e6 * used.saved_s, "no other saves more"
    if best.saved_s > used.saved_s:
        other = f"{best.policy} would save {1e6 * best.saved_s:.1f}"
    whole = 1e6 * (used.token_s + used.saved_s)
    return f"{who} saves {saved:.1f} of {whole:.1f} us a token for experts; {other}."


def _nearest(study: Study, working_sets: float) -> float:
    """Cache size of the study, in working sets, that is nearest."""
    sizes = {row.working_sets for row in study.rows}
    return min(sizes, key=lambda size: abs(size - working_sets), default=0.0)


def table(study: Study, working_sets: float = 1.0) -> str:
    """Format the policies at the nearest cache size, best net first (Markdown)."""
    at = _nearest(study, working_sets)
    rows = [row for row in study.rows if row.working_sets == at]
    slots = rows[0].slots if rows else 0
    lines = [
        f"{slots} slots = {at:.2f} x the per-token working set; per decoded token, from an empty"
        " cache; in brackets: 95 % bootstrap interval over conversations",
        "",
        "| policy | hits | uploads | net = hits - uploads | net, warm | net, after a shift"
        " | expert time, us | saved, us |",
        "|---|---|---|---|---|---|---|---|",
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
            f" | {row.token_s * 1e6:.1f} | {row.saved_s * 1e6:.1f} |"
        )
    best = study.upload_optimum.get(slots)
    if best is not None:
        word = "optimum" if best[1] else "bound"
        lines.append(f"| *offline {word}* | | | {best[0]:.2f} | | | | |")
    return "\n".join(lines)


def tier_table(study: Study) -> str:
    """Format the splits of VRAM and RAM over the disk, in seconds (Markdown)."""
    lines = [
        "VRAM and RAM over the disk; per decoded token, after other conversations; saved: by the"
        " VRAM slots, beside the same RAM; in brackets: 95 % bootstrap interval over conversations",
        "",
        "| slots in VRAM | in RAM | found in VRAM, RAM, on disk, % | uploads, of them from RAM"
        " | back to RAM, dropped | read, MB | expert time, us | saved, us |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in study.tiers:
        found = (f"{100 * share:.1f}" for share in (row.in_vram, row.in_ram, row.on_disk))
        saved = "-"
        if row.vram_slots:
            low, high = row.saved_low_s * 1e6, row.saved_high_s * 1e6
            saved = f"{row.saved_s * 1e6:.1f} [{low:.1f}, {high:.1f}]"
        lines.append(
            f"| {row.vram_slots} | {row.ram_slots} | {', '.join(found)}"
            f" | {row.uploads:.2f}, {row.promoted:.2f} | {row.returned:.2f}, {row.dropped:.2f}"
            f" | {row.read_bytes / 1e6:.3g} | {row.token_s * 1e6:.1f} | {saved} |"
        )
    return "\n".join(lines)


def recall_table(study: Study) -> str:
    """Format the recall of predictors, over all layers and in each (Markdown)."""
    lines = [
        "Recall of a decoded token's experts, over the layers that a predictor covers; in brackets:"
        " 95 % bootstrap interval over conversations",
        "",
        "| predictor | top-k predicted | 2 x top-k predicted | by layer, top-k predicted |",
        "|---|---|---|---|",
    ]
    found: dict[tuple[str, int | None], list[Recall]] = {}
    for recall in study.recalls:
        found.setdefault((recall.predictor, recall.horizon), []).append(recall)
    for (predictor, horizon), of in found.items():
        cells = [f"{r.recall:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in of if r.layer is None]
        layers = {r.layer: f"{r.recall:.2f}" for r in reversed(of) if r.layer is not None}
        by_layer = ", ".join(layers.get(i, "-") for i in range(study.header["num_layers"]))
        lines.append(f"| {label(predictor, horizon)} | {' | '.join(cells)} | {by_layer} |")
    return "\n".join(lines)


def label(predictor: str, horizon: int | None) -> str:
    """Name a predictor."""
    if horizon is None:
        return predictor
    if horizon == 0:
        return "fresh gate (control)"
    return f"gate, {horizon} layer{'s' if horizon > 1 else ''} early"


def write_study(study: Study, folder: Path) -> list[Path]:
    """Write all files into a folder. Returns their paths. Errors: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("table.md", "study.json", "rows.csv", "recall.csv", "hit_curve.json", "tiers.csv")
    written = [folder / name for name in names]
    parts = [_title(study) + table(study, working_sets) for working_sets in (0.5, 1.0, 2.0)]
    parts += [tier_table(study), *([recall_table(study)] if study.recalls else [])]
    written[0].write_text("\n\n".join(parts) + "\n")
    written[1].write_text(json.dumps(study.as_json()))
    for path, kind, rows in (
        (written[2], Row, study.rows),
        (written[3], Recall, study.recalls),
        (written[5], TierRow, study.tiers),
    ):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(kind)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    about = {
        "policy": DEFAULT_POLICY,
        "of": "decoded tokens, after other conversations",
        **{
            name: study.header.get(name)
            for name in ("source", "num_layers", "num_experts", "top_k")
        },
    }
    write_hit_curve(written[4], study.hit_curve, about)
    return written


def _title(study: Study) -> str:
    return f"Source: {study.header.get('source', 'unknown')}\n\n"
