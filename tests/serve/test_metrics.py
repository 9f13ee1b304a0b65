"""Metrics of parts that few engines have."""

from dataclasses import asdict, fields, replace

from prometheus_client.parser import text_string_to_metric_families

from hybridmoe.engine.stats import EngineStats, KvDiskStats
from hybridmoe.serve.metrics import Metrics

NUMBERS = KvDiskStats(*range(1, 1 + len(fields(KvDiskStats))))
STATS = EngineStats(*[0] * 11, kv_disk=NUMBERS)


def rendered(stats: EngineStats, prefix: str = "hybridmoe_kv_disk") -> dict[str, float]:
    text = Metrics(lambda: stats).render().decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {s.name: s.value for s in samples if s.name.startswith(prefix)}


def test_a_kv_cache_on_disk_has_gauges_and_counters() -> None:
    found = rendered(STATS)
    assert found.pop("hybridmoe_kv_disk_limit_bytes") == NUMBERS.limit_bytes
    assert found.pop("hybridmoe_kv_disk_bytes") == NUMBERS.num_bytes
    assert {name.removeprefix("hybridmoe_kv_disk_"): value for name, value in found.items()} == {
        "hits_total": NUMBERS.loaded_tokens,
        "read_bytes_total": NUMBERS.read_bytes,
        "written_pages_total": NUMBERS.written_pages,
        "written_bytes_total": NUMBERS.written_bytes,
        "evicted_pages_total": NUMBERS.evicted_pages,
        "dropped_pages_total": NUMBERS.dropped_pages,
        "errors_total": NUMBERS.errors,
    }
    assert rendered(EngineStats(*[0] * 11)) == {}


def test_draft_tokens_are_counted() -> None:
    assert rendered(replace(STATS, draft_tokens=9, accepted_tokens=5), "hybridmoe_spec_") == {
        "hybridmoe_spec_decode_num_draft_tokens_total": 9,
        "hybridmoe_spec_decode_num_accepted_tokens_total": 5,
    }


def test_engines_on_one_folder_add_up_their_counters_but_not_its_size() -> None:
    closed = STATS.without_gauges()
    assert closed.kv_disk is not None and closed.kv_disk.num_bytes == 0
    for total in (closed + STATS, STATS + closed):
        assert total.kv_disk is not None
        sizes = {"limit_bytes": NUMBERS.limit_bytes, "num_bytes": NUMBERS.num_bytes}
        doubled = {name: 2 * number for name, number in asdict(NUMBERS).items()}
        assert asdict(total.kv_disk) == doubled | sizes
    assert (STATS + EngineStats(*[0] * 11)).kv_disk == NUMBERS
