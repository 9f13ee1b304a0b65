"""Gain of reading experts ahead on a prefetch hint: the time of a layer with and without.

A hint names experts of the next layer, each of which is used with a probability, its precision.
Their reads wait for all of this layer's, and have the time in which the disk would idle:

    idle = layer's experts - its reads + all that runs before the next layer's reads begin

In that time idle / D experts are read, D being the seconds of one. A read that has begun is
finished, right or wrong, while the next layer's wait; what has not begun by then is dropped. So of
the last one a share w is read in idle time, and it pays where w > 1 - precision and the next layer
waits for the disk at all: with a slow disk and a short time between the layers, it loses.
"""

from math import comb
from typing import NamedTuple

from hybridmoe.planning.cost_model import decode
from hybridmoe.planning.disk_cache_plan import DiskCachePlan
from hybridmoe.planning.layer_cost import Hits, LayerTimes, layer_times, outcomes
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.rates import Rates

__all__ = [
    "HINT_PRECISION",
    "ReadAhead",
    "best_read_ahead",
    "can_read_ahead",
    "read_ahead_gain",
    "read_ahead_of",
]

# Share of the experts read ahead that are then used: 0.4 to 0.5, docs/log.md 2026-11-25 and 28.
HINT_PRECISION = 0.4
_MOST_AHEAD = 2  # of more, few are read between two layers
_ROUTER_BYTES = 4  # of a weight of the router
_LEAST_GAIN = 0.08  # of a layer's time; 0.07 was predicted where none was measured


class ReadAhead(NamedTuple):
    """Number of experts to read ahead, and what that is predicted to save."""

    num_ahead: int  # 0 = none: it would lose, or gain too little to tell
    saved: float  # share of a layer's time, at the best number above 0; negative = lost

    def line(self, rates: Rates) -> str:
        """Line for people. rates: those it was decided by."""
        assert rates.disk is not None
        by = f"disk {rates.disk / 1e9:.2f} GB/s, memory {rates.dram / 1e9:.1f} GB/s"
        if self.num_ahead:
            return (
                f"expert prefetch: up to {self.num_ahead} of the next layer are read ahead,"
                f" predicted to save {100 * self.saved:.0f} % of a token's time ({by})"
            )
        share = 100 * abs(self.saved)
        loss = f"would save only {share:.1f} %" if self.saved > 0 else f"would cost {share:.0f} %"
        return f"expert prefetch: off, since it {loss} of a token's time ({by})"


def can_read_ahead(plan: Plan) -> bool:
    """Return True if a plan has buffers for experts that are read on hints, without being asked.

    They are those that a long prompt's experts are streamed through, but for one token's. On a GPU
    the time between two layers is too short. A number that was asked for has buffers of its own.
    """
    cache = plan.disk_cache
    return cache is not None and plan.vram is None and not cache.num_ahead and _most(cache) > 0


def read_ahead_of(plan: Plan, rates: Rates, hits: Hits) -> ReadAhead:
    """Decide for a plan that can, on a machine whose disk's rate is known."""
    cache, sizes = plan.disk_cache, plan.problem.sizes
    assert cache is not None and rates.disk is not None
    step = decode(plan, rates, hits, 0)
    outside = step.total_s - step.seconds["experts"] - step.seconds["waiting for disk"]
    c = sizes.config
    return best_read_ahead(
        layer_times(sizes.experts[0], rates, None, rates.disk),
        c.top_k,
        hits,
        _most(cache),
        between_s=outside / len(sizes.layers),
        router_s=_ROUTER_BYTES * c.hidden * c.num_experts / rates.dram,
    )


def _most(cache: DiskCachePlan) -> int:
    return min(_MOST_AHEAD, cache.least_staging - cache.top_k)


def read_ahead_gain(
    times: LayerTimes,
    top_k: int,
    hits: Hits,
    num_ahead: int,
    *,
    between_s: float,
    router_s: float = 0.0,
    precision: float = HINT_PRECISION,
) -> float:
    """Expect the seconds a layer that reading ahead saves; negative where it loses.

    between_s: from a layer's result to the next layer's reads. router_s: of the hint itself.
    """
    saved = 0.0
    for chance, *numbers in outcomes(top_k, hits):
        idle = _layer_s(times, *numbers) - numbers[2] * times.reading + between_s
        begun = min(num_ahead, 1 + int(idle / times.reading))
        left = max(0.0, begun * times.reading - idle)
        for other, *following in outcomes(top_k, hits):
            saved += chance * other * _saved_s(times, following, begun, left, precision)
    return saved - router_s


def best_read_ahead(
    times: LayerTimes,
    top_k: int,
    hits: Hits,
    most: int,
    *,
    between_s: float,
    router_s: float = 0.0,
    precision: float = HINT_PRECISION,
) -> ReadAhead:
    """Choose the number of experts, 0 to `most` > 0, that saves most; see `read_ahead_gain`."""
    layer_s = between_s + sum(
        chance * _layer_s(times, *numbers) for chance, *numbers in outcomes(top_k, hits)
    )
    given = {"between_s": between_s, "router_s": router_s, "precision": precision}
    gains = {
        num_ahead: read_ahead_gain(times, top_k, hits, num_ahead, **given)
        for num_ahead in range(1, most + 1)
    }
    best = max(gains, key=lambda n: (gains[n], -n))
    saved = gains[best] / layer_s
    return ReadAhead(best if saved >= _LEAST_GAIN else 0, saved)


def _layer_s(times: LayerTimes, in_vram: float, in_ram: float, on_disk: float) -> float:
    """Seconds of a layer's experts."""
    return _with_reads(times, in_vram, in_ram, on_disk, on_disk * times.reading)


def _with_reads(
    times: LayerTimes, in_vram: float, in_ram: float, on_disk: float, reading: float
) -> float:
    busy = max(in_vram * times.on_gpu + times.shared, (in_ram + on_disk) * times.on_cpu)
    return max(busy, reading + times.on_cpu) if on_disk else busy


def _saved_s(
    times: LayerTimes, numbers: list[float], num_begun: int, left: float, precision: float
) -> float:
    """Expect the seconds that a layer saves, over the number of reads ahead that it uses.

    left: seconds of those reads that are left when the layer's own begin.
    """
    in_vram, in_ram, on_disk = numbers
    before = _layer_s(times, in_vram, in_ram, on_disk)
    saved = 0.0
    for right in range(num_begun + 1):
        chance = comb(num_begun, right) * precision**right * (1 - precision) ** (num_begun - right)
        reading = max(0.0, on_disk - right) * times.reading + left
        saved += chance * (before - _with_reads(times, in_vram, in_ram, on_disk, reading))
    return saved
