"""Statistics of an expert cache."""

from dataclasses import dataclass, fields, replace
from typing import Self

from hybridmoe.experts.policy.interface import Decision

__all__ = ["ExpertCounters", "ExpertStats"]


@dataclass(slots=True)
class ExpertCounters:
    """Counters of an expert cache. The first four equal the simulator's on the run's trace."""

    hits: int = 0  # distinct experts of a layer and step that were resident
    misses: int = 0
    uploads: int = 0  # misses that were admitted
    evictions: int = 0
    bytes_read: int = 0  # from the files
    read_wait_s: float = 0.0  # computation stalled on reads
    # Decode steps with prefetch hints:
    prefetched: int = 0  # experts read ahead
    prefetched_used: int = 0
    hinted: int = 0  # experts used by layers that had a hint
    hinted_right: int = 0  # those that the hint named
    # Caches with asynchronous uploads:
    late: int = 0  # hits that were still in flight
    cancelled: int = 0  # uploads evicted in flight

    def note(self, decision: Decision) -> None:
        """Count a policy's decision about one access."""
        num_hits = int(decision.hits.sum())
        self.hits += num_hits
        self.misses += len(decision.hits) - num_hits
        self.uploads += len(decision.admitted)
        self.evictions += len(decision.evicted)

    def __add__(self, other: Self) -> Self:
        both = ((f.name, getattr(self, f.name) + getattr(other, f.name)) for f in fields(self))
        return replace(self, **dict(both))

    def copy(self) -> Self:
        """Return a snapshot."""
        return replace(self)

    @property
    def hit_rate(self) -> float:
        """Share of distinct experts that were resident; 0 before the first access."""
        return self.hits / max(1, self.hits + self.misses)


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """Gauges and counters of an expert cache."""

    num_slots: int
    num_resident: int
    num_experts: int  # of all layers
    buffer_bytes: int  # of one slot
    counters: ExpertCounters
    place: str = "RAM"  # of the slots

    def __add__(self, other: Self) -> Self:
        """Sum up the caches of different layers."""
        return replace(
            self,
            num_slots=self.num_slots + other.num_slots,
            num_resident=self.num_resident + other.num_resident,
            num_experts=self.num_experts + other.num_experts,
            buffer_bytes=max(self.buffer_bytes, other.buffer_bytes),
            counters=self.counters + other.counters,
        )

    def __str__(self) -> str:
        c = self.counters
        costs = f"{c.bytes_read / 1e9:.2f} GB read, {c.read_wait_s:.2f} s waited"
        if self.place == "VRAM":
            costs = f"{c.late} hits were late, {c.cancelled} uploads cancelled"
        text = (
            f"experts: {c.hits} hits, {c.misses} misses ({100 * c.hit_rate:.1f} % hit),"
            f" {c.uploads} uploads, {c.evictions} evictions; {costs};"
            f" {self.num_resident} of {self.num_slots} slots in use"
        )
        if c.prefetched or c.hinted:
            recall = 100 * c.hinted_right / max(1, c.hinted)
            text += (
                f"; {c.prefetched} prefetched, {c.prefetched - c.prefetched_used} unused"
                f" (hints name {recall:.1f} % of the experts used)"
            )
        return text
