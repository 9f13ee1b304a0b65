"""Study of a trace under every policy and cache size, as `hybridmoe bench cache` reports it.

Figures are of decode steps unless they say otherwise. *Net* is hits minus uploads per token: an
upload reads an expert once, as a miss does, so a policy with a negative net costs more than it
saves. Of several tiers only time can be compared: it follows from bytes alone (`Speeds`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridmoe.cachebench.belady import min_outcome
from hybridmoe.cachebench.bootstrap import Bootstrap
from hybridmoe.cachebench.policies.registry import POLICIES, make_policy
from hybridmoe.cachebench.predictors import Recall, recalls
from hybridmoe.cachebench.simulator import (
    HITS,
    MISSES,
    UPLOADS,
    Outcome,
    Requests,
    hottest_keys,
    requests_of,
    simulate,
)
from hybridmoe.cachebench.tier_study import TierRow, splits_of, tier_rows
from hybridmoe.cachebench.tiers import Rates
from hybridmoe.cachebench.upload_optimum import upload_optimum
from hybridmoe.experts.policy import DEFAULT_POLICY
from hybridmoe.experts.routing_trace import PHASES, Trace
from hybridmoe.llm.progress import Progress, ProgressCallback
from hybridmoe.planning.hit_curve import CurvePoints

__all__ = ["WORKING_SETS", "Row", "Speeds", "Study", "by_category", "split", "study"]

# Cache sizes in per-token working sets: of the study, and of the hit curve.
WORKING_SETS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
_CURVE_SETS = (*WORKING_SETS, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)
_BOUNDS = {"belady": False, "belady-bypass": True}  # may a miss be streamed?


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes per second of experts. Defaults: workstation DDR5, VRAM, PCIe 5 x16, an NVMe disk."""

    far: float = 250e9  # uncached
    near: float = 1000e9  # cached
    upload: float = 50e9
    disk: float = 7e9

    @property
    def rates(self) -> Rates:
        """These, of three tiers: VRAM, RAM and the disk."""
        return Rates(vram=self.near, ram=self.far, disk=self.disk, link=self.upload)

    def token_s(self, row_hits: float, misses: float, uploads: float, expert_bytes: float) -> float:
        """Time of the slowest of three in parallel: hits, misses and uploads' reads, the link."""
        return max(
            row_hits * expert_bytes / self.near,
            (misses + uploads) * expert_bytes / self.far,
            uploads * expert_bytes / self.upload,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one policy at one cache size under one protocol."""

    policy: str
    protocol: str  # cold | warm | shift
    slots: int
    working_sets: float  # slots / (layers x top_k)
    share: float  # slots / experts of all layers
    miss_ratio: float
    hits: float  # per decoded token, as the next three
    uploads: float
    net: float
    token_s: float
    saved_s: float  # of it, against all experts uncached; negative: the cache costs time
    net_low: float  # 95 % of the bootstrap over conversations
    net_high: float


@dataclass(frozen=True)
class Study:
    """Results of a study."""

    header: dict[str, Any]
    rows: list[Row]
    upload_optimum: dict[int, tuple[float, bool]]  # slots -> highest net per token, is it exact
    uses: NDArray[np.int64]  # (L, E): choices by decoded tokens
    reuse: NDArray[np.int64]  # [d]: choices whose expert was last used d tokens before, d >= 1
    recalls: list[Recall]
    hit_curve: CurvePoints  # of the default policy, "shift" protocol
    tiers: list[TierRow]  # of splits of VRAM and RAM

    def as_json(self) -> dict[str, Any]:
        return {
            "trace": self.header,
            "rows": [asdict(row) for row in self.rows],
            "tiers": [asdict(row) for row in self.tiers],
            "upload_optimum": [
                {"slots": slots, "net": net, "is_exact": exact}
                for slots, (net, exact) in self.upload_optimum.items()
            ],
            "uses": self.uses.tolist(),
            "reuse": self.reuse.tolist(),
            "recalls": [asdict(recall) for recall in self.recalls],
        }


def study(
    trace: Trace,
    predictions: NDArray[np.int16] | None,
    speeds: Speeds,
    policies: Sequence[str] = tuple(POLICIES),
    seed: int = 0,
    *,
    vram_slots: Sequence[int] | None = None,
    ram_slots: Sequence[int] | None = None,
    progress: ProgressCallback = lambda _: None,
) -> Study:
    """Replay the held-out half of the conversations.

    Protocols: cold, an empty cache; warm, a cache with the most used experts of the training half;
    shift, a cache that has just run the training half, by category. predictions: of the recording,
    if there is one. vram_slots, ram_slots: of the splits; None = some shares of all experts.
    """
    train, held = split(trace)
    requests = requests_of(held)
    sizes = _sizes(requests, WORKING_SETS)
    hot = hottest_keys(requests_of(train)) if train.num_tokens else np.empty(0, np.int64)
    shift = requests_of(by_category(train))
    judge = _Judge(held, requests, speeds, seed)
    rows: list[Row] = []
    num_runs = len(sizes) * len(policies)
    for slots in sizes:
        for policy in policies:
            progress(Progress("replay", len(rows) // 3, num_runs, "runs"))
            cold = simulate(policy, requests, slots, seed=seed)
            warm = simulate(policy, requests, slots, seed=seed, warm=hot[:slots])
            shifted = make_policy(policy, requests.shape(slots), seed)
            simulate(shifted, shift)
            rows += [
                judge.row(policy, "cold", slots, cold),
                judge.row(policy, "warm", slots, warm),
                judge.row(policy, "shift", slots, simulate(shifted, requests)),
            ]
    bounds = [
        judge.row(name, "cold", slots, min_outcome(requests, slots, bypass=bypass))
        for slots in sizes
        for name, bypass in _BOUNDS.items()
    ]
    best = {}
    for slots in sizes:
        bound = upload_optimum(requests, slots, counts=judge.is_decode[requests.steps])
        best[slots] = (bound.value / judge.num_tokens, bound.is_exact)
    curve = []
    for slots in _sizes(requests, (*_CURVE_SETS, float("inf"))):
        run_in = make_policy(DEFAULT_POLICY, requests.shape(slots), seed)
        simulate(run_in, shift)
        row = judge.row(DEFAULT_POLICY, "shift", slots, simulate(run_in, requests))
        curve.append((slots, 1 - row.miss_ratio))
    splits = splits_of(trace.num_layers * trace.num_experts, vram_slots, ram_slots)
    is_held = np.isin(trace.conversations, held.conversations)
    return Study(
        trace.header,
        [*rows, *bounds],
        best,
        _uses(held),
        _reuse(held),
        recalls(trace, is_held, predictions, _uses(train), seed),
        _ascending(curve),
        tier_rows(shift, held, requests, speeds.rates, splits, seed),
    )


def _sizes(requests: Requests, working_sets: Sequence[float]) -> list[int]:
    """Return these numbers of working sets in slots, at most one for each expert."""
    every = requests.num_layers * requests.num_experts
    return sorted({round(min(every, max(1, n * requests.working_set))) for n in working_sets})


def _ascending(curve: Sequence[tuple[int, float]]) -> CurvePoints:
    """Make a curve of (slots, hit rate) monotonic, by lowering rates above a later one."""
    slots, rates = zip(*curve, strict=True)
    least = np.minimum.accumulate(rates[::-1])[::-1]
    return CurvePoints(tuple(map(float, slots)), tuple(least.tolist()))


def split(trace: Trace) -> tuple[Trace, Trace]:
    """Split conversations into a training half (even numbers) and a held-out half (odd)."""
    is_train = trace.conversations % 2 == 0
    if is_train.all():  # one conversation: no training half
        return _only(trace, ~is_train), trace
    return _only(trace, is_train), _only(trace, ~is_train)


def by_category(trace: Trace) -> Trace:
    """Reorder conversations by category, the last category first."""
    category = {facts["id"]: str(facts.get("category", "")) for facts in trace.header.get(
        "conversations", ())}  # fmt: skip
    names = sorted(set(category.values()), reverse=True)
    rank = np.array([names.index(category.get(int(c), names[0] if names else ""))
                     if names else 0 for c in trace.conversations])  # fmt: skip
    ends = np.cumsum(trace.steps)
    order = np.argsort(rank[ends - 1], kind="stable") if len(ends) else np.empty(0, np.int64)
    tokens = [np.arange(ends[i] - trace.steps[i], ends[i]) for i in order]
    picked = np.concatenate(tokens) if tokens else np.empty(0, np.int64)
    return Trace(
        trace.header, trace.ids[picked], trace.weights[picked], trace.steps[order],
        trace.conversations[picked], trace.phases[picked],
    )  # fmt: skip


def _only(trace: Trace, keep: NDArray[np.bool_]) -> Trace:
    """Select tokens (T,); whole steps, since a step belongs to one conversation here."""
    ends = np.cumsum(trace.steps)
    firsts = ends - trace.steps
    sums = np.concatenate([[0], np.cumsum(keep)])
    steps = (sums[ends] - sums[firsts]).astype(np.int32)
    return Trace(
        trace.header, trace.ids[keep], trace.weights[keep], steps[steps > 0],
        trace.conversations[keep], trace.phases[keep],
    )  # fmt: skip


class _Judge:
    """Maker of rows from outcomes: decode steps only, the same resamples for each."""

    def __init__(self, held: Trace, requests: Requests, speeds: Speeds, seed: int) -> None:
        self._requests = requests
        self._speeds = speeds
        self._expert_bytes = float(np.mean(held.header["expert_bytes"]))
        last = np.cumsum(held.steps) - 1
        self.is_decode = held.phases[last] == PHASES.index("decode")  # (steps,)
        self._tokens = held.steps[self.is_decode]
        self.num_tokens = max(1, int(self._tokens.sum()))
        self._bootstrap = Bootstrap(held.conversations[last][self.is_decode], seed)

    def row(self, policy: str, protocol: str, slots: int, outcome: Outcome) -> Row:
        counts = outcome.by_step[self.is_decode]
        hits, misses, uploads = (
            float(counts[:, k].sum()) / self.num_tokens for k in (HITS, MISSES, UPLOADS)
        )
        low, high = self._bootstrap.interval(counts[:, HITS] - counts[:, UPLOADS], self._tokens)
        layers = self._requests.num_layers
        token_s = self._speeds.token_s(hits, misses, uploads, self._expert_bytes)
        uncached_s = self._speeds.token_s(0.0, hits + misses, 0.0, self._expert_bytes)
        return Row(
            policy,
            protocol,
            slots,
            slots / self._requests.working_set,
            slots / (layers * self._requests.num_experts),
            misses / (hits + misses) if hits + misses else 0.0,
            hits,
            uploads,
            hits - uploads,
            token_s,
            uncached_s - token_s,
            low,
            high,
        )


def _decoded(trace: Trace) -> NDArray[np.int16]:
    ids: NDArray[np.int16] = trace.ids[trace.phases == PHASES.index("decode")]
    return ids


def _uses(trace: Trace) -> NDArray[np.int64]:
    ids = _decoded(trace)
    layers = np.broadcast_to(np.arange(trace.num_layers)[None, :, None], ids.shape)
    table = np.zeros((trace.num_layers, trace.num_experts), np.int64)
    np.add.at(table, (layers[ids >= 0], ids[ids >= 0]), 1)
    return table


def _reuse(trace: Trace) -> NDArray[np.int64]:
    """Count reuse distances, in decoded tokens of the whole trace."""
    ids = _decoded(trace)
    last = np.full((trace.num_layers, trace.num_experts), -1, np.int64)
    distances = np.zeros(len(ids) + 1, np.int64)
    rows = np.arange(trace.num_layers)[:, None]
    for token, chosen in enumerate(ids):
        since = token - last[rows, chosen]
        known = (last[rows, chosen] >= 0) & (chosen >= 0)
        np.add.at(distances, since[known], 1)
        last[rows, chosen] = token
    return np.trim_zeros(distances, "b")
