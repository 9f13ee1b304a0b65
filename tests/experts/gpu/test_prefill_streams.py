"""Streams of prefill: each wait is needed and there; copies begin ahead of their layer."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from fake_streams import FakeStream
from watched_streams import Watch, WatchedEvent, WatchedStream

from hybridmoe.device.streams import Event, Stream
from hybridmoe.planning.rates import Rates

pytest.importorskip("triton", reason="needs triton")

from kernel_device import moved
from prefill_run import (
    ALL_CPU,
    ALL_GPU,
    BUFFERS,
    MIXED,
    ROUTED,
    TOKENS,
    Make,
    check,
    fakes,
    inputs,
    makers,
    registered,
    submitted,
)

from hybridmoe.experts.gpu import weight_stream
from hybridmoe.experts.gpu.prefill_experts import StreamedExperts, Streams
from hybridmoe.kernels.triton.expert_prefill import add_experts


@pytest.fixture
def make() -> Iterator[Make]:
    yield from makers()


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
