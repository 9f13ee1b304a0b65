"""The simulator and its bounds against plain Python, brute force and libCacheSim."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridmoe.cachebench.belady import min_outcome
from hybridmoe.cachebench.policies.registry import POLICIES
from hybridmoe.cachebench.simulator import (
    EVICTIONS,
    HITS,
    MISSES,
    UPLOADS,
    Requests,
    requests_of,
    simulate,
)
from hybridmoe.cachebench.synthetic_trace import Locality, synthetic_trace
from hybridmoe.cachebench.trace_formats import write_oracle_general
from hybridmoe.cachebench.upload_optimum import upload_optimum
from hybridmoe.experts.routing_trace import Trace


def made(tokens: int, seed: int = 0, layers: int = 3, experts: int = 8, top_k: int = 2) -> Trace:
    return synthetic_trace(
        tokens,
        num_layers=layers,
        num_experts=experts,
        top_k=top_k,
        locality=Locality(zipf=1.0, conversation_tokens=40),
        prefill_tokens=20,
        seed=seed,
    )


@pytest.mark.parametrize("slots", [1, 5, 11, 24])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_beats_the_bounds_and_everything_adds_up(policy: str, slots: int) -> None:
    requests = requests_of(made(200))
    got = simulate(policy, requests, slots)
    assert got.total(HITS) + got.total(MISSES) == len(requests.experts)
    assert got.total(UPLOADS) - got.total(EVICTIONS) <= slots
    assert (got.by_layer.sum((0, 1)) == got.by_step.sum(0)).all()
    free, forced = (min_outcome(requests, slots, bypass=b) for b in (True, False))
    assert got.total(HITS) <= free.total(HITS)
    assert forced.total(HITS) <= free.total(HITS)
    assert got.net <= upload_optimum(requests, slots).value + 1e-6
    is_decode = ~requests.is_prefill
    decoded = got.by_step[is_decode[:: requests.num_layers]]
    net = int(decoded[:, HITS].sum() - decoded[:, UPLOADS].sum())
    assert net <= upload_optimum(requests, slots, counts=is_decode).value + 1e-6


def plain_flat(requests: Requests, slots: int, victim: Callable[[dict[int, int]], int]) -> int:
    """Count misses; `victim` picks one of {key: time of last use}."""
    resident: dict[int, int] = {}
    misses = 0
    for time, key in enumerate(requests.keys().tolist()):
        if key not in resident:
            misses += 1
            if len(resident) == slots:
                del resident[victim(resident)]
        resident[key] = time
    return misses


@pytest.mark.parametrize("slots", [1, 3, 7, 16])
def test_flat_lru_is_the_textbooks(slots: int) -> None:
    requests = requests_of(made(120), flat=True)
    misses = plain_flat(requests, slots, lambda resident: min(resident, key=resident.__getitem__))
    assert simulate("global-lru", requests, slots).total(MISSES) == misses


@pytest.mark.parametrize("slots", [1, 3, 7, 16])
def test_flat_min_is_beladys(slots: int) -> None:
    requests = requests_of(made(120), flat=True)
    keys = requests.keys().tolist()

    def last_needed(resident: dict[int, int]) -> int:
        now = max(resident.values()) + 1  # the request that misses
        rest = keys[now + 1 :]
        return max(resident, key=lambda key: rest.index(key) if key in rest else len(rest))

    misses = plain_flat(requests, slots, last_needed)
    assert min_outcome(requests, slots, bypass=False).total(MISSES) == misses


Request = tuple[int, bool, bool]  # key, whether it is prefill, whether it counts


def best_net(requests: list[Request], slots: int) -> int:
    """Maximize hits - uploads over every choice of residents at every time."""
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for key, is_prefill, counts in requests:
        following: dict[frozenset[int], int] = {}
        for resident, net in best.items():
            ends = [(resident, counts if key in resident else 0)]
            if key not in resident and len(resident) < slots:
                ends.append((resident | {key}, -counts))
            elif key not in resident and not is_prefill:
                ends += [(resident - {victim} | {key}, -counts) for victim in resident]
            for state, gained in ends:
                following[state] = max(following.get(state, -99), net + gained)
        best = following
    return max(best.values())


@settings(max_examples=60)
@given(
    run=st.lists(
        st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), min_size=1, max_size=14
    ),
    slots=st.integers(1, 3),
)
def test_the_optimum_with_upload_cost_is_that_of_brute_force(
    run: list[Request], slots: int
) -> None:
    ids = np.array([key for key, _, _ in run], np.int16)[:, None, None]
    header = {"num_layers": 1, "num_experts": 5, "top_k": 1}
    ones = np.ones(len(run), np.int32)
    trace = Trace(header, ids, ids.astype(np.float16), ones, ones, ones.astype(np.uint8))
    flat = requests_of(trace, flat=True)
    for use in (lambda r: (r[0], False, True), lambda r: (r[0], r[1], True), lambda r: r):
        used = [use(request) for request in run]
        requests = flat._replace(is_prefill=np.array([r[1] for r in used]))
        counts = np.array([r[2] for r in used])
        found = upload_optimum(requests, slots, counts=counts)
        assert found.is_exact and found.value == pytest.approx(best_net(used, slots))
        bound = upload_optimum(requests, slots, counts=counts, most_exact=0)
        assert bound.value >= found.value - 1e-9


@pytest.mark.parametrize("counts_prefill", [True, False])
def test_the_bound_of_large_traces_is_not_far_above_the_optimum(
    counts_prefill: bool,
) -> None:
    requests = requests_of(made(150))
    counts = ~requests.is_prefill | counts_prefill
    exact = upload_optimum(requests, 9, counts=counts)
    bound = upload_optimum(requests, 9, counts=counts, most_exact=0)
    assert exact.is_exact and not bound.is_exact
    assert exact.value <= bound.value + 1e-6 <= 1.25 * exact.value + 5


@pytest.mark.parametrize(
    ("policy", "peer"),
    [("global-lru", "LRU"), ("fifo", "FIFO"), ("sieve", "Sieve"), ("s3-fifo", "S3FIFO"),
     ("belady", "Belady")],
)  # fmt: skip
def test_misses_are_libcachesims(policy: str, peer: str, tmp_path: Path) -> None:
    library = pytest.importorskip("libcachesim", reason="no libcachesim (the bench extra)")
    requests = requests_of(made(3000, layers=6, experts=32, top_k=4), flat=True)
    path = tmp_path / "trace"
    write_oracle_general(path, requests)
    for slots in (20, 40, 100):  # with 10, its S3FIFO keeps nothing: a small queue of one
        reader = library.TraceReader(str(path), library.TraceType.ORACLE_GENERAL_TRACE)
        ratio, _ = getattr(library, peer)(slots).process_trace(reader)
        if policy == "belady":
            mine = min_outcome(requests, slots, bypass=False)
        else:
            mine = simulate(policy, requests, slots)
        assert mine.total(MISSES) == round(ratio * len(requests.experts))
