"""The CPU as a `Device`: the native kernels."""

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from hybridmoe.device.interface import Matrix, Pages, Tables
from hybridmoe.device.pending import Pending, Ready
from hybridmoe.kernels import indexer, ops, paged_mla
from hybridmoe.kernels.expanded_attention import expanded_attention
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import BlockTables, KvPages, Span

__all__ = ["CpuDevice", "quantized"]

_kept = threading.local()


class CpuDevice:
    """The CPU. A token's bits depend neither on the rest of the batch nor on threads."""

    type = "cpu"
    is_capturable = False
    rms_norm = staticmethod(ops.rms_norm)
    rotate_ = staticmethod(ops.rotate_)
    route = staticmethod(ops.route)

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

    def host_bytes(self, size: int) -> Tensor:
        return self.empty_bytes(size)

    def synchronize(self) -> None:
        return

    def pages(self, data: Tensor, type: str, dim: int, index_keys: Pages | None = None) -> KvPages:
        assert index_keys is None or isinstance(index_keys, KvPages)
        return KvPages(data, type, dim, index_keys)

    def tables(self, spans: Sequence[Span]) -> BlockTables:
        return BlockTables(spans)

    def linear(self, x: Tensor, w: Matrix, out: Tensor | None = None) -> Tensor:
        return ops.linear(x, quantized(w), out)

    def dense_ffn(
        self, x: Tensor, gate: Matrix, up: Matrix, down: Matrix, base: Pending | None = None
    ) -> Tensor:
        matrices = quantized(gate), quantized(up), quantized(down)
        if base is None or isinstance(base, Ready):
            return ops.dense_ffn(x, *matrices, None if base is None else base.result())
        return base.add_to(ops.dense_ffn(x, *matrices))  # waits as late as it can

    def store_kv(self, rows: Tensor, pages: Pages, tables: Tables) -> None:
        assert isinstance(pages, KvPages) and isinstance(tables, BlockTables)
        paged_mla.store_kv(rows, pages, tables)

    def select_positions(
        self, queries: Tensor, weights: Tensor, index_keys: Pages, tables: Tables, top_k: int
    ) -> Tensor:
        assert isinstance(index_keys, KvPages) and isinstance(tables, BlockTables)
        return indexer.select_positions(queries, weights, index_keys, tables, top_k)

    def attend(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        k_b: Matrix,
        v_b: Matrix,
        pages: Pages,
        tables: Tables,
        scale: float,
        selected: Tensor | None = None,
    ) -> Tensor:
        """Attend with expanded keys and values where spans say so, else in latent space."""
        assert isinstance(pages, KvPages) and isinstance(tables, BlockTables)
        k_b, v_b = quantized(k_b), quantized(v_b)
        heads = q_nope.new_empty(q_nope.shape[0], v_b.batch, v_b.rows)  # (T, N, V)
        for first, part, is_expanded in tables.parts():
            rows = slice(first, first + part.num_tokens)
            args = q_nope[rows], q_rope[rows], k_b, v_b, pages, part, scale, heads[rows]
            if is_expanded:  # these see all positions, also with a selection
                expanded_attention(*args)
            else:
                _attend_latent(*args, None if selected is None else selected[rows])
        return heads


def _attend_latent(
    q_nope: Tensor,
    q_rope: Tensor,
    k_b: QuantMatrix,
    v_b: QuantMatrix,
    pages: KvPages,
    tables: BlockTables,
    scale: float,
    out: Tensor,
    selected: Tensor | None = None,
) -> None:
    """Attend in latent space: k_b brings queries there, v_b brings results back."""
    latents = _latents(k_b.batch, q_nope.shape[0], k_b.rows)
    q_latent = ops.batched_linear(q_nope.transpose(0, 1), k_b, out=latents[0])  # (N, T, R)
    mixed = paged_mla.latent_attention(
        q_latent, q_rope, pages, tables, scale, selected, out=latents[1]
    )  # (N, T, R)
    ops.batched_linear(mixed, v_b, out=out.transpose(0, 1))


def _latents(*shape: int) -> Tensor:
    """Return two tensors in memory that this thread keeps.

    Of prompts they are so large that the C library would map and unmap them in every layer, on one
    thread.
    """
    count = 2 * math.prod(shape)
    kept = getattr(_kept, "latents", None)
    if kept is None or kept.numel() < count:
        kept = _kept.latents = torch.empty(count, dtype=torch.float32, device="cpu")
    return kept[:count].view(2, *shape)


def quantized(w: Matrix) -> QuantMatrix:
    """Return a matrix that `CpuDevice.matrix` made as what it is."""
    assert isinstance(w, QuantMatrix), type(w)
    return w
