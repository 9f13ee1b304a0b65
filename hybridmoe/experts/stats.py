"""What an expert cache has done so far."""

from dataclasses import dataclass, replace
from typing import Self

from hybridmoe.experts.policy.interface import Decision

__all__ = ["ExpertCounters", "ExpertStats"]


@dataclass(slots=True)
class ExpertCounters:
    """Counts since the cache began. The first four equal the simulator's on the run's trace."""

    hits: int = 0  # distinct experts of a layer and step that were resident
    misses: int = 0  # that were not
    uploads: int = 0  # misses that were admitted
    evictions: int = 0
    bytes_read: int = 0  # from the files, whatever for
    read_wait_s: float = 0.0  # computing stood still for reads
    # Of steps of few tokens, where the layer before had its guess:
    ahead_reads: int = 0  # experts that were read ahead
    ahead_used: int = 0  # those of them that were then needed
    expected: int = 0  # experts used by layers that were guessed
    expected_right: int = 0  # those of them that were in the guess
    # Of a cache whose uploads are not waited for:
    late: int = 0  # hits that had not arrived
    cancelled: int = 0  # uploads that were evicted before they had

    def note(self, decision: Decision) -> None:
        """Count what a policy has decided about one access."""
        num_hits = int(decision.hits.sum())
        self.hits += num_hits
        self.misses += len(decision.hits) - num_hits
        self.uploads += len(decision.admitted)
        self.evictions += len(decision.evicted)

    def copy(self) -> Self:
        """The counts of now."""
        return replace(self)

    @property
    def hit_rate(self) -> float:
        """Share of distinct experts that were resident; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """Gauges now, and the counts."""

    num_slots: int
    num_resident: int
    num_experts: int  # of all layers
    buffer_bytes: int  # that one of them takes
    counters: ExpertCounters
    place: str = "RAM"  # where the slots are

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
        if c.ahead_reads or c.expected:
            recall = 100 * c.expected_right / max(1, c.expected)
            text += (
                f"; read ahead {c.ahead_reads}, {c.ahead_reads - c.ahead_used} in vain"
                f" (guesses name {recall:.1f} % of what is used)"
            )
        return text
