"""Prefill on the CPU and the GPU at once, on fake streams."""

from collections.abc import Iterator

import pytest
import torch
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as T
from waiting import eventually

from hybridmoe.errors import HybridMoeError
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.experts.policy import make_policy
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.planning.rates import Rates

pytest.importorskip("triton", reason="needs triton")

from kernel_device import DEVICE
from prefill_run import (
    ALL_CPU,
    ALL_GPU,
    EXPERTS,
    MIXED,
    RESIDENT,
    ROUTED,
    TOKENS,
    TOP_K,
    Make,
    check,
    fakes,
    inputs,
    make_layer,
    makers,
    registered,
    resident,
    submitted,
)

from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.prefill_experts import ResidentExperts, Streams
from hybridmoe.experts.gpu.slot_pool import SlotPool


@pytest.fixture
def make() -> Iterator[Make]:
    yield from makers()


@pytest.mark.parametrize("is_lazy", [True, False], ids=["lazy", "eager"])
@pytest.mark.parametrize("is_resident", [False, True], ids=["empty", "resident"])
@pytest.mark.parametrize("rates", [ALL_GPU, ALL_CPU, MIXED], ids=["gpu", "cpu", "mixed"])
def test_a_step_is_within_the_bound_wherever_experts_are_computed(
    make: Make, rates: Rates, is_resident: bool, is_lazy: bool
) -> None:
    experts = make(rates, fakes(is_lazy=is_lazy), resident=resident() if is_resident else None)
    for layer in ROUTED.numbers:
        x, ids, weights = inputs(layer)
        got = submitted(experts, layer, x, ids, weights)
        check(experts, layer, x, ids, weights, got)
        plan = experts.tally.splits[layer]
        if rates is ALL_GPU:
            assert not plan.cpu and set(plan.gpu) == set(range(EXPERTS))
        elif rates is ALL_CPU:
            assert not plan.streamed
        else:
            assert plan.streamed and plan.cpu
        if is_resident:
            assert set(plan.resident) == {e for number, e in RESIDENT if number == layer}
    experts.check()


def test_experts_all_on_the_cpu_equal_cpu_experts(make: Make) -> None:
    experts = make(ALL_CPU)
    x, ids, weights = inputs()
    got = submitted(experts, 4, x, ids, weights)
    assert torch.equal(got, CpuExperts(ROUTED).submit(4, x, ids, weights).result())


def test_a_wrong_weight_or_state_is_seen(make: Make) -> None:
    experts = make(ALL_GPU)
    x, ids, weights = inputs()
    for wrong_x, wrong_weights in ((x, 1.03 * weights), (x + 0.05 * x.roll(1, 1), weights)):
        got = submitted(experts, 3, wrong_x, ids, wrong_weights)
        with pytest.raises(AssertionError, match="out of bounds"):
            check(experts, 3, x, ids, weights, got)


@pytest.mark.parametrize("rates", [ALL_GPU, ALL_CPU], ids=["gpu", "cpu"])
def test_all_tokens_may_go_to_one_expert_or_to_none(make: Make, rates: Rates) -> None:
    experts = make(rates)
    x, ids, weights = inputs()
    ids.fill_(-1)
    assert torch.equal(submitted(experts, 3, x, ids, weights), torch.zeros_like(x))
    ids[:, 1] = 4
    weights[:, 1] = 0.5
    check(experts, 3, x, ids, weights, submitted(experts, 3, x, ids, weights))
    assert {*experts.tally.splits[3].gpu, *experts.tally.splits[3].cpu} == {4}


@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_shorter_steps_use_part_of_the_memory(make: Make, tokens: int) -> None:
    experts = make(MIXED)
    submitted(experts, 3, *inputs(1))
    x, ids, weights = inputs(2, tokens)
    check(experts, 3, x, ids, weights, submitted(experts, 3, x, ids, weights))


def test_the_same_step_gives_the_same_bits(make: Make) -> None:
    results = []
    for is_lazy in (True, False):
        experts = make(MIXED, fakes(is_lazy=is_lazy))
        submitted(experts, 4, *inputs(1))
        results.append(submitted(experts, 3, *inputs()))
    assert torch.equal(*results)


def test_types_without_a_kernel_stay_on_the_cpu(make: Make) -> None:
    routed = RoutedExperts({1: make_layer(0, T.F32)}, TOP_K)
    experts = make(ALL_GPU, routed=routed)
    x, ids, weights = inputs()
    got = submitted(experts, 1, x, ids, weights)
    assert torch.equal(got, CpuExperts(routed).submit(1, x, ids, weights).result())
    assert experts.tally.streamed == 0


def test_experts_and_bytes_are_counted(make: Make) -> None:
    experts = make(ALL_GPU, resident=resident())
    for layer in (3, 4):
        submitted(experts, layer, *inputs())
    one = [ROUTED.layers[layer].expert_bytes for layer in (3, 4)]
    tally = experts.tally
    assert (tally.cpu, tally.resident, tally.streamed) == (0, 3, 2 * EXPERTS - 3)
    assert tally.streamed_bytes == (EXPERTS - 2) * one[0] + (EXPERTS - 1) * one[1]


def test_an_invalid_id_is_an_error_after_the_step(make: Make) -> None:
    experts = make(ALL_CPU)
    x, ids, weights = inputs()
    for layer in (3, 4):
        call, (_, host_ids, *_), _ = experts.host_memory(layer)
        host_ids.fill_(EXPERTS)  # as a GPU that failed might have sent
        call.run()
    with pytest.raises(HybridMoeError, match="experts on the CPU: "):
        experts.check()
    submitted(experts, 3, x, ids, weights)
    experts.check()


def has_arrived(slots: SlotPool, copy: FakeStream) -> bool:
    """Return True once an upload has arrived."""
    copy.synchronize()
    slots.cache.begin_step()
    return len(slots.cache.resident()) > 0


@pytest.mark.parametrize("is_lazy", [True, False], ids=["lazy", "eager"])
def test_prompts_use_the_slots_of_the_hybrid_backend(make: Make, is_lazy: bool) -> None:
    """Prompts before and after the upload of the experts that they use."""
    main, host = FakeStream(is_lazy=False, is_current=True), FakeStream(is_lazy=is_lazy)
    copy, num_slots = FakeStream(is_lazy=is_lazy), 4
    policy = make_policy("lru", ROUTED.cache_shape(num_slots))
    slots = SlotPool(ROUTED, num_slots, main, copy, DEVICE, policy=policy)
    streams = Streams(main, host, FakeStream(is_lazy=is_lazy))
    both = ResidentExperts(slots.slots, slots.cache.table.numpy())
    prompts = make(MIXED, streams, resident=both)
    experts = HybridExperts(ROUTED, main, host, DEVICE, slots=slots, prefill=prompts)
    for step in range(4):
        experts.begin_step(TOKENS)
        for layer in ROUTED.numbers:
            x, ids, weights = inputs(layer)
            got = submitted(experts, layer, x, ids, weights)
            check(prompts, layer, x, ids, weights, got)
        experts.end_step()
        copy.synchronize()
        if step == 0:
            eventually(lambda: has_arrived(slots, copy))
    resident = slots.cache.resident()
    assert prompts.tally.resident > 0 and len(resident) > 0
    experts.close()


@pytest.mark.parametrize("num_pages", [1 << 20, 7], ids=["all", "some"])
def test_registered_memory_gives_the_same_bits(make: Make, num_pages: int) -> None:
    """Memory of a few pages: experts are copied in part directly, in part through the threads."""
    registration = registered(num_pages)
    assert (registration.error is None) == (num_pages > 7)
    results = []
    for given in (None, registration):
        experts = make(ALL_GPU, registration=given)
        results.append([submitted(experts, layer, *inputs(layer)) for layer in (3, 4)])
    assert all(map(torch.equal, *results))
