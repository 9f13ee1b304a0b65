"""A simulated card that compares what the tiers do with the experts in the memory map."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench._simulated_card import SimulatedCard
from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.device.pending import Pending
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.kernels.ops import expert_ffn

__all__ = ["CheckedCard", "expert_bytes"]


class CheckedCard(SimulatedCard):
    """Raises AssertionError for a wrong bit. Its results are the memory map's."""

    _num_checked = 0

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Pending:
        pending = super().submit(layer, x, ids, weights)
        if len(x) > PREFILL_TOKENS:
            want = expert_ffn(x, ids, weights, *self._experts.layers[layer])
            _assert_equal(pending.result(), want, layer)
        return pending

    def _compute(self, index: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        got = super()._compute(index, x, ids, weights)
        matrices, slots = self._experts.by_index[index], self.cache.table[index]
        rest = ids if self._is_exact else ids.masked_fill(slots[ids] >= 0, -1)
        want = expert_ffn(x, rest, weights, *matrices)
        _assert_equal(got, want, self._experts.numbers[index])
        return expert_ffn(x, ids, weights, *matrices)

    def check(self, most: int | None = None) -> None:
        """Check that each expert is in one place at most, and that slots hold the file's bytes.

        Between steps, also after one that failed. most: slots that are looked at, in turn.
        """
        native = self.ram.native
        native.check()
        kept, resident = set(self.cache.kept().tolist()), set(native.resident())
        assert not kept & resident, f"in VRAM and RAM: {kept & resident}"
        assert len(kept) <= self.cache.stats().num_slots, len(kept)
        assert len(resident) <= self.ram.plan.num_slots, len(resident)
        if self.slots is None:
            return
        keys = self.cache.resident()
        if most is not None and len(keys):
            self._num_checked += most
            keys = np.roll(keys, -self._num_checked)[:most]
        for key in keys.tolist():
            index, expert = divmod(key, self._experts.num_experts)
            want = expert_bytes(self._experts, index, expert)
            slot = self.slots[int(self.cache.table[index, expert])]
            assert slot[: len(want)].tobytes() == want.tobytes(), f"slot of {key}"


def _assert_equal(got: Tensor, want: Tensor, layer: int) -> None:
    is_equal = torch.equal(got.view(torch.int32), want.view(torch.int32))
    assert is_equal, f"blk.{layer}: not the bits of the memory map"


def expert_bytes(experts: RoutedExperts, index: int, expert: int) -> NDArray[np.uint8]:
    """Return the gate, up and down of an expert, as in the file."""
    parts = [w.data.reshape(experts.num_experts, -1)[expert] for w in experts.by_index[index]]
    return np.concatenate(parts)
