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
    dropped_pages: int  # not written, since the queue was full
    errors: int  # reads and writes that failed, damaged files


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
    kv_disk: KvDiskStats | None = None  # None: in memory only
    experts: ExpertStats | None = None  # None: all experts are in RAM

    def without_gauges(self) -> "EngineStats":
        """Keep the counters alone: of an engine that is closed."""
        experts = None if self.experts is None else self.experts.without_gauges()
        gauges = ("running", "waiting", "kv_pages_total", "kv_pages_used", "kv_pages_cached")
        return replace(self, **dict.fromkeys(gauges, 0), experts=experts)

    def __add__(self, other: "EngineStats") -> "EngineStats":
        """Sum up two engines."""
        names = [f.name for f in fields(self) if f.name not in ("kv_page_tokens", "experts")]
        total = {name: getattr(self, name) + getattr(other, name) for name in names}
        experts = self.experts or other.experts
        if self.experts and other.experts:
            experts = self.experts + other.experts
        return replace(self, **total, experts=experts)
