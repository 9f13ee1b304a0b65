"""VRAM expert slots: their memory, their cache, and the GPU's part of a decode step."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.device.streams import Stream
from hybridmoe.errors import ConfigError, ShapeError
from hybridmoe.experts.gpu.expert_cache import GpuExpertCache
from hybridmoe.experts.gpu.ram_tier import RamTier
from hybridmoe.experts.gpu.slot_downloader import SlotDownloader
from hybridmoe.experts.gpu.slot_uploader import SlotUploader
from hybridmoe.experts.policy import Policy
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.kernels.triton.expert_ffn import SlotLayout, expert_ffn
from hybridmoe.planning.vram_plan import uploads_per_step as default_uploads

__all__ = ["SlotPool", "slot_layouts"]


def slot_layouts(experts: RoutedExperts) -> list[SlotLayout]:
    """Lay out each layer's experts as in the file; `packed` are the layouts of slots.

    Errors: ConfigError for a type without a GPU kernel.
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
    """Slots of one size, each of which takes any expert. Not thread-safe, except `cache.stats`."""

    def __init__(
        self,
        experts: RoutedExperts,
        num_slots: int,
        main: Stream,
        copy: Stream,
        device: torch.device,
        *,
        uploads_per_step: int | None = None,
        policy: Policy | None = None,
        ram: RamTier | None = None,
    ) -> None:
        """main: stream of the steps. copy: stream of the uploads alone.

        uploads_per_step: None = as many as the default policy swaps. ram: tier that experts come
        from; None = the memory map.

        Errors: ConfigError, as `slot_layouts`; RuntimeError (torch's) if there is no memory.
        """
        self._layouts = [layout.packed for layout in slot_layouts(experts)]
        self._index_of = experts.index_of
        slot_bytes = max(layout.slot_bytes for layout in self._layouts)
        self.slots = torch.empty((num_slots, slot_bytes), dtype=torch.uint8, device=device)
        shape = experts.cache_shape(num_slots)
        if uploads_per_step is None:
            uploads_per_step = default_uploads(shape.num_layers, shape.top_k)
        step_bytes = uploads_per_step * slot_bytes
        self.uploader = SlotUploader(
            experts,
            self._layouts,
            self.slots,
            main,
            copy,
            ring_bytes=step_bytes,
            bytes_of=None if ram is None else ram.bytes_of,
        )
        if ram is not None:
            ram.downloader = SlotDownloader(
                experts, self._layouts, self.slots, copy, num_buffers=uploads_per_step
            )
        self.cache = GpuExpertCache(
            shape,
            self.uploader,
            main,
            device,
            uploads_per_step=uploads_per_step,
            policy=policy,
            below=ram,
        )

    def slot_of(self, layer: int) -> NDArray[np.int32]:
        """View a layer's slots (E,) int32; -1 = not resident. Changes between steps only."""
        return self.cache.table.numpy()[self._index_of[layer], :-1]

    def compute(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Queue the sum (T, H) f32 of the resident experts, of up to 16 tokens.

        Shapes as `ExpertBackend.submit`. The queued work does not depend on what is resident.
        """
        index = self._index_of[layer]
        slots = self.cache.device_table[index][ids]  # id -1 takes the last column, -1
        return expert_ffn(x, slots, weights, self.slots, self._layouts[index])

    def close(self) -> None:
        """End the uploads. Idempotent."""
        self.cache.close()
