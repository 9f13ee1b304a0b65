"""Host and device memory of the CPU's part of hybrid steps."""

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.device.streams import host_empty
from hybridmoe.experts.routed_experts import RoutedExperts

__all__ = ["StagedSubmission", "StepMemory"]


class StagedSubmission:
    """Memory of one submission: what the CPU reads and writes, and its result on the card."""

    def __init__(self, max_tokens: int, hidden: int, top_k: int, device: torch.device) -> None:
        def empty(size: int) -> Tensor:
            return host_empty((max_tokens, size), torch.float32, device)

        self.x, self.weights, self.out = empty(hidden), empty(top_k), empty(hidden)
        self.result = torch.empty((max_tokens, hidden), dtype=torch.float32, device=device)
        self.owner: int | None = None  # the layer whose result is owed


class StepMemory:
    """Of steps of up to `max_tokens` tokens; it stays where it is, for graphs."""

    def __init__(
        self,
        max_tokens: int,
        experts: RoutedExperts,
        device: torch.device,
        *,
        num_parts: int,
        num_lent: int,
    ) -> None:
        """num_parts: submissions of a layer. num_lent: of all layers, that are owed at once."""
        self.max_tokens, self.num_parts = max_tokens, num_parts
        self._experts = experts
        top_k, hidden = experts.top_k, experts.hidden
        shape = (experts.num_layers, num_parts, max_tokens, top_k)
        self.ids = host_empty(shape, torch.int32, device)
        self._lent = [StagedSubmission(max_tokens, hidden, top_k, device) for _ in range(num_lent)]
        self.calls: dict[tuple[int, int, int], _C.HostExpertCall] = {}

    def take_back(self) -> None:
        """Nothing is owed any more."""
        for lent in self._lent:
            lent.owner = None

    def next_part(self, index: int) -> int:
        """Which submission of this layer is next: the second where the first is owed still."""
        return int(bool(self._lent) and self._of(index, 0).owner == index)

    def lend(self, index: int, part: int) -> StagedSubmission:
        """The memory of a submission, always the same."""
        assert part < self.num_parts, (index, part)
        lent = self._of(index, part)
        assert lent.owner is None, f"layer {lent.owner} is owed, and {index} is submitted"
        lent.owner = index
        return lent

    def make_call(self, index: int, part: int, slot_of: int) -> _C.HostExpertCall:
        lent, weights = self._of(index, part), self._experts.by_index[index]
        return _C.HostExpertCall(
            lent.x.data_ptr(),
            self.ids[index, part].data_ptr(),
            lent.weights.data_ptr(),
            lent.out.data_ptr(),
            self.max_tokens,
            self._experts.top_k,
            weights.gate.handle,
            weights.up.handle,
            weights.down.handle,
            slot_of,
        )

    def _of(self, index: int, part: int) -> StagedSubmission:
        return self._lent[(index * self.num_parts + part) % len(self._lent)]
