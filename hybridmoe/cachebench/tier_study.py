"""Splits of VRAM and RAM over a trace, in seconds: the part of the study with three tiers.

Both caches have run the training half before (protocol "shift"), with the policies that run live.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridmoe.cachebench.bootstrap import Bootstrap
from hybridmoe.cachebench.policies.registry import make_policy
from hybridmoe.cachebench.ram_policy import RamPolicy
from hybridmoe.cachebench.simulator import EVICTIONS, HITS, MISSES, UPLOADS, Requests
from hybridmoe.cachebench.tiers import PROMOTED, RETURNED, Rates, TierOutcome, simulate_tiers
from hybridmoe.experts.routing_trace import PHASES, Trace

__all__ = ["RAM_SHARES", "VRAM_POLICY", "VRAM_SHARES", "TierRow", "splits_of", "tier_rows"]

VRAM_POLICY = "cost-aware"
# Of all experts.
VRAM_SHARES = (0.0, 0.05, 0.1, 0.2)
RAM_SHARES = (0.25, 0.5)


@dataclass(frozen=True, slots=True)
class TierRow:
    """Figures of one split, per decoded token where nothing else is said."""

    vram_slots: int
    ram_slots: int
    in_vram: float  # share of the distinct experts used, as the next two
    in_ram: float
    on_disk: float
    uploads: float  # to VRAM
    promoted: float  # of them, those that RAM had
    returned: float  # from VRAM to RAM
    dropped: float  # from VRAM, and from memory
    read_bytes: float  # from disk, uploads of what is not in RAM included
    token_s: float
    saved_s: float  # by the VRAM slots: with the same RAM alone, minus `token_s`
    saved_low_s: float  # 95 % of the bootstrap over conversations
    saved_high_s: float


def splits_of(
    num_experts: int, vram: Iterable[int] | None, ram: Iterable[int] | None
) -> list[tuple[int, int]]:
    """Combine slots of VRAM and of RAM; None = some shares of all `num_experts`."""
    above = [round(share * num_experts) for share in VRAM_SHARES] if vram is None else vram
    below = [round(share * num_experts) for share in RAM_SHARES] if ram is None else ram
    most = num_experts
    pairs = ((min(v, most), min(r, most)) for r in sorted(below) for v in sorted({0, *above}))
    return list(dict.fromkeys((v, min(r, most - v)) for v, r in pairs))


def tier_rows(
    run_in: Requests,
    held: Trace,
    requests: Requests,
    rates: Rates,
    splits: Iterable[tuple[int, int]],
    seed: int,
) -> list[TierRow]:
    """Replay `requests`, those of `held`, for each split, after `run_in`.

    splits: slots of VRAM and RAM.
    """
    sizes = np.array(held.header["expert_bytes"], np.float64)
    last = np.cumsum(held.steps) - 1
    is_decode = held.phases[last] == PHASES.index("decode")
    tokens = held.steps[is_decode].astype(np.int64)
    bootstrap = Bootstrap(held.conversations[last][is_decode], seed)
    alone: dict[int, NDArray[np.float64]] = {}  # RAM slots -> seconds of each decode step

    group_of = np.unique(sizes, return_inverse=True)[1]
    layers_of = np.bincount(group_of)

    def ram_policy(num_slots: int) -> RamPolicy:
        """Each layer has as many slots, whatever their size."""
        ends = np.round(np.cumsum(layers_of) * num_slots / requests.num_layers).astype(int)
        return RamPolicy(requests.shape(0), np.diff(ends, prepend=0).tolist(), group_of.tolist())

    def replay(vram_slots: int, ram_slots: int) -> TierOutcome:
        vram = make_policy(VRAM_POLICY, requests.shape(vram_slots), seed)
        ram = ram_policy(ram_slots)
        simulate_tiers(vram, ram, run_in, rates, sizes)
        return simulate_tiers(vram, ram, requests, rates, sizes)

    rows = []
    for vram_slots, ram_slots in splits:
        outcome = replay(vram_slots, ram_slots)
        seconds = outcome.seconds[is_decode]
        if ram_slots not in alone:
            without = outcome if vram_slots == 0 else replay(0, ram_slots)
            alone[ram_slots] = without.seconds[is_decode]
        saved = alone[ram_slots] - seconds
        count = max(1, int(tokens.sum()))
        vram, ram, moves, read_bytes = (
            of[is_decode].sum(axis=0) / count
            for of in (
                outcome.vram.by_step,
                outcome.ram.by_step,
                outcome.moves,
                outcome.read_s * rates.disk,
            )
        )
        used = max(1e-9, float(vram[HITS] + vram[MISSES]))
        low, high = bootstrap.interval(saved, tokens)
        rows.append(
            TierRow(
                vram_slots,
                ram_slots,
                float(vram[HITS]) / used,
                float(ram[HITS]) / used,
                float(ram[MISSES]) / used,
                float(vram[UPLOADS]),
                float(moves[PROMOTED]),
                float(moves[RETURNED]),
                float(vram[EVICTIONS] - moves[RETURNED]),
                float(read_bytes),
                float(seconds.sum()) / count,
                float(saved.sum()) / count,
                low,
                high,
            )
        )
    return rows
