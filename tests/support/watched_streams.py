"""Streams that find races: two uses of the same memory, one a write, that nothing puts in order.

Every stream, and the thread that gives them work, has a clock of all of them (Lamport's, one number
each). Giving work to a stream orders it after what the thread did before; a wait takes over the
other's clock. Work itself is done at once.
"""

from dataclasses import dataclass

from fake_streams import FakeStream
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.streams import Event, Stream

Clock = dict[str, int]
Span = tuple[int, int]  # addresses


@dataclass(frozen=True)
class Use:
    """Of memory, by a stream (or "thread") at its clock's time."""

    who: str
    when: Clock
    span: Span
    is_write: bool
    what: str


class Watch:
    """All streams of a test, and what they used."""

    def __init__(self) -> None:
        self.clocks: dict[str, Clock] = {"thread": {}}
        self.uses: list[Use] = []
        self.calls: dict[int, tuple[list[Tensor], list[Tensor]]] = {}  # a call's reads, writes

    def tick(self, who: str) -> Clock:
        clock = self.clocks[who]
        clock[who] = clock.get(who, 0) + 1
        return dict(clock)

    def take_over(self, who: str, clock: Clock) -> None:
        mine = self.clocks[who]
        for name, time in clock.items():
            mine[name] = max(mine.get(name, 0), time)

    def note(
        self, who: str, what: str, reads: tuple[Tensor, ...] = (), writes: tuple[Tensor, ...] = ()
    ) -> None:
        """A use, at once; raises AssertionError where it races with one before."""
        if who != "thread":
            self.take_over(who, self.tick("thread"))
        when = self.tick(who)
        for tensors, is_write in ((reads, False), (writes, True)):
            for t in tensors:
                span = (t.data_ptr(), t.data_ptr() + t.nbytes)
                self._check(Use(who, when, span, is_write, what))

    def _check(self, use: Use) -> None:
        for old in self.uses:
            overlaps = old.span[0] < use.span[1] and use.span[0] < old.span[1]
            if overlaps and (old.is_write or use.is_write) and old.who != use.who:
                is_before = old.when[old.who] <= use.when.get(old.who, 0)
                assert is_before, f"{old.who} {old.what} and {use.who} {use.what} race"
        self.uses.append(use)


class WatchedEvent:
    def __init__(self, watch: Watch, name: str, clock: Clock) -> None:
        self.watch, self.name, self.clock = watch, name, clock

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        self.watch.take_over("thread", self.clock)


class WatchedStream:
    """`Stream`. deaf: forgets to wait."""

    def __init__(self, watch: Watch, name: str, *, is_deaf: bool = False) -> None:
        self.watch, self.name, self.is_deaf = watch, name, is_deaf
        self._inner = FakeStream(is_lazy=False)
        self.is_captured = False
        self.last_copied: Tensor | None = None  # target
        watch.clocks[name] = {}

    def is_idle(self) -> bool:
        return True

    def copy(self, dst: Tensor, src: Tensor) -> None:
        self.watch.note(self.name, "copy", (src,), (dst,))
        self._inner.copy(dst, src)
        self.last_copied = dst

    def launch(self, call: _C.HostCall) -> None:
        reads, writes = self.watch.calls[id(call)]
        self.watch.note(self.name, "call", tuple(reads), tuple(writes))
        self._inner.launch(call)

    def wait_for(self, other: Stream | Event) -> None:
        if self.is_deaf:
            return
        self.watch.take_over(self.name, self.watch.tick("thread"))
        event = other if isinstance(other, WatchedEvent) else other.record()  # type: ignore
        self.watch.take_over(self.name, event.clock)

    def record(self) -> WatchedEvent:
        return WatchedEvent(self.watch, self.name, self.watch.tick(self.name))

    def synchronize(self) -> None:
        self.record().wait()
