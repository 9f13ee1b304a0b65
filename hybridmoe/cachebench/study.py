"""A trace against every policy and size: what `hybridmoe bench cache` reports.

Figures are of decode steps unless said otherwise. *Net* is hits less uploads, per token: an upload
reads an expert once, as a miss does, so that a policy whose net is negative costs more than it
saves. The predicted time of a token's experts follows from bytes alone (`Speeds`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridmoe.cachebench.bootstrap import Bootstrap
from hybridmoe.cachebench.offline_bounds import min_outcome, upload_optimum
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
from hybridmoe.experts.policy import DEFAULT_POLICY
from hybridmoe.experts.routing_trace import PHASES, Trace
from hybridmoe.planning.hit_curve import CurvePoints

__all__ = ["CYCLES", "Row", "Speeds", "Study", "by_category", "split", "study"]

CYCLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)  # slots, in token cycles
_CURVE_CYCLES = (*CYCLES, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)
_BOUNDS = {"belady": False, "belady-bypass": True}  # whether a miss may pass by


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes per second at which experts are computed where they are, and brought nearer.

    Defaults: DDR5 of a workstation, a card's memory, PCIe 5 x16.
    """

    far: float = 250e9
    near: float = 1000e9
    upload: float = 50e9

    def token_s(self, row_hits: float, misses: float, uploads: float, expert_bytes: float) -> float:
        """The slowest of what goes on at once: hits, misses with uploads' reads, the link."""
        return max(
            row_hits * expert_bytes / self.near,
            (misses + uploads) * expert_bytes / self.far,
            uploads * expert_bytes / self.upload,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One policy at one size, under one protocol."""

    policy: str
    protocol: str  # cold | warm | shift
    slots: int
    cycles: float  # slots / (layers x top_k)
    share: float  # of all experts
    miss_ratio: float
    hits: float  # a decoded token, as the next three
    uploads: float
    net: float
    token_s: float
    net_low: float  # 95 % of the bootstrap over conversations
    net_high: float


@dataclass(frozen=True)
class Study:
    """Everything that is written."""

    header: dict[str, Any]
    rows: list[Row]
    upload_optimum: dict[int, tuple[float, bool]]  # slots -> net a token at best, is it exact
    uses: NDArray[np.int64]  # (L, E): choices of decoded tokens
    reuse: NDArray[np.int64]  # [d]: choices whose expert was last used d tokens before, d >= 1
    recalls: list[Recall]
    hit_curve: CurvePoints  # of the default policy in a cache that has run before

    def as_json(self) -> dict[str, Any]:
        return {
            "trace": self.header,
            "rows": [asdict(row) for row in self.rows],
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
    guesses: NDArray[np.int16] | None,
    speeds: Speeds,
    policies: Sequence[str] = tuple(POLICIES),
    seed: int = 0,
) -> Study:
    """Replay the held-out half of the conversations.

    Protocols: cold, an empty cache; warm, one that holds what the other half used most; shift, one
    that has just run through the other half's other categories.
    """
    train, held = split(trace)
    requests = requests_of(held)
    cycle = requests.num_layers * requests.top_k
    every = requests.num_layers * requests.num_experts
    sizes = sorted({min(every, max(1, round(cycles * cycle))) for cycles in CYCLES})
    hot = hottest_keys(requests_of(train)) if train.num_tokens else np.empty(0, np.int64)
    shift = requests_of(by_category(train))
    judge = _Judge(held, requests, speeds, seed)
    rows = []
    for slots in sizes:
        for policy in policies:
            cold = simulate(policy, requests, slots, seed=seed)
            warm = simulate(policy, requests, slots, seed=seed, warm=hot[:slots])
            shifted = make_policy(policy, requests.shape(slots), seed)
            simulate(shifted, shift)
            rows += [
                judge.row(policy, "cold", slots, cold),
                judge.row(policy, "warm", slots, warm),
                judge.row(policy, "shift", slots, simulate(shifted, requests)),
            ]
        rows += [
            judge.row(name, "cold", slots, min_outcome(requests, slots, bypass=bypass))
            for name, bypass in _BOUNDS.items()
        ]
    best = {}
    for slots in sizes:
        bound = upload_optimum(requests, slots, counts=judge.is_decode[requests.steps])
        best[slots] = (bound.value / judge.num_tokens, bound.is_exact)
    curve = []
    for slots in sorted({min(every, max(1, round(c * cycle))) for c in _CURVE_CYCLES} | {every}):
        run_in = make_policy(DEFAULT_POLICY, requests.shape(slots), seed)
        simulate(run_in, shift)
        row = judge.row(DEFAULT_POLICY, "shift", slots, simulate(run_in, requests))
        curve.append((slots, 1 - row.miss_ratio))
    is_held = np.isin(trace.conversations, held.conversations)
    return Study(
        trace.header,
        rows,
        best,
        _uses(held),
        _reuse(held),
        recalls(trace, is_held, guesses, _uses(train), seed),
        _ascending(curve),
    )


def _ascending(curve: Sequence[tuple[int, float]]) -> CurvePoints:
    """Where more slots hit less, the lower rate stands for the fewer slots, too."""
    slots, rates = zip(*curve, strict=True)
    least = np.minimum.accumulate(rates[::-1])[::-1]
    return CurvePoints(tuple(map(float, slots)), tuple(least.tolist()))


def split(trace: Trace) -> tuple[Trace, Trace]:
    """Conversations of even and of odd numbers: to learn from, and to be judged by."""
    is_train = trace.conversations % 2 == 0
    if is_train.all():  # one conversation: nothing to learn from
        return _only(trace, ~is_train), trace
    return _only(trace, is_train), _only(trace, ~is_train)


def by_category(trace: Trace) -> Trace:
    """The same conversations with those of one category together, the last category first."""
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
    """The tokens that `keep` has; whole steps, since a step belongs to one conversation here."""
    ends = np.cumsum(trace.steps)
    firsts = ends - trace.steps
    sums = np.concatenate([[0], np.cumsum(keep)])
    steps = (sums[ends] - sums[firsts]).astype(np.int32)
    return Trace(
        trace.header, trace.ids[keep], trace.weights[keep], steps[steps > 0],
        trace.conversations[keep], trace.phases[keep],
    )  # fmt: skip


class _Judge:
    """Makes rows of outcomes: counts decode steps, and draws conversations always alike."""

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
        return Row(
            policy,
            protocol,
            slots,
            slots / (layers * self._requests.top_k),
            slots / (layers * self._requests.num_experts),
            misses / (hits + misses) if hits + misses else 0.0,
            hits,
            uploads,
            hits - uploads,
            self._speeds.token_s(hits, misses, uploads, self._expert_bytes),
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
    """Of decoded tokens; a distance counts decoded tokens of the whole trace."""
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
