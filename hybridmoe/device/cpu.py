"""The CPU as a `Device`: the native kernels."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from hybridmoe.device.interface import Pending
from hybridmoe.kernels import ops, paged_mla
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import BlockTables, LatentPages, Span

__all__ = ["CpuDevice"]


class CpuDevice:
    """The native kernels. A token's bits depend neither on its neighbours nor on threads."""

    type = "cpu"
    is_capturable = False
    linear = staticmethod(ops.linear)
    rms_norm = staticmethod(ops.rms_norm)
    rotate_ = staticmethod(ops.rotate_)
    route = staticmethod(ops.route)
    store_latents = staticmethod(paged_mla.store_latents)

    def active(self) -> AbstractContextManager[object]:
        return nullcontext()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        return function

    def matrix(self, w: QuantMatrix, name: str) -> QuantMatrix:
        return w

    def upload(self, t: Tensor) -> Tensor:
        return t

    def to_host(self, t: Tensor) -> Tensor:
        return t

    def empty_bytes(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, device="cpu")

    def pages(self, data: Tensor, type: str, dim: int) -> LatentPages:
        return LatentPages(data, type, dim)

    def table(self, spans: Sequence[Span]) -> BlockTables:
        return BlockTables(spans)

    def dense_ffn(
        self,
        x: Tensor,
        gate: QuantMatrix,
        up: QuantMatrix,
        down: QuantMatrix,
        base: Pending | None = None,
    ) -> Tensor:
        return ops.dense_ffn(x, gate, up, down, None if base is None else base())

    def attend(
        self,
        plain: Tensor,
        rotated: Tensor,
        k_b: QuantMatrix,
        v_b: QuantMatrix,
        pages: LatentPages,
        table: BlockTables,
        scale: float,
    ) -> Tensor:
        """In latent space: queries are brought there by k_b, results back by v_b."""
        absorbed = ops.batched_linear(plain.transpose(0, 1), k_b)  # (N, T, R)
        mixed = paged_mla.latent_attention(absorbed, rotated, pages, table, scale)  # (N, T, R)
        heads = plain.new_empty(plain.shape[0], v_b.batch, v_b.rows)  # (T, N, V)
        ops.batched_linear(mixed, v_b, out=heads.transpose(0, 1))
        return heads
