"""A CUDA GPU as a `Device`: Triton kernels, weights in the blocks of the file."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybridmoe.config import check_gpu_kv_type
from hybridmoe.device.cuda_block_tables import CudaBlockTables
from hybridmoe.device.interface import Matrix, Pages, Tables
from hybridmoe.device.pending import Pending
from hybridmoe.device.streams import host_empty
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.kernels import ops
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span
from hybridmoe.kernels.triton import elementwise, indexer, matmul
from hybridmoe.kernels.triton.decode_attention import latent_attention
from hybridmoe.kernels.triton.matrix import MATRIX_TYPES, DeviceMatrix
from hybridmoe.kernels.triton.prefill_attention import expanded_attention
from hybridmoe.kernels.triton.router import route

__all__ = ["CudaDevice", "CudaPages", "IsRight"]

IsRight = Callable[[DeviceMatrix, QuantMatrix, str], bool]  # uploaded, on the CPU, tensor's name

_ABSORBED_TOKENS = 256  # at a time: 2 N R numbers each, 64 MiB in all at Kimi K2's sizes
_CONVERTED_BYTES = 64 << 20  # as float32, at a time


@dataclass(frozen=True, slots=True)
class CudaPages:
    """KV cache pages of one layer: data (pages, 64, dim) f16 or bf16."""

    data: Tensor
    index_keys: "CudaPages | None" = None

    @property
    def dim(self) -> int:
        return self.data.shape[2]


class CudaDevice:
    """One GPU. Work is queued on torch's current stream.

    A matrix is a `DeviceMatrix`, or a `QuantMatrix` where its products are pinned to the CPU.
    """

    type = "cuda"
    rms_norm = staticmethod(elementwise.rms_norm)
    rotate_ = staticmethod(elementwise.rotate_)
    route = staticmethod(route)

    def __init__(
        self,
        device: torch.device,
        is_on_cpu: Callable[[str], bool] = lambda name: False,
        is_right: IsRight = lambda on_gpu, w, name: True,
    ) -> None:
        """is_on_cpu: true for the names of tensors whose products are pinned to the CPU; a step
        waits for each. is_right: false for an uploaded matrix whose products are wrong on the GPU:
        the CPU multiplies it too.
        """
        self.torch = device
        self._is_on_cpu, self._is_right = is_on_cpu, is_right
        self.converted: list[str] = []  # tensors whose type has no kernel here: now bf16
        self.on_cpu: list[str] = []  # tensors pinned to the CPU
        self._pool: Any = None  # memory pool of all graphs

    def active(self) -> AbstractContextManager[object]:
        """Set the thread's current GPU, which streams and kernels use."""
        return torch.cuda.device(self.torch)

    @property
    def is_capturable(self) -> bool:
        """True if no product is pinned to the CPU."""
        return not self.on_cpu

    def matrix(self, w: QuantMatrix, name: str) -> DeviceMatrix | QuantMatrix:
        """Upload `w`, unless it is pinned to the CPU. Errors: torch.OutOfMemoryError."""
        if self._is_on_cpu(name):
            self.on_cpu.append(name)
            return w
        if w.type in MATRIX_TYPES:
            on_gpu = DeviceMatrix.from_host(w, self.torch)
        else:
            on_gpu = self._converted(w)
        if not self._is_right(on_gpu, w, name):
            self.on_cpu.append(name)
            return w
        if w.type not in MATRIX_TYPES:
            self.converted.append(name)
        return on_gpu

    def upload(self, t: Tensor) -> Tensor:
        return t.to(self.torch)

    def to_host(self, t: Tensor) -> Tensor:
        return t.cpu()

    def empty_bytes(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, device=self.torch)

    def host_bytes(self, size: int) -> Tensor:
        return host_empty((size,), torch.uint8, self.torch)

    def synchronize(self) -> None:
        torch.cuda.current_stream(self.torch).synchronize()

    def pages(
        self, data: Tensor, type: str, dim: int, index_keys: Pages | None = None
    ) -> CudaPages:
        """View `data` as pages of f16 or bf16. Errors: ConfigError for another type."""
        check_gpu_kv_type(type)
        assert index_keys is None or isinstance(index_keys, CudaPages)
        return CudaPages(data.view(torch.float16 if type == "f16" else torch.bfloat16), index_keys)

    def tables(self, spans: Sequence[Span]) -> CudaBlockTables:
        return CudaBlockTables.of(spans, self.torch)

    def linear(self, x: Tensor, w: Matrix, out: Tensor | None = None) -> Tensor:
        if isinstance(w, QuantMatrix):
            return _into(out, self.upload(ops.linear(self.to_host(x), w)))
        return matmul.linear(x, _on_device(w), out=out)

    def dense_ffn(
        self, x: Tensor, gate: Matrix, up: Matrix, down: Matrix, base: Pending | None = None
    ) -> Tensor:
        hidden = elementwise.silu_mul(self.linear(x, gate), self.linear(x, up))
        y = self.linear(hidden, down)
        return y if base is None else base.add_to(y)

    def store_kv(self, rows: Tensor, pages: Pages, tables: Tables) -> None:
        assert isinstance(pages, CudaPages) and isinstance(tables, CudaBlockTables)
        elementwise.store_kv(rows, pages.data, tables.slots)

    def select_positions(
        self, queries: Tensor, weights: Tensor, index_keys: Pages, tables: Tables, top_k: int
    ) -> Tensor:
        """Select for some tokens at a time, so that scores take little memory."""
        assert isinstance(index_keys, CudaPages) and isinstance(tables, CudaBlockTables)
        most_tokens = max(1, indexer.MOST_SCORES // tables.most_positions)
        selected = torch.empty(len(queries), top_k, dtype=torch.int32, device=self.torch)
        for rows, pages, positions in tables.groups(most_tokens, with_prompts=True):
            if pages.shape[1] * PAGE_TOKENS > top_k:  # else they attend to all that they see
                selected[rows] = indexer.select_positions(
                    queries[rows], weights[rows], index_keys.data, pages, positions, top_k
                )
        return selected

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
        """Attend in latent space, except from long spans to all positions: with expanded keys and
        values.
        """
        assert isinstance(pages, CudaPages) and isinstance(tables, CudaBlockTables)
        absorbed = partial(self._attend_absorbed, k_b=k_b, v_b=v_b, pages=pages.data, scale=scale)
        is_sparse = selected is not None
        out = q_nope.new_empty(q_nope.shape[0], q_nope.shape[1], v_b.rows)  # (T, N, V)
        for rows, *group in tables.groups(_ABSORBED_TOKENS, with_prompts=is_sparse):
            own = None if selected is None else selected[rows]
            heads = absorbed(q_nope[rows], q_rope[rows], *group, selected=own)
            if isinstance(rows, slice) and len(heads) == len(out):
                return heads
            out[rows] = heads
        if is_sparse or not tables.prompts:
            return out
        keys, values = self._expanded(k_b), self._expanded(v_b)
        for prompt in tables.prompts:
            span = slice(prompt.first_row, prompt.first_row + prompt.num_tokens)
            out[span] = expanded_attention(
                q_nope[span], q_rope[span], keys, values, pages.data, prompt.pages,
                prompt.num_positions, scale,
            )  # fmt: skip
        return out

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture the work that `function` queues as a CUDA graph."""
        stream = torch.cuda.Stream(self.torch)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.torch))
        with torch.cuda.stream(stream):  # compiles kernels, and lets libraries allocate
            function()
        torch.cuda.current_stream(self.torch).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph,
            self._pool,
            stream,
            capture_error_mode="thread_local",  # the thread that registers memory goes on
        ):
            function()
        self._pool = graph.pool()
        return graph.replay

    def _attend_absorbed(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        tables: Tensor,
        positions: Tensor,
        *,
        k_b: Matrix,
        v_b: Matrix,
        pages: Tensor,
        scale: float,
        selected: Tensor | None,
    ) -> Tensor:
        q_latent = self._batched(q_nope.transpose(0, 1), k_b)  # (N, D, R)
        most = tables.shape[1] * pages.shape[1]
        mixed = latent_attention(
            q_latent,
            q_rope.contiguous(),
            pages,
            tables,
            positions,
            scale,
            max_positions=most,
            selected=selected,
        )
        heads = q_nope.new_empty(q_nope.shape[0], v_b.batch, v_b.rows)  # (D, N, V)
        self._batched(mixed, v_b, out=heads.transpose(0, 1))
        return heads

    def _converted(self, w: QuantMatrix) -> DeviceMatrix:
        """Round to bf16, some rows at a time."""
        num_rows = w.batch * w.rows
        out = self.empty_bytes(num_rows * w.cols * 2)
        rounded = out.view(torch.bfloat16).view(num_rows, w.cols)
        factors = None
        if w.scales is not None:
            factors = torch.from_numpy(w.scales).repeat_interleave(w.rows)[:, None]
        step = max(1, _CONVERTED_BYTES // (4 * w.cols))
        for first in range(0, num_rows, step):
            last = min(first + step, num_rows)
            data = w.data[first * w.row_bytes : last * w.row_bytes]
            part = QuantMatrix(data, w.type, 1, last - first, w.cols)
            values = ops.dequantize(part)
            if factors is not None:
                values *= factors[first:last]
            rounded[first:last] = values.bfloat16()
        return DeviceMatrix(out, QuantType.BF16, w.batch, w.rows, w.cols)

    def _batched(self, x: Tensor, w: Matrix, out: Tensor | None = None) -> Tensor:
        if isinstance(w, QuantMatrix):
            return _into(out, self.upload(ops.batched_linear(self.to_host(x), w)))
        return matmul.batched_linear(x, _on_device(w), out=out)

    def _expanded(self, w: Matrix) -> Tensor:
        if isinstance(w, QuantMatrix):
            return self.upload(ops.dequantize(w).bfloat16())
        return matmul.dequantize(_on_device(w))


def _on_device(w: Matrix) -> DeviceMatrix:
    assert isinstance(w, DeviceMatrix), type(w)
    return w


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)
