"""Prompts by AMX tiles on a modelled machine: the kernels' own division into tasks, modelled times.

The operations are compiled with kernels that compute nothing but add a task's modelled time to the
clock of the job trace (csrc/tests/modelled_tiles.cpp). Needs a compiler, and no AMX.
"""

import ctypes
import subprocess
import sysconfig
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench._schedule import Job, Machine, Step

__all__ = ["ModelledTiles", "TileCosts", "k2_layer"]

CSRC = Path(__file__).resolve().parent.parent / "csrc"
_SOURCES = (
    *("tests/modelled_tiles", "ops/linear", "ops/expert_ffn", "ops/expert_tiles"),
    *("base/runtime", "base/thread_pool"),
)
_MOST_NUMBERS = 1 << 20


@dataclass(frozen=True, slots=True)
class TileCosts:
    """Cycles. The rates of tiles are those of the kernels' cost model; the others are estimates.

    Caches: a thread reads 10 GB/s of what other cores have written, at 2 GHz.
    """

    hertz: float = 2e9
    unpack: float = 40.0  # 256 weights of a row
    dot: float = 11.0  # these with 16 tokens
    fixed_rows: float = 0.0  # rows whose unpacking a call does not hide
    float_pack: float = 0.3  # to bfloat16, in the order of tiles
    value_swiglu: float = 4.0
    value_finish: float = 1.0
    shared_byte: float = 0.2


class ModelledTiles:
    """Steps whose chunks have modelled times; nothing is computed."""

    def __init__(self, folder: Path, costs: TileCosts | None = None, csrc: Path = CSRC) -> None:
        """Compile into `folder`. csrc: of another commit, to compare with."""
        compiler = sysconfig.get_config_var("CXX").split()[0]
        library = folder / "modelled_tiles.so"
        flags = ["-std=c++20", "-O0", "-w", "-shared", "-fPIC", "-pthread", f"-I{csrc}"]
        sources = [str(csrc / f"{name}.cpp") for name in _SOURCES]
        subprocess.run([compiler, *flags, *sources, "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))
        for name in ("model_experts", "model_linear"):
            getattr(self._library, name).restype = ctypes.c_int64
        self._out = np.empty(_MOST_NUMBERS)
        numbers = np.array(astuple(costs or TileCosts()))
        self._library.set_costs(ctypes.c_void_p(numbers.ctypes.data))

    def experts(
        self, machine: Machine, ids: NDArray[np.int32], num_experts: int, hidden: int, inter: int
    ) -> Step:
        """Trace routed experts; ids: (T, k)."""
        ids = np.ascontiguousarray(ids, np.int32)
        weights = np.ones(ids.shape, np.float32)
        sizes = (*ids.shape, num_experts, hidden, inter)
        return self._traced("model_experts", machine, ids, weights, *sizes)

    def dense(self, machine: Machine, tokens: int, hidden: int, inter: int) -> Step:
        """Trace a network that all tokens take."""
        return self._traced("model_experts", machine, None, None, tokens, 1, 1, hidden, inter)

    def linear(self, machine: Machine, tokens: int, batch: int, rows: int, cols: int) -> Step:
        """Trace products with a stack of matrices."""
        return self._traced("model_linear", machine, tokens, batch, rows, cols)

    def _traced(self, name: str, machine: Machine, *values: object) -> Step:
        if len(set(machine.threads)) != 1:
            raise ValueError(f"nodes of {machine.threads} threads, expected as many on each")
        arguments = (len(machine.threads), machine.threads[0], *values, self._out, _MOST_NUMBERS)
        count = getattr(self._library, name)(*map(_argument, arguments))
        return Step(tuple(_jobs(self._out[:count].tolist())), 0.0)


def k2_layer(
    tiles: ModelledTiles, machine: Machine, tokens: int, num_experts: int = 48
) -> dict[str, Step]:
    """Trace the products of a layer of Kimi K2's shapes, but attention itself, by their part."""
    rng = np.random.default_rng(1)
    popular = rng.dirichlet(np.full(num_experts, 8.0))
    ids = np.array([rng.choice(num_experts, 8, replace=False, p=popular) for _ in range(tokens)])
    projections: dict[str, tuple[int, int, int]] = {
        "q_a": (1, 1536, 7168),
        "kv_a": (1, 576, 7168),
        "q_b": (1, 12288, 1536),
        "k_b": (64, 512, 128),
        "v_b": (64, 128, 512),
        "out": (1, 7168, 8192),
    }
    steps = {name: tiles.linear(machine, tokens, *shape) for name, shape in projections.items()}
    steps["experts"] = tiles.experts(machine, ids.astype(np.int32), num_experts, 7168, 2048)
    steps["shared expert"] = tiles.dense(machine, tokens, 7168, 2048)
    return steps


def _jobs(numbers: list[float]) -> list[Job]:
    jobs, at = [], 0
    while at < len(numbers):
        is_local, nodes = bool(numbers[at]), int(numbers[at + 1])
        at += 2
        ends = tuple(map(int, numbers[at : at + nodes]))
        at += nodes
        jobs.append(Job(0.0, is_local, ends, np.array(numbers[at : at + ends[-1]])))
        at += ends[-1]
    return jobs


def _argument(value: object) -> object:
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return value
