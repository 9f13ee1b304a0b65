"""Optimum with upload cost as a min-cost flow: exact, for small traces.

Each slot is one unit that flows through time. At a request it may enter the key's chain (an
upload), stay until the key's next request (a hit), and go on or leave. Arcs of chains carry one
unit. Slots that were never filled flow on a line of their own, because prefill may use no others.
Units are sent one by one along shortest paths (Dijkstra's algorithm with potentials), until another
slot gains nothing.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridmoe.experts.policy.jit import inline, loop

__all__ = ["Demand", "best_flow"]

_FAR = 1e18  # distance of what cannot be reached


class Demand(NamedTuple):
    """Requests (N,) in order, and the worth of each."""

    following: NDArray[np.int64]  # the request that next asks for the same key, or -1
    accesses: NDArray[np.int64]  # its access, ascending
    gains: NDArray[np.float64]  # of a hit
    costs: NDArray[np.float64]  # of an upload; not negative
    needs_free: NDArray[np.bool_]  # uploads only to a slot that was never filled


class _Flow(NamedTuple):
    """Residual graph. Arc 2i is an arc of the network, 2i + 1 its reverse."""

    starts: NDArray[np.int64]  # (nodes + 1,): arcs of a node, in `order`
    order: NDArray[np.int64]  # arcs by the node that they leave
    ends: NDArray[np.int64]  # node that an arc enters
    capacity: NDArray[np.int64]  # residual
    price: NDArray[np.float64]


def best_flow(demand: Demand, num_slots: int) -> float:
    """Maximize the gains of hits minus the costs of uploads."""
    following, accesses = demand.following, demand.accesses
    num_times, count = int(accesses[-1]) + 1, len(following)
    stays = np.flatnonzero(following >= 0)
    later = following[stays]
    swaps = stays[~demand.needs_free[stays]]
    # Nodes: the times of slots that were never filled, and of others; each request as the start of
    # a stay, and as its end.
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
    capacities = np.concatenate([np.full(len(arc[0]), arc[2], np.int64) for arc in arcs])
    costs = np.concatenate([np.broadcast_to(arc[3], len(arc[0])) for arc in arcs])
    ends = np.stack([heads, tails], axis=1).ravel()
    sources = np.stack([tails, heads], axis=1).ravel()
    capacity = np.stack([capacities, np.zeros_like(capacities)], axis=1).ravel()
    price = np.stack([costs, -costs], axis=1).ravel()
    order = np.argsort(sources, kind="stable")
    starts = np.searchsorted(sources[order], np.arange(2 * (num_times + count) + 1))
    # All arcs run forward in this order, so that one pass finds the first potentials.
    ranks = np.concatenate([3 * times, 3 * times + 1, 3 * accesses + 2, 3 * accesses])
    in_time = np.argsort(ranks, kind="stable")
    flow = _Flow(starts, order, ends, capacity, price)
    return float(_send(flow, in_time, int(used[-1]), num_slots))


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


@inline
def _first_potentials(flow: Any, in_time: Any) -> Any:
    """Compute the distances from node 0 in the network, whose arcs all lead on in `in_time`."""
    potential = np.full(len(in_time), _FAR)
    potential[0] = 0.0
    for k in range(len(in_time)):
        node = in_time[k]
        for place in range(flow.starts[node], flow.starts[node + 1]):
            arc = flow.order[place]
            reach = potential[node] + flow.price[arc]
            if flow.capacity[arc] > 0 and reach < potential[flow.ends[arc]]:
                potential[flow.ends[arc]] = reach
    return potential


@inline
def _find_path(
    flow: Any, potential: Any, sink: int, distance: Any, via: Any, values: Any, nodes: Any
) -> None:
    """Find the shortest path from node 0 to the sink, by reduced costs.

    distance: gets those of the nodes up to the sink's. via: gets the arc by which each was reached.
    values, nodes: scratch for the heap.
    """
    distance[:] = _FAR
    distance[0] = 0.0
    size = _heap_push(values, nodes, 0, 0.0, 0)
    while size > 0:
        value, node = values[0], nodes[0]
        size = _heap_pop(values, nodes, size)
        if value > distance[node]:
            continue
        if node == sink:
            break
        for place in range(flow.starts[node], flow.starts[node + 1]):
            arc = flow.order[place]
            other = flow.ends[arc]
            if flow.capacity[arc] == 0 or potential[other] >= _FAR:
                continue
            # Rounding may leave a reduced cost just below zero.
            reach = value + max(0.0, flow.price[arc] + potential[node] - potential[other])
            if reach < distance[other]:
                distance[other] = reach
                via[other] = arc
                size = _heap_push(values, nodes, size, reach, other)


@loop
def _send(flow: Any, in_time: Any, sink: int, num_slots: int) -> Any:
    """Send up to `num_slots` units while each gains. Returns the total gain."""
    num_nodes = len(in_time)
    potential = _first_potentials(flow, in_time)
    distance, via = np.empty(num_nodes), np.empty(num_nodes, np.int64)
    values, nodes = np.empty(len(flow.ends) + 1), np.empty(len(flow.ends) + 1, np.int64)
    gained = 0.0
    for _ in range(num_slots):
        _find_path(flow, potential, sink, distance, via, values, nodes)
        if distance[sink] >= _FAR:
            break
        for node in range(num_nodes):
            potential[node] += min(distance[node], distance[sink])
        path_price, node = 0.0, sink
        while node != 0:
            path_price += flow.price[via[node]]
            node = flow.ends[via[node] ^ 1]
        if path_price > -1e-9:
            break
        gained -= path_price
        node = sink
        while node != 0:
            flow.capacity[via[node]] -= 1
            flow.capacity[via[node] ^ 1] += 1
            node = flow.ends[via[node] ^ 1]
    return gained
