"""MIN (Belady 1966): the offline replay that evicts the key needed last.

Without bypass every miss is loaded. With bypass a miss may be streamed instead: no policy hits more
often. It may even reuse, at once, the slot of an expert that the running step has just used, which
a live cache may not.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridmoe.cachebench.simulator import Outcome, Requests, add_counts
from hybridmoe.experts.policy.jit import inline, loop

__all__ = ["min_outcome", "next_uses"]


def next_uses(requests: Requests) -> NDArray[np.int64]:
    """Return the access (N,) that next requests the same key; A = none."""
    num_keys = requests.num_layers * requests.num_experts
    return _next_uses(requests.keys(), requests.starts, num_keys)  # type: ignore[no-any-return]


def min_outcome(requests: Requests, num_slots: int, *, bypass: bool) -> Outcome:
    """Replay MIN, or MIN with bypass."""
    by_layer = np.zeros((requests.num_layers, 2, 4), np.int64)
    by_step = np.zeros((requests.num_steps, 4), np.int64)
    num_keys = requests.num_layers * requests.num_experts
    _replay_min(
        _Residents(
            np.empty(2 * len(requests.experts) + 1, np.int64),
            np.full(num_keys, -1, np.int64),
            np.full(num_keys, -1, np.int64),
            np.full(num_keys, -1, np.int64),
            np.empty(num_slots + 1, np.int64),
        ),
        requests.keys(),
        next_uses(requests),
        requests.starts,
        requests.layers,
        requests.steps,
        requests.is_prefill,
        num_slots,
        bypass,
        by_layer,
        by_step,
    )
    return Outcome(by_layer, by_step)


@loop
def _next_uses(keys: Any, starts: Any, num_keys: int) -> Any:
    num_accesses = len(starts) - 1
    seen = np.full(num_keys, num_accesses, np.int64)
    out = np.empty(len(keys), np.int64)
    for access in range(num_accesses - 1, -1, -1):
        for i in range(starts[access], starts[access + 1]):
            out[i] = seen[keys[i]]
            seen[keys[i]] = access
    return out


@inline
def _push(heap: Any, size: int, value: int) -> Any:
    """Add to a max-heap. Returns its new size."""
    place = size
    while place > 0 and heap[(place - 1) // 2] < value:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = value
    return size + 1


@inline
def _pop(heap: Any, size: int) -> Any:
    """Remove the top of a max-heap. Returns its new size."""
    size -= 1
    value, place = heap[size], 0
    while 2 * place + 1 < size:
        below = 2 * place + 1
        if below + 1 < size and heap[below + 1] > heap[below]:
            below += 1
        if heap[below] <= value:
            break
        heap[place] = heap[below]
        place = below
    heap[place] = value
    return size


class _Residents(NamedTuple):
    """Resident keys of MIN, ordered by next use."""

    heap: NDArray[np.int64]  # next use * number of keys + key; stale entries stay
    next_use: NDArray[np.int64]  # (keys,); -1 = not resident
    used_in: NDArray[np.int64]  # (keys,): last access
    loaded_in: NDArray[np.int64]  # (keys,): access of the last upload that stayed
    spared: NDArray[np.int64]  # (slots + 1,): scratch of `_evict_last_needed`


@inline
def _set_next_use(r: Any, size: int, key: int, next_use: int) -> Any:
    """Make a key resident until its next use. Returns the heap's new size."""
    r.next_use[key] = next_use
    return _push(r.heap, size, next_use * len(r.next_use) + key)


@inline
def _evict_last_needed(r: Any, size: int, access: int) -> Any:
    """Evict the key needed last, except those used in `access`. Returns it and the new size."""
    num_spared = 0
    while True:
        top = r.heap[0]
        size = _pop(r.heap, size)
        victim = top % len(r.next_use)
        if r.next_use[victim] != top // len(r.next_use):
            continue
        if r.used_in[victim] != access:
            break
        r.spared[num_spared] = top
        num_spared += 1
    for i in range(num_spared):
        size = _push(r.heap, size, r.spared[i])
    r.next_use[victim] = -1
    return victim, size


@loop
def _replay_min(
    r: Any,
    keys: Any,
    nexts: Any,
    starts: Any,
    layers: Any,
    steps: Any,
    is_prefill: Any,
    num_slots: int,
    bypass: bool,
    by_layer: Any,
    by_step: Any,
) -> None:
    size = num_used = 0
    for access in range(len(layers)):
        num_hits = num_uploads = num_evictions = 0
        first, end = starts[access], starts[access + 1]
        for i in range(first, end):
            r.used_in[keys[i]] = access
            if r.next_use[keys[i]] >= 0:
                num_hits += 1
                size = _set_next_use(r, size, keys[i], nexts[i])
        num_pinned = num_hits
        for i in range(first, end):
            key = keys[i]
            if r.next_use[key] >= 0 and r.loaded_in[key] != access:
                continue
            if num_used < num_slots:
                num_used += 1
            elif num_slots > 0 and bypass:  # the newcomer competes
                size = _set_next_use(r, size, key, nexts[i])
                r.loaded_in[key] = access
                victim, size = _evict_last_needed(r, size, -1)
                if r.loaded_in[victim] == access:
                    num_uploads -= 1
                    r.loaded_in[victim] = -1
                else:
                    num_evictions += 1
                num_uploads += 1
                continue
            elif num_pinned < num_slots:
                _, size = _evict_last_needed(r, size, access)
                num_evictions += 1
            else:
                continue
            num_pinned += 1
            num_uploads += 1
            r.loaded_in[key] = access
            size = _set_next_use(r, size, key, nexts[i])
        num_misses = end - first - num_hits
        phase = 1 if is_prefill[access] else 0
        add_counts(
            by_layer[layers[access], phase], num_hits, num_misses, num_uploads, num_evictions
        )
        add_counts(by_step[steps[access]], num_hits, num_misses, num_uploads, num_evictions)
