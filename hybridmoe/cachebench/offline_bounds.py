"""What no cache policy can beat on a given trace, because it would have to know the future.

Three bounds, by what they allow:
- MIN (Belady 1966): every miss is loaded, and displaces what is needed last.
- MIN with bypass: a miss may pass by. No policy hits more often. It may even use, at once, the
  slot of an expert that the running step has just used, which a live cache may not: a bound.
- the optimum with upload cost: hits - cost * uploads, at best, of those accesses that count. Like
  every policy here it begins empty, evicts only for what it loads, and in prefill not at all. Each
  stay of an expert in a slot is an interval with one upload; choosing them for all slots is a flow
  of least cost (compare FOO, Berger et al. 2018). Exact for small traces; for large ones a bound
  proven by the dual: a price for slots at each time and one for filling them in prefill, and each
  expert decides alone what its stays are worth at these.
Prefetching is outside all three: an expert that nobody has asked for is not loaded.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridmoe.cachebench.min_cost_flow import Demand, best_flow
from hybridmoe.cachebench.simulator import EVICTIONS, HITS, MISSES, UPLOADS, Outcome, Requests
from hybridmoe.experts.policy.jit import inline, loop

__all__ = ["UploadOptimum", "min_outcome", "next_uses", "upload_optimum"]

_MOST_EXACT = 2_000_000  # requests times slots that the flow is computed for
_NUM_ROUNDS = 150


class UploadOptimum(NamedTuple):
    """The best that hits - cost * uploads can be."""

    value: float
    is_exact: bool  # else no policy can do better, and perhaps none as well


def next_uses(requests: Requests) -> NDArray[np.int64]:
    """(N,): the access that next asks for the same key; the number of accesses where none does."""
    num_keys = requests.num_layers * requests.num_experts
    return _next_uses(requests.keys(), requests.starts, num_keys)  # type: ignore[no-any-return]


def min_outcome(requests: Requests, num_slots: int, *, bypass: bool) -> Outcome:
    """MIN on the requests, or MIN with bypass."""
    by_layer = np.zeros((requests.num_layers, 2, 4), np.int64)
    by_step = np.zeros((requests.num_steps, 4), np.int64)
    _replay_min(
        requests.keys(),
        next_uses(requests),
        requests.starts,
        requests.layers,
        requests.steps,
        requests.is_prefill,
        num_slots,
        requests.num_layers * requests.num_experts,
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
    """The most that hits - cost * uploads can be with so many slots.

    counts: (A,) whether an access's hits and uploads do; None = all. Cost: up to a second for a
    small trace; for a large one `_NUM_ROUNDS` passes over it.
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
    """The lowest bound found: first with one price for all times, then by subgradient steps."""
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
    """(N,): the request that next asks for the same key; -1 where none does."""
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
    """What all keys gain at most if a slot costs prices[t] from access t to t + 1.

    And how many of their uploads paid `fill_price`. usage: gets how many stay over each time.
    """
    count, num_times = len(following), len(prices)
    paid = np.zeros(num_times + 1)
    for t in range(num_times):
        paid[t + 1] = paid[t] + prices[t]
    # Backwards: the best from request i on, with the key in a slot when i has run, or not.
    if_in, if_out = np.zeros(count), np.zeros(count)
    for i in range(count - 1, -1, -1):
        j = following[i]
        if j >= 0:
            gain = gains[j] - (paid[accesses[j]] - paid[accesses[i]])
            cost = costs[i] + (fill_price if needs_free[i] else 0.0)
            if_out[i] = max(if_out[j], gain - cost + if_in[j])
            if_in[i] = max(if_out[j], gain + if_in[j])
    # Forwards: what was chosen.
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
    """Add to a heap with the largest on top; its new size."""
    place = size
    while place > 0 and heap[(place - 1) // 2] < value:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = value
    return size + 1


@inline
def _pop(heap: Any, size: int) -> Any:
    """Remove the top of a heap; its new size."""
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


@loop
def _replay_min(
    keys: Any,
    nexts: Any,
    starts: Any,
    layers: Any,
    steps: Any,
    is_prefill: Any,
    num_slots: int,
    num_keys: int,
    bypass: bool,
    by_layer: Any,
    by_step: Any,
) -> None:
    heap = np.empty(2 * len(keys) + 1, np.int64)  # next use * num_keys + key; stale ones stay
    current = np.full(num_keys, -1, np.int64)  # next use of a resident; -1 = absent
    used_in = np.full(num_keys, -1, np.int64)  # the access that used it last
    loaded_in = np.full(num_keys, -1, np.int64)
    aside = np.empty(num_slots + 1, np.int64)
    size = num_used = 0
    for access in range(len(layers)):
        num_hits = num_uploads = num_evictions = 0
        first, end = starts[access], starts[access + 1]
        for i in range(first, end):
            used_in[keys[i]] = access
            if current[keys[i]] >= 0:
                num_hits += 1
                current[keys[i]] = nexts[i]
                size = _push(heap, size, nexts[i] * num_keys + keys[i])
        num_pinned = num_hits
        for i in range(first, end):
            key = keys[i]
            if current[key] >= 0 and loaded_in[key] != access:
                continue
            if num_used == num_slots:
                if num_slots == 0 or (not bypass and num_pinned == num_slots):
                    continue
                num_aside = 0
                if bypass:  # the newcomer competes
                    size = _push(heap, size, nexts[i] * num_keys + key)
                    current[key] = nexts[i]
                    loaded_in[key] = access
                    num_uploads += 1
                while True:
                    top = heap[0]
                    size = _pop(heap, size)
                    victim = top % num_keys
                    if current[victim] != top // num_keys:
                        continue
                    if bypass or used_in[victim] != access:
                        break
                    aside[num_aside] = top
                    num_aside += 1
                for k in range(num_aside):
                    size = _push(heap, size, aside[k])
                current[victim] = -1
                if bypass and loaded_in[victim] == access:
                    num_uploads -= 1
                    loaded_in[victim] = -1
                else:
                    num_evictions += 1
                if bypass:
                    continue
                num_used -= 1
            num_used += 1
            num_pinned += 1
            num_uploads += 1
            current[key] = nexts[i]
            loaded_in[key] = access
            size = _push(heap, size, nexts[i] * num_keys + key)
        for counts in (
            by_layer[layers[access], 1 if is_prefill[access] else 0],
            by_step[steps[access]],
        ):
            counts[HITS] += num_hits
            counts[MISSES] += end - first - num_hits
            counts[UPLOADS] += num_uploads
            counts[EVICTIONS] += num_evictions
