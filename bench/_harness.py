"""What every benchmark prints: the machine, a table, and one JSON object as the last line."""

import json
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from hybridmoe.kernels import isa, ops

__all__ = ["Row", "machine", "print_report"]


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement beside its peer or its limit; the ratio is what may be claimed."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    peer: float | None = None
    bar: float | None = None  # least ratio to the peer, or else to the limit, that must hold

    @property
    def ratio(self) -> float | None:
        against = self.peer if self.peer is not None else self.limit
        return self.value / against if against else None

    @property
    def holds(self) -> bool | None:
        return None if self.bar is None or self.ratio is None else self.ratio >= self.bar


def machine() -> dict[str, Any]:
    """CPU, memory, instruction set, threads and commit of this run."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "isa": isa.active(),
        "threads": ops.num_threads(),
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def print_report(rows: Sequence[Row]) -> None:
    """A table for people, then one JSON line for programs."""
    about = machine()
    print("machine: " + ", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{'':34} {'value':>10} {'unit':8} {'peer':>10} {'limit':>10} {'ratio':>7}  bar")
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:g} {'holds' if row.holds else 'MISSED'}"
        print(
            f"{row.name:34} {row.value:10.2f} {row.unit:8} {_number(row.peer):>10}"
            f" {_number(row.limit):>10} {_number(row.ratio):>7}  {bar}"
        )
    records = [{**asdict(row), "holds": row.holds} for row in rows]
    print(json.dumps({"machine": about, "rows": records}))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
