"""Which experts are in memory, and which on their way there from the file.

Knows nothing of who stays, or why: `request` and `release` are the caller's decisions. Belongs to
one thread; only the reads themselves are others'.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hybridmoe.errors import DiskError
from hybridmoe.experts.disk.arena import Slots
from hybridmoe.experts.disk.expert_layout import ExpertLayout
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.read_queue import Ticket

__all__ = ["ExpertStore"]


class ExpertStore:
    """Buffers by key: `layer * num_experts + expert`; the first layer with experts is 0."""

    def __init__(self, layout: ExpertLayout, reader: FileReader, num_buffers: int) -> None:
        """Errors: ConfigError where there is no memory for the buffers."""
        self._layout = layout
        self._reader = reader
        self._slots = Slots(num_buffers, layout.piece_bytes)
        # Where each expert's gate, up and down begin; 0 = not in memory.
        self.addresses: NDArray[np.int64] = np.zeros(
            (layout.num_layers, 3, layout.num_experts), np.int64
        )
        self._there: dict[int, int] = {}  # key -> buffer
        self._coming: dict[int, tuple[Ticket, int]] = {}
        self._unwanted: set[int] = set()  # of those: to be dropped when they arrive
        self.bytes_read = 0
        self.wait_s = 0.0

    @property
    def num_there(self) -> int:
        return len(self._there)

    @property
    def num_coming(self) -> int:
        return len(self._coming)

    def is_there(self, key: int) -> bool:
        return key in self._there

    def is_coming(self, key: int) -> bool:
        return key in self._coming and key not in self._unwanted

    def request(self, key: int, *, is_urgent: bool = True) -> bool:
        """See to it that an expert comes; False where no buffer is free for it now."""
        if key in self._there:
            return True
        if key in self._coming:
            self._unwanted.discard(key)
            if is_urgent:
                self._reader.hurry(self._coming[key][0])
            return True
        if self._slots.num_free == 0:
            return False
        buffer = self._slots.take()
        pieces = self._layout.pieces(*divmod(key, self._layout.num_experts))
        ticket = Ticket(key, pieces, self._slots.memory(buffer))
        self._coming[key] = (ticket, buffer)
        self._reader.submit(ticket, is_urgent=is_urgent)
        return True

    def release(self, key: int) -> bool:
        """Give an expert's buffer back, now or when its read ends. True if it was never read."""
        buffer = self._there.pop(key, None)
        if buffer is not None:
            layer, expert = divmod(key, self._layout.num_experts)
            self.addresses[layer, :, expert] = 0
            self._slots.give_back(buffer)
        elif key in self._coming:
            ticket, buffer = self._coming[key]
            if self._reader.cancel(ticket):
                del self._coming[key]
                self._slots.give_back(buffer)
                return True
            self._unwanted.add(key)
        return False

    def settle(self, *, wait: bool) -> dict[int, DiskError | None]:
        """Take in the reads that have ended: key -> what went wrong.

        wait: for at least one; something has to be coming.
        """
        ended: dict[int, DiskError | None] = {}
        assert self._coming or not wait, "nothing is coming"
        started = time.perf_counter()
        while (ticket := self._reader.take(wait=wait and not ended)) is not None:
            ended[ticket.key] = ticket.error
            self._arrive(ticket)
        if wait:
            self.wait_s += time.perf_counter() - started
        return ended

    def load(self, keys: Sequence[int], progress: Callable[[int], None]) -> None:
        """Read experts, for which there have to be buffers, and wait for them.

        Calls progress(bytes) as they come. Errors: DiskError.
        """
        before = self.bytes_read
        for key in keys:
            is_room = self.request(key)
            assert is_room, len(keys)
        errors: list[DiskError] = []
        while self._coming:
            errors += filter(None, self.settle(wait=True).values())
            progress(self.bytes_read - before)
            before = self.bytes_read
        if errors:
            raise errors[0]

    def drain(self) -> None:
        """Wait for all that is coming, whether it comes or not."""
        while self._coming:
            self.settle(wait=True)

    def _arrive(self, ticket: Ticket) -> None:
        key = ticket.key
        _, buffer = self._coming.pop(key)
        if ticket.error is None:
            self.bytes_read += sum(piece.num_bytes for piece in ticket.pieces)
        if ticket.error is not None or key in self._unwanted:
            self._unwanted.discard(key)
            self._slots.give_back(buffer)
            return
        self._there[key] = buffer
        layer, expert = divmod(key, self._layout.num_experts)
        for i, (start, piece) in enumerate(
            zip(self._slots.addresses(buffer), ticket.pieces, strict=True)
        ):
            self.addresses[layer, i, expert] = start + piece.skew
