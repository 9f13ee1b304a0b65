"""Reference cache policies in lists and dictionaries, after the papers that describe them."""

from collections import Counter
from fractions import Fraction

import numpy as np
from list_policies import ReferencePolicy, oldest

from hybridmoe.experts.policy import CacheShape

__all__ = ["Arc", "LeastStale", "Lfru", "Lirs", "Random", "Static", "TinyLfu"]


class Arc(ReferencePolicy):
    """Megiddo and Modha 2003, figure 4; lists have the most recent key at their end."""

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.t1: list[int] = []
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []
        self.p = 0

    def touch(self, key: int) -> None:
        (self.t1 if key in self.t1 else self.t2).remove(key)
        self.t2.append(key)

    def insert(self, key: int) -> None:
        for ghosts in (self.b1, self.b2):
            if key in ghosts:
                ghosts.remove(key)
                self.t2.append(key)
                return
        self.t1.append(key)

    def replace(self, key: int, pinned: set[int]) -> int:
        wants_t1 = self.t1 and (
            len(self.t1) > self.p or (key in self.b2 and len(self.t1) == self.p)
        )
        pairs = [(self.t1, self.b1), (self.t2, self.b2)]
        for pages, ghosts in pairs if wants_t1 else pairs[::-1]:
            if (found := oldest(pages, pinned)) is not None:
                pages.remove(found)
                ghosts.append(found)
                return found
        raise AssertionError("all are in use")

    def victim(self, key: int, pinned: set[int]) -> int | None:
        slots = self.shape.num_slots
        if key in self.b1:
            self.p = min(slots, self.p + max(1, len(self.b2) // len(self.b1)))
        elif key in self.b2:
            self.p = max(0, self.p - max(1, len(self.b1) // len(self.b2)))
        elif len(self.t1) + len(self.b1) == slots:
            if len(self.t1) == slots:
                found = oldest(self.t1, pinned)
                assert found is not None
                self.t1.remove(found)
                return found
            del self.b1[0]
        elif len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2) == 2 * slots:
            del self.b2[0]
        return self.replace(key, pinned)


class Lirs(ReferencePolicy):
    """Jiang and Zhang 2002, section 3.3; stack and queue have the most recent key at their end."""

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.most_low = shape.num_slots - max(1, shape.num_slots // 100)
        self.low: set[int] = set()
        self.stack: list[int] = []
        self.queue: list[int] = []

    def prune(self) -> None:
        while self.stack and self.stack[0] not in self.low:
            del self.stack[0]

    def use(self, key: int) -> None:
        was_in_stack = key in self.stack
        if was_in_stack:
            self.stack.remove(key)
        self.stack.append(key)
        if key not in self.low:
            if key in self.queue:
                self.queue.remove(key)
            is_filling = key not in self.seen and len(self.low) < self.most_low
            if was_in_stack or is_filling:
                self.low.add(key)
                if len(self.low) > self.most_low:
                    bottom = next(other for other in self.stack if other in self.low)
                    self.low.remove(bottom)
                    self.queue.append(bottom)
                    self.stack.remove(bottom)
            else:
                self.queue.append(key)
        self.prune()

    @property
    def seen(self) -> set[int]:
        return self.low | set(self.queue)

    touch = insert = use

    def victim(self, key: int, pinned: set[int]) -> int | None:
        if (found := oldest(self.queue, pinned)) is not None:
            self.queue.remove(found)
        return found


class TinyLfu(ReferencePolicy):
    """Einziger, Friedman and Manes 2017, with counts for all keys instead of a sketch."""

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.most_window = max(1, shape.num_slots // 100)
        self.most_protected = (shape.num_slots - self.most_window) * 4 // 5
        self.window: list[int] = []
        self.probation: list[int] = []
        self.protected: list[int] = []
        self.counts: Counter[int] = Counter()
        self.sample = 0

    def note(self, layer: int, keys: list[int]) -> None:
        self.counts.update(keys)
        self.sample += len(keys)
        if self.sample >= 10 * self.shape.num_slots:
            self.sample //= 2
            self.counts = Counter({key: count // 2 for key, count in self.counts.items()})

    def touch(self, key: int) -> None:
        if key in self.probation:
            self.probation.remove(key)
            self.protected.append(key)
            if len(self.protected) > self.most_protected:
                self.probation.append(self.protected.pop(0))
            return
        part = self.window if key in self.window else self.protected
        part.remove(key)
        part.append(key)

    def insert(self, key: int) -> None:
        self.window.append(key)
        if len(self.window) > self.most_window:
            self.probation.append(self.window.pop(0))

    def victim(self, key: int, pinned: set[int]) -> int | None:
        candidate = oldest(self.window, pinned)
        found = oldest(self.probation, pinned)
        if found is None:
            found = oldest(self.protected, pinned)
        if found is None or (
            candidate is not None and self.counts[candidate] <= self.counts[found]
        ):
            found = candidate
        assert found is not None
        for part in (self.window, self.probation, self.protected):
            if found in part:
                part.remove(found)
        return found


class Lfru(ReferencePolicy):
    """Looks at every resident."""

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.uses: dict[int, int] = {}
        self.last: dict[int, tuple[int, int]] = {}  # access, order
        self.order = 0

    def touch(self, key: int) -> None:
        self.order += 1
        self.uses[key] += 1
        self.last[key] = (self.clock, self.order)

    def insert(self, key: int) -> None:
        self.uses[key] = 0
        self.touch(key)

    def victim(self, key: int, pinned: set[int]) -> int | None:
        def rank(other: int) -> tuple[Fraction, int, int]:
            access, order = self.last[other]
            return Fraction(self.uses[other], self.clock - access), self.uses[other], order

        return min(self.resident - pinned, key=rank)


class LeastStale(ReferencePolicy):
    """Looks at every resident."""

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.step = -1
        self.last: dict[int, tuple[int, int]] = {}  # step, order
        self.order = 0

    def note(self, layer: int, keys: list[int]) -> None:
        self.step += layer == 0

    def touch(self, key: int) -> None:
        self.order += 1
        self.last[key] = (self.step, self.order)

    insert = touch

    def victim(self, key: int, pinned: set[int]) -> int | None:
        layers, experts = self.shape.num_layers, self.shape.num_experts

        def rank(other: int) -> tuple[int, int, int]:
            ahead = (other // experts - key // experts) % layers or layers  # until it comes again
            is_behind = other // experts <= key // experts
            step, order = self.last[other]
            return (0 if step == self.step else 2 if is_behind else 1), ahead, -order

        return max(self.resident - pinned, key=rank)


class Static(ReferencePolicy):
    def victim(self, key: int, pinned: set[int]) -> int | None:
        return None


class Random(ReferencePolicy):
    """Park and Miller 1988; the last place fills the gap that a victim leaves."""

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.lot = int(np.random.default_rng(0).integers(1, 2147483647))
        self.places: list[int] = []

    def insert(self, key: int) -> None:
        self.places.append(key)

    def victim(self, key: int, pinned: set[int]) -> int | None:
        while True:
            self.lot = self.lot * 48271 % 2147483647
            place = self.lot % len(self.places)
            if self.places[place] not in pinned:
                found = self.places[place]
                self.places[place] = self.places[-1]
                del self.places[-1]
                return found
