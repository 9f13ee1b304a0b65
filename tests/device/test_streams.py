"""Streams without a GPU, and host functions with the CPU's experts."""

import ctypes
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as T
from random_weights import random_matrix

from hybridmoe import _C
from hybridmoe.device.streams import host_empty
from hybridmoe.errors import ShapeError
from hybridmoe.kernels import ops

CPU = torch.device("cpu")
EXPERTS, HIDDEN, INTER, TOKENS, TOP_K = 6, 64, 96, 4, 3

# What hybridmoe uses of the driver: stream 0 calls at once, 1 in a thread of its own, 2 fails.
STUB = """
#include <pthread.h>
#include <string.h>
typedef void (*function)(void*);
static struct { function f; void* data; } work;
static pthread_t thread;
static void* run(void* unused) { work.f(work.data); return unused; }
int cuLaunchHostFunc(void* stream, function f, void* data) {
  if (stream == (void*)2) return 700;
  if (stream == (void*)0) return f(data), 0;
  work.f = f;
  work.data = data;
  return pthread_create(&thread, 0, run, 0);
}
int cuMemcpyAsync(void* dst, const void* src, size_t num_bytes, void* stream) {
  if (stream == (void*)2) return 700;
  return memcpy(dst, src, num_bytes), 0;
}
int stub_join(void) { return pthread_join(thread, 0); }
"""
DESCRIBE = """
int cuGetErrorString(int error, const char** text) {
  return *text = "an illegal memory access", error == 700 ? 0 : 1;
}
"""


class Case:
    """A call, its memory and its expected result."""

    def __init__(self, num_tokens: int = TOKENS) -> None:
        generator = torch.Generator().manual_seed(num_tokens)
        self.matrices = [
            random_matrix(T.Q4_0, EXPERTS, INTER, HIDDEN, seed=1),
            random_matrix(T.Q8_0, EXPERTS, INTER, HIDDEN, seed=2),
            random_matrix(T.Q4_0, EXPERTS, HIDDEN, INTER, seed=3),
        ]
        self.x = 0.02 * torch.randn((num_tokens, HIDDEN), generator=generator)
        shape = (num_tokens, TOP_K)
        self.ids = torch.randint(-1, EXPERTS, shape, generator=generator, dtype=torch.int32)
        self.weights = torch.rand(shape, generator=generator)
        self.slot_of = torch.full((EXPERTS,), -1, dtype=torch.int32)
        self.out = torch.full((num_tokens, HIDDEN), float("nan"))
        self.call = self.make()

    def make(self, **changes: object) -> _C.HostExpertCall:
        gate, up, down = (w.handle for w in self.matrices)
        given = dict(
            x=self.x.data_ptr(),
            ids=self.ids.data_ptr(),
            weights=self.weights.data_ptr(),
            out=self.out.data_ptr(),
            max_tokens=len(self.x),
            top_k=TOP_K,
            gate=gate,
            up=up,
            down=down,
            slot_of=self.slot_of.data_ptr(),
        )
        return _C.HostExpertCall(**{**given, **changes})  # type: ignore[arg-type]

    def want(self) -> torch.Tensor:
        on_gpu = (self.ids >= 0) & (self.slot_of[self.ids.long()] >= 0)
        return ops.expert_ffn(
            self.x, self.ids.masked_fill(on_gpu, -1), self.weights, *self.matrices
        )


def test_a_call_is_the_experts_of_the_cpu_bit_for_bit() -> None:
    case = Case()
    case.call.run()
    assert torch.equal(case.out, case.want()) and case.out.abs().sum() > 0
    case.slot_of[1::2] = torch.tensor([2, 0, 1], dtype=torch.int32)
    case.call.run()
    assert torch.equal(case.out, case.want()) and case.out.abs().sum() > 0
    assert case.call.take_error() is None


def test_without_a_table_every_expert_is_the_cpus() -> None:
    case = Case()
    call = case.make(slot_of=0)
    case.slot_of.fill_(-1)
    call.run()
    assert torch.equal(case.out, case.want())


def test_with_every_expert_on_the_gpu_zeros_remain() -> None:
    case = Case()
    case.slot_of.fill_(0)
    case.call.run()
    assert torch.equal(case.out, torch.zeros_like(case.out))


def test_a_call_of_fewer_tokens_leaves_the_rest_alone() -> None:
    case = Case()
    case.call.num_tokens = 2
    assert case.call.num_tokens == 2
    case.call.run()
    assert torch.equal(case.out[:2], case.want()[:2]) and case.out[2:].isnan().all()
    with pytest.raises(ShapeError, match="5 tokens, expected at most 4"):
        case.call.num_tokens = 5


def test_the_first_error_is_kept_and_gives_zeros() -> None:
    case = Case()
    good = case.ids.clone()
    for bad in (EXPERTS, -2):
        case.ids[1, 0] = bad
        case.call.run()
        assert torch.equal(case.out, torch.zeros_like(case.out))
    error = case.call.take_error()
    assert error == f"expert_ffn: expert id {EXPERTS} of token 1, expected -1 to {EXPERTS - 1}"
    assert case.call.take_error() is None
    case.ids.copy_(good)
    case.call.run()
    assert torch.equal(case.out, case.want()) and case.call.take_error() is None


def test_a_call_notes_when_it_ran() -> None:
    case = Case()
    assert case.call.times() == (0.0, 0.0)
    before = time.monotonic()
    case.call.run()
    begin_s, end_s = case.call.times()
    assert before - 1e-6 <= begin_s <= end_s <= time.monotonic() + 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 0}, "missing"),
        ({"max_tokens": 0}, "0 tokens"),
        ({"top_k": 65}, "65 experts a token"),
        ({"down": random_matrix(T.Q4_0, EXPERTS, HIDDEN, 32, seed=0).handle}, "down"),
    ],
)
def test_a_call_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Case().make(**change)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """Compile a shared object in place of the driver."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")

    def build(name: str, source: str) -> str:
        path = folder / f"{name}.so"
        command = [compiler, "-shared", "-fPIC", "-pthread", "-xc", "-", "-o", str(path)]
        subprocess.run(command, input=source, text=True, check=True)
        return str(path)

    return build


def test_the_driver_calls_at_once_or_from_its_thread(build: Callable[[str, str], str]) -> None:
    path = build("whole", STUB + DESCRIBE)
    driver, case = _C.CudaDriver(path), Case()
    driver.launch(0, case.call)
    assert torch.equal(case.out, case.want())
    case.out.fill_(float("nan"))
    driver.launch(1, case.call)
    assert ctypes.CDLL(path).stub_join() == 0
    assert torch.equal(case.out, case.want())


def test_the_driver_copies_bytes(build: Callable[[str, str], str]) -> None:
    driver = _C.CudaDriver(build("copies", STUB))
    source, target = torch.arange(100, dtype=torch.uint8), torch.zeros(100, dtype=torch.uint8)
    driver.copy(0, target.data_ptr() + 10, source.data_ptr() + 3, 50)
    assert torch.equal(target[10:60], source[3:53])
    assert not target[:10].any() and not target[60:].any()
    with pytest.raises(ShapeError, match="cuMemcpyAsync failed with error 700"):
        driver.copy(2, target.data_ptr(), source.data_ptr(), 1)


def test_the_drivers_thread_and_another_may_compute_at_once(
    build: Callable[[str, str], str], restore_threads: None
) -> None:
    ops.set_num_threads(2)
    path = build("pool", STUB)
    driver, case, other = _C.CudaDriver(path), Case(), Case(17)
    want, others = case.want(), other.want()
    for _ in range(20):
        case.out.fill_(float("nan"))
        driver.launch(1, case.call)
        assert torch.equal(other.want(), others)
        assert ctypes.CDLL(path).stub_join() == 0
        assert torch.equal(case.out, want)


def test_what_the_driver_lacks_or_refuses_is_one_line(
    build: Callable[[str, str], str], tmp_path: Path
) -> None:
    with pytest.raises(ShapeError, match=r"CUDA driver: .*none\.so: cannot open") as missing:
        _C.CudaDriver(str(tmp_path / "none.so"))
    with pytest.raises(ShapeError, match="has no cuLaunchHostFunc, expected a driver for CUDA 10"):
        _C.CudaDriver(build("empty", "int nothing;"))
    with pytest.raises(ShapeError, match="has no cuMemcpyAsync, expected a driver for CUDA 10"):
        _C.CudaDriver(build("old", "int cuLaunchHostFunc(void) { return 0; }"))
    with pytest.raises(ShapeError, match="failed with error 700: an illegal memory access"):
        _C.CudaDriver(build("describes", STUB + DESCRIBE)).launch(2, Case().call)
    with pytest.raises(ShapeError, match="failed with error 700: no description"):
        _C.CudaDriver(build("mute", STUB)).launch(2, Case().call)
    assert "\n" not in str(missing.value)


def test_a_lazy_stream_does_nothing_before_a_wait() -> None:
    lazy, main = FakeStream(is_lazy=True), FakeStream(is_lazy=False, is_current=True)
    a, b = torch.zeros(3), torch.zeros(3)
    lazy.copy(a, torch.ones(3))
    event = lazy.record()
    lazy.copy(b, torch.ones(3))
    assert not event.is_done() and not a.any()
    main.wait_for(event)
    assert event.is_done() and a.all() and not b.any()
    main.wait_for(lazy)
    assert b.all()


def test_waits_of_a_lazy_stream_are_work_of_their_own() -> None:
    first, second = FakeStream(is_lazy=True), FakeStream(is_lazy=True)
    a, b, c = torch.zeros(1), torch.zeros(1), torch.zeros(1)
    first.copy(a, torch.ones(1))
    second.wait_for(first)
    second.copy(b, a)
    first.copy(c, torch.ones(1))
    assert not a.any() and not b.any()
    second.synchronize()
    assert a.all() and b.all() and not c.any(), "what came after the wait has no part in it"


def test_a_lazy_current_stream_copies_what_is_there_now() -> None:
    main, other = FakeStream(is_lazy=True, is_current=True), FakeStream(is_lazy=False)
    source, target = torch.ones(2), torch.zeros(2)
    main.copy(target, source)
    source.fill_(2.0)
    assert not target.any()
    other.wait_for(main)
    assert torch.equal(target, torch.ones(2))


def test_streams_run_calls_in_order() -> None:
    for is_lazy in (False, True):
        case = Case()
        stream = FakeStream(is_lazy=is_lazy)
        ids, result = case.ids.clone(), torch.zeros_like(case.out)
        case.ids.fill_(-1)
        stream.copy(case.ids, ids)
        stream.launch(case.call)
        stream.copy(result, case.out)
        stream.synchronize()
        assert torch.equal(result, case.want()) and result.abs().sum() > 0


def test_an_event_may_be_waited_for_in_another_thread() -> None:
    stream, target = FakeStream(is_lazy=True), torch.zeros(1)
    stream.copy(target, torch.ones(1))
    thread = threading.Thread(target=stream.record().wait)
    thread.start()
    thread.join()
    assert target.all()


def test_host_memory_of_the_cpu_is_plain() -> None:
    t = host_empty((2, 3), torch.int32, CPU)
    assert t.shape == (2, 3) and t.dtype is torch.int32 and not t.is_pinned()
