"""Late masks: their sequence is held, and no other one waits for it."""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from engine_run import MakeEngine, Running, engine_maker, request, run, tiny_decoder
from numpy.typing import NDArray
from waiting import HANG_S, eventually

from hybridmoe.engine.mask_thread import MaskThread
from hybridmoe.model.decoder import Decoder

pytestmark = pytest.mark.usefixtures("exact_kernels")

PROMPT = list(range(40))


class Slow:
    """Allows every token; its masks, from the given one on, wait until they are let go."""

    def __init__(self, vocab_size: int, first_slow: int = 0) -> None:
        self._words = np.full(-(-vocab_size // 32), ~np.uint32(0))
        self._first_slow = first_slow
        self.num_masks = 0
        self.begun, self.go = threading.Event(), threading.Event()

    def mask(self) -> NDArray[np.uint32]:
        self.num_masks += 1
        if self.num_masks > self._first_slow:
            self.begun.set()
            assert self.go.wait(HANG_S)
        return self._words

    def accept(self, token_id: int) -> None:
        pass

    def is_done(self) -> bool:
        return False

    def is_free(self) -> bool:
        return False

    def is_large(self) -> bool:
        return True

    def closing(self) -> None:
        return None


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
    for constraint in made:  # threads of masks are not waited for
        constraint.go.set()


@pytest.mark.parametrize("first_slow", [0, 3])
def test_a_late_mask_holds_up_no_other_sequence(
    make: MakeEngine, slow: Callable[..., Slow], first_slow: int
) -> None:
    engine, late = make(), slow(first_slow)
    (alone,) = run(engine, request(PROMPT, 8))
    held = Running(engine, request(PROMPT, 8, constraint=late))
    assert late.begun.wait(HANG_S)
    other, also_masked = run(
        engine, request(PROMPT, 30), request(PROMPT, 30, constraint=slow(10**9))
    )
    assert other.ids[:8] == also_masked.ids[:8] == alone.ids
    assert held.queue.qsize() <= 2 + first_slow  # progress, and the tokens before
    late.go.set()
    assert held.wait().ids == alone.ids
    assert held.answer.end.reason == "length"


def test_what_is_held_alone_is_waited_for_without_looking(
    make: MakeEngine, slow: Callable[..., Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridmoe.engine.engine._LOOK_S", HANG_S)
    engine, late = make(), slow()
    held = Running(engine, request(PROMPT, 4, constraint=late))
    assert late.begun.wait(HANG_S)
    eventually(lambda: engine._worker._num_idle > 1)
    num_idle = engine._worker._num_idle
    time.sleep(0.1)  # thousands, if it looked
    assert engine._worker._num_idle == num_idle
    late.go.set()
    assert len(held.wait().ids) == 4


def test_it_is_cancelled_while_it_is_held(make: MakeEngine, slow: Callable[..., Slow]) -> None:
    engine, late = make(), slow()
    held = Running(engine, request(PROMPT, 4, constraint=late))
    assert late.begun.wait(HANG_S)
    held.ticket.cancel()
    assert held.wait().end.reason == "cancelled"
    assert engine.stats().kv_pages_used == 0


def test_a_mask_that_takes_too_long_ends_its_request(
    make: MakeEngine, slow: Callable[..., Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridmoe.engine.constraint_masks._DEADLINE_S", 0.0)
    end = run(make(), request(PROMPT, 4, constraint=slow()))[0].end
    assert (
        end.reason == "error"
        and end.is_refusal
        and "constraint takes longer than 0 s" in str(end.error)
    )


def test_a_mask_that_fails_late_is_its_requests_error(
    make: MakeEngine, slow: Callable[..., Slow]
) -> None:
    class Failing(Slow):
        def mask(self) -> NDArray[np.uint32]:
            super().mask()
            raise ZeroDivisionError("of a mask")

    engine = make()
    late = Failing(engine._vocab_size)
    held = Running(engine, request(PROMPT, 4, constraint=late))
    assert late.begun.wait(HANG_S)
    run(engine, request(PROMPT, 4))
    late.go.set()
    assert held.wait().end.error == "ZeroDivisionError: of a mask"


def test_what_is_held_gives_its_pages_up(make: MakeEngine, slow: Callable[..., Slow]) -> None:
    engine, late = make(kv_tokens=512, context_tokens=512), slow(2)
    (alone,) = run(engine, request(PROMPT, 20))
    older = Running(engine, request([7] * 200, 300))
    older.token()
    held = Running(engine, request(PROMPT, 20, constraint=late))
    assert late.begun.wait(HANG_S)
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
        thread.note_late()
    eventually(lambda: sum(pending.took_s > 0.0 for pending in late) == 5)
    go.set()
    for pending in late:
        assert pending.result() is None
    thread.close()
