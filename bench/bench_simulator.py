"""Accesses per second of the cache simulator, and of libCacheSim on the same trace.

    python bench/bench_simulator.py

A synthetic trace of K2's shape, flat: each choice is an access of its own, as in libCacheSim. Both
run on one core; misses must be equal. Bar: 5 M accesses per second for policies like LRU.
"""

import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench._harness import Row, print_report
from hybridmoe.cachebench.belady import min_outcome
from hybridmoe.cachebench.simulator import MISSES, Requests, requests_of, simulate
from hybridmoe.cachebench.synthetic_trace import Locality, synthetic_trace
from hybridmoe.cachebench.trace_formats import write_oracle_general

_PEERS = {"global-lru": "LRU", "fifo": "FIFO", "sieve": "Sieve", "s3-fifo": "S3FIFO",
          "belady": "Belady"}  # fmt: skip
_BAR = 5.0  # millions of accesses per second
_TURNS = 5


@click.command()
@click.option("--tokens", default=20_000, show_default=True, help="Tokens, of 480 accesses each")
@click.option("--slots", default=2_000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="File for the JSON")
def main(tokens: int, slots: int, out: Path | None) -> None:
    """Print the table; the last line is JSON."""
    trace = synthetic_trace(tokens, locality=Locality(conversation_tokens=512))
    requests = requests_of(trace, flat=True)
    has_peer = find_spec("libcachesim") is not None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        write_oracle_general(path, requests)
        for policy, name in _PEERS.items():
            mine, misses = _ours(policy, requests, slots)
            peer = None
            if has_peer:
                peer, theirs = _libcachesim(name, path, slots, len(requests.experts))
                rows.append(Row(f"{policy} misses equal to libCacheSim's", float(misses == theirs),
                                "", bar=1.0, note=f"{misses} and {theirs}"))  # fmt: skip
            bar = _BAR if policy in ("global-lru", "fifo", "sieve") else None
            rows.append(Row(f"{policy} flat", mine, "M/s", peer=peer, bar=bar))
        batch = requests_of(trace)
        for policy in ("lru", "quota-lru", "cost-aware"):
            rows.append(Row(f"{policy} by layers", _ours(policy, batch, slots)[0], "M/s",
                            bar=_BAR if policy != "cost-aware" else None))  # fmt: skip
    about = {"accesses": len(requests.experts), "slots": slots}
    print_report(rows, about=about, out=out)


def _ours(policy: str, requests: Requests, slots: int) -> tuple[float, int]:
    """Measure millions of accesses per second, best of a few turns, and count misses."""
    best = float("inf")
    for _ in range(_TURNS):
        started = time.perf_counter()
        if policy == "belady":
            outcome = min_outcome(requests, slots, bypass=False)
        else:
            outcome = simulate(policy, requests, slots)
        best = min(best, time.perf_counter() - started)
    return len(requests.experts) / best / 1e6, outcome.total(MISSES)


def _libcachesim(name: str, path: Path, slots: int, count: int) -> tuple[float, int]:
    import libcachesim

    best = float("inf")
    for _ in range(_TURNS):
        reader = libcachesim.TraceReader(str(path), libcachesim.TraceType.ORACLE_GENERAL_TRACE)
        cache = getattr(libcachesim, name)(slots)
        started = time.perf_counter()
        ratio, _ = cache.process_trace(reader)
        best = min(best, time.perf_counter() - started)
    return count / best / 1e6, round(ratio * count)


if __name__ == "__main__":
    main()
