"""Plots of a study as PNG and SVG, with matplotlib (in the extra `bench`)."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hybridmoe.cachebench.gates import HORIZONS
from hybridmoe.cachebench.predictors import Recall
from hybridmoe.cachebench.study import Study
from hybridmoe.cachebench.write import label

__all__ = ["write_plots"]

_SHOWN = 8  # policies in a plot, the best ones


def write_plots(study: Study, folder: Path) -> list[Path]:
    """Draw all plots into a folder. Returns their paths. Errors: OSError."""
    title = f"{study.header.get('source', 'unknown source')}"
    written = []
    for name, draw in (
        ("miss_ratio", _miss_ratio),
        ("net", _net),
        ("regret", _regret),
        ("heat_map", _heat_map),
        ("reuse", _reuse),
        ("predictors", _predictors),
        ("horizons", _horizons),
    ):
        figure = Figure(figsize=(8, 5), layout="constrained")
        draw(study, figure.add_subplot())
        figure.suptitle(title, fontsize=9)
        for kind in ("png", "svg"):
            written.append(folder / f"{name}.{kind}")
            figure.savefig(written[-1], dpi=120)
    return written


def _curves(study: Study, value: str) -> dict[str, tuple[list[float], list[float]]]:
    """Collect (working sets, values) by policy, highest total net first, then the bounds."""
    cold = [row for row in study.rows if row.protocol == "cold"]
    totals: dict[str, float] = {}
    for row in cold:
        totals[row.policy] = totals.get(row.policy, 0.0) + row.net
    order = sorted(totals, key=lambda name: -totals[name])
    bounds = [name for name in order if name.startswith("belady")]
    named = [name for name in order if name not in bounds]
    shown = named[:_SHOWN]
    shown += [name for name in ("lru", "global-lru") if name in named and name not in shown]
    return {
        name: (
            [row.working_sets for row in cold if row.policy == name],
            [getattr(row, value) for row in cold if row.policy == name],
        )
        for name in [*shown, *bounds]
    }


def _draw_curves(study: Study, axes: Any, value: str, label: str) -> None:
    for name, (x, y) in _curves(study, value).items():
        style = "k--" if name.startswith("belady") else "o-"
        axes.plot(x, y, style, label=name, markersize=3, linewidth=1)
    axes.axvline(1.0, color="red", linewidth=1)
    axes.annotate("one token's experts", (1.0, 0.98), xycoords=("data", "axes fraction"),
                  rotation=90, va="top", ha="right", color="red", fontsize=8)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks([c for c in (0.25, 0.5, 1, 2, 4)], ["0.25", "0.5", "1", "2", "4"])
    axes.minorticks_off()
    axes.set_xlabel("slots / per-token working set (layers x top-k)")
    axes.set_ylabel(label)
    one = study.header["num_layers"] * study.header["top_k"]
    slots = axes.secondary_xaxis("top", functions=(lambda n: n * one, lambda s: s / one))
    slots.set_xticks([n * one for n in (0.25, 0.5, 1, 2, 4)],
                     [f"{n * one:.0f}" for n in (0.25, 0.5, 1, 2, 4)])  # fmt: skip
    slots.minorticks_off()
    slots.set_xlabel(f"slots, of {study.header['num_layers'] * study.header['num_experts']}")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _miss_ratio(study: Study, axes: Any) -> None:
    _draw_curves(study, axes, "miss_ratio", "miss ratio of decoded tokens")


def _net(study: Study, axes: Any) -> None:
    _draw_curves(study, axes, "net", "net = hits - uploads per decoded token")
    axes.axhline(0, color="black", linewidth=0.5)


def _regret(study: Study, axes: Any) -> None:
    """Draw hits short of MIN with bypass."""
    curves = _curves(study, "hits")
    best = dict(zip(*curves["belady-bypass"], strict=True))
    for name, (x, y) in curves.items():
        if not name.startswith("belady"):
            axes.plot(x, [best[c] - hits for c, hits in zip(x, y, strict=True)], "o-", label=name,
                      markersize=3, linewidth=1)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("slots / per-token working set")
    axes.set_ylabel("hits per token short of MIN with bypass")
    axes.legend(fontsize=7)


def _heat_map(study: Study, axes: Any) -> None:
    shares = np.sort(study.uses / np.maximum(1, study.uses.sum(1, keepdims=True)), 1)[:, ::-1]
    image = axes.imshow(shares, aspect="auto", interpolation="nearest", cmap="viridis")
    axes.figure.colorbar(image, label="share of the layer's choices")
    axes.set_xlabel("experts, the most used first")
    axes.set_ylabel("expert layer")


def _reuse(study: Study, axes: Any) -> None:
    counts = study.reuse[1:]
    total = max(1, int(counts.sum()))
    axes.step(np.arange(1, len(counts) + 1), np.cumsum(counts) / total, where="post")
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("tokens since the expert was last used")
    axes.set_ylabel("cumulative share of reused choices")
    axes.grid(alpha=0.3)


def _predictors(study: Study, axes: Any) -> None:
    """Draw recall by layer."""
    for (predictor, horizon), of in _recalls(study).items():
        inner = [r for r in of if r.layer is not None]
        name = f"{label(predictor, horizon)}: {of[0].recall:.2f}"
        bars = np.array([[r.recall - r.low, r.high - r.recall] for r in inner]).T
        axes.errorbar([r.layer for r in inner], [r.recall for r in inner], bars.clip(0),
                      fmt="o-", label=name, markersize=3, linewidth=1)  # fmt: skip
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("expert layer")
    axes.set_ylabel("recall of a token's experts, top-k predicted")
    axes.legend(fontsize=7)


def _horizons(study: Study, axes: Any) -> None:
    """Draw recall over a gate's horizon, for each number of predicted experts."""
    every = [r for r in study.recalls if r.layer is None]
    for i, count in enumerate(sorted({r.num_predicted for r in every})):
        for recall in (r for r in every if r.num_predicted == count and r.horizon is None):
            axes.axhline(recall.recall, color=f"C{i}", linewidth=1,
                         linestyle="--" if recall.predictor == "static" else ":",
                         label=f"{recall.predictor}, {count} predicted")  # fmt: skip
        gates = [r for r in every if r.num_predicted == count and r.horizon is not None]
        if gates:
            bars = np.array([[r.recall - r.low, r.high - r.recall] for r in gates]).T
            axes.errorbar([r.horizon for r in gates], [r.recall for r in gates], bars.clip(0),
                          fmt="o-", color=f"C{i}", capsize=3,
                          label=f"gate, {count} predicted")  # fmt: skip
    axes.set_ylim(0, 1.05)
    axes.set_xticks(HORIZONS)
    axes.set_xlabel("layers between the states and the gate (0: the control)")
    axes.set_ylabel("recall of a token's experts, 95 % over conversations")
    axes.legend(fontsize=7)


def _recalls(study: Study) -> dict[tuple[str, int | None], list[Recall]]:
    """Collect recalls by predictor, all layers together first; with top_k predicted."""
    found: dict[tuple[str, int | None], list[Recall]] = {}
    for recall in study.recalls:
        if recall.num_predicted == study.header["top_k"]:
            found.setdefault((recall.predictor, recall.horizon), []).append(recall)
    return found
