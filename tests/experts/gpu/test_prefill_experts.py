"""Prefill on the CPU and the GPU at once, on fake streams."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import closeness
import numpy as np
import pytest
import torch
from fake_registrar import FakeRegistrar
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as T
from random_weights import random_matrix
from waiting import eventually
from watched_streams import Watch, WatchedEvent, WatchedStream

from hybridmoe import _C
from hybridmoe.device.streams import Event, Stream
from hybridmoe.errors import HybridMoeError
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.experts.policy import make_policy
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.planning.rates import GpuRates, Rates

pytest.importorskip("triton", reason="needs triton (pip install hybridmoe[cuda])")

from kernel_device import DEVICE, moved
from triton_bounds import U, expert_of_rows

from hybridmoe.experts.gpu import weight_stream
from hybridmoe.experts.gpu.host_registration import HostRegistration
from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.prefill_experts import (
    AddExperts,
    ResidentExperts,
    StreamedExperts,
    Streams,
)
from hybridmoe.experts.gpu.slot_pool import SlotPool
from hybridmoe.experts.gpu.weight_stream import HostExperts, WeightStream
from hybridmoe.kernels.triton.expert_ffn import pack_slot
from hybridmoe.kernels.triton.expert_prefill import add_experts, layout_of

EXPERTS, HIDDEN, INTER, TOKENS, TOP_K = 6, 64, 32, 40, 3
BUFFERS = 4  # in groups of two
GPU = GpuRates(read=1e9, ops=1e12, pcie=1e15, copy=1e15, copy_cpu=0.0, expert_s=0.0)
RATES = Rates("avx512", dram=1e8, ops=1e8, attention_ops=1e8, gpu=GPU)
ALL_GPU = RATES
ALL_CPU = replace(RATES, gpu=replace(GPU, copy=1.0))
MIXED = replace(RATES, gpu=replace(GPU, read=4e7))


def make_layer(seed: int, down: T = T.Q4_0) -> ExpertWeights:
    return ExpertWeights(
        random_matrix(T.Q4_0, EXPERTS, INTER, HIDDEN, seed=seed),
        random_matrix(T.Q8_0, EXPERTS, INTER, HIDDEN, seed=seed + 1),
        random_matrix(down, EXPERTS, HIDDEN, INTER, seed=seed + 2),
    )


LAYERS = {3: make_layer(0), 4: make_layer(10, T.F16), 7: make_layer(20, T.BF16)}
ROUTED = RoutedExperts(LAYERS, TOP_K)


def inputs(seed: int = 0, tokens: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make states, distinct experts for each token, some -1, and weights, NaN where the id is -1.

    Experts with lower numbers are chosen more often.
    """
    generator = torch.Generator().manual_seed(seed)
    x = 0.02 * torch.randn((tokens, HIDDEN), generator=generator)
    chance = 1.0 / torch.arange(1, EXPERTS + 1).repeat(tokens, 1)
    ids = torch.multinomial(chance, TOP_K, generator=generator).int()
    ids[torch.rand(ids.shape, generator=generator) < 0.1] = -1
    weights = torch.rand(ids.shape, generator=generator)
    return x, ids, weights.masked_fill(ids < 0, float("nan"))


RESIDENT = {(3, 0): 2, (3, 2): 0, (4, 5): 1}  # (layer, expert) -> slot


def resident() -> ResidentExperts:
    layouts = {layer: layout_of(*experts) for layer, experts in ROUTED.layers.items()}
    size = max(v.packed.slot_bytes for v in layouts.values() if v)
    slots = torch.full((3, size), 0xFF, dtype=torch.uint8, device=DEVICE)
    table = np.full((ROUTED.num_layers, EXPERTS + 1), -1, np.int32)
    for (layer, expert), slot in RESIDENT.items():
        layout = layouts[layer]
        assert layout is not None
        table[ROUTED.index_of[layer], expert] = slot
        streamed = torch.empty(layout.slot_bytes, dtype=torch.uint8, device=DEVICE)
        for offset, data in HostExperts(ROUTED.layers[layer], layout).parts(expert):
            streamed[offset : offset + data.nbytes] = data
        slots[slot, : layout.packed.slot_bytes] = pack_slot(streamed, layout)
    return ResidentExperts(slots, table)


def fakes(*, is_lazy: bool) -> Streams:
    main = FakeStream(is_lazy=is_lazy, is_current=True)
    return Streams(main, FakeStream(is_lazy=is_lazy), FakeStream(is_lazy=is_lazy))


Make = Callable[..., StreamedExperts]


@pytest.fixture
def make() -> Iterator[Make]:
    made = []

    def run(
        rates: Rates,
        streams: Streams | None = None,
        *,
        routed: RoutedExperts = ROUTED,
        resident: ResidentExperts | None = None,
        add: AddExperts = add_experts,
        registration: HostRegistration | None = None,
    ) -> StreamedExperts:
        streams = streams or fakes(is_lazy=True)
        layouts = [layout_of(*weights) for weights in routed.by_index]
        size = max((layout.slot_bytes for layout in layouts if layout), default=0)
        threads = _C.CopyThreads(2)
        weights = WeightStream(
            BUFFERS, size, DEVICE, streams.main, streams.link, threads, registration
        )
        made.append(
            StreamedExperts(
                routed,
                layouts,
                add,
                rates,
                streams,
                weights,
                DEVICE,
                max_tokens=TOKENS,
                resident=resident,
            )
        )
        return made[-1]

    yield run
    for experts in made:
        experts.close()


def registered(num_pages: int = 1 << 20) -> HostRegistration:
    """Register the experts' memory page by page, so that every expert's is cut."""
    arrays = [w.data for weights in ROUTED.by_index for w in weights]
    spans = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays]
    registration = HostRegistration(
        spans, FakeRegistrar(num_pages), most_bytes=1 << 30, piece_bytes=4096
    )
    registration.begin(60.0)
    return registration


def submitted(
    experts: StreamedExperts | HybridExperts,
    layer: int,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Compute a layer on the device; returns its result on the CPU."""
    return experts.submit(layer, *moved(x, ids, weights)).result().cpu()


def check(
    experts: StreamedExperts,
    layer: int,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    got: torch.Tensor,
) -> None:
    """Check that the CPU's part equals `CpuExperts`, and the GPU's part is within its bound."""
    plan = experts.tally.splits[layer]
    chosen = {int(e) for e in ids.unique() if e >= 0}
    assert {*plan.gpu, *plan.cpu} == chosen
    left = torch.where(torch.isin(ids, torch.tensor(plan.cpu, dtype=torch.int32)), ids, -1)
    want = CpuExperts(ROUTED).submit(layer, x, left, weights).result().double().numpy()
    bound, size = np.full(want.shape, 2.0**-140), np.abs(want)
    for expert in plan.gpu:
        rows, place = np.nonzero(ids.numpy() == expert)
        factor = weights.double().numpy()[rows, place][:, None]
        y, error = expert_of_rows(ROUTED.layers[layer], expert, x.numpy()[rows])
        want[rows] += factor * y
        bound[rows] += factor * error
        size[rows] += factor * (np.abs(y) + error)
    closeness.assert_close(got, want, bound + (EXPERTS + 2) * U * size, f"layer {layer}, {plan}")


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


class DeafStream(FakeStream):
    """Waits for nothing, once it is deaf."""

    is_deaf = False

    def wait_for(self, other: Stream | Event) -> None:
        if not self.is_deaf:
            super().wait_for(other)


def test_the_lazy_streams_find_a_forgotten_wait(make: Make) -> None:
    """Let the main stream multiply stale buffers: other experts of the layer."""
    main = DeafStream(is_lazy=True, is_current=True)
    experts = make(ALL_GPU, fakes(is_lazy=True)._replace(main=main))
    for step in range(2):
        main.is_deaf = step == 1
        x, ids, weights = inputs(step)
        got = submitted(experts, 3, x, ids, weights)
        if step == 0:
            check(experts, 3, x, ids, weights, got)
    with pytest.raises(AssertionError, match="out of bounds"):
        check(experts, 3, x, ids, weights, got)


def watched(
    monkeypatch: pytest.MonkeyPatch,
    make: Make,
    rates: Rates = MIXED,
    deaf: str = "",
    *,
    is_registered: bool = False,
) -> None:
    """Run two layers, and note every use of memory; `deaf` does not wait."""
    watch = Watch()
    streams = Streams(
        *(WatchedStream(watch, name, is_deaf=name == deaf) for name in ("main", "host", "link"))
    )
    fill = weight_stream.fill

    def noted_fill(threads: Any, target: torch.Tensor, source: torch.Tensor) -> None:
        watch.note("thread", "fill", writes=(target,))
        fill(threads, target, source)

    def noted_add(states: Any, group: Any, data: Any, layout: Any, rows: int) -> None:
        slots = [data[slot] for slot in group.slots.tolist()]
        watch.note("main", "products", (states.x, *slots), (states.out,))
        add_experts(states, group, data, layout, rows)

    monkeypatch.setattr(weight_stream, "fill", noted_fill)
    if deaf == "thread":
        wait = WatchedEvent.wait
        monkeypatch.setattr(WatchedEvent, "wait", lambda e: e.name == "link" or wait(e))
    registration = registered() if is_registered else None
    experts = make(rates, streams, add=noted_add, registration=registration)
    for layer in ROUTED.numbers:
        call, reads, writes = experts.host_memory(layer)
        watch.calls[id(call)] = (reads, writes)
    kept = []  # memory that is used again after its end would look like a race
    for layer in (3, 4):
        kept.append(moved(*inputs(layer)))
        watch.note("main", "states", writes=kept[-1])
        out, host = experts.submit(layer, *kept[-1]).result(), streams.host
        assert isinstance(host, WatchedStream) and host.last_copied is not None
        kept.append((out, host.last_copied))
        watch.note("main", "sum", kept[-1][1:], kept[-1][:1])
        plan = experts.tally.splits[layer]
        assert plan.cpu and (rates is ALL_CPU or len(plan.streamed) > 2)


@pytest.mark.parametrize("is_registered", [False, True], ids=["staged", "registered"])
def test_nothing_races(monkeypatch: pytest.MonkeyPatch, make: Make, is_registered: bool) -> None:
    watched(monkeypatch, make, is_registered=is_registered)


@pytest.mark.parametrize(
    ("deaf", "rates", "is_registered", "race"),
    [
        ("main", MIXED, False, "link copy and main products"),  # read before it has arrived
        ("main", MIXED, True, "link copy and main products"),
        ("link", MIXED, False, "main products and link copy"),  # overwritten while it is read
        ("link", MIXED, True, "main products and link copy"),
        ("thread", MIXED, False, "link copy and thread fill"),
        ("main", ALL_CPU, False, "host copy and main sum"),
    ],
    ids=["arrival", "arrival-direct", "buffer", "buffer-direct", "pinned piece", "result"],
)
def test_each_forgotten_wait_is_a_race(
    monkeypatch: pytest.MonkeyPatch,
    make: Make,
    deaf: str,
    rates: Rates,
    is_registered: bool,
    race: str,
) -> None:
    with pytest.raises(AssertionError, match=f"{race} race"):
        watched(monkeypatch, make, rates, deaf, is_registered=is_registered)


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


def steps(experts: StreamedExperts, tokens: Sequence[int]) -> list[torch.Tensor]:
    """Run whole steps; returns all layers' sums."""
    results = []
    for number, count in enumerate(tokens):
        experts.begin_step(count)
        for layer in ROUTED.numbers:
            results.append(submitted(experts, layer, *inputs(10 * number + layer, count)))
            check(experts, layer, *inputs(10 * number + layer, count), results[-1])
    return results


def test_copies_begin_ahead_of_their_layer(make: Make) -> None:
    """From the second step on, as long as steps do not get much shorter."""
    experts = make(MIXED, registration=registered())
    steps(experts, [TOKENS])
    assert experts.tally.ahead == 0
    steps(experts, [TOKENS // 2])
    before = experts.tally.ahead
    assert before > 2 * BUFFERS
    steps(experts, [2])
    assert experts.tally.ahead == before


def test_nothing_is_staged_ahead(make: Make) -> None:
    """Copies that keep the program would delay what is queued after them."""
    experts = make(MIXED)
    steps(experts, [2, 2])
    assert experts.tally.ahead == 0 and experts.tally.streamed > 0


def test_what_began_ahead_may_be_left_unused(make: Make) -> None:
    """Steps whose tokens choose other experts, that skip a layer, and that fail."""
    experts = make(ALL_GPU, registration=registered())
    for chosen in ([0, 1, 2], [3, 4, 5], [2, 3, 4]):
        experts.begin_step(TOKENS)
        for layer in (3, 7) if chosen[0] == 3 else ROUTED.numbers:
            x, ids, weights = inputs(layer)
            ids = torch.tensor(chosen, dtype=torch.int32).repeat(TOKENS, 1)
            weights = weights.nan_to_num(0.5)
            check(experts, layer, x, ids, weights, submitted(experts, layer, x, ids, weights))
    experts.begin_step(TOKENS)
    experts.submit(3, *moved(*inputs(1)))  # its result is never taken
    steps(experts, [TOKENS])
