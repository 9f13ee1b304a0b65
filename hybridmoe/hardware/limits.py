"""Measured limits of this machine: reads of memory and caches, products by instruction set.

They are measured with the instructions that the kernels use: reads, and loops of multiply-adds in
registers. Each is the best of several turns, since other programs can only slow them.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridmoe import _C
from hybridmoe.hardware import isa, topology

__all__ = ["Limits", "Products", "Rate", "Units", "measure", "measure_read", "measure_units"]

_CACHE_READ_BYTES = 64 << 20  # of a turn
_LEAST_CHUNK = 512  # bytes that a read needs
_PAGE_BYTES = 4096


class _Memory(NamedTuple):
    """Bytes on the caller's NUMA node, and bytes of which each node's threads read their own."""

    near: NDArray[np.uint8]
    spread: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Rate:
    """Amount per second, of one core and of all kernel threads together."""

    one: float
    all: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the active instruction set."""

    read: Rate
    """Bytes from memory, far more than a cache holds."""
    int8: Rate
    """Operations (a multiply-add is two) on int8 as the active kernels do them."""
    float32: Rate
    """Operations of float32 FMA."""
    amx_int8: Rate | None = None
    """Operations of AMX tiles on int8; None without tiles in the active kernels."""
    amx_bf16: Rate | None = None

    @property
    def prompts(self) -> Rate:
        """Operations of the unit that multiplies prompts: bfloat16 tiles, or else int8."""
        return self.amx_bf16 or self.int8


@dataclass(frozen=True, slots=True)
class Products:
    """Operations of an instruction set."""

    int8: Rate
    float32: Rate


@dataclass(frozen=True, slots=True)
class Units:
    """Limits besides those of `Limits`, for `hybridmoe doctor`."""

    read_by_threads: Mapping[int, float]
    """Bytes a second from memory, by the number of threads that read."""
    l2: float | None
    """Bytes a second of one core from its L2; None where its size is unknown."""
    l3: float | None
    """Bytes a second of all threads from L3."""
    other_isa: Mapping[str, Products]
    """Supported instruction sets that are not active."""


def measure(*, quick: bool = False) -> Limits:
    """Measure with the active instruction set and threads, for about 4 s or, `quick`, 1 s."""
    turns, seconds = (2, 0.02) if quick else (5, 0.1)
    memory = _memory(quick)
    chunks = 16 * topology.num_threads()
    has_tiles = isa.active() == "amx"

    def rate(kind: str) -> Rate:
        return _operations(kind, turns, seconds)

    return Limits(
        read=Rate(_best(_read(memory.near, 1), turns), _best(_read(memory.spread, chunks), turns)),
        int8=rate("int8"),
        float32=rate("float"),
        amx_int8=rate("tile_int8") if has_tiles else None,
        amx_bf16=rate("tile_bf16") if has_tiles else None,
    )


def measure_read() -> float:
    """Measure bytes a second from memory with all kernel threads, in about 0.1 s."""
    return _best(_read(_memory(quick=True).spread, 16 * topology.num_threads()), 3)


def measure_units(*, l2_bytes: int | None, l3_bytes: int | None, quick: bool = False) -> Units:
    """Measure for about 1.5 s or, `quick`, 0.5 s; sizes are of one core's L2 and of one L3."""
    turns, seconds = (2, 0.01) if quick else (3, 0.03)
    memory, threads = _memory(quick), topology.num_threads()
    steps = sorted({threads, *(1 << i for i in range(threads.bit_length()) if 1 << i < threads)})
    others = {}
    for name in isa.supported():
        if name in ("scalar", isa.active()):
            continue
        with isa.forced(name):
            kinds = (_operations(kind, turns, seconds) for kind in ("int8", "float"))
            others[name] = Products(*kinds)
    return Units(
        read_by_threads={
            n: _best(_read(memory.near if n == 1 else memory.spread, n), turns) for n in steps
        },
        l2=_cached(memory.near, l2_bytes, 1, turns),
        l3=_cached(memory.near, l3_bytes, threads, turns),
        other_isa=others,
    )


def _memory(quick: bool) -> _Memory:
    """Memory to read, all of its pages resident: near the caller, and spread over the nodes."""
    num_bytes = (256 if quick else 1024) << 20
    if (available := topology.available_bytes()) is not None:
        num_bytes = max(1 << 20, min(num_bytes, available // 4))
    near = np.ones(num_bytes, np.uint8)
    if len(topology.current().nodes) == 1:
        return _Memory(near, near)
    spread = np.empty(num_bytes, np.uint8)
    _C.claim_rows(spread.ctypes.data, 1, num_bytes // _PAGE_BYTES, _PAGE_BYTES)
    return _Memory(near, spread)


def _read(memory: NDArray[np.uint8], parts: int, times: int = 1) -> Callable[[], int]:
    def run() -> int:
        for _ in range(times):
            _C.read_memory(memory.ctypes.data, memory.size, parts)
        return memory.size * times

    return run


def _cached(
    memory: NDArray[np.uint8], cache_bytes: int | None, parts: int, turns: int
) -> float | None:
    """Read a half of a cache, again and again: the rest is for what else lies in it."""
    num_bytes = 0 if cache_bytes is None else min(memory.size, cache_bytes // 2)
    if num_bytes < parts * _LEAST_CHUNK:
        return None
    times = max(2, _CACHE_READ_BYTES // num_bytes)
    return _best(_read(memory[:num_bytes], parts, times), turns)


def _operations(kind: str, turns: int, seconds: float) -> Rate:
    """Measure products by one core and by all, about `seconds` a turn each."""
    rounds, parts = _rounds(kind, seconds), 16 * topology.num_threads()

    def run(parts: int) -> Callable[[], int]:
        return lambda: _C.run_limit(kind, max(1, rounds // (16 if parts > 1 else 1)), parts)

    return Rate(_best(run(1), turns), _best(run(parts), turns))


def _best(run: Callable[[], int], turns: int) -> float:
    """Return the highest amount per second."""
    rates = []
    for _ in range(turns):
        start = time.perf_counter()
        amount = run()
        rates.append(amount / (time.perf_counter() - start))
    return max(rates)


def _rounds(kind: str, seconds: float) -> int:
    """Find how many rounds of a loop take about `seconds`."""
    rounds = 1000
    while True:
        start = time.perf_counter()
        _C.run_limit(kind, rounds, 1)
        if (taken := time.perf_counter() - start) > 0.002:
            return max(1, int(rounds * seconds / taken))
        rounds *= 4
