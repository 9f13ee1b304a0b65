"""Turns of models: none starves, and none is unloaded in use."""

import heapq
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridmoe.serve.model_schedule import (
    Load,
    ScheduleRules,
    Unload,
    Wait,
    next_step,
    patient,
)
from hybridmoe.serve.model_slot import ModelSlot, ModelSource, Status

NUM_MODELS = 3
LOAD_S, LONGEST_S, UNLOAD_S = 5.0, 3.0, 0.5


def slot(name: str, status: Status = "unloaded", **fields: Any) -> ModelSlot:
    source = ModelSource(name=name, load=lambda _: pytest.fail("is not loaded here"))
    model: Any = SimpleNamespace(card=dict) if status == "loaded" else None
    return ModelSlot(source=source, status=status, model=model, **fields)


def waiter(since_s: float) -> Any:
    return SimpleNamespace(since_s=since_s)


def pair(*names: str) -> Any:
    """Rules by which these models fit beside each other, and others fit beside none."""
    return ScheduleRules(fit=lambda given: len(given) < 2 or set(given) <= set(names))


def test_the_model_that_was_asked_for_first_is_loaded_first() -> None:
    a, b = slot("a", waiters=[waiter(2.0), waiter(3.0)]), slot("b", refused_since_s=1.0)
    assert next_step([a, b], 9.0, ScheduleRules()) == Load(b)
    b.refused_since_s = None
    assert next_step([a, b], 9.0, ScheduleRules()) == Load(a)
    a.waiters.clear()
    assert next_step([a, b], 9.0, ScheduleRules()) == Wait(None)


def test_models_that_fit_stay_and_the_one_used_longest_ago_goes() -> None:
    a = slot("a", "loaded", used_s=2.0)
    b = slot("b", "loaded", used_s=1.0)
    c = slot("c", waiters=[waiter(50.0)])
    assert next_step([a, b, c], 60.0, pair("a", "b", "c")) == Load(c)
    assert next_step([a, b, c], 60.0, pair("a", "c")) == Unload(b, is_idle=False)
    b.num_leases = 1  # in use: then a is the one
    assert next_step([a, b, c], 60.0, pair("b", "c")) == Unload(a, is_idle=False)


def test_a_model_that_did_not_load_beside_others_gets_the_memory_alone() -> None:
    a, b = slot("a", "loaded"), slot("b", waiters=[waiter(1.0)], must_be_alone=True)
    assert next_step([a, b], 60.0, pair("a", "b")) == Unload(a, is_idle=False)


def test_a_turn_lasts_as_long_as_the_load_and_its_requests_are_finished() -> None:
    a = slot("a", "loaded", loaded_s=10.0, load_duration_s=5.0, num_leases=1)
    b = slot("b", waiters=[waiter(11.0)])
    assert next_step([a, b], 12.0, ScheduleRules()) == Wait(3.0)
    assert a.can_grant
    assert next_step([a, b], 15.0, ScheduleRules()) == Wait(None)
    assert not a.can_grant
    a.num_leases = 0
    assert next_step([a, b], 15.0, ScheduleRules()) == Unload(a, is_idle=False)
    b.waiters.clear()  # its client has left
    assert next_step([a, b], 15.0, ScheduleRules()) == Wait(None)
    assert a.can_grant


def test_a_turn_ends_early_if_nothing_is_asked_of_the_model() -> None:
    a = slot("a", "loaded", loaded_s=10.0, load_duration_s=50.0, used_s=20.0)
    b = slot("b", waiters=[waiter(11.0)])
    rules = ScheduleRules(quiet_s=2.0)
    assert next_step([a, b], 21.5, rules) == Wait(0.5)
    assert next_step([a, b], 22.0, rules) == Unload(a, is_idle=False)


def test_what_is_not_used_is_unloaded_when_its_time_has_come() -> None:
    a, b = slot("a", "loaded", used_s=10.0), slot("b", "loaded", used_s=12.0)
    rules = ScheduleRules(idle_unload_s=5.0)
    assert next_step([a, b], 11.0, rules) == Wait(4.0)
    assert next_step([a, b], 15.0, rules) == Unload(a, is_idle=True)
    a.num_leases = 1
    assert next_step([a, b], 15.0, rules) == Wait(2.0)
    assert next_step([a, b], 15.0, ScheduleRules()) == Wait(None)


@dataclass
class Server:
    """A pool of models by a clock that jumps, with requests of known lengths."""

    slots: list[ModelSlot]
    now_s: float = 0.0
    ends: list[tuple[float, int]] = field(default_factory=list)  # of requests, by slot
    lengths_s: dict[int, float] = field(default_factory=dict)  # of those that wait
    waits_s: list[float] = field(default_factory=list)
    busy_until_s: float = 0.0  # a load or unload is under way
    loading: ModelSlot | None = None

    def ask(self, index: int, length_s: float) -> None:
        target = self.slots[index]
        target.waiters.append(waiter(self.now_s))
        self.lengths_s[id(target.waiters[-1])] = length_s
        if target.can_grant and len(target.waiters) == 1:
            self.grant()

    def grant(self) -> None:
        for i, target in enumerate(self.slots):
            while target.can_grant and target.waiters:
                one = target.waiters.pop(0)
                target.num_leases += 1
                heapq.heappush(self.ends, (self.now_s + self.lengths_s[id(one)], i))
                self.waits_s.append(self.now_s - one.since_s)

    def advance(self, until_s: float, rules: ScheduleRules) -> None:
        """Do all that happens until then."""
        while True:
            wake_s = until_s
            if self.now_s >= self.busy_until_s:
                wake_s = min(until_s, self.step(rules))
            else:
                wake_s = min(until_s, self.busy_until_s)
            if self.ends:
                wake_s = min(wake_s, self.ends[0][0])
            if wake_s > self.now_s:
                self.now_s = wake_s
            elif wake_s >= until_s:
                return
            while self.ends and self.ends[0][0] <= self.now_s:
                target = self.slots[heapq.heappop(self.ends)[1]]
                target.num_leases -= 1
                target.used_s = self.now_s

    def step(self, rules: ScheduleRules) -> float:
        """Take the next step. Returns the time until which nothing is to do."""
        if self.loading is not None:
            self.loading.put(SimpleNamespace(card=dict), self.now_s)  # type: ignore[arg-type]
            self.loading.load_duration_s, self.loading = LOAD_S, None
        step = next_step(self.slots, self.now_s, rules)
        if isinstance(step, Wait):
            self.grant()
            return float("inf") if step.seconds is None else self.now_s + step.seconds
        if isinstance(step, Load):
            assert not any(one.status == "loaded" for one in self.slots)
            step.slot.status, self.loading = "loading", step.slot
            self.busy_until_s = self.now_s + LOAD_S
        else:
            assert not step.slot.num_leases
            step.slot.take()
            step.slot.status = "unloaded"
            self.busy_until_s = self.now_s + UNLOAD_S
        return self.busy_until_s


REQUESTS = st.lists(
    st.tuples(
        st.floats(0.0, 2.0),  # after the one before
        st.integers(0, NUM_MODELS - 1),
        st.floats(0.01, LONGEST_S),
    ),
    max_size=80,
)


@given(REQUESTS)
def test_nobody_starves(requests: list[tuple[float, int, float]]) -> None:
    rules = ScheduleRules()
    server = Server([slot(str(i)) for i in range(NUM_MODELS)])
    for gap_s, index, length_s in requests:
        server.advance(server.now_s + gap_s, rules)
        server.ask(index, length_s)
    round_s = LOAD_S + LOAD_S + LONGEST_S + UNLOAD_S  # load, turn, last requests, unload
    server.advance(server.now_s + (NUM_MODELS + 1) * round_s, rules)
    assert len(server.waits_s) == len(requests)
    assert max(server.waits_s, default=0.0) <= (NUM_MODELS + 1) * round_s


def test_a_crowd_on_one_model_does_not_keep_another_waiting() -> None:
    rules = ScheduleRules()
    server = Server([slot("a"), slot("b")])
    server.ask(0, 1.0)
    for i in range(200):  # never a moment without a request
        server.advance(server.now_s + 0.2, rules)
        server.ask(0, LONGEST_S)
        if i == 60:
            server.ask(1, 1.0)
    assert server.slots[1].loaded_s > 0.0
    assert max(server.waits_s) <= 3 * (LOAD_S + LOAD_S + LONGEST_S + UNLOAD_S)


@pytest.mark.parametrize("is_patient", [False, True])
def test_clients_that_are_refused_find_their_model_when_they_come_again(is_patient: bool) -> None:
    """Two clients, each of another model, which a rule without patience would unload between."""
    retry_after_s = 30.0
    rules = patient(ScheduleRules(), retry_after_s) if is_patient else ScheduleRules()
    server = Server([slot("a"), slot("b")])
    num_served = [0, 0]
    for i in range(200):
        target = server.slots[i % 2]
        if target.can_grant:
            num_served[i % 2] += 1
            target.used_s = server.now_s
        elif target.refused_since_s is None:
            target.refused_since_s = server.now_s
        server.advance(server.now_s + retry_after_s / 2, rules)
    assert (min(num_served) > 30) == is_patient
