"""Statistics of an engine, for metrics."""

from dataclasses import dataclass

from hybridmoe.experts.stats import ExpertStats

__all__ = ["EngineStats"]


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
    experts: ExpertStats | None = None  # None: all experts are in RAM
