"""Expected time of one MoE layer for one token, and what a hit in VRAM and an upload are worth.

GPU and CPU compute a layer's experts at once, and the disk reads meanwhile, so that the slowest
counts. Which of a token's experts are found where is chance: with top_k chosen, the numbers in
VRAM, RAM and on disk are multinomial, and the expectation is summed up over all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

from hybridmoe.errors import ConfigError
from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.rates import COPY_TRAFFIC, GpuRates, Rates

__all__ = [
    "UPLOAD_PIECE_BYTES",
    "Hits",
    "LayerCost",
    "LayerTimes",
    "cost",
    "layer_times",
    "outcomes",
    "upload_hits",
    "upload_s",
]

_MAX_SUMMED = 64  # chosen experts; with more of them, a layer is about as expected
# A piece of an upload is long enough for all threads and few calls of the driver; a result of the
# CPU that is copied, too, waits for one of them at most: 80 us at 50 GB/s.
UPLOAD_PIECE_BYTES = 4 << 20
_PIECE_S = 60e-6  # of Python and the driver for each: measured on a Xeon, docs/log.md
_DIRECT_PIECE_S = 15e-6  # the same without a copy by the CPU


@dataclass(frozen=True, slots=True)
class Hits:
    """Shares of the chosen experts that are found in VRAM and in RAM; the rest is on disk."""

    vram: float
    ram: float

    def __post_init__(self) -> None:
        if not (min(self.vram, self.ram) >= 0 and self.vram + self.ram <= 1 + 1e-9):
            raise ConfigError(
                f"hits of {self.vram:g} in VRAM and {self.ram:g} in RAM: expected numbers from 0"
                " on, at most 1 together"
            )

    @property
    def disk(self) -> float:
        """Share that is read from disk."""
        return max(0.0, 1.0 - self.vram - self.ram)


class LayerTimes(NamedTuple):
    """Seconds of a MoE layer's pieces of work, for one token."""

    on_gpu: float  # an expert in a VRAM slot
    on_cpu: float  # an expert in RAM
    reading: float  # an expert, from disk
    shared: float = 0.0  # the GPU's shared expert, beside the routed ones


class LayerCost(NamedTuple):
    """Expected seconds of a layer's experts: computing alone, and with the disk."""

    computing: float
    total: float


def layer_times(
    parts: tuple[Part, ...], rates: Rates, gpu: GpuRates | None, disk: float
) -> LayerTimes:
    """Times of one layer's experts. gpu: None = no slots. disk: bytes/s."""
    return LayerTimes(
        on_gpu=sum(part.num_bytes for part in parts) / gpu.slot_bytes_per_s if gpu else 0.0,
        on_cpu=sum(map(rates.token_s, parts)),
        reading=sum(part.num_bytes for part in parts) / disk,
    )


def cost(times: LayerTimes, top_k: int, hits: Hits) -> LayerCost:
    """Expect the time of a layer's experts after the GPU's part before them."""
    computing = total = 0.0
    for chance, in_vram, in_ram, on_disk in outcomes(top_k, hits):
        busy = max(in_vram * times.on_gpu + times.shared, (in_ram + on_disk) * times.on_cpu)
        # What is read last is computed after it.
        arriving = on_disk * times.reading + times.on_cpu if on_disk else 0.0
        computing += chance * busy
        total += chance * max(busy, arriving)
    return LayerCost(computing, total)


def upload_s(parts: tuple[Part, ...], rates: Rates, *, is_direct: bool = False) -> float:
    """Cost of an upload to VRAM, in seconds of decoding.

    All threads read the expert and write it to pinned memory, between steps; the GPU's own copy
    runs beside the next one. is_direct: the GPU reads it from registered memory, which the CPU's
    experts cannot read at the time.
    """
    assert rates.gpu is not None
    num_bytes = sum(part.num_bytes for part in parts)
    num_pieces = -(-num_bytes // UPLOAD_PIECE_BYTES)
    if is_direct:
        return num_bytes / rates.dram + _DIRECT_PIECE_S * num_pieces
    return num_bytes / (rates.gpu.copy or rates.dram / COPY_TRAFFIC) + _PIECE_S * num_pieces


def upload_hits(
    parts: tuple[Part, ...], rates: Rates, top_k: int, vram: float, *, is_direct: bool = False
) -> float:
    """Cost of an upload to VRAM, in hits that pay for it; infinite where hits save no time.

    vram: share of the chosen experts found there. is_direct: as of `upload_s`.
    """
    assert rates.gpu is not None
    seconds = upload_s(parts, rates, is_direct=is_direct)
    times = layer_times(parts, rates, rates.gpu, float("inf"))
    saved = 0.0
    for chance, hits, misses, _ in outcomes(top_k - 1, Hits(vram, 1 - vram)):
        missed = max(hits * times.on_gpu, (misses + 1) * times.on_cpu)
        hit = max((hits + 1) * times.on_gpu, misses * times.on_cpu)
        saved += chance * (missed - hit)
    return seconds / saved if saved > 0 else float("inf")


def outcomes(top_k: int, hits: Hits) -> Iterator[tuple[float, float, float, float]]:
    """Chance, and numbers of the top_k experts found in VRAM, in RAM and on disk."""
    if top_k > _MAX_SUMMED:
        yield 1.0, top_k * hits.vram, top_k * hits.ram, top_k * hits.disk
        return
    for in_vram in range(top_k + 1):
        for on_disk in range(top_k + 1 - in_vram):
            in_ram = top_k - in_vram - on_disk
            ways = comb(top_k, in_vram) * comb(top_k - in_vram, on_disk)
            chance = ways * hits.vram**in_vram * hits.disk**on_disk * hits.ram**in_ram
            if chance:
                yield chance, in_vram, in_ram, on_disk
