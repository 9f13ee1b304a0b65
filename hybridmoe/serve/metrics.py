"""Prometheus metrics; names are vLLM's with another prefix, so that its dashboards fit.

Requests, tokens and times are counted as they happen. Queue, caches and experts are read from the
engine at each scrape. Each application has its own registry.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hybridmoe.engine.request import Usage
from hybridmoe.engine.stats import EngineStats, KvDiskStats
from hybridmoe.experts.stats import ExpertCounters, ExpertStats

__all__ = ["Metrics"]

_Metric = CounterMetricFamily | GaugeMetricFamily

_FIRST_TOKEN_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_REQUEST_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Counters and histograms of one endpoint."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        """stats: reads the engine's figures; None while no model is loaded."""
        self._registry = registry = CollectorRegistry()
        registry.register(_EngineCollector(stats))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"hybridmoe_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"hybridmoe_{name}", text, buckets=buckets, registry=registry)

        self._http = counter(
            "http_requests", "HTTP responses by path and status.", "path", "status"
        )
        self._ended = counter(
            "request_success", "Finished sequences by finish reason.", "finished_reason"
        )
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens, including cached ones.")
        self._generated_tokens = counter("generation_tokens", "Generated tokens.")
        self._first_token_s = histogram(
            "time_to_first_token_seconds", "Time from request to first token.", _FIRST_TOKEN_S
        )
        self._token_s = histogram(
            "inter_token_latency_seconds", "Time between two tokens of a sequence.", _TOKEN_S
        )
        self._request_s = histogram(
            "e2e_request_latency_seconds", "Time from request to last token.", _REQUEST_S
        )
        self._queue_s = histogram(
            "request_queue_time_seconds", "Time spent in the queue.", _REQUEST_S
        )

    def count_response(self, path: str, status: int) -> None:
        """Count an HTTP response. `path` is a route's, never a client's own."""
        self._http.labels(path, str(status)).inc()

    def observe_token(self, seconds: float, *, is_first: bool) -> None:
        """Record a token's time since the one before it, or since the request."""
        (self._first_token_s if is_first else self._token_s).observe(seconds)

    def observe_end(self, reason: str, usage: Usage, num_tokens: int, seconds: float) -> None:
        """Record a sequence that finished by itself."""
        self.count_end(reason)
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._generated_tokens.inc(num_tokens)
        self._queue_s.observe(usage.queue_s)
        self._request_s.observe(seconds)

    def count_end(self, reason: str) -> None:
        """Count the end of a sequence, for whatever reason."""
        self._ended.labels(reason).inc()

    def render(self) -> bytes:
        """Render Prometheus's text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[_Metric]:
        stats = self._stats()
        if stats is None:
            return
        yield from _engine_metrics(stats)
        if stats.kv_disk is not None:
            yield from _kv_disk_metrics(stats.kv_disk)
        if stats.experts is not None:
            yield from _expert_metrics(stats.experts)


def _engine_metrics(stats: EngineStats) -> Iterator[_Metric]:
    total = max(1, stats.kv_pages_total)
    yield from _gauges(
        num_requests_running=("Sequences in the running batch.", stats.running),
        num_requests_waiting=("Sequences waiting in the queue.", stats.waiting),
        kv_cache_usage_perc=(
            "Share of KV cache pages in use; 1 = all.", stats.kv_pages_used / total
        ),
        kv_cache_kept_perc=(
            "Share of KV cache pages kept for later prompts (prefix cache).",
            stats.kv_pages_cached / total,
        ),
    )  # fmt: skip
    yield from _counters(
        prefix_cache_queries=("Prompt tokens looked up in the prefix cache.", stats.prompt_tokens),
        prefix_cache_hits=("Prompt tokens found in the prefix cache.", stats.cached_tokens),
        num_preemptions=("Preemptions of running sequences.", stats.preempted),
        engine_steps=("Engine steps.", stats.steps),
        spec_decode_num_draft_tokens=("Draft tokens verified.", stats.draft_tokens),
        spec_decode_num_accepted_tokens=(
            "Draft tokens that the model has drawn itself.",
            stats.accepted_tokens,
        ),
    )


def _kv_disk_metrics(disk: KvDiskStats) -> Iterator[_Metric]:
    yield from _gauges(
        kv_disk_bytes=("Bytes of all files in the folder of the KV cache.", disk.num_bytes),
        kv_disk_limit_bytes=("Limit of the folder's size.", disk.limit_bytes),
    )
    yield from _counters(
        kv_disk_hits=("Prompt tokens read from disk.", disk.loaded_tokens),
        kv_disk_read_bytes=("Bytes of KV cache read from disk.", disk.read_bytes),
        kv_disk_written_bytes=("Bytes of KV cache written to disk.", disk.written_bytes),
        kv_disk_written_pages=("KV cache pages written to disk.", disk.written_pages),
        kv_disk_evicted_pages=("KV cache pages removed from disk.", disk.evicted_pages),
        kv_disk_dropped_pages=(
            "KV cache pages not written: the queue or the folder was full.", disk.dropped_pages
        ),
        kv_disk_errors=("Reads and writes that failed, and damaged files.", disk.errors),
    )  # fmt: skip


def _expert_metrics(experts: ExpertStats) -> Iterator[_Metric]:
    """Metrics of expert caches; with `tier`: VRAM, RAM, and disk for accesses found in neither."""
    tiers = {tier.place: tier for tier in experts.tiers}
    counters = {place: tier.counters for place, tier in tiers.items()}
    slots = {place: tier.num_slots for place, tier in tiers.items()}
    used = {place: tier.num_resident for place, tier in tiers.items()}
    yield _by_tier(GaugeMetricFamily, "slots", "Expert slots.", slots)
    yield _by_tier(GaugeMetricFamily, "slots_used", "Expert slots in use.", used)
    yield _by_tier(
        CounterMetricFamily,
        "accesses",
        "Experts of a layer and step, by the tier that they were found in.",
        experts.found,
    )
    for name, text in (
        ("hits", "Experts of a layer and step that were resident."),
        ("misses", "Experts of a layer and step that were not resident."),
        ("uploads", "Misses admitted to the expert cache."),
        ("evictions", "Experts evicted from the expert cache."),
        ("promoted", "Experts given to the tier above."),
        ("returned", "Experts taken back from the tier above."),
    ):
        values = {place: getattr(counts, name) for place, counts in counters.items()}
        yield _by_tier(CounterMetricFamily, name, text, values)
    counts = sum(counters.values(), ExpertCounters())
    yield from _counters(
        expert_read_bytes=("Bytes of experts read from disk.", experts.bytes_read),
        expert_read_wait_seconds=("Time spent waiting for expert reads.", experts.read_wait_s),
        expert_ahead_reads=("Experts prefetched from disk.", counts.prefetched),
        expert_ahead_used=("Prefetched experts that were then used.", counts.prefetched_used),
        expert_late_hits=("Hits on experts still in flight.", counts.late),
        expert_cancelled_uploads=("Uploads evicted before they arrived.", counts.cancelled),
    )


def _by_tier(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    text: str,
    values: Mapping[str, int],
) -> _Metric:
    """Make a metric with a value for each tier."""
    metric = kind(f"hybridmoe_expert_{name}", text, labels=["tier"])
    for place, value in values.items():
        metric.add_metric([place], value)
    return metric


def _gauges(**values: tuple[str, float]) -> Iterator[_Metric]:
    """Make gauges from a help text and a value each."""
    for name, (text, value) in values.items():
        yield GaugeMetricFamily(f"hybridmoe_{name}", text, value=value)


def _counters(**values: tuple[str, float]) -> Iterator[_Metric]:
    """Make counters from a help text and a value each."""
    for name, (text, value) in values.items():
        yield CounterMetricFamily(f"hybridmoe_{name}", text, value=value)
