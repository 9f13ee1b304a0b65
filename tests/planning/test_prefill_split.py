"""Splits of a prefill step's experts, against every other split and by hand."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from hypothesis import given
from hypothesis import strategies as st

from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.prefill_split import (
    ExpertCosts,
    Split,
    costs_of,
    cpu_products_s,
    gpu_finish,
    group_size,
    split,
    stream_buffers,
)
from hybridmoe.planning.rates import COPY_TRAFFIC, GpuRates, rates_of

SIZE = 7168 * 2048
Q4_EXPERT = (Part(Q.Q4_K, 2 * SIZE, 2 * SIZE * 9 // 16), Part(Q.Q6_K, SIZE, SIZE * 105 // 128))


def seconds_of(costs: ExpertCosts, is_resident: Sequence[bool], is_on_gpu: Sequence[bool]) -> float:
    """Predict any split's time, with the GPU's experts in the best order."""
    experts = range(len(is_resident))
    on_gpu = [e for e in experts if is_on_gpu[e]]
    resident = [e for e in on_gpu if is_resident[e]]
    rest = sorted(
        (e for e in on_gpu if not is_resident[e]), key=lambda e: costs.gpu[e], reverse=True
    )
    on_cpu = [e for e in experts if not is_on_gpu[e]]
    products = sum(costs.cpu[e] for e in on_cpu) + len(rest) * costs.copy_cpu
    cpu = max(products, len(on_cpu) * costs.read + len(rest) * costs.copy_read)
    cpu += costs.hand_over if on_cpu else 0
    return max(cpu, float(gpu_finish(costs, resident + rest, len(resident))[-1]))


def flat(cpu: Sequence[float], gpu: float = 1.0, link: float = 1.0) -> ExpertCosts:
    num = len(cpu)
    return ExpertCosts(np.array(cpu, float), np.full(num, gpu), 0.0, 0.5, 0.0, 0.0, link, 0.0)


@st.composite
def problems(draw: st.DrawFn) -> tuple[ExpertCosts, list[bool]]:
    """Draw a layer's costs, which grow with tokens as on a real machine.

    The GPU needs more tokens than the CPU before products take longer than weights.
    """
    counts = np.array(draw(st.lists(st.integers(1, 400), min_size=1, max_size=8)), float)
    number = st.floats(0.01, 10)
    read, token, unpack = draw(number), draw(st.floats(1e-3, 0.3)), draw(st.floats(0, 100))
    decode, crossing = draw(number), draw(st.floats(1, 10))
    cpu = np.maximum(read, token * (counts + unpack))
    first = max(read / token, unpack)  # tokens where the CPU's cost begins to double
    gpu = decode * (1 + counts / (crossing * max(first, 1.0)))
    copy, share = draw(number), st.floats(0, 1)
    costs = ExpertCosts(
        cpu=cpu,
        gpu=gpu,
        read=read * draw(share),
        copy=copy,
        copy_cpu=copy * draw(share),
        copy_read=copy * draw(share),
        link=draw(number),
        hand_over=draw(st.floats(0, 3)),
    )
    return costs, draw(st.lists(st.booleans(), min_size=len(counts), max_size=len(counts)))


def check_is_a_split(found: Split, is_resident: Sequence[bool]) -> None:
    assert sorted(found.gpu + found.cpu) == list(range(len(is_resident)))
    assert all(is_resident[e] for e in found.resident)
    assert not any(is_resident[e] for e in found.streamed)


@given(problems())
def test_no_slower_than_either_side_alone(problem: tuple[ExpertCosts, list[bool]]) -> None:
    costs, is_resident = problem
    found = split(costs, is_resident)
    check_is_a_split(found, is_resident)
    is_on_gpu = [e in found.gpu for e in range(len(is_resident))]
    assert found.seconds <= seconds_of(costs, is_resident, is_on_gpu) * (1 + 1e-9)
    for all_gpu in (True, False):
        alone = seconds_of(costs, is_resident, [all_gpu] * len(is_resident))
        assert found.seconds <= alone * (1 + 1e-9)


@given(problems())
def test_within_one_expert_of_the_best_of_all_splits(
    problem: tuple[ExpertCosts, list[bool]],
) -> None:
    costs, is_resident = problem
    best = min(
        seconds_of(costs, is_resident, is_on_gpu)
        for is_on_gpu in product((False, True), repeat=len(is_resident))
    )
    one = max(costs.cpu.max(), costs.gpu.max(), costs.copy, costs.link) + costs.hand_over
    assert split(costs, is_resident).seconds <= best + one * (1 + 1e-9)


@given(problems(), st.floats(1, 10))
def test_faster_parts_never_take_longer(
    problem: tuple[ExpertCosts, list[bool]], times: float
) -> None:
    costs, is_resident = problem
    before = split(costs, is_resident)
    faster = costs._replace(link=costs.link / times, copy=costs.copy / times)
    is_on_gpu = [e in before.gpu for e in range(len(is_resident))]
    assert seconds_of(faster, is_resident, is_on_gpu) <= before.seconds * (1 + 1e-9)


def test_the_heaviest_experts_go_to_the_gpu() -> None:
    """Two a second over the link, from half a second on."""
    found = split(flat([1, 9, 1, 2, 8, 1], gpu=0.125, link=0.5), [False] * 6)
    assert found == Split(gpu=(1, 4, 3, 0), cpu=(2, 5), num_resident=0, seconds=2.625)


def test_the_longest_on_the_gpu_is_computed_first() -> None:
    """Each is worth a copy; the last to arrive is the one that leaves least to do behind it."""
    for by_cpu in (9.0, 6.25):  # 6.25: less than all on the GPU takes by number, 6.5
        costs = flat([by_cpu] * 3, link=1.0)._replace(gpu=np.array([0.5, 1.0, 3.0]))
        found = split(costs, [False] * 3)
        assert (found.streamed, found.cpu) == ((2, 1, 0), ())
        assert found.seconds == 0.5 + 1 + 3 + 1 + 0.5


def test_resident_experts_are_not_streamed() -> None:
    found = split(flat([5, 1, 5, 1], gpu=0.25, link=100.0), [False, True, False, True])
    assert (found.resident, found.streamed, found.cpu) == ((1, 3), (), (0, 2))
    assert found.seconds == 10
    slow_gpu = split(flat([1, 1, 1], gpu=2.0), [True] * 3)  # the CPU is faster at the rest
    assert (slow_gpu.resident, slow_gpu.cpu, slow_gpu.seconds) == ((0,), (1, 2), 2)


def test_either_side_takes_all_where_the_other_is_slow() -> None:
    by_cpu = split(flat([1, 1, 1], link=1e3), [False] * 3)
    assert (by_cpu.gpu, by_cpu.cpu, by_cpu.seconds) == ((), (0, 1, 2), 3)
    by_gpu = split(flat([1e3, 1e3], gpu=1.0, link=0.25), [False] * 2)
    assert (by_gpu.streamed, by_gpu.cpu) == ((0, 1), ())
    assert by_gpu.seconds == 0.5 + 0.25 + 2 * 1.0  # copies of the second beside the first


def test_one_step_less_where_activations_are_costly() -> None:
    costs = flat([1, 1], gpu=0.1, link=0.6)._replace(hand_over=5.0)
    assert split(costs, [False] * 2).cpu == ()


def test_nothing_chosen_is_no_work() -> None:
    assert split(flat([]), []) == Split((), (), 0, 0.0)


def test_stages_overlap_and_wait_for_each_other_by_hand() -> None:
    costs = ExpertCosts(np.zeros(3), np.array([1.0, 1.0, 4.0]), 0, 2.0, 0, 0, 3.0, 0)
    # Copied at 2, 4 and 6; linked at 5, 8 and 11; the third multiplied until 15.
    assert gpu_finish(costs, [0, 1, 2], 0).tolist() == [0, 6, 9, 15]
    slow = ExpertCosts(np.zeros(4), np.full(4, 4.0), 0, 2.0, 0, 0, 3.0, 0)
    assert gpu_finish(slow, [0, 1, 2, 3], 0).tolist() == [0, 9, 13, 17, 21]
    assert gpu_finish(slow, [0, 1, 2], 2).tolist() == [0, 4, 8, 12]
    staging = ExpertCosts(np.zeros(3), np.full(3, 0.5), 0, 3.0, 0, 0, 1.0, 0)  # 3, 6, 9; + 1
    assert gpu_finish(staging, [0, 1, 2], 0).tolist() == [0, 4.5, 7.5, 10.5]
    assert gpu_finish(costs._replace(copy=0.0), [0, 1, 2], 0).tolist() == [0, 4, 7, 13]


def test_stages_take_as_long_as_step_by_step() -> None:
    """Against a loop over experts, with buffers enough."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        gpu, num_resident = rng.random(9), int(rng.integers(0, 9))
        costs = ExpertCosts(gpu, gpu, 0, rng.random(), 0, 0, rng.random(), 0)
        staged = linked = finished = 0.0
        want, order = [0.0], rng.permutation(9)
        for n, expert in enumerate(order):
            if n >= num_resident:
                staged += costs.copy
                linked = max(staged, linked) + costs.link
                finished = max(linked, finished)
            finished += gpu[expert]
            want.append(finished)
        assert gpu_finish(costs, order, num_resident) == pytest.approx(np.array(want))


def test_costs_by_hand() -> None:
    rates = rates_of("avx512", dram=100e9, peak_ops=10e12)
    gpu = GpuRates(read=1e12, ops=100e12, pcie=20e9, copy=25e9, copy_cpu=0.25, expert_s=1e-4)
    direct = costs_of(Q4_EXPERT, rates, gpu, [300, 1, 300], 2e9)
    costs = costs_of(Q4_EXPERT, rates, gpu, [300, 1, 300], 2e9, is_registered=False)
    num_bytes = 2 * SIZE * 9 / 16 + SIZE * 105 / 128
    assert (direct.copy, direct.copy_cpu) == (0, 0)
    assert direct.copy_read == direct.read == costs.read == pytest.approx(num_bytes / 100e9)
    assert costs.copy == pytest.approx(num_bytes / 25e9)
    assert costs.copy_cpu == pytest.approx(num_bytes / 25e9 / 4)
    assert costs.copy_read == pytest.approx(num_bytes * COPY_TRAFFIC / 100e9)
    assert (costs.link, costs.hand_over) == (pytest.approx(num_bytes / 20e9), pytest.approx(0.2))
    assert costs.cpu[0] == costs.cpu[2] == cpu_products_s(Q4_EXPERT, rates, 300)
    assert costs.cpu[1] == pytest.approx(sum(map(rates.token_s, Q4_EXPERT)))
    dequantizing = (num_bytes + 2 * 3 * SIZE) / 1e12
    assert costs.gpu[1] == pytest.approx(1e-4 + dequantizing + 2 * 3 * SIZE / 1e12)
    assert costs.gpu[0] == pytest.approx(1e-4 + dequantizing + 2 * 3 * SIZE * 300 / 100e12)
    from_dram = costs_of(Q4_EXPERT, rates, GpuRates(1e12, 1e14, 20e9), [1], 0, is_registered=False)
    assert from_dram.copy == pytest.approx(costs.copy_read)


@pytest.mark.parametrize("exponent", [0.0, 0.8])
def test_splitting_beats_either_side_where_they_are_close(exponent: float) -> None:
    """A layer of Kimi K2, 8192 tokens, 250 GB/s of DRAM, an RTX 4090; routing even and skewed."""
    rates = rates_of("amx", dram=250e9, peak_ops=60e12)
    gpu = GpuRates.assumed(1008, 165, 31.5)
    share = np.arange(1.0, 385) ** -exponent
    costs = costs_of(Q4_EXPERT, rates, gpu, 8 * 8192 * share / share.sum(), 4 * 7168 * 8192)
    by_gpu = gpu_finish(costs, range(384), 0)[-1]
    found = split(costs, [False] * 384)
    assert found.seconds < 0.6 * min(costs.cpu.sum(), by_gpu)
    assert found.streamed == tuple(range(len(found.streamed)))


def test_buffers_of_streamed_experts() -> None:
    """Kimi K2's: groups of four, three of them where VRAM is large."""
    assert group_size(7168, 2048) == 4
    assert [stream_buffers(7168, 2048, slots) for slots in (0, 24, 161, 5000)] == [4, 4, 10, 12]
    assert (group_size(64, 32), stream_buffers(64, 32, 10000)) == (16, 48)
    assert (group_size(1 << 20, 1 << 20), stream_buffers(1 << 20, 1 << 20, 10000)) == (1, 4)
