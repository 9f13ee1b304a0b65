"""Cost-aware admission: an expert is uploaded where its expected hits are worth the upload.

For VRAM over RAM, where an upload costs as much time as several hits save. A newcomer replaces the
resident with the lowest score if

    HORIZON x (its rate of use - the resident's) >= cost of an upload, in hits.

Rates are moving averages over about 128 visits of a layer. The highest of many noisy averages is
mostly noise, so they are shrunk towards the layer's mean by the share of their variance that
counting alone explains (empirical Bayes, Efron and Morris 1975): routing without hot experts swaps
next to nothing.

A ledger bounds what wrong estimates cost. A swap is paid from it; for `WATCH` visits, uses of the
newcomer pay in and uses of the expert that left are taken out. Each choice of an expert pays in
`RISK`, without which nothing would be tried again after a loss. So on any trace the cost of all
swaps is at most the hits plus 0.5 % of the choices.
"""

from typing import Any

import numpy as np

from hybridmoe.experts.policy.fading import FIRST_FREE, VISITS, WEIGHT, bump, new_state, note_visit
from hybridmoe.experts.policy.heap import SCORE, lowest_unpinned, pop, push
from hybridmoe.experts.policy.interface import CacheShape
from hybridmoe.experts.policy.jit import (
    ABSENT,
    EXPERTS,
    GHOST,
    WHERE,
    State,
    access_kernel,
    demand,
    inline,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy

__all__ = ["UPLOAD_HITS", "CostAware"]

UPLOAD_HITS = 3.0  # cost of an upload, in hits, where none was measured: docs/cuda.md
RATE = 1 / 128  # of decay, per visit
HORIZON = 64.0  # visits for which a difference of rates is expected to last
WATCH = 128.0  # visits after a swap in which its uses are booked
RISK = 0.005  # hits that a choice of an expert pays into the ledger
FLOOR, CAP = -16.0, 64.0  # of the ledger, in uploads: older losses and gains are forgotten
CAUTION = 2.0  # standard errors of the variance that are taken for noise
PASS_SHARE = 64  # a pass through the layers swaps one expert for so many that a token uses

# Rows of State.score. COST, BALANCE: entry 0. The next four: an entry for each layer.
COST, BALANCE, COUNT, SQUARES, TOTAL, TOTAL_SQUARES, UNTIL = range(2, 9)
LAST_LAYER, NUM_SWAPS, MOST_SWAPS, IS_PREFILL = range(FIRST_FREE, FIRST_FREE + 4)


@inline
def note_statistics(s: State, layer: int, experts: Any) -> None:
    """Update a layer's decayed sums, in units of a use now. After `note_visit`."""
    weight, fading = s.score[WEIGHT, 0], np.exp(-RATE)
    s.score[TOTAL, layer] = s.score[TOTAL, layer] * fading + 1.0
    s.score[TOTAL_SQUARES, layer] = s.score[TOTAL_SQUARES, layer] * fading * fading + 1.0
    s.score[COUNT, layer] = s.score[COUNT, layer] * fading + len(experts)
    squares = s.score[SQUARES, layer] * fading * fading
    for i in range(len(experts)):
        key = layer * s.sizes[EXPERTS] + experts[i]
        before = s.score[SCORE, key] / weight
        if not ABSENT < s.node[key, WHERE] < GHOST:
            before -= 1.0  # already counted
        squares += 2.0 * before + 1.0
    s.score[SQUARES, layer] = squares


@inline
def settle(s: State, layer: int, experts: Any) -> None:
    """Book the uses of experts that were swapped in or out during the last `WATCH` visits."""
    balance = s.score[BALANCE, 0] + RISK * len(experts)
    for i in range(len(experts)):
        key = layer * s.sizes[EXPERTS] + experts[i]
        if s.layer[VISITS, layer] < s.score[UNTIL, key]:
            balance += 1.0 if ABSENT < s.node[key, WHERE] < GHOST else -1.0
    cost = s.score[COST, 0]
    s.score[BALANCE, 0] = max(FLOOR * cost, min(balance, CAP * cost))


@inline
def watch(s: State, key: int) -> None:
    """Book the key's uses during the next `WATCH` visits of its layer."""
    s.score[UNTIL, key] = s.layer[VISITS, key // s.sizes[EXPERTS]] + WATCH


@inline
def expected_rate(s: State, key: int) -> float:
    """Expected uses of a key per visit, shrunk towards its layer's mean."""
    num_experts = s.sizes[EXPERTS]
    layer = key // num_experts
    total = s.score[TOTAL, layer]
    if total == 0.0:
        return 0.0
    mean = s.score[COUNT, layer] / total / num_experts
    variance = s.score[SQUARES, layer] / (total * total) / num_experts - mean * mean
    noise = mean * max(0.0, 1.0 - mean) * s.score[TOTAL_SQUARES, layer] / (total * total)
    noise *= 1.0 + CAUTION * np.sqrt(2.0 / num_experts)
    trust = 1.0 - noise / variance if variance > noise else 0.0
    found = s.score[SCORE, key] / s.score[WEIGHT, 0] / total
    return float(mean + trust * (found - mean))


@inline
def touch(s: State, key: int) -> None:
    if s.sizes[IS_PREFILL] == 0:
        bump(s, key)


@inline
def evict(s: State, key: int) -> int:
    cost = s.score[COST, 0]
    if s.sizes[NUM_SWAPS] >= s.sizes[MOST_SWAPS] or s.score[BALANCE, 0] < cost:
        return -1
    victim = lowest_unpinned(s)
    if s.score[SCORE, key] <= s.score[SCORE, victim]:
        return -1
    if HORIZON * (expected_rate(s, key) - expected_rate(s, victim)) < cost:
        return -1
    s.sizes[NUM_SWAPS] += 1
    s.score[BALANCE, 0] -= cost
    pop(s, victim)
    watch(s, victim)
    watch(s, key)
    return victim


@inline
def insert(s: State, key: int) -> None:
    push(s, key)


@access_kernel
def on_access(
    s: State, layer: int, experts: Any, is_prefill: bool, hits: Any, admitted: Any, evicted: Any
) -> tuple[int, int]:
    if layer <= s.sizes[LAST_LAYER]:
        s.sizes[NUM_SWAPS] = 0
    s.sizes[LAST_LAYER] = layer
    s.sizes[IS_PREFILL] = is_prefill
    if not is_prefill:  # a prompt uses nearly all experts, hot or not
        note_visit(s, layer, experts, RATE, 1.0)
        note_statistics(s, layer, experts)
        settle(s, layer, experts)
    return demand(s, layer, experts, is_prefill, hits, admitted, evicted, touch, evict, insert)


class CostAware(KernelPolicy):
    """Moving averages, shrunk by their noise; swaps that pay, and a ledger of what they paid."""

    name = "cost-aware"
    kernel = on_access

    def build(self, shape: CacheShape, seed: int) -> State:
        """Make a heap of residents by decayed frequency, and an empty ledger."""
        state = new_state(shape, num_scores=9)
        state.score[COST, 0] = UPLOAD_HITS
        most = min(shape.num_slots // 64, shape.num_layers * shape.top_k // PASS_SHARE)
        state.sizes[MOST_SWAPS] = max(1, most)
        return state

    @property
    def upload_hits(self) -> float:
        """Cost of an upload, in hits; infinite: swap nothing."""
        return float(self.state.score[COST, 0])

    @upload_hits.setter
    def upload_hits(self, hits: float) -> None:
        assert hits >= 0, hits
        self.state.score[COST, 0] = hits
