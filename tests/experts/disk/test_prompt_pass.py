"""Long steps over the disk: order of reads and of computing, buffers, and what is dropped."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridmoe.errors import DiskError
from hybridmoe.experts.disk.prompt_pass import PromptPass

LAYERS, EXPERTS, TOP_K = 3, 12, 2
LONG = 64  # tokens


class Disk:
    """Buffers and a disk that reads one expert for each time it is asked; urgent ones first."""

    def __init__(self, num_buffers: int, resident: set[int]) -> None:
        self.num_buffers, self.resident = num_buffers, resident
        self.loaded = set(resident)
        self.urgent: list[int] = []
        self.prefetches: list[int] = []
        self.released: set[int] = set()
        self.fails: set[int] = set()
        self.reads: list[int] = []

    @property
    def used(self) -> int:
        return len(self.loaded) + len(self.urgent) + len(self.prefetches)

    def is_loaded(self, key: int) -> bool:
        return key in self.loaded

    def is_in_flight(self, key: int) -> bool:
        return key in [*self.urgent, *self.prefetches] and key not in self.released

    def request(self, key: int, *, is_urgent: bool = True) -> bool:
        if key in self.loaded:
            return True
        if key in [*self.urgent, *self.prefetches]:
            self.released.discard(key)
            if is_urgent and key in self.prefetches:
                self.prefetches.remove(key)
                self.urgent.append(key)
            return True
        if self.used == self.num_buffers:
            return False
        (self.urgent if is_urgent else self.prefetches).append(key)
        return True

    def release(self, key: int) -> bool:
        if key in self.resident:
            return False
        self.loaded.discard(key)
        if key in self.prefetches:
            self.prefetches.remove(key)
            return True
        if key in self.urgent:
            self.released.add(key)
        return False

    def collect(self, *, wait: bool) -> Mapping[int, DiskError | None]:
        assert not wait or self.urgent or self.prefetches, "waits for nothing"
        if not self.urgent and not self.prefetches:
            return {}
        key = (self.urgent or self.prefetches).pop(0)
        self.reads.append(key)
        if key in self.fails:
            return {key: DiskError("unreadable")}
        if key in self.released:
            self.released.remove(key)
        else:
            self.loaded.add(key)
        return {key: None}


class Products:
    """Checks what it is asked to compute, and reads up to `num_slow` experts for longer."""

    def __init__(self, disk: Disk, num_slow: int = 0) -> None:
        self.disk, self.num_slow = disk, num_slow
        self.under_way: list[int] = []  # keys
        self.computed: list[int] = []
        self.num_used: list[int] = []  # buffers, at each call

    def begin(self, index: int) -> None:
        self.first_key, self.computed = index * EXPERTS, []

    def compute(self, keys: Sequence[int]) -> None:
        self.under_way += keys
        self.computed += [key - self.first_key for key in keys]
        self.num_used.append(self.disk.used)
        assert all(map(self.disk.is_loaded, self.under_way))

    def take_done(self, *, wait: bool) -> list[int]:
        num_done = max(len(self.under_way) - self.num_slow, int(wait))
        done, self.under_way = self.under_way[:num_done], self.under_way[num_done:]
        return done

    def end(self) -> list[int]:
        done, self.under_way = self.under_way, []
        return done


def pass_over(disk: Disk, num_streamed: int, num_slow: int = 0) -> tuple[PromptPass, Products]:
    return PromptPass(disk, LAYERS, EXPERTS, TOP_K, num_streamed), Products(disk, num_slow)


CHOSEN = st.tuples(st.sets(st.integers(0, EXPERTS - 1)), st.sets(st.integers(0, EXPERTS - 1)))


@given(
    steps=st.lists(st.tuples(*[CHOSEN] * LAYERS), min_size=1, max_size=3),
    num_streamed=st.integers(TOP_K, EXPERTS),
    num_free_slots=st.integers(0, 3),
    num_slow=st.integers(0, 20),
    resident=st.sets(st.integers(0, LAYERS * EXPERTS - 1), max_size=6),
)
def test_any_routing_is_computed_in_order_within_the_buffers(
    steps: list[Any],
    num_streamed: int,
    num_free_slots: int,
    num_slow: int,
    resident: set[int],
) -> None:
    disk = Disk(len(resident) + num_free_slots + num_streamed, set(resident))
    prompt, products = pass_over(disk, num_streamed, num_slow)
    for layers in steps:
        for key in products.end():
            disk.release(key)
        prompt.begin_step(LONG)
        for index, (free, in_order) in enumerate(layers):
            experts = [*sorted(free), *sorted(in_order - free)]
            for key in (index * EXPERTS + expert for expert in reversed(experts)):
                if len(disk.resident) < len(resident) + num_free_slots:
                    disk.resident.add(key)  # admitted
            products.begin(index)
            prompt.compute(index, experts, len(free), products)
            assert sorted(products.computed[: len(free)]) == sorted(free)
            assert products.computed[len(free) :] == sorted(in_order - free)
            assert disk.used <= disk.num_buffers
    assert disk.loaded <= disk.resident | set(prompt.ahead) | set(products.under_way)
    for key in products.end():
        disk.release(key)
    prompt.discard()
    while disk.urgent or disk.prefetches:
        disk.collect(wait=True)
    assert disk.loaded <= disk.resident
    assert prompt.read_ahead.num_used <= prompt.read_ahead.num_read


def test_a_prompt_is_read_once_in_file_order_and_reads_never_stop() -> None:
    disk = Disk(4, set())
    prompt, products = pass_over(disk, 4)
    prompt.begin_step(LONG)
    assert disk.prefetches == [0, 1, 2, 3]  # before the first layer is routed
    for index in range(LAYERS):
        products.begin(index)
        prompt.compute(index, list(range(EXPERTS)), EXPERTS, products)
    assert disk.reads == list(range(LAYERS * EXPERTS))
    assert set(products.num_used[:-3]) == {4}  # as long as anything is left to read
    assert prompt.read_ahead.num_read == prompt.read_ahead.num_used > LAYERS


def test_what_a_layer_does_not_choose_is_dropped_and_counted() -> None:
    disk = Disk(4, set())
    prompt, products = pass_over(disk, 4)
    prompt.begin_step(LONG)
    disk.collect(wait=True)
    products.begin(0)
    prompt.compute(0, [1, 8], 2, products)  # takes the read of 1 in at first
    assert disk.reads == [0, 1, 8]  # 2 and 3 were cancelled
    assert (prompt.read_ahead.num_read, prompt.read_ahead.num_used) == (2, 1)
    assert not disk.loaded and not disk.prefetches  # a layer of two experts: none is read ahead


@pytest.mark.parametrize(("num_tokens", "num_read"), [(16, 0), (17, 0), (32, 0), (64, 4)])
def test_steps_of_few_tokens_read_nothing_ahead(num_tokens: int, num_read: int) -> None:
    disk = Disk(4, set())
    prompt = PromptPass(disk, LAYERS, 384, 8, 4)
    prompt.begin_step(num_tokens)
    assert len(disk.prefetches) == num_read


def test_a_failed_read_ahead_is_read_again_and_an_urgent_one_raises() -> None:
    disk = Disk(4, set())
    prompt, products = pass_over(disk, 4)
    disk.fails = {0}
    prompt.begin_step(LONG)
    disk.collect(wait=True)
    disk.fails = set()
    products.begin(0)
    prompt.compute(0, list(range(EXPERTS)), EXPERTS, products)
    assert sorted(products.computed) == list(range(EXPERTS))
    disk.fails = {EXPERTS + 5}
    products.begin(1)
    with pytest.raises(DiskError, match="unreadable"):
        prompt.compute(1, list(range(EXPERTS)), EXPERTS, products)


def test_no_expert_is_read_twice_while_some_before_it_wait_for_buffers() -> None:
    disk, others = Disk(5, set()), {EXPERTS, EXPERTS + 1, EXPERTS + 2}
    prompt, products = pass_over(disk, 5)
    prompt.begin_step(LONG)
    disk.prefetches = [3, 4]  # the reads before them have failed, and their buffers are others'
    disk.resident |= others
    disk.loaded |= others
    products.begin(0)
    prompt.compute(0, list(range(EXPERTS)), EXPERTS, products)
    assert sorted(key for key in disk.reads if key < EXPERTS) == list(range(EXPERTS))
    assert disk.loaded <= others | set(prompt.ahead)


def test_experts_that_must_wait_give_their_buffers_to_those_that_are_first() -> None:
    disk = Disk(4, set())
    prompt, products = pass_over(disk, 4)
    prompt.begin_step(LONG)
    products.begin(0)
    prompt.compute(0, [9, 10, 11, *range(9)], 3, products)
    assert products.computed == [9, 10, 11, *range(9)]
    assert disk.reads[:4] == [0, 1, 2, 3]
    reads = sorted(key for key in disk.reads if key < EXPERTS)
    assert reads == sorted([*range(EXPERTS), 2, 3])  # the last two of them again
