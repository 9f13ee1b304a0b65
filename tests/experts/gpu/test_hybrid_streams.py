"""Hybrid experts on fake streams: order of work, replays, races."""

from collections.abc import Callable

import pytest
import torch
from fake_streams import FakeStream
from torch import Tensor
from watched_streams import Watch, WatchedStream

from hybridmoe import _C
from hybridmoe.experts.backend import CpuExperts

pytest.importorskip("triton", reason="needs triton")

from hybrid_bench import FIRST, ROUTED, MakeBench, make_inputs, num_used, open_benches
from kernel_device import DEVICE, moved

from hybridmoe.experts.gpu import staging
from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.experts.gpu.slot_pool import SlotPool
from hybridmoe.experts.gpu.staging import StepMemory

pytestmark = pytest.mark.usefixtures("exact_kernels")  # the bounds of `closeness` are theirs

bench = pytest.fixture(open_benches)


@pytest.mark.parametrize("is_lazy", [False, True], ids=["eager", "lazy"])
def test_the_cpu_waits_for_the_gpus_inputs(is_lazy: bool) -> None:
    """Run the main stream lazily: only when it is waited for."""
    main, host = FakeStream(is_lazy=True, is_current=True), FakeStream(is_lazy=is_lazy)
    experts = HybridExperts(ROUTED, main, host, DEVICE)
    given = make_inputs(2)
    x, ids, weights = moved(*(torch.zeros_like(t) for t in given))
    experts.begin_step(2)
    for late, t in zip((x, ids, weights), given, strict=True):
        main.copy(late, t)
    got = experts.submit(FIRST, x, ids, weights).result().cpu()
    experts.end_step()
    assert torch.equal(got, CpuExperts(ROUTED).submit(FIRST, *given).result())


def test_a_graph_in_the_main_stream_is_waited_for() -> None:
    """Queue work as a graph does: all in the main stream, none in the CPU's."""
    main = FakeStream(is_lazy=True, is_current=True)
    experts = HybridExperts(ROUTED, main, FakeStream(is_lazy=True), DEVICE)
    experts.begin_step(1)
    done = torch.zeros(1, device=DEVICE)
    main.copy(done, torch.ones(1))
    experts.end_step()
    assert done.item() == 1


def test_a_trial_adds_zeros_where_the_cpu_would_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialized memory could overflow in the layers behind it."""
    monkeypatch.setattr(
        staging, "host_empty", lambda shape, dtype, _: torch.full(shape, 7).to(dtype)
    )
    main, host = FakeStream(is_lazy=False, is_current=True), FakeStream(is_lazy=False)
    experts = HybridExperts(ROUTED, main, host, DEVICE)
    experts.begin_step(1)
    with experts.trial():
        assert not experts.submit(FIRST, *moved(*make_inputs(1))).result().any()


class RecordedStream(FakeStream):
    """Keeps its copies and calls, to repeat them as a graph does."""

    def __init__(self) -> None:
        super().__init__(is_lazy=False)
        self.recorded: list[Callable[[], object]] = []

    def copy(self, dst: Tensor, src: Tensor) -> None:
        self.recorded.append(lambda: dst.copy_(src))
        super().copy(dst, src)

    def launch(self, call: _C.HostExpertCall) -> None:
        self.recorded.append(call.run)
        super().launch(call)


def test_replayed_steps_are_counted_like_submitted_ones(bench: MakeBench) -> None:
    """Repeat the recorded work on other inputs, and submit nothing."""
    host = RecordedStream()
    made = bench(num_slots=4, host=host)
    given = [moved(*(t.clone() for t in make_inputs(2, layer))) for layer in ROUTED.numbers]
    made.experts.begin_step(2)
    for made.main.is_captured in (False, True):  # a warm-up, and the capture
        host.recorded.clear()
        for layer, (x, ids, weights) in zip(ROUTED.numbers, given, strict=True):
            made.experts.submit(layer, x, ids, weights).result()
    made.main.is_captured = False
    made.experts.end_step()
    before = made.experts.stats()
    others = [make_inputs(2, layer + 50) for layer in ROUTED.numbers]
    made.experts.begin_step(2)
    for captured, other in zip(given, others, strict=True):
        for old, new in zip(captured, other, strict=True):
            old.copy_(new)
    for work in host.recorded:
        work()
    made.experts.replayed(range(FIRST, FIRST + ROUTED.num_layers))
    made.experts.end_step()
    after = made.experts.stats()
    assert before is not None and after is not None
    counted = [s.counters.hits + s.counters.misses for s in (before, after)]
    assert counted[1] - counted[0] == num_used(others)


def watched(monkeypatch: pytest.MonkeyPatch, deaf: str = "") -> None:
    """Run two steps, and note every use of memory; `deaf` does not wait."""
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

    def noted_call(memory: StepMemory, index: int, slot_of: int) -> _C.HostCall:
        call, staged = make_call(memory, index, slot_of), memory.staged
        reads = [staged.x, staged.weights, memory.ids[index]]
        watch.calls[id(call)] = (reads, [staged.out])
        return call

    monkeypatch.setattr(SlotPool, "compute", noted_compute)
    monkeypatch.setattr(StepMemory, "make_call", noted_call)
    slots = SlotPool(ROUTED, 4, main, copy, DEVICE, uploads_per_step=4)
    experts = HybridExperts(ROUTED, main, host, DEVICE, slots=slots)
    for step in range(2):
        experts.begin_step(2)
        for layer in ROUTED.numbers:
            given = moved(*make_inputs(2, layer + 10 * step))
            watch.note("main", "states", writes=given)
            kept.append(given)
            experts.submit(layer, *given).result()
            watch.note("main", "sum", (experts._memory.staged.result,))
        experts.end_step()
    slots.close()


def test_a_result_is_taken_once_and_before_the_next_layer(bench: MakeBench) -> None:
    made = bench()
    made.experts.begin_step(1)
    pending = made.experts.submit(FIRST, *moved(*make_inputs(1)))
    with pytest.raises(AssertionError, match="0 is outstanding, 1 came"):
        made.experts.submit(FIRST + 1, *moved(*make_inputs(1)))
    pending.result()
    with pytest.raises(AssertionError, match="taken once"):
        pending.result()


def test_nothing_races(monkeypatch: pytest.MonkeyPatch) -> None:
    watched(monkeypatch)


@pytest.mark.parametrize("deaf", ["main", "host"])
def test_a_stream_that_forgets_to_wait_races(deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="race"):
        watched(monkeypatch, deaf)
