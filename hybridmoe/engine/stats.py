"""Statistics of an engine, for metrics."""

from dataclasses import dataclass, fields, replace

from hybridmoe.experts.stats import ExpertStats

__all__ = ["EngineStats", "KvDiskStats"]


@dataclass(frozen=True, slots=True)
class KvDiskStats:
    """Gauges of the KV cache on disk, and counters since the engine started."""

    limit_bytes: int
    num_bytes: int  # of all files in the folder, when they were last counted
    loaded_tokens: int  # read instead of computed
    read_bytes: int
    written_pages: int
    written_bytes: int
    evicted_pages: int
    dropped_pages: int  # not written, since the queue or the folder was full
    errors: int  # reads and writes that failed, damaged files

    def without_gauges(self) -> "KvDiskStats":
        """Keep the counters alone."""
        return replace(self, limit_bytes=0, num_bytes=0)

    def __add__(self, other: "KvDiskStats") -> "KvDiskStats":
        """Sum up the counters of two engines, which share a folder."""
        total = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        total["limit_bytes"] = max(self.limit_bytes, other.limit_bytes)
        total["num_bytes"] = max(self.num_bytes, other.num_bytes)
        return KvDiskStats(**total)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges of now, and counters since the engine started."""

    running: int
    waiting: int
    kv_pages_total: int
    kv_pages_used: int  # held by running requests
    kv_pages_cached: int  # of the prefix cache, in use by no request; evicted when needed
    kv_page_tokens: int
    steps: int
    prompt_tokens: int  # computed, so without cached ones
    cached_tokens: int  # found in the prefix cache
    generated_tokens: int
    preempted: int  # times a request lost its pages to an older one
    draft_tokens: int = 0  # verified
    accepted_tokens: int = 0  # of these, drawn by the model itself
    kv_disk: KvDiskStats | None = None  # None: in memory only
    experts: ExpertStats | None = None  # None: all experts are in RAM

    def without_gauges(self) -> "EngineStats":
        """Keep the counters alone: of an engine that is closed."""
        experts = None if self.experts is None else self.experts.without_gauges()
        kv_disk = None if self.kv_disk is None else self.kv_disk.without_gauges()
        gauges = ("running", "waiting", "kv_pages_total", "kv_pages_used", "kv_pages_cached")
        return replace(self, **dict.fromkeys(gauges, 0), experts=experts, kv_disk=kv_disk)

    def __add__(self, other: "EngineStats") -> "EngineStats":
        """Sum up two engines."""
        parts = ("kv_page_tokens", "experts", "kv_disk")
        names = [f.name for f in fields(self) if f.name not in parts]
        total = {name: getattr(self, name) + getattr(other, name) for name in names}
        experts = self.experts or other.experts
        if self.experts and other.experts:
            experts = self.experts + other.experts
        kv_disk = self.kv_disk or other.kv_disk
        if self.kv_disk and other.kv_disk:
            kv_disk = self.kv_disk + other.kv_disk
        return replace(self, **total, experts=experts, kv_disk=kv_disk)
