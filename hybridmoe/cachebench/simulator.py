"""Cache simulator: replays a routing trace with a policy's own compiled decisions.

Batch semantics, as live: an access is one layer of one step; duplicates collapse, and a step's own
experts are not evicted while it runs. Flat semantics, for comparison with general cache simulators:
each choice of each token is an access of its own, and none is prefill.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from hybridmoe.cachebench.policies.registry import make_policy
from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import ACCESS_POINTER, EXPERTS, STATE, Kernel, inline, loop
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.routing_trace import Trace

__all__ = [
    "EVICTIONS", "HITS", "MISSES", "UPLOADS", "Outcome", "Requests", "add_counts", "count_hits",
    "hottest_keys", "requests_of", "simulate",
]  # fmt: skip

HITS, MISSES, UPLOADS, EVICTIONS = range(4)


class Requests(NamedTuple):
    """Trace as a cache sees it: A accesses, N experts in total."""

    num_layers: int
    num_experts: int
    top_k: int
    num_tokens: int
    num_steps: int
    experts: NDArray[np.int32]  # (N,)
    starts: NDArray[np.int64]  # (A + 1,): the experts of each access
    layers: NDArray[np.int32]  # (A,)
    steps: NDArray[np.int32]  # (A,)
    is_prefill: NDArray[np.bool_]  # (A,)

    def keys(self) -> NDArray[np.int64]:
        """Return the requested keys (N,), in order."""
        layers = np.repeat(self.layers, np.diff(self.starts)).astype(np.int64)
        return layers * self.num_experts + self.experts

    @property
    def working_set(self) -> int:
        """Experts that one token uses: a global LRU cache with fewer slots hits nothing."""
        return self.num_layers * self.top_k

    def shape(self, num_slots: int) -> CacheShape:
        """Return the shape of a cache for this model."""
        return CacheShape(self.num_layers, self.num_experts, num_slots, self.top_k)


class Outcome(NamedTuple):
    """Counts of a replay; the last axis is (HITS, MISSES, UPLOADS, EVICTIONS)."""

    by_layer: NDArray[np.int64]  # (L, 2, 4): of decode and of prefill steps
    by_step: NDArray[np.int64]  # (steps, 4)

    def total(self, kind: int) -> int:
        """Sum one kind of count over the trace."""
        return int(self.by_layer[:, :, kind].sum())

    @property
    def net(self) -> int:
        """Reads that the cache saved: hits minus uploads."""
        return self.total(HITS) - self.total(UPLOADS)

    @property
    def miss_ratio(self) -> float:
        requests = self.total(HITS) + self.total(MISSES)
        return self.total(MISSES) / requests if requests else 0.0


def requests_of(trace: Trace, *, flat: bool = False) -> Requests:
    """Turn a trace into accesses."""
    steps = np.ones(len(trace.ids), np.int32) if flat else trace.steps
    experts, counts = _distinct(trace.ids, steps.astype(np.int64), trace.num_experts)
    layers = np.tile(np.arange(trace.num_layers, dtype=np.int32), len(steps))
    step_of = np.repeat(np.arange(len(steps), dtype=np.int32), trace.num_layers)
    is_prefill = np.repeat(steps > PREFILL_TOKENS, trace.num_layers)
    if flat:
        layers, step_of = np.repeat(layers, counts), np.repeat(step_of, counts)
        is_prefill, counts = np.zeros(len(experts), np.bool_), np.ones(len(experts), np.int64)
    return Requests(
        trace.num_layers,
        trace.num_experts,
        trace.top_k,
        trace.num_tokens,
        len(steps),
        experts,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        layers,
        step_of,
        is_prefill,
    )


def simulate(
    policy: str | KernelPolicy,
    requests: Requests,
    num_slots: int = 0,
    *,
    seed: int = 0,
    warm: NDArray[np.int64] | None = None,
) -> Outcome:
    """Replay the requests.

    policy: a name, for an empty cache of `num_slots`; or a cache that continues in its state. warm:
    keys to admit first. Errors: ConfigError, as `make_policy`.
    """
    if isinstance(policy, str):
        policy = make_policy(policy, requests.shape(num_slots), seed)
    if warm is not None:
        policy.warm(warm)
    by_layer = np.zeros((requests.num_layers, 2, 4), np.int64)
    by_step = np.zeros((requests.num_steps, 4), np.int64)
    _replay(
        policy.decide,
        policy.state,
        requests.experts,
        requests.starts,
        requests.layers,
        requests.steps,
        requests.is_prefill,
        by_layer,
        by_step,
    )
    return Outcome(by_layer, by_step)


def hottest_keys(requests: Requests) -> NDArray[np.int64]:
    """Return the requested keys, most frequent first; for `warm`."""
    counts = np.bincount(requests.keys(), minlength=requests.num_layers * requests.num_experts)
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0].astype(np.int64)


_REPLAY = types.void(
    ACCESS_POINTER,
    STATE,
    types.int32[::1],
    types.int64[::1],
    types.int32[::1],
    types.int32[::1],
    types.boolean[::1],
    types.int64[:, :, ::1],
    types.int64[:, ::1],
)


@inline
def add_counts(counts: Any, hits: int, misses: int, uploads: int, evictions: int) -> None:
    """Add one access to a row of counts."""
    counts[HITS] += hits
    counts[MISSES] += misses
    counts[UPLOADS] += uploads
    counts[EVICTIONS] += evictions


@inline
def count_hits(hits: Any, num_experts: int) -> int:
    """Count the hits among the first experts of an access."""
    num_hits = 0
    for i in range(num_experts):
        num_hits += hits[i]
    return num_hits


def _replay_loop(
    kernel: Any,
    state: Any,
    experts: Any,
    starts: Any,
    layers: Any,
    steps: Any,
    is_prefill: Any,
    by_layer: Any,
    by_step: Any,
) -> None:
    most = state.sizes[EXPERTS]
    hits, admitted = np.empty(most, np.bool_), np.empty(most, np.int32)
    evicted = np.empty(most, np.int64)
    for access in range(len(layers)):
        layer, phase = layers[access], 1 if is_prefill[access] else 0
        chosen = experts[starts[access] : starts[access + 1]]
        num_admitted, num_evicted = kernel(
            state, layer, chosen, is_prefill[access], hits, admitted, evicted
        )
        num_hits = count_hits(hits, len(chosen))
        num_misses = len(chosen) - num_hits
        add_counts(by_layer[layer, phase], num_hits, num_misses, num_admitted, num_evicted)
        add_counts(by_step[steps[access]], num_hits, num_misses, num_admitted, num_evicted)


# One kernel for all policies: their decisions come as function pointers of one type.
_replay = Kernel(_replay_loop, _REPLAY)


@loop
def _distinct(ids: Any, steps: Any, num_experts: int) -> Any:
    """Return the distinct experts of all accesses, in order of first use, and counts by access."""
    num_layers, top_k = ids.shape[1], ids.shape[2]
    experts = np.empty(ids.size, np.int32)
    counts = np.zeros(len(steps) * num_layers, np.int64)
    seen = np.full(num_experts, -1, np.int64)
    end = first = access = 0
    for count in steps:
        for layer in range(num_layers):
            for token in range(first, first + count):
                for rank in range(top_k):
                    expert = ids[token, layer, rank]
                    if expert >= 0 and seen[expert] != access:
                        seen[expert] = access
                        experts[end] = expert
                        end += 1
                        counts[access] += 1
            access += 1
        first += count
    return experts[:end].copy(), counts
