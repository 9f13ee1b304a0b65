"""The experts that a card holds: their memory, who is in it, their part of a step of few tokens.

Has run in Triton's interpreter only.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.device.streams import Stream
from hybridmoe.errors import ConfigError, ShapeError
from hybridmoe.experts.gpu.expert_cache import GpuExpertCache
from hybridmoe.experts.gpu.slot_uploader import SlotUploader
from hybridmoe.experts.policy import Policy
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.kernels.triton.expert_ffn import SlotLayout, expert_ffn

__all__ = ["UPLOADS_PER_STEP", "SlotPool", "slot_layouts"]

# One reads as much memory as computing an expert does: 8 beside the 480 of one of Kimi K2's tokens.
UPLOADS_PER_STEP = 8


def slot_layouts(experts: RoutedExperts) -> list[SlotLayout]:
    """Where the parts of each layer's experts lie in a slot.

    Errors: ConfigError, a sentence for the user: there can be no slots for such experts.
    """
    layouts = []
    for number, (gate, up, down) in experts.layers.items():
        try:
            layouts.append(SlotLayout(gate.type, up.type, down.type, gate.cols, gate.rows))
        except ShapeError as error:
            raise ConfigError(
                f"no experts are kept in VRAM: those of blk.{number}: {error}"
            ) from None
    return layouts


class SlotPool:
    """One thread's, but for what `cache` says."""

    def __init__(
        self,
        experts: RoutedExperts,
        num_slots: int,
        main: Stream,
        copy: Stream,
        device: torch.device,
        *,
        uploads_per_step: int = UPLOADS_PER_STEP,
        policy: Policy | None = None,
    ) -> None:
        """main: where steps run. copy: a stream
        that has nothing but the uploads.

        Errors: ConfigError, as `slot_layouts`; RuntimeError (torch's) where there is no memory.
        """
        self._layouts = slot_layouts(experts)
        self._index_of = experts.index_of
        slot_bytes = max(layout.slot_bytes for layout in self._layouts)
        self.slots = torch.empty((num_slots, slot_bytes), dtype=torch.uint8, device=device)
        shape = experts.cache_shape(num_slots)
        copier = SlotUploader(experts, self._layouts, self.slots, main, copy)
        self.cache = GpuExpertCache(
            shape, copier, main, device, uploads_per_step=uploads_per_step, policy=policy
        )

    def slot_of(self, layer: int) -> NDArray[np.int32]:
        """(E) int32: where each expert of a layer, by its number in the model, is; -1 = nowhere.

        A view of what the CPU goes by, which changes between steps only.
        """
        return self.cache.table.numpy()[self._index_of[layer], :-1]

    def compute(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The sum (T, H) f32 of the experts that are here; shapes as `ExpertBackend.submit`.

        Of up to 16 tokens. Nothing but work for the card, of the same shape whoever is here.
        """
        index = self._index_of[layer]
        slots = self.cache.device_table[index][ids]  # -1 is the row's last, which has none
        return expert_ffn(x, slots, weights, self.slots, self._layouts[index])

    def close(self) -> None:
        """End the uploads. Any number of times."""
        self.cache.close()
