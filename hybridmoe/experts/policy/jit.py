"""Kernels of cache policies: state in arrays, compilation, the loop that most share.

The only module of the live cache that imports numba (half a second, 60 MB).
"""

import contextlib
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numba import types
from numba.core.types import FunctionType
from numpy.typing import NDArray

from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.kernel_cache import kernel_folder

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
    "Kernel",
    "State",
    "access_kernel",
    "begin",
    "demand",
    "inline",
    "is_pinned",
    "loop",
    "new_state",
]

F = TypeVar("F", bound=Callable[..., Any])
_FOLDER_LOCK = threading.Lock()

# Entries of `State.sizes`; a policy's own ones begin at OWN.
LAYERS, EXPERTS, SLOTS, TOP_K, CLOCK, USED, OWN = range(7)
_NUM_SIZES = 16

# Columns of `State.node`; WHERE says which list a key is in.
PREV, NEXT, WHERE, STAMP = range(4)
ABSENT = 0  # resident lists are 1 to 3
GHOST = 4  # this list and later ones remember keys that are not resident


class State(NamedTuple):
    """State of a policy."""

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


class Kernel:
    """Function that numba compiles on first use and keeps on disk.

    Kernels call functions marked `inline`, but no other kernels.
    """

    def __init__(self, function: Callable[..., Any], signature: Any = None) -> None:
        """signature: numba's, for a function pointer; without one, each call's types count."""
        self._function = function
        self._signature = signature

    def __call__(self, *args: Any) -> Any:
        """Run the kernel."""
        return self.compiled(*args)

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        """Numba dispatcher, compiled now if the kernel has a signature."""
        module = Path(self._function.__code__.co_filename)
        folder = kernel_folder(module, numba.config.CACHE_DIR)
        if folder is not None:
            with contextlib.suppress(RuntimeError, OSError):  # numba cannot use it; it is full
                return self._specialize(_njit_kept_in(folder, self._function))
        return self._specialize(numba.njit(self._function))

    def _specialize(self, dispatcher: Any) -> Callable[..., Any]:
        if self._signature is not None:
            dispatcher.compile(self._signature)
            dispatcher.disable_compile()
        return dispatcher  # type: ignore[no-any-return]


def _njit_kept_in(folder: Path, function: Callable[..., Any]) -> Any:
    """Make a dispatcher whose kernels are kept in a folder; numba reads its name only now."""
    with _FOLDER_LOCK:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder)
        try:
            return numba.njit(cache=True)(function)
        finally:
            numba.config.CACHE_DIR = before


def inline(function: F) -> F:
    """Mark a part of kernels; a call instead of inlining would keep these from the disk cache."""
    return numba.njit(forceinline=True)(function)  # type: ignore[no-any-return]


def access_kernel(function: Callable[..., Any]) -> Kernel:
    """Make a policy's whole decision a kernel of type `ACCESS_POINTER`."""
    return Kernel(function, _ACCESS)


def loop(function: Callable[..., Any]) -> Kernel:
    """Make a function over many accesses a kernel."""
    return Kernel(function)


def new_state(
    shape: CacheShape,
    *,
    num_heads: int = 1,
    num_columns: int = 4,
    num_scores: int = 0,
    num_layer_rows: int = 0,
) -> State:
    """Make an empty cache with empty lists. Their heads are the nodes after the keys."""
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


@inline
def is_pinned(s: State, key: int) -> bool:
    """Return whether the current access uses the key."""
    return bool(s.node[key, STAMP] == np.int32(s.sizes[CLOCK]))


@inline
def begin(s: State, layer: int, experts: Any, hits: Any) -> None:
    """Count the access, pin its experts, and record hits."""
    s.sizes[CLOCK] += 1
    for i in range(len(experts)):
        key = layer * s.sizes[EXPERTS] + experts[i]
        s.node[key, STAMP] = np.int32(s.sizes[CLOCK])
        hits[i] = ABSENT < s.node[key, WHERE] < GHOST


@inline
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
    """Decide an access for policies that load on a miss.

    touch(s, key): record a hit. evict(s, key): unlink a victim for the newcomer `key` and return
    it, or -1 to stream the newcomer; called only if some resident is not pinned. insert(s, key):
    link the newcomer.
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
