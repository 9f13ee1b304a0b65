"""Reference cache policies in lists: the load-on-miss loop, and policies of one or two queues."""

from collections import Counter, defaultdict

from hybridmoe.experts.policy import CacheShape

__all__ = [
    "Clock",
    "Fifo",
    "GlobalLru",
    "Lru",
    "QuotaLru",
    "ReferencePolicy",
    "Slru",
    "TwoQ",
    "oldest",
]


class ReferencePolicy:
    """The load-on-miss loop; a subclass chooses the victim and notes each use."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.resident: set[int] = set()
        self.clock = 0

    def note(self, layer: int, keys: list[int]) -> None: ...
    def touch(self, key: int) -> None: ...
    def insert(self, key: int) -> None: ...
    def victim(self, key: int, pinned: set[int]) -> int | None:
        raise NotImplementedError

    def on_access(
        self, layer: int, keys: list[int], is_prefill: bool
    ) -> tuple[list[bool], list[int], list[int]]:
        self.clock += 1
        hits = [key in self.resident for key in keys]
        self.note(layer, keys)
        for key, is_hit in zip(keys, hits, strict=True):
            if is_hit:
                self.touch(key)
        admitted: list[int] = []
        evicted: list[int] = []
        for key, is_hit in zip(keys, hits, strict=True):
            if is_hit:
                continue
            if len(self.resident) == self.shape.num_slots:
                if is_prefill or self.resident <= set(keys):
                    continue
                leaving = self.victim(key, set(keys))
                if leaving is None:
                    continue
                self.resident.remove(leaving)
                evicted.append(leaving)
            self.resident.add(key)
            self.insert(key)
            admitted.append(key)
        return hits, admitted, evicted


def oldest(queue: list[int], pinned: set[int]) -> int | None:
    return next((key for key in queue if key not in pinned), None)


class GlobalLru(ReferencePolicy):
    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.queue: list[int] = []

    def touch(self, key: int) -> None:
        self.queue.remove(key)
        self.queue.append(key)

    def insert(self, key: int) -> None:
        self.queue.append(key)

    def victim(self, key: int, pinned: set[int]) -> int | None:
        found = oldest(self.queue, pinned)
        assert found is not None
        self.queue.remove(found)
        return found


class Fifo(GlobalLru):
    def touch(self, key: int) -> None: ...


class Clock(GlobalLru):
    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.used: set[int] = set()

    def touch(self, key: int) -> None:
        self.used.add(key)

    def victim(self, key: int, pinned: set[int]) -> int | None:
        while self.queue[0] in self.used | pinned:
            self.used.discard(self.queue[0])
            self.queue.append(self.queue.pop(0))
        return self.queue.pop(0)


class Lru(ReferencePolicy):
    """Layer-aware: looks at every resident, where the policy looks at the oldest of each layer."""

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.visits = [0] * shape.num_layers
        # Visit of the layer, order; never used = visit 0.
        self.last: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
        self.order = 0

    def note(self, layer: int, keys: list[int]) -> None:
        self.visits[layer] += 1

    def touch(self, key: int) -> None:
        self.order += 1
        self.last[key] = (self.visits[key // self.shape.num_experts], self.order)

    insert = touch

    def victim(self, key: int, pinned: set[int]) -> int | None:
        layers, experts = self.shape.num_layers, self.shape.num_experts
        here = key // experts
        counts = Counter(other // experts for other in self.resident)
        spare = self.shape.num_slots % layers
        shares = [self.shape.num_slots // layers + (layer < spare) for layer in range(layers)]

        def rank(other: int) -> tuple[int, int, int]:
            layer = other // experts
            passed_over = self.visits[layer] - self.last[other][0]
            return passed_over, (layer - here) % layers or layers, -self.last[other][1]

        free = self.resident - pinned
        stale = [other for other in free if rank(other)[0] > 0]
        rich = [o for o in free if counts[o // experts] > shares[o // experts]]
        if stale:
            return max(stale, key=rank)
        if rich and counts[here] < shares[here]:
            return max(rich, key=rank)
        return None

    def note_above(self, layer: int, keys: list[int]) -> None:
        for key in keys:
            self.last[key] = (self.visits[layer], 0)

    def discard(self, key: int) -> bool:
        is_resident = key in self.resident
        self.resident.discard(key)
        return is_resident

    def offer(self, key: int) -> tuple[bool, int]:
        def age(other: int) -> tuple[int, int, int]:
            layer = other // self.shape.num_experts
            return self.visits[layer] - self.last[other][0], layer, -self.last[other][1]

        leaving = -1
        if len(self.resident) == self.shape.num_slots:
            leaving = max(self.resident, key=age, default=-1)
            if leaving < 0 or age(leaving)[0] <= age(key)[0]:
                return False, -1
            self.resident.remove(leaving)
        # Older than all of its layer that were used in its last visit.
        self.order += 1
        self.last[key] = (self.last[key][0], -self.order)
        self.resident.add(key)
        return True, leaving


class QuotaLru(ReferencePolicy):
    """One plain LRU for each layer."""

    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        spare = shape.num_slots % shape.num_layers
        self.parts = [
            GlobalLru(shape._replace(num_slots=shape.num_slots // shape.num_layers + (i < spare)))
            for i in range(shape.num_layers)
        ]

    def on_access(
        self, layer: int, keys: list[int], is_prefill: bool
    ) -> tuple[list[bool], list[int], list[int]]:
        return self.parts[layer].on_access(layer, keys, is_prefill)


class Slru(ReferencePolicy):
    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.probation: list[int] = []
        self.protected: list[int] = []

    def touch(self, key: int) -> None:
        (self.protected if key in self.protected else self.probation).remove(key)
        self.protected.append(key)
        if len(self.protected) > self.shape.num_slots * 4 // 5:
            self.probation.append(self.protected.pop(0))

    def insert(self, key: int) -> None:
        self.probation.append(key)

    def victim(self, key: int, pinned: set[int]) -> int | None:
        for part in (self.probation, self.protected):
            if (found := oldest(part, pinned)) is not None:
                part.remove(found)
                return found
        return None


class TwoQ(ReferencePolicy):
    def __init__(self, shape: CacheShape) -> None:
        super().__init__(shape)
        self.new: list[int] = []
        self.lru: list[int] = []
        self.ghosts: list[int] = []

    def touch(self, key: int) -> None:
        if key in self.lru:
            self.lru.remove(key)
            self.lru.append(key)

    def insert(self, key: int) -> None:
        if key in self.ghosts:
            self.ghosts.remove(key)
            self.lru.append(key)
        else:
            self.new.append(key)

    def victim(self, key: int, pinned: set[int]) -> int | None:
        parts = [self.lru, self.new]
        if len(self.new) > max(1, self.shape.num_slots // 4):
            parts = [self.new, self.lru]
        for part in parts:
            if (found := oldest(part, pinned)) is not None:
                part.remove(found)
                if part is self.new:
                    self.ghosts.append(found)
                    del self.ghosts[: -max(1, self.shape.num_slots // 2)]
                return found
        return None
