"""Time of a layer's experts, and what an upload is worth."""

from dataclasses import replace

import pytest
from gguf import GGMLQuantizationType as Q

from hybridmoe.planning.layer_cost import Hits, LayerTimes, cost, upload_hits, upload_s
from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.rates import GpuRates, Rates

TIMES = LayerTimes(on_gpu=1.0, on_cpu=10.0, reading=100.0)
GPU = GpuRates(read=2e12, ops=1e15, pcie=50e9, copy=90e9)
RATES = Rates("amx", dram=126e9, ops=1e13, attention_ops=1e12, gpu=GPU)
EXPERT = (Part(Q.Q4_K, 44_040_192, 24_772_608),)  # Kimi K2's


def test_the_shared_expert_runs_on_the_gpu_beside_the_cpus_experts() -> None:
    times = TIMES._replace(shared=3.0)
    assert cost(times, 2, Hits(0, 1)).computing == 20.0
    assert cost(times, 2, Hits(1, 0)).computing == 2.0 + 3.0
    half = cost(times, 2, Hits(0.5, 0.5)).computing
    assert half == pytest.approx(0.25 * 20 + 0.5 * 10 + 0.25 * 5)


def test_an_upload_costs_about_three_hits_of_a_kimi_k2_expert() -> None:
    found = upload_hits(EXPERT, RATES, 8, 0.25)
    saved = RATES.token_s(EXPERT[0])
    assert found == pytest.approx((EXPERT[0].num_bytes / 90e9 + 6 * 60e-6) / saved, rel=0.05)
    assert 2 < found < 4


def test_an_upload_from_registered_memory_costs_less_than_half() -> None:
    direct = upload_hits(EXPERT, RATES, 8, 0.25, is_direct=True)
    assert direct < upload_hits(EXPERT, RATES, 8, 0.25) / 2
    assert upload_s(EXPERT, RATES, is_direct=True) > EXPERT[0].num_bytes / RATES.dram


def test_hits_that_save_no_time_pay_for_no_upload() -> None:
    slow = replace(RATES, gpu=replace(GPU, slots=1e9))
    assert upload_hits(EXPERT, slow, 8, 0.9) == float("inf")
    assert upload_hits(EXPERT, RATES, 8, 0.99) > upload_hits(EXPERT, RATES, 8, 0.5)
