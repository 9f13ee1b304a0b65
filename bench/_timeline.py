"""Overlap and idle shares of a decoding timeline of CPU, GPU and copies.

Pure: intervals in, shares out; all times in seconds of one clock. A layer lasts from the beginning
of its experts on the CPU to that of the next layer's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Interval", "Shares", "Token", "busy_s", "merged", "shares_of"]


class Interval(NamedTuple):
    begin: float
    end: float


class Token(NamedTuple):
    """One step of one token."""

    begin: float
    end: float
    calls: Sequence[Interval]  # experts of each layer on the CPU, in any order


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of the time of all tokens, but for `overlap`."""

    overlap: float  # sum of max(CPU, GPU) over layers, of the layers' time: 1 = neither waits
    gpu_idle: float  # no kernel runs
    cpu_idle: float  # no expert is computed on the CPU
    outside: float  # neither, and nothing is copied

    @property
    def inside(self) -> float:
        return 1 - self.outside


def shares_of(
    tokens: Sequence[Token], kernels: Iterable[Interval], copies: Iterable[Interval]
) -> Shares:
    """Shares of tokens' time. kernels, copies: the GPU's, in any order; may overlap.

    Layers without a successor in the same token are left out of `overlap`. Errors: ValueError
    where no token lasts, or none has two layers.
    """
    on_gpu, all_copies = merged(kernels), merged(copies)
    total = sum(token.end - token.begin for token in tokens)
    best = lasted = gpu = cpu = any_s = 0.0
    for token in tokens:
        on_cpu = merged(token.calls)
        window = Interval(token.begin, token.end)
        gpu += busy_s(on_gpu, window)
        cpu += busy_s(on_cpu, window)
        any_s += busy_s(merged([*on_gpu, *on_cpu, *all_copies]), window)
        for layer in map(Interval._make, pairwise(sorted(call.begin for call in token.calls))):
            lasted += layer.end - layer.begin
            best += max(busy_s(on_gpu, layer), busy_s(on_cpu, layer))
    if total <= 0 or lasted <= 0:
        raise ValueError(f"{len(tokens)} tokens of {total:g} s, layers of {lasted:g} s")
    return Shares(best / lasted, 1 - gpu / total, 1 - cpu / total, 1 - any_s / total)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge intervals: in order, without overlaps, without empty ones."""
    found: list[Interval] = []
    for interval in sorted(intervals):
        if interval.end <= interval.begin:
            continue
        if found and interval.begin <= found[-1].end:
            found[-1] = Interval(found[-1].begin, max(found[-1].end, interval.end))
        else:
            found.append(interval)
    return found


def busy_s(intervals: Iterable[Interval], window: Interval) -> float:
    """Seconds of a window that merged intervals cover."""
    return sum(
        max(0.0, min(end, window.end) - max(begin, window.begin)) for begin, end in intervals
    )
