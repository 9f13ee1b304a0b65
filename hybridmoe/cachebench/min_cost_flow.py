"""The optimum with upload cost as a flow of least cost: exact, for small traces.

Each slot is one unit that flows through time. At a request it may enter the key's chain (an
upload), stay until the key's next request (a hit), and go on or leave. Chains' arcs carry one unit.
Slots that were never filled wait on a line of their own, because a prompt may use no others.
Units are sent one after the other along shortest paths (Dijkstra's, with potentials) until another
slot gains nothing.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridmoe.experts.policy.jit import inline, loop

__all__ = ["Demand", "best_flow"]


class Demand(NamedTuple):
    """N requests, in turn."""

    following: NDArray[np.int64]  # the request that next asks for the same key, or -1
    accesses: NDArray[np.int64]  # when each comes, ascending
    gains: NDArray[np.float64]  # of a hit
    costs: NDArray[np.float64]  # of an upload; not negative
    needs_free: NDArray[np.bool_]  # an upload has to go to a slot that was never filled


def best_flow(demand: Demand, num_slots: int) -> float:
    """The most that hits' gains less uploads' costs can be."""
    following, accesses = demand.following, demand.accesses
    num_times, count = int(accesses[-1]) + 1, len(following)
    stays = np.flatnonzero(following >= 0)
    later = following[stays]
    swaps = stays[~demand.needs_free[stays]]
    # Nodes: the times of slots that were never filled, and of others; each request as one that a
    # stay begins with, and as one that a stay reached.
    times = np.arange(num_times)
    used = num_times + times
    begins, reached = 2 * num_times + np.arange(count), 2 * num_times + count + np.arange(count)
    arcs: list[tuple[NDArray[np.int64], NDArray[np.int64], int, Any]] = [
        (times[:-1], times[1:], num_slots, 0.0),  # idle slots
        (used[:-1], used[1:], num_slots, 0.0),
        (times[-1:], used[-1:], num_slots, 0.0),
        (accesses[stays], begins[stays], 1, demand.costs[stays]),
        (used[accesses[swaps]], begins[swaps], 1, demand.costs[swaps]),
        (begins[stays], reached[later], 1, -demand.gains[later]),
        (reached[later], begins[later], 1, 0.0),
        (reached[later], used[accesses[later]], 1, 0.0),
    ]
    tails, heads = (np.concatenate([arc[side] for arc in arcs]) for side in (0, 1))
    rooms = np.concatenate([np.full(len(arc[0]), arc[2], np.int64) for arc in arcs])
    costs = np.concatenate([np.broadcast_to(arc[3], len(arc[0])) for arc in arcs])
    # Arc i of the flow is 2i, its reverse 2i + 1.
    ends = np.stack([heads, tails], axis=1).ravel()
    sources = np.stack([tails, heads], axis=1).ravel()
    room = np.stack([rooms, np.zeros_like(rooms)], axis=1).ravel()
    price = np.stack([costs, -costs], axis=1).ravel()
    order = np.argsort(sources, kind="stable")
    starts = np.searchsorted(sources[order], np.arange(2 * (num_times + count) + 1))
    # All arcs run forward in this order, so that one pass finds the first potentials.
    ranks = np.concatenate([3 * times, 3 * times + 1, 3 * accesses + 2, 3 * accesses])
    in_time = np.argsort(ranks, kind="stable")
    return float(_send(starts, order, ends, room, price, in_time, int(used[-1]), num_slots))


@inline
def _heap_push(values: Any, nodes: Any, size: int, value: float, node: int) -> Any:
    place = size
    while place > 0 and values[(place - 1) // 2] > value:
        above = (place - 1) // 2
        values[place], nodes[place] = values[above], nodes[above]
        place = above
    values[place], nodes[place] = value, node
    return size + 1


@inline
def _heap_pop(values: Any, nodes: Any, size: int) -> Any:
    size -= 1
    value, node, place = values[size], nodes[size], 0
    while 2 * place + 1 < size:
        below = 2 * place + 1
        if below + 1 < size and values[below + 1] < values[below]:
            below += 1
        if values[below] >= value:
            break
        values[place], nodes[place] = values[below], nodes[below]
        place = below
    values[place], nodes[place] = value, node
    return size


@loop
def _send(
    starts: Any,
    order: Any,
    ends: Any,
    room: Any,
    price: Any,
    in_time: Any,
    sink: int,
    num_slots: int,
) -> Any:
    num_nodes, far = len(starts) - 1, 1e18
    potential = np.full(num_nodes, far)
    potential[0] = 0.0
    for k in range(num_nodes):
        node = in_time[k]
        for place in range(starts[node], starts[node + 1]):
            arc = order[place]
            if room[arc] > 0 and potential[node] + price[arc] < potential[ends[arc]]:
                potential[ends[arc]] = potential[node] + price[arc]
    distance, via = np.empty(num_nodes), np.empty(num_nodes, np.int64)
    values, nodes = np.empty(len(ends) + 1), np.empty(len(ends) + 1, np.int64)
    gained = 0.0
    for _ in range(num_slots):
        distance[:] = far
        distance[0] = 0.0
        size = _heap_push(values, nodes, 0, 0.0, 0)
        while size > 0:
            value, node = values[0], nodes[0]
            size = _heap_pop(values, nodes, size)
            if value > distance[node]:
                continue
            if node == sink:
                break
            for place in range(starts[node], starts[node + 1]):
                arc = order[place]
                other = ends[arc]
                if room[arc] == 0 or potential[other] >= far:
                    continue
                # Rounding may leave a reduced cost just below zero.
                reach = value + max(0.0, price[arc] + potential[node] - potential[other])
                if reach < distance[other]:
                    distance[other] = reach
                    via[other] = arc
                    size = _heap_push(values, nodes, size, reach, other)
        if distance[sink] >= far:
            break
        for node in range(num_nodes):
            potential[node] += min(distance[node], distance[sink])
        path_price, node = 0.0, sink
        while node != 0:
            path_price += price[via[node]]
            node = ends[via[node] ^ 1]
        if path_price > -1e-9:
            break
        gained -= path_price
        node = sink
        while node != 0:
            room[via[node]] -= 1
            room[via[node] ^ 1] += 1
            node = ends[via[node] ^ 1]
    return gained
