"""Choice of the model to load or to unload next: one at a time, in the order of their demand.

A model whose turn is over takes no further requests once another one is wanted and does not fit
beside it; it is unloaded when its running requests have ended. A turn lasts as long as the load
did, so that under any load half of the time is computation, and every wait has a bound: a turn,
the requests running at its end, and a load, for each model that was wanted earlier. Pure: the
caller holds the lock and does the work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hybridmoe.serve.model_slot import ModelSlot

__all__ = ["Load", "ScheduleRules", "Step", "Unload", "Wait", "next_step", "patient"]

_QUIET_S = 1.0  # a client that sends its next request within it keeps its turn


class Load(NamedTuple):
    """Load the model of this slot."""

    slot: ModelSlot


class Unload(NamedTuple):
    """Unload the model of this slot, which no request uses."""

    slot: ModelSlot
    is_idle: bool  # for no other model, but because it was not used


class Wait(NamedTuple):
    """Do nothing until something changes, or for so long."""

    seconds: float | None


Step = Load | Unload | Wait


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRules:
    """Rules: the models that may be loaded together, and how long each is kept."""

    fit: Callable[[Sequence[str]], bool] = lambda names: len(names) < 2  # by name
    idle_unload_s: float | None = None  # None: only to make room
    min_turn_s: float = 0.0
    quiet_s: float = _QUIET_S  # without a request, after which a turn ends early


def patient(rules: ScheduleRules, retry_after_s: float) -> ScheduleRules:
    """Change rules for clients that are refused: a turn waits until they can have come again."""
    return replace(rules, min_turn_s=2.0 * retry_after_s, quiet_s=2.0 * retry_after_s)


def next_step(slots: Sequence[ModelSlot], now_s: float, rules: ScheduleRules) -> Step:
    """Choose what to do now. Marks the slots that are to take no further requests."""
    loaded = [slot for slot in slots if slot.status == "loaded"]
    for slot in loaded:
        slot.is_leaving = False
    wanted = [
        (since_s, slot)
        for slot in slots
        if slot.status in ("unloaded", "failed") and (since_s := slot.wanted_since_s) is not None
    ]
    if wanted:
        _, slot = min(wanted, key=lambda pair: pair[0])
        return _make_room(slot, loaded, now_s, rules)
    return _unload_idle(loaded, now_s, rules)


def _make_room(
    wanted: ModelSlot, loaded: Sequence[ModelSlot], now_s: float, rules: ScheduleRules
) -> Step:
    waits = []
    victims = _victims(wanted, loaded, now_s, rules)
    for slot in victims:
        if (left_s := _turn_left_s(slot, now_s, rules)) > 0.0:
            waits.append(left_s)
            continue
        slot.is_leaving = True
        if not slot.num_leases:
            return Unload(slot, is_idle=False)
    return Wait(min(waits, default=None)) if victims else Load(wanted)


def _victims(
    wanted: ModelSlot, loaded: Sequence[ModelSlot], now_s: float, rules: ScheduleRules
) -> list[ModelSlot]:
    """Choose the models that have to go, those first that were used longest ago."""
    victims: list[ModelSlot] = []
    stay = sorted(loaded, key=lambda slot: now_s if slot.num_leases else slot.used_s)
    while stay and not _fit([*stay, wanted], rules):
        victims.append(stay.pop(0))
    return victims


def _fit(slots: Sequence[ModelSlot], rules: ScheduleRules) -> bool:
    if any(slot.must_be_alone for slot in slots):
        return len(slots) < 2
    return rules.fit([slot.source.name for slot in slots])


def _turn_left_s(slot: ModelSlot, now_s: float, rules: ScheduleRules) -> float:
    """Time that a model has left before it must make room; 0 if its turn is over."""
    turn_s = max(slot.load_duration_s, rules.min_turn_s)
    left_s = slot.loaded_s + turn_s - now_s
    if not slot.num_leases and not slot.waiters:
        left_s = min(left_s, slot.used_s + rules.quiet_s - now_s)
    return max(0.0, left_s)


def _unload_idle(loaded: Sequence[ModelSlot], now_s: float, rules: ScheduleRules) -> Step:
    if rules.idle_unload_s is None:
        return Wait(None)
    waits = []
    for slot in loaded:
        if slot.num_leases:
            continue
        left_s = slot.used_s + rules.idle_unload_s - now_s
        if left_s <= 0.0:
            return Unload(slot, is_idle=True)
        waits.append(left_s)
    return Wait(min(waits, default=None))
