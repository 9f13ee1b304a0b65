"""Reading ahead: the formula equals a simulated disk, and says no where it loses."""

from dataclasses import replace

import numpy as np
import pytest
from k2_header import write_k2
from memory_plans import plan_of, with_staging

from hybridmoe.gguf.outline import read_outline
from hybridmoe.planning.cost_model import hits_of
from hybridmoe.planning.layer_cost import Hits, LayerTimes
from hybridmoe.planning.model_sizes import ModelSizes, sizes_of
from hybridmoe.planning.prefetch_gain import (
    ReadAhead,
    best_read_ahead,
    can_read_ahead,
    read_ahead_gain,
    read_ahead_of,
)
from hybridmoe.planning.rates import Rates

TOP_K = 8
TIMES = LayerTimes(on_gpu=0.0, on_cpu=0.1, reading=1.0)
RATES = Rates("amx", dram=80e9, ops=1e13, attention_ops=1e12, disk=7e9)


def simulated_s(
    times: LayerTimes, hits: Hits, num_ahead: int, between_s: float, precision: float
) -> float:
    """Mean seconds of a layer, with a disk that finishes what it has begun, over many layers."""
    rng = np.random.default_rng(0)
    total, num_layers = 0.0, 8_000
    free = 0.0  # when the disk is done with what it has begun, after the layer's begin
    num_loaded = 0  # experts of this layer that were read ahead, or are being
    for _ in range(num_layers):
        missing = int(rng.binomial(TOP_K, hits.disk))
        busy = TOP_K * times.on_cpu
        read_until = free + max(0, missing - num_loaded) * times.reading
        length = max(busy, read_until + times.on_cpu) if missing else busy
        ends = length + between_s
        disk, num_loaded = read_until, 0
        for _ in range(num_ahead):
            if disk >= ends:
                break  # not begun: dropped
            disk += times.reading
            num_loaded += rng.random() < precision
        free = max(0.0, disk - ends)
        total += ends
    return total / num_layers


@pytest.mark.parametrize("precision", [0.3, 0.9])
@pytest.mark.parametrize("between_s", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("num_ahead", [1, 4])
@pytest.mark.parametrize("hits", [Hits(0, 0.3), Hits(0, 0.8)])
def test_the_gain_is_that_of_a_simulated_disk(
    hits: Hits, num_ahead: int, between_s: float, precision: float
) -> None:
    given = {"between_s": between_s, "precision": precision}
    without = simulated_s(TIMES, hits, 0, **given)
    saved = without - simulated_s(TIMES, hits, num_ahead, **given)
    expected = read_ahead_gain(TIMES, TOP_K, hits, num_ahead, **given)
    assert expected == pytest.approx(saved, abs=0.04 * without)


def test_only_reads_that_are_more_likely_right_than_late_pay() -> None:
    all_missing = Hits(0, 0)  # every layer waits for the disk
    for precision in (0.2, 0.5, 0.8):
        for share in (0.1, 0.4, 0.6, 0.9):  # of one read, done in the idle time
            gain = read_ahead_gain(
                TIMES, TOP_K, all_missing, 1, between_s=share - TIMES.on_cpu, precision=precision
            )
            assert (gain > 0) == (share > 1 - precision), (precision, share)
    assert read_ahead_gain(TIMES, TOP_K, Hits(0, 1), 4, between_s=1.0) == 0
    lost = read_ahead_gain(TIMES, TOP_K, all_missing, 1, between_s=1.0, router_s=9.0)
    assert lost == read_ahead_gain(TIMES, TOP_K, all_missing, 1, between_s=1.0) - 9.0


def test_the_best_number_is_chosen_and_none_where_it_would_lose() -> None:
    wide = best_read_ahead(TIMES, TOP_K, Hits(0, 0.5), 4, between_s=3.0, precision=0.9)
    assert wide.num_ahead == 3 and wide.saved > 0.2, "the fourth has no time"
    none = best_read_ahead(TIMES, TOP_K, Hits(0, 0.5), 4, between_s=0.0)
    assert none.num_ahead == 0 and none.saved < 0
    little = best_read_ahead(TIMES, TOP_K, Hits(0, 0.5), 4, between_s=0.0, precision=0.92)
    assert little.num_ahead == 0 and 0 < little.saved < 0.08


@pytest.fixture(scope="module")
def k2(tmp_path_factory: pytest.TempPathFactory) -> ModelSizes:
    outline = read_outline(write_k2(tmp_path_factory.mktemp("k2") / "k2.gguf"))
    return sizes_of(outline.tensors, outline.config)


def test_kimi_k2_reads_ahead_where_a_read_fits_between_two_layers(k2: ModelSizes) -> None:
    plan = plan_of(k2, 128)

    def decided(dram: float, disk: float, hits: Hits) -> ReadAhead:
        return read_ahead_of(plan, replace(RATES, dram=dram, disk=disk), hits)

    by_disk = [decided(80e9, gbs * 1e9, hits_of(plan)) for gbs in (1, 3, 7, 14)]
    assert [found.num_ahead for found in by_disk] == [0, 0, 0, 0]
    assert by_disk[0].saved < by_disk[1].saved < by_disk[2].saved < 0 < by_disk[3].saved
    assert decided(30e9, 9e9, Hits(0, 0.35)).num_ahead == 2, "slow memory leaves time"
    assert decided(30e9, 9e9, Hits(0, 0.95)).num_ahead == 0, "what is there need not be read"


def test_buffers_of_streamed_experts_are_read_ahead_into(k2: ModelSizes) -> None:
    plan = plan_of(k2, 128)
    assert plan.disk_cache is not None and can_read_ahead(plan)
    assert not can_read_ahead(plan_of(k2, 700)), "all are in the memory map"
    assert not can_read_ahead(plan_of(k2, 128, num_ahead=3)), "a number was given"
    one_token, one_more = (with_staging(plan, count) for count in (8, 9))
    assert not can_read_ahead(one_token)
    slow = replace(RATES, dram=30e9, disk=9e9)
    found = [read_ahead_of(p, slow, hits_of(plan)) for p in (one_more, plan)]
    assert found[0].saved < found[1].saved, "the second one has a buffer there"


def test_the_decision_is_a_line() -> None:
    by = "of a token's time (disk 7.00 GB/s, memory 80.0 GB/s)"
    assert ReadAhead(2, 0.071).line(RATES) == (
        f"expert prefetch: up to 2 of the next layer are read ahead, predicted to save 7 % {by}"
    )
    assert ReadAhead(0, -0.031).line(RATES) == f"expert prefetch: off, since it would cost 3 % {by}"
    assert ReadAhead(0, 0.012).line(RATES) == (
        f"expert prefetch: off, since it would save only 1.2 % {by}"
    )
