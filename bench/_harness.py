"""Report of a benchmark: the machine, a table, and one JSON object as the last line."""

import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hybridmoe.hardware import isa
from hybridmoe.kernels import ops

__all__ = ["RESULTS", "Row", "Times", "bar", "machine", "print_report", "repeat"]

RESULTS = Path(__file__).resolve().parent / "results"

_WARM_UP_CALLS, _LONG_S = 2, 0.5
_COLUMNS = ("name", "value", "unit", "limit", "peer", "bar", "holds", "note")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement beside what the machine allows and what the best peer reached."""

    name: str
    value: float | None  # None: this machine cannot run it
    unit: str
    limit: float | None = None  # of the machine, measured in the same run
    peer: float | None = None  # the best peer's figure, from the same run
    bar: float | None = None  # the least value that passes; all four are in `unit`
    note: str = ""

    @property
    def holds(self) -> bool | None:
        return None if self.bar is None or self.value is None else self.value >= self.bar


@dataclass(frozen=True, slots=True)
class Times:
    """Durations of calls that did the same work, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def p90(self) -> float:
        return float(np.quantile(self.seconds, 0.9))

    def __str__(self) -> str:
        return f"{1e3 * self.median:.2f} ms, p90 {1e3 * self.p90:.2f}, {len(self.seconds)} calls"


def repeat(
    call: Callable[[Any], object], inputs: Iterable[Any], *, budget_s: float, at_least: int
) -> Times:
    """Time `call` on input after input, until `budget_s` is spent.

    Two more calls before that warm up; one, where it takes long.
    """
    seconds: list[float] = []
    warm_up = _WARM_UP_CALLS
    for data in inputs:
        start = time.perf_counter()
        call(data)
        taken = time.perf_counter() - start
        if warm_up > 0:
            warm_up -= 1 if taken < _LONG_S else _WARM_UP_CALLS
            continue
        seconds.append(taken)
        if len(seconds) >= at_least and sum(seconds) >= budget_s:
            break
    return Times(tuple(seconds))


def bar(
    *, limit: float | None = None, share: float = 0.0, peer: float | None = None, times: float = 0.0
) -> float | None:
    """The least value that is `share` of the limit and `times` the peer; None where both are."""
    parts = [
        known * part
        for known, part in ((limit, share), (peer, times))
        if known is not None and part
    ]
    return max(parts, default=None)


def machine() -> dict[str, Any]:
    """CPU, memory, instruction set, threads and commit of this run."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
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


def print_report(
    rows: Sequence[Row], *, about: dict[str, Any] | None = None, out: Path | None = None
) -> None:
    """Print a table for people, then one JSON line for programs, which also goes to `out`.

    `about` is added to the description of the machine: what else a reader of the rows must know.
    """
    known = machine() | (about or {})
    print("machine: " + ", ".join(f"{k} {v}" for k, v in known.items() if not isinstance(v, dict)))
    width = max((len(row.name) for row in rows), default=0)
    heads = ("value", "unit", "limit", "of it", "peer", "times", "bar")
    print(f"{'':{width}} {heads[0]:>9} {heads[1]:6}" + "".join(f"{h:>9}" for h in heads[2:]))
    for row in rows:
        cells = (row.limit, _ratio(row, row.limit), row.peer, _ratio(row, row.peer), row.bar)
        verdict = {None: "      ", True: "holds ", False: "MISSED"}[row.holds]
        if row.value is None:
            verdict = "not run"
        print(
            f"{row.name:{width}} {_number(row.value):>9} {row.unit:6}"
            + "".join(f"{_number(cell):>9}" for cell in cells)
            + f" {verdict}  {row.note}".rstrip()
        )
    records = [{column: getattr(row, column) for column in _COLUMNS} for row in rows]
    line = json.dumps({"machine": known, "rows": records})
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(line + "\n", encoding="utf-8")
    print(line)


def _ratio(row: Row, against: float | None) -> float | None:
    return row.value / against if row.value is not None and against else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
