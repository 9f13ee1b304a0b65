"""Replay of a trace over VRAM slots, RAM slots and the disk, as `hybridmoe.experts` runs them.

Where an expert is changes by the policies' decisions alone, in this order:

1.  Step: what VRAM keeps does not change. In each layer, RAM's policy gets the distinct experts
    that VRAM does not keep, in order of first use, even if there are none; it admits and evicts at
    once. It notes the uses of the others, so that it knows how old they are if they come back.
2.  After the step, VRAM's policy gets every layer's distinct experts. What it admits in a layer is
    discarded by RAM, if it was there; then what it evicts is offered to RAM.
3.  An offered expert takes a free slot of RAM, or the slot of the resident that was passed over in
    most visits of its layer, if those are more than its own. Otherwise only the disk has it.

Where experts differ in size, a layer's compete with those of equally large ones (`RamPolicy`).

Bytes follow later, and their way changes no decision. Time is that of the slowest of VRAM, CPU and
disk in each layer, where what is read last is computed after it, as in `planning.layer_cost`;
uploads and the way back are hidden until the link or the disk has more to do than the step takes.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import ArrayLike, NDArray

from hybridmoe.cachebench.ram_policy import RamPolicy
from hybridmoe.cachebench.simulator import (
    EVICTIONS,
    HITS,
    MISSES,
    UPLOADS,
    Outcome,
    Requests,
    add_counts,
    count_hits,
)
from hybridmoe.experts.policy.jit import (
    ABSENT,
    ACCESS_POINTER,
    EXPERTS,
    GHOST,
    STATE,
    WHERE,
    Kernel,
    State,
    inline,
)
from hybridmoe.experts.policy.kernel_policy import KernelPolicy
from hybridmoe.experts.policy.lru import discard, note_above, offer
from hybridmoe.experts.stats import ExpertCounters

__all__ = ["PROMOTED", "RETURNED", "Rates", "TierOutcome", "simulate_tiers"]

PROMOTED, RETURNED = range(2)
_VRAM, _RAM, _DISK, _LINK = range(4)


class Rates(NamedTuple):
    """Bytes per second of experts."""

    vram: float
    ram: float
    disk: float
    link: float  # between RAM and VRAM, either way


class TierOutcome(NamedTuple):
    """Counts and times of a replay."""

    vram: Outcome
    ram: Outcome  # of accesses that VRAM missed; its misses are read from disk
    moves: NDArray[np.int64]  # (steps, 2): PROMOTED from RAM to VRAM, RETURNED from VRAM to RAM
    seconds: NDArray[np.float64]  # (steps,)
    read_s: NDArray[np.float64]  # (steps,): of the disk, for RAM's misses and VRAM's uploads

    def counters(self) -> tuple[ExpertCounters, ExpertCounters]:
        """Counters of VRAM and of RAM, as live caches have them after the same run."""
        vram, ram = (
            ExpertCounters(
                hits=o.total(HITS),
                misses=o.total(MISSES),
                uploads=o.total(UPLOADS),
                evictions=o.total(EVICTIONS),
            )
            for o in (self.vram, self.ram)
        )
        ram.promoted, ram.returned = self.moves.sum(axis=0).tolist()
        return vram, ram


def simulate_tiers(
    vram: KernelPolicy, ram: RamPolicy, requests: Requests, rates: Rates, expert_bytes: ArrayLike
) -> TierOutcome:
    """Replay the requests; the policies go on in their state.

    requests: not flat. expert_bytes: of each layer, or one size for all. Start as a live run does:
    `vram.warm`, then `ram.warm` with what VRAM did not keep.
    """
    num_layers, num_steps = requests.num_layers, requests.num_steps
    sizes = np.broadcast_to(np.asarray(expert_bytes, np.float64), num_layers)
    by_layer = np.zeros((2, num_layers, 2, 4), np.int64)
    by_step = np.zeros((2, num_steps, 4), np.int64)
    moves = np.zeros((num_steps, 2), np.int64)
    seconds, read_s = np.zeros((2, num_steps))
    _replay(
        vram.decide,
        vram.state,
        ram.decide,
        *ram.state,
        ram.group_of,
        ram.index_of,
        requests.experts,
        requests.starts,
        requests.layers,
        requests.steps,
        requests.is_prefill,
        np.ascontiguousarray(sizes[:, None] / np.array(rates)),
        by_layer,
        by_step,
        moves,
        seconds,
        read_s,
    )
    above, below = (Outcome(*of) for of in zip(by_layer, by_step, strict=True))
    return TierOutcome(above, below, moves, seconds, read_s)


_REPLAY = types.void(
    ACCESS_POINTER,
    STATE,
    ACCESS_POINTER,
    types.int64[:, ::1],
    types.int32[:, :, ::1],
    types.float64[:, :, ::1],
    types.int64[:, :, ::1],
    types.int64[::1],
    types.int64[::1],
    types.int32[::1],
    types.int64[::1],
    types.int32[::1],
    types.int32[::1],
    types.boolean[::1],
    types.float64[:, ::1],
    types.int64[:, :, :, ::1],
    types.int64[:, :, ::1],
    types.int64[:, ::1],
    types.float64[::1],
    types.float64[::1],
)


@inline
def is_kept(s: State, layer: int, expert: int) -> bool:
    return bool(ABSENT < s.node[layer * s.sizes[EXPERTS] + expert, WHERE] < GHOST)


def _replay_loop(
    vram_kernel: Any,
    vram: Any,
    ram_kernel: Any,
    ram_sizes: Any,
    ram_node: Any,
    ram_score: Any,
    ram_layer: Any,
    group_of: Any,
    index_of: Any,
    experts: Any,
    starts: Any,
    layers: Any,
    steps: Any,
    is_prefill: Any,
    expert_s: Any,
    by_layer: Any,
    by_step: Any,
    moves: Any,
    seconds: Any,
    disk_s: Any,
) -> None:
    most, num_experts = vram.sizes[EXPERTS], vram.sizes[EXPERTS]
    hits, admitted = np.empty(most, np.bool_), np.empty(most, np.int32)
    evicted = np.empty(most, np.int64)
    below, above = np.empty(most, np.int32), np.empty(most, np.int32)
    first = 0
    while first < len(layers):
        step = steps[first]
        end = first
        read_s = link_s = 0.0
        while end < len(layers) and steps[end] == step:
            layer, phase = layers[end], 1 if is_prefill[end] else 0
            group, index = group_of[layer], index_of[layer]
            ram = State(ram_sizes[group], ram_node[group], ram_score[group], ram_layer[group])
            num_below = num_above = 0
            for i in range(starts[end], starts[end + 1]):
                if is_kept(vram, layer, experts[i]):
                    above[num_above] = experts[i]
                    num_above += 1
                else:
                    below[num_below] = experts[i]
                    num_below += 1
            uploads, evictions = ram_kernel(
                ram, index, below[:num_below], is_prefill[end], hits, admitted, evicted
            )
            note_above(ram, index, above[:num_above])
            num_hits = count_hits(hits, num_below)
            misses = num_below - num_hits
            add_counts(by_layer[1, layer, phase], num_hits, misses, uploads, evictions)
            add_counts(by_step[1, step], num_hits, misses, uploads, evictions)
            read_s += misses * expert_s[layer, _DISK]
            arriving_s = misses * expert_s[layer, _DISK]
            if misses > 0:
                arriving_s += expert_s[layer, _RAM]
            seconds[step] += max(
                num_above * expert_s[layer, _VRAM], num_below * expert_s[layer, _RAM], arriving_s
            )
            end += 1
        for access in range(first, end):
            layer, phase = layers[access], 1 if is_prefill[access] else 0
            chosen = experts[starts[access] : starts[access + 1]]
            uploads, evictions = vram_kernel(
                vram, layer, chosen, is_prefill[access], hits, admitted, evicted
            )
            num_hits = count_hits(hits, len(chosen))
            misses = len(chosen) - num_hits
            add_counts(by_layer[0, layer, phase], num_hits, misses, uploads, evictions)
            add_counts(by_step[0, step], num_hits, misses, uploads, evictions)
            group, index = group_of[layer], index_of[layer]
            ram = State(ram_sizes[group], ram_node[group], ram_score[group], ram_layer[group])
            for i in range(uploads):
                link_s += expert_s[layer, _LINK]
                if discard(ram, index * num_experts + admitted[i]):
                    moves[step, PROMOTED] += 1
                else:  # its bytes are read once more
                    read_s += expert_s[layer, _DISK]
            for i in range(evictions):
                owner = evicted[i] // num_experts
                group = group_of[owner]
                ram = State(ram_sizes[group], ram_node[group], ram_score[group], ram_layer[group])
                is_taken, victim = offer(
                    ram, index_of[owner] * num_experts + evicted[i] % num_experts
                )
                if is_taken:
                    moves[step, RETURNED] += 1
                    link_s += expert_s[owner, _LINK]
                if victim >= 0:  # counted where the newcomer belongs
                    by_layer[1, owner, phase, EVICTIONS] += 1
                    by_step[1, step, EVICTIONS] += 1
        seconds[step] = max(seconds[step], read_s, link_s)
        disk_s[step] = read_s
        first = end


_replay = Kernel(_replay_loop, _REPLAY)
