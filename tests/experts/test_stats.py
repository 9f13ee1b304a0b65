"""Statistics by tier: sums, differences, and where accesses were found."""

from dataclasses import asdict, replace

from hybridmoe.experts.stats import ExpertCounters, ExpertStats

VRAM = ExpertStats(4, 3, 8, 100, ExpertCounters(hits=6, misses=4, late=1), place="VRAM")
RAM = ExpertStats(2, 2, 8, 90, ExpertCounters(hits=3, misses=1, bytes_read=500, read_wait_s=0.5))
BOTH = replace(VRAM, below=RAM)


def test_accesses_are_found_in_one_place_each() -> None:
    assert BOTH.found == {"VRAM": 6, "RAM": 3, "disk": 1}
    assert VRAM.found == {"VRAM": 6, "RAM": 4}, "the misses are in the memory map"
    assert RAM.found == {"RAM": 3, "disk": 1}
    assert [tier.place for tier in BOTH.tiers] == ["VRAM", "RAM"]
    assert (BOTH.bytes_read, BOTH.read_wait_s) == (500, 0.5)


def test_stages_add_up_tier_by_tier() -> None:
    twice = BOTH + BOTH
    assert twice.found == {"VRAM": 12, "RAM": 6, "disk": 2}
    assert twice.below is not None and twice.below.num_slots == 4
    for mixed in (BOTH + RAM, RAM + BOTH):  # one GPU without slots
        assert mixed.found == {"VRAM": 6, "RAM": 6, "disk": 2}
        assert (mixed.num_slots, mixed.bytes_read) == (4, 1000)
    assert VRAM + RAM == RAM + VRAM == BOTH
    assert (BOTH + VRAM).below == (VRAM + BOTH).below == RAM


def test_counters_of_one_response_are_a_difference() -> None:
    later = BOTH + BOTH
    assert later.since(BOTH).found == BOTH.found
    assert later.since(BOTH).bytes_read == 500
    assert later.since(None) == later
    assert later.since(BOTH).num_slots == 8, "gauges are those of now"


def test_each_tier_has_a_line() -> None:
    assert str(BOTH).splitlines() == [
        "experts: 60.0 % VRAM, 30.0 % RAM, 10.0 % disk",
        "  VRAM: 6 hits, 4 misses (60.0 % hit), 0 uploads, 0 evictions;"
        " 1 hits were late, 0 uploads cancelled; 3 of 4 slots in use",
        "  RAM: 3 hits, 1 misses (75.0 % hit), 0 uploads, 0 evictions;"
        " 0.00 GB read, 0.50 s waited; 2 of 2 slots in use",
    ]
    assert str(RAM).startswith("experts: 3 hits, 1 misses (75.0 % hit)")
    assert asdict(BOTH)["below"]["place"] == "RAM"


def test_exchange_and_prefetches_are_named_where_there_are_any() -> None:
    counters = ExpertCounters(promoted=5, returned=4, prefetched=10, prefetched_used=7)
    line = str(ExpertStats(2, 2, 8, 1_000_000_000, counters))
    assert line.endswith(
        "2 of 2 slots in use; 5 given to the tier above, 4 taken back;"
        " 10 prefetched, about 10.00 GB, 3 of them unused, 3.00 GB"
    )
    hinted = str(ExpertStats(2, 2, 8, 1, ExpertCounters(hinted=8, hinted_right=6)))
    assert hinted.endswith("in use; hints name 75.0 % of the experts used")
