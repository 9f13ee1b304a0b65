"""What policies are compiled from: their state in arrays, and the loop that most of them share.

A policy's functions are compiled by numba and cached beside their module; the cache notices changes
of that module, not of this one or of `lists`: after editing these, delete `__pycache__`.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit, types
from numba.core.types import FunctionType
from numpy.typing import NDArray

from hybridmoe.experts.policy.interface import CacheShape

__all__ = [
    "ABSENT",
    "ACCESS_POINTER",
    "CLOCK",
    "EXPERTS",
    "GHOST",
    "LAYERS",
    "NEXT",
    "OWN",
    "PREV",
    "SLOTS",
    "STAMP",
    "STATE",
    "TOP_K",
    "USED",
    "WHERE",
    "State",
    "access_kernel",
    "begin",
    "cached",
    "compiled",
    "demand",
    "is_pinned",
    "loop",
    "new_state",
]

F = TypeVar("F", bound=Callable[..., Any])

# Entries of `State.sizes`; a policy's own ones begin at OWN.
LAYERS, EXPERTS, SLOTS, TOP_K, CLOCK, USED, OWN = range(7)
_NUM_SIZES = 16

# Columns of `State.node`; WHERE says which list a key is in.
PREV, NEXT, WHERE, STAMP = range(4)
ABSENT = 0  # resident lists are 1 to 3
GHOST = 4  # this list and later ones only remember keys


class State(NamedTuple):
    """All that a policy knows."""

    sizes: NDArray[np.int64]  # (16,): the shape, the clock (accesses so far), residents
    node: NDArray[np.int32]  # (keys + list heads, columns)
    score: NDArray[np.float64]  # (rows, keys)
    layer: NDArray[np.int64]  # (rows, layers)


STATE = types.NamedTuple(
    [types.int64[::1], types.int32[:, ::1], types.float64[:, ::1], types.int64[:, ::1]], State
)
# (state, layer, experts, is_prefill, hits, admitted, evicted) -> numbers of the last two
_ACCESS = types.UniTuple(types.int64, 2)(
    STATE,
    types.int64,
    types.int32[::1],
    types.boolean,
    types.boolean[::1],
    types.int32[::1],
    types.int64[::1],
)
ACCESS_POINTER = FunctionType(_ACCESS)


def compiled(function: F) -> F:
    """A part of kernels, inlined into each; a call would keep these from the cache on disk."""
    return njit(forceinline=True)(function)  # type: ignore[no-any-return]


def cached(function: F, *signature: Any) -> F:
    """Compiled and kept on disk: beside the module, or in the user's cache folder; where neither
    can be written, compiled for this process alone.
    """
    beside = Path(function.__code__.co_filename).parent
    has_folder = (
        os.environ.get("NUMBA_CACHE_DIR")
        or os.access(beside, os.W_OK)
        or Path(os.path.expanduser("~")).is_absolute()  # else numba makes a folder named "~"
    )
    if has_folder:
        with contextlib.suppress(RuntimeError, OSError):  # no folder for a cache; it is full
            return njit(*signature, cache=True)(function)  # type: ignore[no-any-return]
    return njit(*signature)(function)  # type: ignore[no-any-return]


def access_kernel(function: F) -> F:
    """A policy's whole decision, compiled once and kept on disk."""
    return cached(function, _ACCESS)


def loop(function: F) -> F:
    """A function over many accesses, compiled when first called and kept on disk."""
    return cached(function)


def new_state(
    shape: CacheShape,
    *,
    num_heads: int = 1,
    num_columns: int = 4,
    num_scores: int = 0,
    num_layer_rows: int = 0,
) -> State:
    """An empty cache. List heads are nodes behind the keys'; each list begins empty."""
    sizes = np.zeros(_NUM_SIZES, np.int64)
    sizes[: TOP_K + 1] = shape.num_layers, shape.num_experts, shape.num_slots, shape.top_k
    node = np.zeros((shape.num_keys + num_heads, num_columns), np.int32)
    heads = np.arange(shape.num_keys, shape.num_keys + num_heads)
    node[heads, PREV] = node[heads, NEXT] = heads
    if num_columns > STAMP + 2:
        node[heads, STAMP + 1] = node[heads, STAMP + 2] = heads
    return State(
        sizes,
        node,
        np.zeros((num_scores, shape.num_keys)),
        np.zeros((num_layer_rows, shape.num_layers), np.int64),
    )


@compiled
def is_pinned(s: State, key: int) -> bool:
    """Whether the access in progress uses the key."""
    return bool(s.node[key, STAMP] == np.int32(s.sizes[CLOCK]))


@compiled
def begin(s: State, layer: int, experts: Any, hits: Any) -> None:
    """Count the access, pin its experts, note which are resident."""
    s.sizes[CLOCK] += 1
    for i in range(len(experts)):
        key = layer * s.sizes[EXPERTS] + experts[i]
        s.node[key, STAMP] = np.int32(s.sizes[CLOCK])
        hits[i] = ABSENT < s.node[key, WHERE] < GHOST


@compiled
def demand(
    s: State,
    layer: int,
    experts: Any,
    is_prefill: bool,
    hits: Any,
    admitted: Any,
    evicted: Any,
    touch: Any,
    evict: Any,
    insert: Any,
) -> tuple[int, int]:
    """The loop of policies that load on a miss.

    touch(s, key): it was hit. evict(s, key): unlink a victim for the newcomer `key` and return it,
    or -1 where the newcomer shall not stay; called only where some resident is not in use.
    insert(s, key): link the newcomer.
    """
    begin(s, layer, experts, hits)
    first = layer * s.sizes[EXPERTS]
    num_used = 0
    for i in range(len(experts)):
        if hits[i]:
            num_used += 1
            touch(s, first + experts[i])
    num_admitted = num_evicted = 0
    for i in range(len(experts)):
        if hits[i]:
            continue
        key = first + experts[i]
        if s.sizes[USED] == s.sizes[SLOTS]:
            if is_prefill or s.sizes[USED] == num_used + num_admitted:
                continue
            victim = evict(s, key)
            if victim < 0:
                continue
            evicted[num_evicted] = victim
            num_evicted += 1
            s.sizes[USED] -= 1
        insert(s, key)
        s.sizes[USED] += 1
        admitted[num_admitted] = experts[i]
        num_admitted += 1
    return num_admitted, num_evicted
