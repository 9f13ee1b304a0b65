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
from typing import Any, TypeVar

import torch
import triton

from hybridmoe import _C
from hybridmoe.experts.gpu.calibrate_decode import DecodeRates
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.hardware import isa
from hybridmoe.hardware.gpu import driver_version
from hybridmoe.hardware.topology import num_threads
from hybridmoe.planning.rates import GpuRates, Rates
from hybridmoe.replace_file import replace_file
from hybridmoe.state_folder import state_folder

__all__ = ["kept_decode_rates", "kept_rates", "machine_key"]

_T = TypeVar("_T")

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

    def facts(measured: tuple[Rates, int]) -> dict[str, Any]:
        rates, threads = measured
        assert rates.gpu is not None
        gpu = {k: v for k, v in asdict(rates.gpu).items() if k != "one_token"}
        cpu = {k: v for k, v in asdict(replace(rates, gpu=None)).items() if k != "gpu"}
        return {"rates": cpu, "gpu": gpu, "threads": threads}

    def measured(facts: dict[str, Any]) -> tuple[Rates, int]:
        rates = Rates(**facts["rates"], gpu=GpuRates(**facts["gpu"]))
        return rates, int(facts["threads"])

    return _kept(key, measure, facts, measured, now)


def kept_decode_rates(
    key: str, measure: Callable[[], DecodeRates], *, now: Callable[[], float] = time.time
) -> DecodeRates:
    """Return the rates of decoding, as `kept_rates`."""

    def facts(rates: DecodeRates) -> dict[str, Any]:
        one_token = {kind.name: rate for kind, rate in rates.one_token.items()}
        return {**rates._asdict(), "one_token": one_token}

    def measured(facts: dict[str, Any]) -> DecodeRates:
        one_token = {QuantType[name]: float(rate) for name, rate in facts["one_token"].items()}
        slots, hand_over_s = (
            None if facts[name] is None else float(facts[name]) for name in ("slots", "hand_over_s")
        )
        return DecodeRates(one_token, slots, hand_over_s)

    return _kept(f"{key} decode", measure, facts, measured, now)


def _kept(
    key: str,
    measure: Callable[[], _T],
    facts_of: Callable[[_T], dict[str, Any]],
    measured_of: Callable[[dict[str, Any]], _T],
    now: Callable[[], float],
) -> _T:
    """Read what was measured within a day, else measure it and write it."""
    folder = state_folder()
    path = None if folder is None else folder / "rates.json"
    entries = {} if path is None else _read(path)
    entries = {k: v for k, v in entries.items() if 0 <= now() - v["time"] < _KEPT_S}
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        return measured_of(entries[key])
    measured = measure()
    if path is not None:
        entries[key] = {"time": now(), **facts_of(measured)}
        with suppress(OSError), replace_file(path) as file:
            file.write(json.dumps(entries, indent=1).encode())
    return measured


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
