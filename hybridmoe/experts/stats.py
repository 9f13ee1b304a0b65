"""Statistics of expert caches, by tier: VRAM, and RAM below it."""

from dataclasses import dataclass, fields, replace
from typing import Self

from hybridmoe.experts.policy.interface import Decision

__all__ = ["TIERS", "ExpertCounters", "ExpertStats"]

TIERS = ("VRAM", "RAM", "disk")  # fastest first

_BELOW = {"VRAM": "RAM", "RAM": "disk"}  # place of what the last tier misses


@dataclass(slots=True)
class ExpertCounters:
    """Counters of an expert cache. The first six equal the simulator's on the run's trace."""

    hits: int = 0  # distinct experts of a layer and step that were resident
    misses: int = 0
    uploads: int = 0  # misses that were admitted
    evictions: int = 0
    # Below another tier:
    promoted: int = 0  # residents that left for the tier above
    returned: int = 0  # experts taken that the tier above gave up
    bytes_read: int = 0  # from the files
    read_wait_s: float = 0.0  # computation stalled on reads
    prefetched: int = 0  # experts read ahead, on a hint or for the next layer of a prompt
    prefetched_used: int = 0
    # Decode steps with prefetch hints:
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

    def __sub__(self, other: Self) -> Self:
        both = ((f.name, getattr(self, f.name) - getattr(other, f.name)) for f in fields(self))
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
    """Gauges and counters of an expert cache, and of the tier below that takes its misses."""

    num_slots: int
    num_resident: int
    num_experts: int  # of all layers
    buffer_bytes: int  # of one slot
    counters: ExpertCounters
    place: str = "RAM"  # of the slots
    # Next tier's, which counts what is not resident here. None: VRAM's misses are in the memory
    # map, RAM's on disk.
    below: "ExpertStats | None" = None

    @property
    def tiers(self) -> tuple["ExpertStats", ...]:
        """Each tier's, from this one down."""
        return (self, *(self.below.tiers if self.below else ()))

    @property
    def found(self) -> dict[str, int]:
        """Accesses by the place that held the expert: VRAM, RAM, disk."""
        last = self.tiers[-1]
        by_tier = {tier.place: tier.counters.hits for tier in self.tiers}
        return by_tier | {_BELOW[last.place]: last.counters.misses}

    @property
    def shares(self) -> str:
        """Shares of the accesses by place, for people: `60.0 % VRAM, 30.0 % RAM, 10.0 % disk`."""
        total = max(1, sum(self.found.values()))
        return ", ".join(f"{100 * n / total:.1f} % {place}" for place, n in self.found.items())

    @property
    def bytes_read(self) -> int:
        """Bytes read from the files, for all tiers."""
        return sum(tier.counters.bytes_read for tier in self.tiers)

    @property
    def read_wait_s(self) -> float:
        """Time that computation stalled on reads, seconds."""
        return sum(tier.counters.read_wait_s for tier in self.tiers)

    def since(self, before: "ExpertStats | None") -> "ExpertStats":
        """Count from `before`, earlier statistics of the same cache, on."""
        if before is None:
            return self
        below = self.below.since(before.below) if self.below else None
        return replace(self, counters=self.counters - before.counters, below=below)

    def without_gauges(self) -> "ExpertStats":
        """Keep the counters alone: of a cache that is closed."""
        below = self.below.without_gauges() if self.below else None
        return replace(self, num_slots=0, num_resident=0, num_experts=0, below=below)

    def __add__(self, other: "ExpertStats") -> "ExpertStats":
        """Sum up the caches of different layers or models, each tier by itself."""
        if self.place != other.place:
            upper, lower = (self, other) if _BELOW[self.place] == other.place else (other, self)
            return replace(upper, below=upper.below + lower if upper.below else lower)
        below = self.below or other.below
        if self.below and other.below:
            below = self.below + other.below
        return replace(
            self,
            num_slots=self.num_slots + other.num_slots,
            num_resident=self.num_resident + other.num_resident,
            num_experts=self.num_experts + other.num_experts,
            buffer_bytes=max(self.buffer_bytes, other.buffer_bytes),
            counters=self.counters + other.counters,
            below=below,
        )

    def __str__(self) -> str:
        """Lines for people: one, or one for all tiers and one for each."""
        if self.below is None:
            return f"experts: {self._line}"
        lines = (f"  {tier.place}: {tier._line}" for tier in self.tiers)
        return "\n".join([f"experts: {self.shares}", *lines])

    @property
    def _line(self) -> str:
        """Line on this tier alone."""
        c = self.counters
        costs = f"{c.bytes_read / 1e9:.2f} GB read, {c.read_wait_s:.2f} s waited"
        if self.place == "VRAM":
            costs = f"{c.late} hits were late, {c.cancelled} uploads cancelled"
        text = (
            f"{c.hits} hits, {c.misses} misses ({100 * c.hit_rate:.1f} % hit),"
            f" {c.uploads} uploads, {c.evictions} evictions; {costs};"
            f" {self.num_resident} of {self.num_slots} slots in use"
        )
        if c.promoted or c.returned:
            text += f"; {c.promoted} given to the tier above, {c.returned} taken back"
        if c.prefetched:
            unused = c.prefetched - c.prefetched_used
            gb, unused_gb = (number * self.buffer_bytes / 1e9 for number in (c.prefetched, unused))
            text += (
                f"; {c.prefetched} prefetched, about {gb:.2f} GB,"
                f" {unused} of them unused, {unused_gb:.2f} GB"
            )
        if c.hinted:
            recall = 100 * c.hinted_right / c.hinted
            text += f"; hints name {recall:.1f} % of the experts used"
        return text
