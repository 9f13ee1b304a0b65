"""Late masks: their sequence waits, and no other one does."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from engine_run import MakeEngine, Running, engine_maker, request, run, tiny_decoder
from numpy.typing import NDArray
from waiting import HANG_S, eventually

from hybridmoe.engine.mask_thread import MaskThread
from hybridmoe.engine.scheduler import ScheduledChunk, Scheduler
from hybridmoe.model.decoder import Decoder

pytestmark = pytest.mark.usefixtures("exact_kernels")

PROMPT = list(range(40))


class Slow:
    """Allows every token; masks from number `first_slow` on wait for `go`."""

    def __init__(self, vocab_size: int, first_slow: int = 0) -> None:
        self._words = np.full(-(-vocab_size // 32), ~np.uint32(0))
        self._first_slow = first_slow
        self.num_masks = 0
        self.started, self.go = threading.Event(), threading.Event()

    def mask(self) -> NDArray[np.uint32]:
        self.num_masks += 1
        if self.num_masks > self._first_slow:
            self.started.set()
            assert self.go.wait(HANG_S)
        return self._words

    def accept(self, token_id: int) -> None:
        pass

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        return len(token_ids)

    def is_done(self) -> bool:
        return False

    def is_inactive(self) -> bool:
        return False

    def is_slow(self) -> bool:
        return True

    def eos_redirect(self) -> None:
        return None


class Once(Slow):
    """Forces token 7 after `count` tokens, and is inactive before and behind."""

    def __init__(self, vocab_size: int, count: int) -> None:
        super().__init__(vocab_size)
        self._left = count

    def mask(self) -> NDArray[np.uint32]:
        self.num_masks += 1
        if self._left:
            return self._words
        mask = np.zeros_like(self._words)
        mask[0] = 1 << 7
        return mask

    def accept(self, token_id: int) -> None:
        self._left -= 1

    def is_inactive(self) -> bool:
        return self._left != 0

    def is_slow(self) -> bool:
        return False


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    with tiny_decoder(tmp_path_factory.mktemp("masks")) as model:
        yield model


@pytest.fixture
def make(model: Decoder) -> Iterator[MakeEngine]:
    with engine_maker(model) as make:
        yield make


@pytest.fixture
def slow(model: Decoder) -> Iterator[Callable[..., Slow]]:
    made: list[Slow] = []

    def make_slow(first_slow: int = 0) -> Slow:
        made.append(Slow(model.config.vocab_size, first_slow))
        return made[-1]

    yield make_slow
    for constraint in made:  # mask threads are not joined
        constraint.go.set()


@pytest.mark.parametrize("first_slow", [0, 3])
def test_a_late_mask_delays_no_other_sequence(
    make: MakeEngine, slow: Callable[..., Slow], first_slow: int
) -> None:
    engine, late = make(), slow(first_slow)
    (alone,) = run(engine, request(PROMPT, 8))
    held = Running(engine, request(PROMPT, 8, constraint=late))
    assert late.started.wait(HANG_S)
    other, also_masked = run(
        engine, request(PROMPT, 30), request(PROMPT, 30, constraint=slow(10**9))
    )
    assert other.ids[:8] == also_masked.ids[:8] == alone.ids
    assert held.queue.qsize() <= 2 + first_slow  # progress, and the tokens before
    late.go.set()
    assert held.wait().ids == alone.ids
    assert held.response.end.reason == "length"


@pytest.mark.parametrize("count", [0, 1, 6])
def test_a_constraint_may_be_active_for_one_token(
    make: MakeEngine, model: Decoder, count: int
) -> None:
    engine, once = make(speculate=4), Once(model.config.vocab_size, count)
    bias = {9: 1e6}  # so that drafts reach past the forced token
    (response,) = run(engine, request([1, 2], 60, constraint=once, logit_bias=bias))
    assert response.ids == [9] * count + [7] + [9] * (59 - count)
    assert once.num_masks <= 2  # the forced one, and one that allows all
    assert response.end.usage.accepted_tokens > 30


def test_a_blocked_engine_does_not_poll_in_a_loop(
    make: MakeEngine, slow: Callable[..., Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridmoe.engine.engine_thread.POLL_S", HANG_S)
    schedule, sizes = Scheduler.schedule, list[int]()

    def count(scheduler: Scheduler) -> list[ScheduledChunk]:
        chunks = schedule(scheduler)
        sizes.append(len(chunks))
        return chunks

    def num_empty() -> int:
        return sizes.count(0)

    monkeypatch.setattr(Scheduler, "schedule", count)
    engine, late = make(), slow()
    held = Running(engine, request(PROMPT, 4, constraint=late))
    assert late.started.wait(HANG_S)
    eventually(lambda: num_empty() > 1)
    time.sleep(0.05)  # the engine's thread may be in between
    before = num_empty()
    time.sleep(0.1)  # thousands, in a loop
    assert num_empty() == before
    late.go.set()
    assert len(held.wait().ids) == 4


def test_a_request_is_cancelled_while_its_mask_is_late(
    make: MakeEngine, slow: Callable[..., Slow]
) -> None:
    engine, late = make(), slow()
    held = Running(engine, request(PROMPT, 4, constraint=late))
    assert late.started.wait(HANG_S)
    held.handle.cancel()
    assert held.wait().end.reason == "cancelled"
    assert engine.stats().kv_pages_used == 0


def test_a_mask_beyond_the_deadline_fails_its_request(
    make: MakeEngine, slow: Callable[..., Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridmoe.engine.constraint_masks.DEADLINE_S", 0.0)
    end = run(make(), request(PROMPT, 4, constraint=slow()))[0].end
    assert (
        end.reason == "error"
        and end.is_refusal
        and "constraint takes longer than 0 s" in str(end.error)
    )


def test_an_error_in_a_late_mask_fails_its_request(make: MakeEngine, model: Decoder) -> None:
    class Failing(Slow):
        def mask(self) -> NDArray[np.uint32]:
            super().mask()
            raise ZeroDivisionError("of a mask")

    engine = make()
    late = Failing(model.config.vocab_size)
    held = Running(engine, request(PROMPT, 4, constraint=late))
    assert late.started.wait(HANG_S)
    run(engine, request(PROMPT, 4))
    late.go.set()
    assert held.wait().end.error == "ZeroDivisionError: of a mask"


def test_a_sequence_with_a_late_mask_is_preempted(
    make: MakeEngine, slow: Callable[..., Slow]
) -> None:
    engine, late = make(kv_tokens=512, context_tokens=512), slow(2)
    (alone,) = run(engine, request(PROMPT, 20))
    older = Running(engine, request([7] * 200, 300))
    older.token()
    held = Running(engine, request(PROMPT, 20, constraint=late))
    assert late.started.wait(HANG_S)
    assert len(older.wait().ids) == 300
    assert engine.stats().preempted > 0
    late.go.set()
    assert held.wait().ids == alone.ids


def test_late_threads_are_bounded() -> None:
    thread, go = MaskThread(), threading.Event()
    late = []

    def wait() -> None:
        assert go.wait(HANG_S)

    for _ in range(6):
        late.append(thread.submit(wait))
        thread.replace_late()
    eventually(lambda: sum(pending.elapsed_s > 0.0 for pending in late) == 5)
    go.set()
    for pending in late:
        assert pending.result() is None
    thread.close()
