"""Work before the engine's queue: bounded, cancelled on disconnect, ended at shutdown."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hybridmoe.errors import QueueFullError
from hybridmoe.serve.work_pool import CancelledWorkError, CancelToken, WorkPool


class Blocking:
    """Work that runs until it is released or cancelled."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go = threading.Event()
        self.ended = threading.Event()

    def __call__(self, token: CancelToken) -> str:
        self.began.set()
        try:
            while not self.go.wait(0.001):
                token.check()
        finally:
            self.ended.set()
        return "done"


async def reached(event: threading.Event) -> None:
    await asyncio.get_running_loop().run_in_executor(None, event.wait)


def in_pool(
    test: Callable[[WorkPool], Any], *, max_waiting: int = 3, deadline_s: float = 1e9
) -> None:
    """Run the test with a pool of one thread for long work and one for short."""
    pool = WorkPool(2, max_waiting, deadline_s)
    try:
        asyncio.run(test(pool))
    finally:
        pool.close(lambda: ConnectionError("over"))


def test_results_and_errors_come_back() -> None:
    async def test(pool: WorkPool) -> None:
        assert await pool.run(lambda _: 7) == 7
        assert await pool.run(lambda _: threading.current_thread().daemon, is_short=True)
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda _: 1 // 0)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await pool.run(lambda _: next(iter(())))

    in_pool(test)


def test_the_queue_is_bounded_and_short_work_has_a_thread_of_its_own() -> None:
    async def test(pool: WorkPool) -> None:
        works = [Blocking() for _ in range(4)]
        tasks = [asyncio.create_task(pool.run(works[0]))]
        await reached(works[0].began)
        tasks += [asyncio.create_task(pool.run(work)) for work in works[1:]]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="3 requests"):
            await pool.run(lambda _: 1)
        assert await pool.run(lambda _: 2, is_short=True) == 2
        for work in works:
            work.go.set()
        assert await asyncio.gather(*tasks) == ["done"] * 4
        assert await pool.run(lambda _: 3) == 3

    in_pool(test)


def test_what_is_cancelled_ends_or_never_begins() -> None:
    async def test(pool: WorkPool) -> None:
        running, waiting = Blocking(), Blocking()
        tasks = [asyncio.create_task(pool.run(running))]
        await reached(running.began)
        tasks.append(asyncio.create_task(pool.run(waiting)))
        await asyncio.sleep(0)
        for task in reversed(tasks):
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        await reached(running.ended)
        assert await pool.run(lambda _: 1) == 1  # behind whatever would have begun
        assert not waiting.began.is_set()

    in_pool(test)


def test_work_ends_at_its_deadline() -> None:
    async def test(pool: WorkPool) -> None:
        with pytest.raises(CancelledWorkError, match="more than 0 s"):
            await pool.run(Blocking())

    in_pool(test, deadline_s=0.0)


def test_closing_tells_all_who_wait_at_once() -> None:
    async def test(pool: WorkPool) -> None:
        running, deaf = Blocking(), threading.Event()
        stuck = threading.Event()

        def ignoring(_: CancelToken) -> None:
            stuck.set()
            deaf.wait()

        tasks = [asyncio.create_task(pool.run(running))]
        await reached(running.began)
        tasks.append(asyncio.create_task(pool.run(ignoring, is_short=True)))
        await reached(stuck)
        tasks.append(asyncio.create_task(pool.run(Blocking())))
        await asyncio.sleep(0)
        pool.close(lambda: ConnectionError("over"))
        ends = await asyncio.gather(*tasks, return_exceptions=True)  # though one goes on
        assert [str(end) for end in ends] == ["over"] * 3
        with pytest.raises(ConnectionError):
            await pool.run(lambda _: 1)
        await reached(running.ended)
        deaf.set()

    in_pool(test)
