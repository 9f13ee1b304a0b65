"""Measured rates of a machine, kept for a day: measuring them takes a second of every load.

They are kept by GPU, driver, versions, kernels, threads and experts. What cannot be read or written
is measured again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import triton

from hybridmoe import _C
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.hardware import isa
from hybridmoe.hardware.gpu import driver_version
from hybridmoe.hardware.topology import num_threads
from hybridmoe.planning.rates import GpuRates, Rates
from hybridmoe.replace_file import replace_file
from hybridmoe.state_folder import state_folder

__all__ = ["kept_rates", "machine_key"]

_KEPT_S = 86400.0
_KERNELS = Path(__file__).parent.parent / "kernels"


def machine_key(gpu: str, experts: ExpertWeights) -> str:
    """Name all that measured rates depend on."""
    sources = hashlib.sha256()
    for path in sorted(_KERNELS.rglob("*.py")):
        sources.update(path.read_bytes())
    native = os.stat(_C.__file__)
    parts = [
        gpu, driver_version(), torch.__version__, triton.__version__, isa.active(), num_threads(),
        sources.hexdigest()[:16], native.st_size, native.st_mtime_ns,
        *((w.type.name, w.rows, w.cols) for w in experts),
    ]  # fmt: skip
    return " ".join(map(str, parts))


def kept_rates(
    key: str,
    measure: Callable[[], tuple[Rates, int]],
    *,
    now: Callable[[], float] = time.time,
) -> tuple[Rates, int]:
    """Return the rates, and the number of copying threads, that were measured within a day.

    measure: called if there are none.
    """
    folder = state_folder()
    path = None if folder is None else folder / "rates.json"
    entries = {} if path is None else _read(path)
    entries = {k: v for k, v in entries.items() if 0 <= now() - v["time"] < _KEPT_S}
    with suppress(KeyError, TypeError, ValueError):
        entry = entries[key]
        gpu = GpuRates(**entry["gpu"])
        return Rates(**entry["rates"], gpu=gpu), int(entry["threads"])
    rates, threads = measure()
    if path is not None and rates.gpu is not None and not rates.gpu.one_token:
        gpu_facts = {k: v for k, v in asdict(rates.gpu).items() if k != "one_token"}
        facts = {k: v for k, v in asdict(replace(rates, gpu=None)).items() if k != "gpu"}
        entries[key] = {"time": now(), "rates": facts, "gpu": gpu_facts, "threads": threads}
        with suppress(OSError), replace_file(path) as file:
            file.write(json.dumps(entries, indent=1).encode())
    return rates, threads


def _read(path: Path) -> Mapping[str, Any]:
    """Read the entries that have a time; none if the file is damaged."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return {
                key: entry
                for key, entry in found.items()
                if isinstance(entry, dict) and isinstance(entry.get("time"), float)
            }
    return {}
