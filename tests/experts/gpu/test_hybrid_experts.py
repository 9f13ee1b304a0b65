"""The CPU and a card side by side, by Triton's interpreter and streams that are not one."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import closeness
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as T
from random_weights import random_matrix
from torch import Tensor
from watched_streams import Watch, WatchedStream

from hybridmoe import _C
from hybridmoe.device.fake_streams import FakeStream
from hybridmoe.device.pending import Pending, Ready
from hybridmoe.errors import ConfigError, HybridMoeError
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.experts.policy import make_policy
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.planning.rates import GpuRates, Rates

pytest.importorskip("triton", reason="needs triton (pip install hybridmoe[cuda])")

import triton_bounds

from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.prefill_experts import HeldExperts, StreamedExperts, Streams
from hybridmoe.experts.gpu.slot_pool import SlotPool, slot_layouts
from hybridmoe.experts.gpu.staging import StepMemory
from hybridmoe.kernels.triton.expert_prefill import add_expert
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED

pytestmark = [
    pytest.mark.skipif(not IS_INTERPRETED, reason="bounds are those of the interpreter"),
    pytest.mark.usefixtures("exact_kernels"),  # whose bounds those of `closeness` are
]

CPU = torch.device("cpu")
EXPERTS, HIDDEN, INTER, TOP_K = 6, 64, 32, 3
KINDS = [(T.Q4_0, T.Q8_0, T.Q4_0), (T.BF16, T.F16, T.BF16), (T.Q8_0, T.Q4_0, T.Q8_0)]
FIRST = 1  # of the model's layers that has experts


def make_experts(kinds: Sequence[tuple[T, T, T]] = KINDS) -> RoutedExperts:
    layers = {
        number: ExpertWeights(
            random_matrix(gate, EXPERTS, INTER, HIDDEN, seed=3 * number),
            random_matrix(up, EXPERTS, INTER, HIDDEN, seed=3 * number + 1),
            random_matrix(down, EXPERTS, HIDDEN, INTER, seed=3 * number + 2),
        )
        for number, (gate, up, down) in enumerate(kinds, FIRST)
    }
    return RoutedExperts(layers, TOP_K)


ROUTED = make_experts()
Inputs = tuple[Tensor, Tensor, Tensor]


def make_inputs(tokens: int, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(100 * tokens + seed)
    x = 0.02 * torch.randn((tokens, HIDDEN), generator=generator)
    scores = torch.rand((tokens, EXPERTS), generator=generator)
    ids = scores.argsort(1)[:, :TOP_K].int().contiguous()
    ids[scores[:, :TOP_K] < 0.1] = -1
    return x, ids, torch.rand((tokens, TOP_K), generator=generator)


class Bench:
    """An executor over fake streams, with a set of experts on the card."""

    def __init__(
        self,
        resident: Sequence[int] = (),
        *,
        is_lazy: bool = False,
        num_slots: int | None = None,
        policy: str = "lru",
    ) -> None:
        self.main = FakeStream(is_lazy=False, is_current=True)
        self.host = FakeStream(is_lazy=is_lazy)
        self.copy = FakeStream(is_lazy=is_lazy)
        self.slots: SlotPool | None = None
        count = len(resident) if num_slots is None else num_slots
        if count:
            shape = ROUTED.cache_shape(count)
            self.slots = SlotPool(
                ROUTED,
                count,
                self.main,
                self.copy,
                CPU,
                uploads_per_step=ROUTED.num_layers * EXPERTS,
                policy=make_policy(policy, shape),
            )
            self.slots.slots.fill_(0xFF)
            self.slots.cache.warm(np.array(resident, np.int64))
            self.settle()
            assert self.slots.cache.resident().tolist() == sorted(resident)
        self.experts = HybridExperts(ROUTED, self.main, self.host, CPU, slots=self.slots)

    def settle(self) -> None:
        """Let all uploads arrive, and the table know of them."""
        assert self.slots is not None
        cache = self.slots.cache
        cache.begin_step()
        while cache._coming:
            self.copy.synchronize()
            time.sleep(0.001)
            cache.begin_step()

    def is_here(self, layer: int, expert: int) -> bool:
        return self.slots is not None and bool(self.slots.slot_of(layer)[expert] >= 0)

    def step(self, inputs: Sequence[Inputs]) -> list[Tensor]:
        """One input for each layer."""
        self.experts.begin_step(len(inputs[0][0]))
        results = []
        for layer, (x, ids, weights) in zip(ROUTED.numbers, inputs, strict=True):
            results.append(self.experts.submit(layer, x, ids, weights).result().clone())
        self.check(inputs, results)
        self.experts.end_step()
        return results

    def check(self, inputs: Sequence[Inputs], results: Sequence[Tensor]) -> None:
        for layer, given, got in zip(ROUTED.numbers, inputs, results, strict=True):
            want, bound = self.sum(layer, *given)
            closeness.assert_close(got, want, bound, f"layer {layer}")

    def sum(
        self, layer: int, x: Tensor, ids: Tensor, weights: Tensor, *, all_cpu: bool = False
    ) -> tuple[closeness.Array, closeness.Array]:
        """What the CPU and the card should make of it, and how far off the sum may be.

        Adding the parts, each a sum of up to k terms, is two roundings more than k of the CPU's.
        """
        exact, want = x.double().numpy(), np.zeros(x.shape)
        bound = np.full(x.shape, 2.0**-140)
        for t, j in np.argwhere(ids.numpy() >= 0):
            expert, weight = int(ids[t, j]), float(weights[t, j])
            if self.is_here(layer, expert) and not all_cpu and len(x) <= 16:
                y, y_bound = triton_bounds.one_expert(ROUTED.layers[layer], expert, exact[t], TOP_K)
            else:
                ys, bounds = closeness.one_expert(ROUTED.layers[layer], expert, exact[t : t + 1])
                y, y_bound = ys[0], bounds[0]
            want[t] += weight * y
            bound[t] += weight * (y_bound + (TOP_K + 4) * triton_bounds.U * np.abs(y))
        return want, bound

    def close(self) -> None:
        self.experts.close()


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(*args: object, **kwargs: object) -> Bench:
        made.append(Bench(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("tokens", [1, 2, 5, 16])
@pytest.mark.parametrize("is_lazy", [False, True], ids=["eager", "lazy"])
def test_every_mixture_of_hits_and_misses_is_within_the_bound(
    bench: MakeBench, tokens: int, is_lazy: bool
) -> None:
    random = np.random.default_rng(10 * tokens + is_lazy)
    for share in (0.2, 0.6)[: 1 if tokens == 16 else 2]:
        resident = np.flatnonzero(random.random(ROUTED.num_layers * EXPERTS) < share)
        made = bench(resident.tolist(), is_lazy=is_lazy)
        made.step([make_inputs(tokens, layer) for layer in ROUTED.numbers])


@pytest.mark.parametrize("resident", [(), range(18)], ids=["no", "every"])
@pytest.mark.parametrize("is_lazy", [False, True], ids=["eager", "lazy"])
def test_one_side_alone(bench: MakeBench, resident: Sequence[int], is_lazy: bool) -> None:
    """Without slots the result is `CpuExperts`'s, bit for bit."""
    made = bench(resident, is_lazy=is_lazy)
    inputs = [make_inputs(3, layer) for layer in ROUTED.numbers]
    results = made.step(inputs)
    cpu = CpuExperts(ROUTED)
    for layer, given, got in zip(ROUTED.numbers, inputs, results, strict=True):
        assert torch.equal(cpu.submit(layer, *given).result(), got) == (not resident)


def test_a_wrong_slot_is_seen(bench: MakeBench) -> None:
    made = bench([0, 1, 2, 3, 4, 5])
    assert made.slots is not None
    inputs = [make_inputs(2, layer) for layer in ROUTED.numbers]
    made.slots.slots[int(made.slots.slot_of(FIRST)[int(inputs[0][1][0, 0])])] ^= 1
    with pytest.raises(AssertionError, match="out of bounds"):
        made.step(inputs)


@pytest.mark.parametrize("is_lazy", [False, True], ids=["eager", "lazy"])
def test_a_cache_fills_while_it_is_used(bench: MakeBench, is_lazy: bool) -> None:
    """Steps are within the bound throughout, and the last is computed by the card alone."""
    made = bench(num_slots=ROUTED.num_layers * EXPERTS, is_lazy=is_lazy)
    off = bench(is_lazy=is_lazy)
    assert made.slots is not None
    inputs = [make_inputs(1, layer) for layer in ROUTED.numbers]
    for i in range(6):
        on_results, off_results = made.step(inputs), off.step(inputs)
        for layer, given, a, b in zip(ROUTED.numbers, inputs, on_results, off_results, strict=True):
            want, bound = made.sum(layer, *given)
            cpu, cpu_bound = made.sum(layer, *given, all_cpu=True)
            away = bound + cpu_bound + np.abs(want - cpu)
            closeness.assert_close(a, b.double().numpy(), away, f"cache on and off, step {i}")
        made.copy.synchronize()
        if i == 3:
            made.settle()
    chosen = [int((ids >= 0).sum()) for _, ids, _ in inputs]
    assert len(made.slots.cache.resident()) == sum(chosen)
    stats = made.experts.stats()
    assert stats is not None and off.experts.stats() is None
    counters = stats.counters
    assert counters.misses == counters.uploads == sum(chosen) and counters.hits == 5 * sum(chosen)
    assert stats.place == "VRAM" and stats.num_slots == ROUTED.num_layers * EXPERTS


@pytest.mark.parametrize("tokens", [17, 40])
def test_steps_of_many_tokens_are_the_cpus(bench: MakeBench, tokens: int) -> None:
    made = bench([0, 1, 2, 9], is_lazy=True)
    inputs = [make_inputs(tokens, layer) for layer in ROUTED.numbers]
    for _ in range(2):
        results = made.step(inputs)
        cpu = CpuExperts(ROUTED)
        for number, given, got in zip(ROUTED.numbers, inputs, results, strict=True):
            assert torch.equal(cpu.submit(number, *given).result(), got)
        made.step([make_inputs(2, layer) for layer in ROUTED.numbers])


class OneAtATime:
    """A prefill executor that computes in `submit`."""

    def __init__(self) -> None:
        self.submitted: list[int] = []
        self.num_checks = self.num_closed = 0
        self._cpu = CpuExperts(ROUTED)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        self.submitted.append(layer)
        return self._cpu.submit(layer, x, ids, weights)

    def check(self) -> None:
        self.num_checks += 1
        if self.num_checks == 2:
            raise HybridMoeError("the link is gone")

    def close(self) -> None:
        self.num_closed += 1


def test_a_prefill_executor_has_the_steps_of_many_tokens(bench: MakeBench) -> None:
    made, prefill = bench(num_slots=4, is_lazy=True), OneAtATime()
    experts = HybridExperts(ROUTED, made.main, made.host, CPU, slots=made.slots, prefill=prefill)
    made.experts = experts
    inputs = [make_inputs(20, layer) for layer in ROUTED.numbers]
    made.step(inputs)
    assert prefill.submitted == list(ROUTED.numbers) and prefill.num_checks == 1
    stats = experts.stats()
    assert stats is not None
    used = sum(len(set(ids.flatten().tolist()) - {-1}) for _, ids, _ in inputs)
    assert stats.counters.misses == used and stats.counters.uploads == 4, "free slots only"
    made.step([make_inputs(2, layer) for layer in ROUTED.numbers])
    assert prefill.num_checks == 1 and len(prefill.submitted) == ROUTED.num_layers
    with pytest.raises(HybridMoeError, match="the link is gone"):
        made.step(inputs)
    experts.begin_step(20)
    bad = torch.full_like(inputs[0][1], EXPERTS)
    prefill.submit = lambda layer, x, ids, weights: Ready(x)  # type: ignore[method-assign]
    experts.submit(FIRST + 1, inputs[0][0], bad, inputs[0][2])
    with pytest.raises(HybridMoeError, match=r"experts of blk\.2: chosen are \[6\]"):
        experts.end_step()
    experts.close()
    assert prefill.num_closed == 1


def test_prompts_are_streamed_beside_what_is_in_slots(bench: MakeBench) -> None:
    made = bench([0, 1, 8, 9, 16], is_lazy=True)
    slots = made.slots
    assert slots is not None
    gpu = GpuRates(read=1e9, ops=1e12, pcie=1e15, copy=1e15, copy_cpu=0.0, expert_s=0.0)
    prefill = StreamedExperts(
        ROUTED,
        slot_layouts(ROUTED),
        add_expert,
        Rates("avx512", dram=1e8, ops=1e8, attention_ops=1e8, gpu=gpu),
        Streams(made.main, made.host, FakeStream(is_lazy=True)),
        CPU,
        max_tokens=20,
        held=HeldExperts(slots.slots, slots.cache.table.numpy()),
    )
    made.experts = HybridExperts(ROUTED, made.main, made.host, CPU, slots=slots, prefill=prefill)
    inputs = [make_inputs(20, layer) for layer in ROUTED.numbers]
    made.experts.begin_step(20)
    for layer, given in zip(ROUTED.numbers, inputs, strict=True):
        got, want = (
            made.experts.submit(layer, *given).result(),
            CpuExperts(ROUTED).submit(layer, *given).result(),
        )
        assert (got - want).norm() < 0.03 * want.norm(), "int8 against bfloat16 activations"
    made.experts.end_step()
    assert prefill.tally.held == 5 and prefill.tally.streamed > 0
    made.step([make_inputs(2, layer) for layer in ROUTED.numbers])


def deferred_step(bench: Bench, inputs: Sequence[Inputs]) -> list[Tensor]:
    """As a model does it that adds a token's last expert one layer later."""
    bench.experts.begin_step(len(inputs[0][0]))
    results: list[Tensor] = []
    owed: Pending | None = None
    for layer, (x, ids, weights) in zip(ROUTED.numbers, inputs, strict=True):
        is_last = torch.zeros_like(ids, dtype=torch.bool)
        is_last[:, -1] = True
        now = bench.experts.submit(layer, x, ids.masked_fill(is_last, -1), weights)
        later = bench.experts.submit(layer, x, ids.masked_fill(~is_last, -1), weights)
        if owed is not None:
            results[-1] += owed.result()
        results.append(now.result().clone())
        owed = later
    assert owed is not None
    results[-1] += owed.result()
    return results


@pytest.mark.parametrize("resident", [(), (0, 1, 4, 8, 9, 13, 17)], ids=["off", "on"])
def test_two_submissions_may_be_owed_at_once(bench: MakeBench, resident: Sequence[int]) -> None:
    made = bench(resident, is_lazy=True)
    for step in range(2):
        inputs = [make_inputs(3, layer + 10 * step) for layer in ROUTED.numbers]
        made.check(inputs, deferred_step(made, inputs))
        made.experts.end_step()
    if resident:
        stats = made.experts.stats()
        assert stats is not None
        counters = stats.counters
        assert counters.hits + counters.misses == sum(
            len(set(ids.flatten().tolist()) - {-1})
            for step in range(2)
            for layer in ROUTED.numbers
            for ids in [make_inputs(3, layer + 10 * step)[1]]
        )


def test_one_layers_result_does_not_wait_for_the_next_ones(bench: MakeBench) -> None:
    made = bench(is_lazy=True)
    (x, ids, weights), following = make_inputs(1, 0), make_inputs(1, 1)
    made.experts.begin_step(1)
    first = made.experts.submit(FIRST, x, ids, weights)
    second = made.experts.submit(FIRST + 1, *following)
    first.result()
    num_done = made.host.num_done
    second.result()
    assert num_done < made.host.num_done, "waiting for one layer waited for another"


@pytest.mark.parametrize("is_lazy", [False, True], ids=["eager", "lazy"])
def test_the_cpu_waits_for_what_the_card_makes(is_lazy: bool) -> None:
    """The card's work is put off until somebody waits for it."""
    main, host = FakeStream(is_lazy=True, is_current=True), FakeStream(is_lazy=is_lazy)
    experts = HybridExperts(ROUTED, main, host, CPU)
    given = make_inputs(2)
    x, ids, weights = (torch.zeros_like(t) for t in given)
    experts.begin_step(2)
    for late, t in zip((x, ids, weights), given, strict=True):
        main.copy(late, t)
    got = experts.submit(FIRST, x, ids, weights).result()
    experts.end_step()
    assert torch.equal(got, CpuExperts(ROUTED).submit(FIRST, *given).result())


def test_an_error_ends_the_step_with_a_line_and_not_the_next(bench: MakeBench) -> None:
    made = bench(is_lazy=True)
    inputs = [make_inputs(2, layer) for layer in ROUTED.numbers]
    bad = inputs[1][1].clone()
    bad[1, 1] = EXPERTS
    made.experts.begin_step(2)
    for layer, (x, ids, weights) in zip(ROUTED.numbers, inputs, strict=True):
        made.experts.submit(layer, x, bad if layer == FIRST + 1 else ids, weights).result()
    with pytest.raises(HybridMoeError, match=r"blk\.2 on the CPU: expert_ffn: expert id 6") as said:
        made.experts.end_step()
    assert "\n" not in str(said.value)
    made.step(inputs)


def test_a_step_that_ended_early_is_forgotten(bench: MakeBench) -> None:
    made = bench([1, 8], is_lazy=True)
    x, ids, weights = make_inputs(2)
    made.experts.begin_step(2)
    made.experts.submit(FIRST + 1, x, ids, weights)  # its result is never asked for
    made.step([make_inputs(2, layer) for layer in ROUTED.numbers])


def test_an_error_of_a_step_that_ended_early_is_not_the_next_ones() -> None:
    host = FakeStream(is_lazy=True)
    experts = HybridExperts(ROUTED, FakeStream(is_lazy=False, is_current=True), host, CPU)
    x, ids, weights = make_inputs(2)
    experts.begin_step(2)
    experts.submit(FIRST, x, torch.full_like(ids, EXPERTS), weights)
    experts.begin_step(2)
    got = experts.submit(FIRST, x, ids, weights).result()
    experts.end_step()
    assert torch.equal(got, CpuExperts(ROUTED).submit(FIRST, x, ids, weights).result())


def test_a_graph_in_the_main_stream_is_waited_for() -> None:
    """What a graph repeats is the main stream's: nothing of it is in the CPU's own."""
    main = FakeStream(is_lazy=True, is_current=True)
    experts = HybridExperts(ROUTED, main, FakeStream(is_lazy=True), CPU)
    experts.begin_step(1)
    done = torch.zeros(1)
    main.copy(done, torch.ones(1))
    experts.end_step()
    assert done.item() == 1


def test_repeated_work_is_heard_of_like_the_first(bench: MakeBench) -> None:
    """As a graph does it: the queued work runs again on other inputs, and nothing is submitted."""
    made = bench(num_slots=4)
    given = [tuple(t.clone() for t in make_inputs(2, layer)) for layer in ROUTED.numbers]
    queued: list[Callable[[], object]] = []
    add = made.host._add

    def record(work: Callable[[], object]) -> None:
        queued.append(work)
        add(work)

    made.host._add = record  # type: ignore[method-assign]
    made.experts.begin_step(2)
    for _ in range(2):  # a warm-up, and the capture
        queued.clear()
        for layer, (x, ids, weights) in zip(ROUTED.numbers, given, strict=True):
            made.experts.submit(layer, x, ids, weights).result()
    made.experts.end_step()
    before = made.experts.stats()
    others = [make_inputs(2, layer + 50) for layer in ROUTED.numbers]
    made.experts.begin_step(2)
    for place, other in zip(given, others, strict=True):
        for old, new in zip(place, other, strict=True):
            old.copy_(new)
    for work in queued:
        work()
    made.experts.end_step()
    after = made.experts.stats()
    assert before is not None and after is not None
    heard = [s.counters.hits + s.counters.misses for s in (before, after)]
    used = [len(set(ids.flatten().tolist()) - {-1}) for _, ids, _ in others]
    assert heard[1] - heard[0] == sum(used)


def watched(monkeypatch: pytest.MonkeyPatch, deaf: str = "") -> None:
    """Two steps with deferral, every use of memory noted; `deaf` does not wait."""
    watch = Watch()
    main, host, copy = (
        WatchedStream(watch, n, is_deaf=n == deaf) for n in ("main", "host", "copy")
    )
    kept: list[object] = []  # memory that is used again after its end would look like a race
    compute, make_call = SlotPool.compute, StepMemory.make_call

    def noted_compute(slots: SlotPool, layer: int, x: Tensor, ids: Tensor, w: Tensor) -> Tensor:
        out = compute(slots, layer, x, ids, w)
        watch.note("main", "products", (x, ids, w, slots.cache.device_table), (out,))
        kept.append(out)
        return out

    def noted_call(memory: StepMemory, index: int, part: int, *rest: Any) -> _C.HostExpertCall:
        call, lent = make_call(memory, index, part, *rest), memory._of(index, part)
        watch.calls[id(call)] = ([lent.x, lent.weights, memory.ids[index, part]], [lent.out])
        return call

    monkeypatch.setattr(SlotPool, "compute", noted_compute)
    monkeypatch.setattr(StepMemory, "make_call", noted_call)
    slots = SlotPool(ROUTED, 4, main, copy, CPU, uploads_per_step=4)
    experts = HybridExperts(ROUTED, main, host, CPU, slots=slots)
    owed: Pending | None = None

    def add(pending: Pending) -> None:
        before = [lent for lent in experts._decoding._lent if lent.owner is not None]
        pending.result()
        taken = tuple(lent.result for lent in before if lent.owner is None)
        assert len(taken) == 1
        watch.note("main", "sum", taken)

    for step in range(2):
        experts.begin_step(2)
        for layer in ROUTED.numbers:
            given = make_inputs(2, layer + 10 * step)
            watch.note("main", "states", writes=given)
            now, later = (experts.submit(layer, *given) for _ in range(2))
            kept.append(given)
            for pending in (owed, now):
                if pending is not None:
                    add(pending)
            owed = later
        assert owed is not None
        add(owed)
        owed = None
        experts.end_step()
    slots.close()


def test_nothing_races(monkeypatch: pytest.MonkeyPatch) -> None:
    watched(monkeypatch)


@pytest.mark.parametrize("deaf", ["main", "host"])
def test_a_stream_that_forgets_to_wait_races(deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="race"):
        watched(monkeypatch, deaf)


def test_the_cpus_calls_say_when_they_ran(bench: MakeBench) -> None:
    made = bench(is_lazy=True)
    before = time.monotonic()
    made.step([make_inputs(1, layer) for layer in ROUTED.numbers])
    times = made.experts.host_call_times()
    assert [layer for layer, _, _ in times] == list(ROUTED.numbers)
    ends = [t for _, *pair in times for t in pair]
    assert sorted(ends) == ends and before - 1e-6 <= ends[0] and ends[-1] <= time.monotonic() + 1e-6


def test_types_without_a_kernel_have_no_slots_and_a_sentence() -> None:
    kinds = [*KINDS[:2], (T.Q4_0, T.Q8_0, T.F32)]
    with pytest.raises(ConfigError) as said:
        slot_layouts(make_experts(kinds))
    assert str(said.value).startswith(
        "no experts are kept in VRAM: those of blk.3: type F32 has no Triton kernel (supported: "
    )
