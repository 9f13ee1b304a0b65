"""Hand-over between GPU and CPU: kernels, the CPU's side, and graphs that run beside the host."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from waiting import HANG_S, eventually

from hybridmoe import _C
from hybridmoe.device.streams import host_empty
from hybridmoe.errors import HybridMoeError, ShapeError
from hybridmoe.experts.backend import CpuExperts

pytest.importorskip("triton", reason="needs triton")

from hybrid_bench import EXPERTS, FIRST, HIDDEN, ROUTED, TOP_K, Inputs, make_inputs
from interpreted_gpu import GraphStream, gpu_runtime
from kernel_device import DEVICE, moved

from hybridmoe.experts.gpu import hand_over as hand_overs
from hybridmoe.experts.gpu.hand_over import HandOver
from hybridmoe.experts.gpu.hybrid_experts import HybridExperts
from hybridmoe.kernels import ops
from hybridmoe.kernels.triton.hand_over import receive, send
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED

LAYERS = range(FIRST, FIRST + ROUTED.num_layers)


def pinned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return host_empty(shape, dtype, DEVICE).zero_()


@pytest.mark.parametrize(("tokens", "hidden", "top_k"), [(1, 64, 3), (16, 5000, 8), (2, 8193, 1)])
@pytest.mark.parametrize("before", [0, 2**31 - 1], ids=["first", "wraps"])
def test_a_submission_arrives_and_is_counted(
    tokens: int, hidden: int, top_k: int, before: int
) -> None:
    x, weights = torch.randn(tokens, hidden), torch.rand(tokens, top_k)
    ids = torch.randint(-1, 9, (tokens, top_k), dtype=torch.int32)
    host = (pinned(tokens, hidden), pinned(tokens, top_k, dtype=torch.int32), pinned(tokens, top_k))
    count = torch.tensor([before], dtype=torch.int32, device=DEVICE)
    sent = pinned(1, dtype=torch.int32)
    send(*moved(x, ids, weights), host, count, sent)
    assert count.item() == sent.item() == (1 if before == 0 else -(2**31))
    for got, want in zip(host, (x, ids, weights), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(("tokens", "hidden"), [(1, 64), (16, 5000)])
@pytest.mark.parametrize("has_part", [False, True], ids=["the CPU's alone", "both"])
def test_a_result_is_added_once_it_is_counted(tokens: int, hidden: int, has_part: bool) -> None:
    y, part, out = (torch.randn(tokens, hidden) for _ in range(3))
    want = y + (part + out) if has_part else y + out
    got, part_there = moved(y, part)
    host = pinned(tokens, hidden).copy_(out)
    count = torch.tensor([-(2**31)], dtype=torch.int32, device=DEVICE)
    done = pinned(1, dtype=torch.int32).fill_(-(2**31) + 1)  # one further, and both have wrapped
    receive(got, part_there if has_part else None, host, count, done)
    assert torch.equal(got.cpu(), want)
    done.fill_(2**31 - 1)  # one short
    began = time.monotonic()
    receive(got, None, host, count, done, max_polls=50)
    assert torch.isfinite(got).all() and time.monotonic() < began + HANG_S


def test_what_does_not_fit_is_refused() -> None:
    x, ids, weights = moved(*make_inputs(2))
    host = (pinned(2, HIDDEN), pinned(2, TOP_K, dtype=torch.int32), pinned(2, TOP_K))
    count = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    counter = pinned(1, dtype=torch.int32)
    with pytest.raises(ShapeError, match="send: count"):
        send(x, ids, weights, host, torch.zeros(2, dtype=torch.int32, device=DEVICE), counter)
    with pytest.raises(ShapeError, match=r"send: host x is .*\(1, 64\) on cpu, expected a contig"):
        send(x, ids, weights, (host[0][:1], *host[1:]), count, counter)
    with pytest.raises(ShapeError, match="receive: out"):
        receive(x, None, host[0][:1], count, counter)
    with pytest.raises(ShapeError, match="a counter is missing"):
        _C.HandOver(counter.data_ptr(), 0)


class Graphs:
    """Three layers of experts as one graph, whose inputs and results stay in place."""

    def __init__(self, tokens: int = 2) -> None:
        runtime = gpu_runtime()
        self.device = runtime.device(lambda name: False, lambda on_gpu, w, name: True)
        streams = runtime.open_streams()
        self.main = streams.main
        self.hand_over = runtime.open_hand_over(ROUTED, streams.main)
        assert self.hand_over is not None
        self.experts = HybridExperts(
            ROUTED, streams.main, streams.host, DEVICE, hand_over=self.hand_over
        )
        self.tokens = tokens
        self.given = [moved(*make_inputs(tokens, layer)) for layer in LAYERS]
        self.results = [torch.zeros(tokens, HIDDEN, device=DEVICE) for _ in LAYERS]
        self.pause: Callable[[int], None] = lambda layer: None  # before a layer, in the interpreter
        with self.device.active():
            self.experts.begin_step(tokens)
            self.start = self.device.capture(self._run)
            self.main.synchronize()

    def step(self, inputs: list[Inputs]) -> list[Tensor]:
        self.begin(inputs)
        self.start()
        self.experts.replayed(LAYERS)
        self.experts.end_step()
        return [result.cpu().clone() for result in self.results]

    def begin(self, inputs: list[Inputs]) -> None:
        self.experts.begin_step(self.tokens)
        for mine, given in zip(self.given, inputs, strict=True):
            for old, new in zip(mine, given, strict=True):
                old.copy_(new)

    def _run(self) -> None:
        for layer, (x, ids, weights), result in zip(LAYERS, self.given, self.results, strict=True):
            self.pause(layer)
            result.zero_()
            self.experts.submit(layer, x, ids, weights).add_to(result)


def inputs_of(step: int, tokens: int = 2) -> list[Inputs]:
    return [make_inputs(tokens, layer + 10 * step) for layer in LAYERS]


def wanted(inputs: list[Inputs]) -> list[Tensor]:
    cpu = CpuExperts(ROUTED)
    return [cpu.submit(n, *given).result() for n, given in zip(LAYERS, inputs, strict=True)]


@pytest.mark.parametrize("tokens", [1, 2, 16])
def test_replays_are_the_cpus_results_bit_for_bit(tokens: int) -> None:
    graphs = Graphs(tokens)
    for step in range(3):
        inputs = inputs_of(step, tokens)
        for got, want in zip(graphs.step(inputs), wanted(inputs), strict=True):
            assert torch.equal(got, want) and got.any()
    assert [time.layer for time in graphs.experts.host_call_times()] == list(LAYERS)


def test_an_error_of_the_cpu_ends_its_step_and_not_the_next() -> None:
    graphs = Graphs()
    bad = inputs_of(0)
    bad[1][1][1, 1] = EXPERTS
    with pytest.raises(HybridMoeError, match=r"blk\.2 on the CPU: expert_ffn: expert id 6"):
        graphs.step(bad)
    assert not graphs.results[1].any(), "an error gives zeros"
    inputs = inputs_of(1)
    for got, want in zip(graphs.step(inputs), wanted(inputs), strict=True):
        assert torch.equal(got, want)


class SeenSteps:
    """Stands in for slots, none of which is used; its cache notes what it is told."""

    def __init__(self) -> None:
        self.cache, self.told = self, list[list[tuple[int, list[int]]]]()

    def begin_step(self) -> None:
        pass

    def end_step(self, accesses: list[tuple[int, np.ndarray]], *, is_prefill: bool) -> None:
        assert not is_prefill
        self.told.append([(index, ids.tolist()) for index, ids in accesses])

    def compute(self, *inputs: object) -> None:
        return None


def test_the_cache_is_told_once_and_before_the_gpu_has_ended_the_step() -> None:
    """The policy then runs beside the output head."""
    graphs, slots = Graphs(tokens=1), SeenSteps()
    graphs.experts._slots = slots
    for step in range(2):
        inputs = inputs_of(step, 1)
        graphs.begin(inputs)
        graphs.start()
        graphs.experts.replayed(LAYERS)
        chosen = [[n for n in ids[0].tolist() if n >= 0] for _, ids, _ in inputs]
        assert slots.told[step:] == [list(enumerate(chosen))]
        graphs.experts.end_step()
        assert len(slots.told) == step + 1
    bad = inputs_of(2, 1)
    bad[1][1][0, 1] = EXPERTS
    with pytest.raises(HybridMoeError, match=r"blk\.2 on the CPU"):
        graphs.step(bad)
    graphs.step(inputs_of(3, 1))
    assert len(slots.told) == 3, "a step that fails is not counted"


def test_the_gpu_waits_for_the_cpu() -> None:
    graphs = Graphs()
    inputs = inputs_of(1)
    graphs.begin(inputs)
    graphs.start()
    eventually(lambda: graphs.hand_over._sent.item() - graphs.hand_over._done.item() == 1)
    time.sleep(0.05)
    assert not graphs.main.is_idle(), "the GPU did not wait"
    graphs.experts.replayed(LAYERS)
    graphs.experts.end_step()
    for got, want in zip(graphs.results, wanted(inputs), strict=True):
        assert torch.equal(got.cpu(), want)


def test_a_waiting_gpu_can_be_released() -> None:
    graphs = Graphs()
    graphs.begin(inputs_of(0))
    graphs.start()
    graphs.hand_over.release()
    assert graphs.main.is_idle()
    graphs.main.synchronize()
    inputs = inputs_of(1)
    for got, want in zip(graphs.step(inputs), wanted(inputs), strict=True):
        assert torch.equal(got, want)


def test_a_graph_that_hands_over_less_than_expected_is_seen() -> None:
    graphs = Graphs()
    calls = [*graphs.experts._captured[2].values()] * 2
    graphs.begin(inputs_of(0))
    graphs.start()
    with pytest.raises(HybridMoeError, match="the GPU has ended a step with 3 of 6 layers"):
        graphs.hand_over.serve(calls)


interpreted = pytest.mark.interpreter  # a GPU's graph cannot be interrupted


@interpreted
def test_the_cpu_waits_for_the_gpu() -> None:
    graphs = Graphs()
    inputs, may_go = inputs_of(1), threading.Event()
    graphs.pause = lambda layer: may_go.wait(HANG_S) and None
    graphs.begin(inputs)
    graphs.start()
    served = threading.Thread(target=graphs.experts.replayed, args=(LAYERS,))
    served.start()
    time.sleep(0.05)
    assert served.is_alive(), "the CPU did not wait"
    may_go.set()
    served.join(HANG_S)
    graphs.experts.end_step()
    for got, want in zip(graphs.results, wanted(inputs), strict=True):
        assert torch.equal(got, want)


@interpreted
def test_a_gpu_that_fails_while_the_cpu_waits_ends_the_step() -> None:
    graphs = Graphs()

    def fail(layer: int) -> None:
        if layer == LAYERS[1]:
            raise RuntimeError("CUDA error: an illegal memory access")

    graphs.pause = fail
    graphs.begin(inputs_of(0))
    graphs.start()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        graphs.experts.replayed(LAYERS)


def test_a_hand_over_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, what the GPU would do meanwhile is done by a thread."""
    main = gpu_runtime().open_streams().main

    def in_a_thread(*args: object, **kwargs: object) -> None:
        assert isinstance(main, GraphStream)
        main.start(lambda: receive(*args, **kwargs))  # type: ignore[arg-type]

    def blocking(*args: object, **kwargs: object) -> None:
        receive(*args, **{**kwargs, "max_polls": 50})  # type: ignore[arg-type]
        main.synchronize()

    if IS_INTERPRETED:
        monkeypatch.setattr(hand_overs, "receive", in_a_thread)
    assert HandOver(main, DEVICE).works(HIDDEN, TOP_K)
    with monkeypatch.context() as patched:
        patched.setattr(hand_overs, "receive", blocking)
        assert not HandOver(main, DEVICE).works(HIDDEN, TOP_K)
    monkeypatch.setattr(hand_overs, "send", lambda *args: None)
    assert not HandOver(main, DEVICE).works(HIDDEN, TOP_K)


def test_workers_stay_awake_in_a_step_of_one_thread_or_two(restore_threads: None) -> None:
    for threads in (1, 2):
        ops.set_num_threads(threads)
        graphs = Graphs()
        inputs = inputs_of(threads)
        for got, want in zip(graphs.step(inputs), wanted(inputs), strict=True):
            assert torch.equal(got, want)
