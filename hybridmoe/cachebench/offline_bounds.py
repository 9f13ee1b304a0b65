"""Offline bounds: results on a trace that no cache policy can beat without knowing the future.

Three bounds, by what they allow:
- MIN (Belady 1966): every miss is loaded and evicts the key that is needed last.
- MIN with bypass: a miss may be streamed instead. No policy hits more often. It may even reuse, at
  once, the slot of an expert that the running step has just used, which a live cache may not.
- Optimum with upload cost: the most that hits - cost * uploads can be, over the accesses that
  count. Like every policy here it starts empty, evicts only to load, and in prefill not at all.
  Each stay of an expert in a slot is an interval with one upload; choosing intervals for all slots
  is a min-cost flow (compare FOO, Berger et al. 2018). Exact for small traces. For large ones, a
  bound proven by the dual: a price of slots at each time and a price of filling one in prefill, at
  which each expert chooses its stays independently.
Prefetching is outside all three: only requested experts are loaded.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridmoe.cachebench.min_cost_flow import Demand, best_flow
from hybridmoe.cachebench.simulator import Outcome, Requests, add_counts
from hybridmoe.experts.policy.jit import inline, loop

__all__ = ["UploadOptimum", "min_outcome", "next_uses", "upload_optimum"]

_MOST_EXACT = 2_000_000  # requests times slots up to which the flow is computed
_NUM_ROUNDS = 150


class UploadOptimum(NamedTuple):
    """Upper bound of hits - cost * uploads."""

    value: float
    is_exact: bool  # else possibly out of reach


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


def upload_optimum(
    requests: Requests,
    num_slots: int,
    cost: float = 1.0,
    counts: NDArray[np.bool_] | None = None,
) -> UploadOptimum:
    """Maximize hits - cost * uploads over all ways to fill `num_slots` slots.

    counts: (A,) accesses whose hits and uploads count; None = all. Cost: up to a second for a small
    trace; for a large one `_NUM_ROUNDS` passes over it.
    """
    if len(requests.experts) == 0 or num_slots == 0:
        return UploadOptimum(0.0, True)
    demand = _demand(requests, cost, counts)
    if len(requests.experts) * num_slots <= _MOST_EXACT:
        return UploadOptimum(best_flow(demand, num_slots), True)
    return UploadOptimum(_dual_bound(demand, num_slots), False)


def _demand(requests: Requests, cost: float, counts: NDArray[np.bool_] | None) -> Demand:
    following = _following(requests.keys(), requests.num_layers * requests.num_experts)
    num_accesses = len(requests.layers)
    accesses = np.repeat(np.arange(num_accesses), np.diff(requests.starts))
    gains = np.ones(len(accesses)) if counts is None else counts[accesses].astype(np.float64)
    return Demand(following, accesses, gains, cost * gains, requests.is_prefill[accesses])


def _dual_bound(demand: Demand, num_slots: int) -> float:
    """Search the lowest bound: first one price for all times, then subgradient steps."""
    num_times = int(demand.accesses[-1]) + 1
    prices, usage = np.zeros(num_times), np.zeros(num_times)
    fill_price = 0.0  # each slot is filled for the first time once
    num_fills = 0

    def bound() -> float:
        nonlocal num_fills
        value, num_fills = _worth_at_prices(*demand, prices, fill_price, usage)
        return float(value + num_slots * (prices.sum() + fill_price))

    best, best_prices = bound(), (0.0, 0.0)
    for price in np.geomspace(1e-6, 1.0, 25):
        prices[:] = price
        if (value := bound()) < best:
            best, best_prices = value, (float(price), 0.0)
    prices[:] = best_prices[0]
    for fill_price in (0.5, 1.0, 2.0):
        if (value := bound()) < best:
            best, best_prices = value, (best_prices[0], fill_price)
    prices[:], fill_price = best_prices
    step = best_prices[0] / num_slots if best_prices[0] else 1e-3 / num_slots
    for i in range(_NUM_ROUNDS):
        best = min(best, bound())
        prices += step / (1 + i / 10) * (usage - num_slots)
        np.maximum(prices, 0, out=prices)
        fill_price = max(0.0, fill_price + 0.1 / (1 + i / 10) * (num_fills / num_slots - 1))
    return best


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


@loop
def _following(keys: Any, num_keys: int) -> Any:
    """Return the request (N,) that next asks for the same key; -1 = none."""
    seen = np.full(num_keys, -1, np.int64)
    out = np.empty(len(keys), np.int64)
    for i in range(len(keys) - 1, -1, -1):
        out[i] = seen[keys[i]]
        seen[keys[i]] = i
    return out


@loop
def _worth_at_prices(
    following: Any,
    accesses: Any,
    gains: Any,
    costs: Any,
    needs_free: Any,
    prices: Any,
    fill_price: float,
    usage: Any,
) -> Any:
    """Maximize each key's gain if a slot costs prices[t] from access t to t + 1.

    Returns the sum of gains and the number of uploads that paid `fill_price`. usage: gets the
    number of keys that stay over each time.
    """
    count, num_times = len(following), len(prices)
    paid = np.zeros(num_times + 1)
    for t in range(num_times):
        paid[t + 1] = paid[t] + prices[t]
    # Backwards: the best from request i on, with the key resident after i, or not.
    if_in, if_out = np.zeros(count), np.zeros(count)
    for i in range(count - 1, -1, -1):
        j = following[i]
        if j >= 0:
            gain = gains[j] - (paid[accesses[j]] - paid[accesses[i]])
            cost = costs[i] + (fill_price if needs_free[i] else 0.0)
            if_out[i] = max(if_out[j], gain - cost + if_in[j])
            if_in[i] = max(if_out[j], gain + if_in[j])
    # Forwards: the choices that reach it.
    usage[:] = 0
    is_in, is_first = np.zeros(count, np.bool_), np.ones(count, np.bool_)
    total, num_fills = 0.0, 0
    for i in range(count):
        j = following[i]
        if is_first[i]:
            total += if_out[i]
        if j < 0:
            continue
        is_first[j] = False
        gain = gains[j] - (paid[accesses[j]] - paid[accesses[i]])
        cost = costs[i] + (fill_price if needs_free[i] else 0.0)
        if is_in[i]:
            stays = gain + if_in[j] >= if_out[j]
        else:
            stays = gain - cost + if_in[j] > if_out[j]
            num_fills += stays and needs_free[i]
        if stays:
            is_in[j] = True
            usage[accesses[i]] += 1
            usage[accesses[j]] -= 1
    for t in range(1, num_times):
        usage[t] += usage[t - 1]
    return total, num_fills


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
