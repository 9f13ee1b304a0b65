"""Optimum with upload cost: the most that hits - cost * uploads can be, given the whole trace.

It covers the accesses that count. Like every policy here it starts empty, evicts only to load, and
in prefill not at all; only requested experts are loaded. Each stay of an expert in a slot is an
interval with one upload; choosing intervals for all slots is a min-cost flow (compare FOO, Berger
et al. 2018), which is exact for small traces. For large ones, a bound proven by the dual: a price
of slots at each time and a price of filling one in prefill, at which each expert chooses its stays
independently.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridmoe.cachebench.min_cost_flow import Demand, best_flow
from hybridmoe.cachebench.simulator import Requests
from hybridmoe.experts.policy.jit import loop

__all__ = ["UploadOptimum", "upload_optimum"]

_MOST_EXACT = 2_000_000
_NUM_ROUNDS = 150


class UploadOptimum(NamedTuple):
    """Upper bound of hits - cost * uploads."""

    value: float
    is_exact: bool  # else possibly out of reach


def upload_optimum(
    requests: Requests,
    num_slots: int,
    cost: float = 1.0,
    counts: NDArray[np.bool_] | None = None,
    *,
    most_exact: int = _MOST_EXACT,
) -> UploadOptimum:
    """Maximize hits - cost * uploads over all ways to fill `num_slots` slots.

    counts: (A,) accesses whose hits and uploads count; None = all. most_exact: requests times slots
    up to which it is exact. Cost: up to a second for a small trace; for a large one `_NUM_ROUNDS`
    passes over it.
    """
    if len(requests.experts) == 0 or num_slots == 0:
        return UploadOptimum(0.0, True)
    demand = _demand(requests, cost, counts)
    if len(requests.experts) * num_slots <= most_exact:
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
