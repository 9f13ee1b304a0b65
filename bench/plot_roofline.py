"""Draw a result of bench_expert_forward.py: every kernel as a point under the machine's limits.

    python bench/plot_roofline.py bench/results/2026-11-28_expert_forward.json

Left, the roofline (Williams et al. 2009): operations per byte read against operations per second;
no kernel can be above the slope of memory or the level of arithmetic. Right, decoding alone: bytes
per second of each type, beside the peer and the bar. matplotlib is in the extra `bench`.
"""

import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import matplotlib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._experts import TOP_K, expected_distinct, expert_bytes
from hybridmoe.gguf.quant_types import QuantType as Type

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {
    "amx": "#0b6e4f",
    "avx512": "#2667b0",
    "avx_vnni": "#7a4fa3",
    "avx2": "#b5651d",
    "scalar": "#7a7a7a",
}
MARKERS = {
    (False, 1): "o",
    (False, 2): "<",
    (False, 4): "s",
    (False, 8): ">",
    (True, 16): "v",
    (True, 64): "^",
    (True, 256): "D",
}
LAST_MARKER = "P"  # more tokens than that
LABELLED = ("Q4_K", "Q8_0")
INK, FAINT = "#222222", "#9a9a9a"
CEILINGS = {
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "int8": "int8 in {isa}",
    "float32": "float32 in {isa}",
}
_NAME = re.compile(r"(\w+) (\w+) (decode|prefill), (\d+) token")


@dataclass(frozen=True, slots=True)
class Point:
    """Row of the benchmark."""

    isa: str
    type: str
    is_prefill: bool
    tokens: int
    operations_per_byte: float
    tops: float
    row: dict[str, Any]

    @classmethod
    def of(cls, row: dict[str, Any], num_experts: dict[str, int]) -> "Point | None":
        """Parse a row; None if it was not run."""
        match = _NAME.match(row["name"])
        if match is None or row["value"] is None:
            return None
        isa, type, regime, number = match.groups()
        is_prefill, tokens = regime == "prefill", int(number)
        per_expert = float(tokens)
        if not is_prefill:
            per_expert *= TOP_K / expected_distinct(num_experts[type], tokens)
        operations = expert_bytes(Type.F32) / 4 * 2 * per_expert
        operations_per_byte = operations / expert_bytes(Type[type])
        tops = row["value"] if is_prefill else row["value"] * operations_per_byte / 1e3
        return cls(isa, type, is_prefill, tokens, operations_per_byte, tops, row)

    @property
    def marker(self) -> str:
        return MARKERS.get((self.is_prefill, self.tokens), LAST_MARKER)

    @property
    def regime(self) -> str:
        if self.is_prefill:
            return f"prefill, {self.tokens} tokens an expert"
        return "decode, 1 token" if self.tokens == 1 else f"decode, {self.tokens} tokens"


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), help="name without ending [as the result]")
def main(result: Path, to: Path | None) -> None:
    report = json.loads(result.read_text(encoding="utf-8").splitlines()[-1])
    about = report["machine"]
    found = (Point.of(row, about["experts"]) for row in report["rows"])
    points = [point for point in found if point is not None]
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "hybridmoe", "axes.edgecolor": FAINT})
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 6.4), width_ratios=(3, 2), layout="constrained"
    )
    draw_roofline(left, points, about["limits"])
    draw_decode(right, points, about)
    figure.suptitle(
        "hybridmoe: routed experts at Kimi K2's shapes (hidden 7168, width 2048, top-8), "
        f"{about['threads']} threads\n{about['cpu']}, {about['date']}, commit {about['commit']}",
        fontsize=10,
    )
    target = to or result.with_suffix("")
    for ending in ("png", "svg"):
        metadata = {"Date": None} if ending == "svg" else None
        figure.savefig(f"{target}.{ending}", dpi=150, metadata=metadata)
        print(f"{target}.{ending}")


def draw_roofline(axes: Axes, points: list[Point], limits: dict[str, Any]) -> None:
    """Draw points under the limits, both axes logarithmic."""
    slope = max(known["read"]["all"] for known in limits.values()) / 1e12  # TOPS per op/byte
    levels = _levels(limits)
    lowest = 0.6 * min(point.operations_per_byte for point in points)
    highest = 1.8 * max(point.operations_per_byte for point in points)
    for name, level in levels.items():
        corner = level / slope
        axes.plot([corner, highest], [level, level], color=INK, linewidth=1)
        axes.annotate(
            f"{name}\n{level:.2f}", (highest, level), (2, 0), textcoords="offset points",
            va="center", color=INK, fontsize=8,
        )  # fmt: skip
    top = max(levels.values())
    axes.plot([lowest, top / slope], [lowest * slope, top], color=INK, linewidth=1.4)
    for point in points:
        axes.plot(
            point.operations_per_byte, point.tops, point.marker, color=COLOURS[point.isa],
            markersize=6, alpha=0.75, markeredgecolor="white", markeredgewidth=0.5,
        )  # fmt: skip
    _label(axes, points)
    axes.set(xscale="log", yscale="log", xlim=(lowest, highest))
    least = min(point.tops for point in points)
    axes.set_ylim(0.5 * least, 2.0 * top)
    middle = (lowest * 1.3, lowest * 1.3 * slope)
    axes.annotate(
        f"memory read: {slope * 1e3:.1f} GB/s", middle, (0, 5), textcoords="offset points",
        rotation=_screen_angle(axes), rotation_mode="anchor", color=INK, fontsize=8,
    )  # fmt: skip
    axes.set_xlabel("operations for each byte of weights read")
    axes.set_ylabel("10¹² operations per second (a multiply-add is two)")
    axes.set_title("Roofline", loc="left", fontsize=10)
    _legend(axes, points)
    _clean(axes)


def draw_decode(axes: Axes, points: list[Point], about: dict[str, Any]) -> None:
    """Draw bytes per second with one token, best instruction set, fastest type first."""
    chosen = [p for p in points if not p.is_prefill and p.tokens == 1 and p.isa == about["isa"]]
    chosen.sort(key=lambda point: point.row["value"])
    heights = range(len(chosen))
    axes.barh(
        heights, [p.row["value"] for p in chosen], color=COLOURS[about["isa"]], height=0.65,
        alpha=0.8, label=f"hybridmoe, {about['isa']}",
    )  # fmt: skip
    for column, marker, colour, label in (
        ("peer", "o", "#d1495b", "best peer: " + " or ".join(about["peers"])),
        ("bar", "|", INK, "bar"),
    ):
        known = [(p.row[column], y) for p, y in zip(chosen, heights, strict=True)]
        known = [(value, y) for value, y in known if value is not None]
        if known:
            axes.plot(
                *zip(*known, strict=True), marker, color=colour, label=label, markeredgewidth=1.5,
                markersize=11 if marker == "|" else 4,
            )  # fmt: skip
    limit = about["limits"][about["isa"]]["read"]["all"] / 1e9
    axes.axvline(limit, color=INK, linewidth=1.4, label=f"memory read: {limit:.1f} GB/s")
    axes.set_yticks(heights, [p.type for p in chosen], fontsize=8)
    axes.set_ylim(-0.6, len(chosen) - 0.4)
    axes.set_xlim(0, 1.08 * max([limit, *(p.row["value"] for p in chosen)]))
    axes.set_xlabel("GB of distinct experts' weights per second")
    axes.set_title("Decode, one token, by type", loc="left", fontsize=10)
    axes.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")
    _clean(axes)


def _levels(limits: dict[str, Any]) -> dict[str, float]:
    """Select the limits of arithmetic by name; one of near equal ones."""
    levels: dict[str, float] = {}
    for isa, known in limits.items():
        for field, text in CEILINGS.items():
            if known.get(field) is None:
                continue
            level = known[field]["all"] / 1e12
            if all(abs(level / other - 1) > 0.15 for other in levels.values()):
                levels[text.format(isa="avx512" if isa == "amx" else isa)] = level
    return levels


def _label(axes: Axes, points: list[Point]) -> None:
    """List the types of the longest prefills of the best instruction set."""
    longest = max(point.tokens for point in points)
    for point in points:
        if point.tokens == longest and point.isa == points[0].isa and point.type in LABELLED:
            axes.annotate(
                point.type, (point.operations_per_byte, point.tops), (0, 7), ha="center",
                textcoords="offset points", fontsize=8, color=COLOURS[point.isa],
            )  # fmt: skip


def _legend(axes: Axes, points: list[Point]) -> None:
    for isa in dict.fromkeys(point.isa for point in points):
        axes.plot([], [], "o", color=COLOURS[isa], label=isa)
    for regime, marker in dict.fromkeys((p.regime, p.marker) for p in points):
        axes.plot([], [], marker, color=FAINT, label=regime)
    axes.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")


def _screen_angle(axes: Axes) -> float:
    """Compute the angle of a line of slope one on logarithmic axes, as drawn."""
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    box = axes.get_position()
    width, height = axes.figure.get_size_inches()
    wide = box.width * width / math.log10(x1 / x0)
    high = box.height * height / math.log10(y1 / y0)
    return math.degrees(math.atan2(high, wide))


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    main()
