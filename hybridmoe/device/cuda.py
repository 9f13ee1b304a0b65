"""CudaDevice: a model's dense part on a card, its weights in the blocks of the file.

Without a card, under Triton's interpreter, the same runs on the CPU, for tests.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from hybridmoe.config import check_gpu_kv_type
from hybridmoe.device.cuda_block_tables import CudaBlockTables
from hybridmoe.device.interface import Pending
from hybridmoe.kernels import ops
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.kernels.triton import elementwise
from hybridmoe.kernels.triton import matmul as product
from hybridmoe.kernels.triton.decode_attention import latent_attention
from hybridmoe.kernels.triton.matrix import MATRIX_TYPES, DeviceMatrix
from hybridmoe.kernels.triton.prefill_attention import expanded_attention
from hybridmoe.kernels.triton.router import route

__all__ = ["CudaDevice"]

Matrix = DeviceMatrix | QuantMatrix  # on the card, or left on the CPU

_ABSORBED_TOKENS = 256  # at a time: 2 N R numbers each, 64 MiB in all at Kimi K2's sizes
_CONVERTED_BYTES = 64 << 20  # as float32, at a time


class CudaDevice:
    """`Device` of one card. Work is queued on torch's current stream."""

    type = "cuda"
    rms_norm = staticmethod(elementwise.rms_norm)
    rotate_ = staticmethod(elementwise.rotate_)
    route = staticmethod(route)

    def __init__(
        self, device: torch.device, is_on_cpu: Callable[[str], bool] = lambda name: False
    ) -> None:
        """is_on_cpu: of a tensor's name, whether its products are to be left to the CPU, for which
        a step waits.
        """
        self.torch = device
        self._is_on_cpu = is_on_cpu
        self.converted: list[str] = []  # tensors whose type has no kernel here: now bf16
        self.left: list[str] = []  # tensors on the CPU
        self._pool: Any = None  # of graphs' memory

    def active(self) -> AbstractContextManager[object]:
        """Which card is the current one is a matter of threads; streams and kernels go by it."""
        return torch.cuda.device(self.torch) if self.torch.type == "cuda" else nullcontext()

    @property
    def is_capturable(self) -> bool:
        """Whether a step of few tokens never waits for the CPU."""
        return not self.left

    def matrix(self, w: QuantMatrix, name: str) -> Matrix:
        """As `Device.matrix`. Errors: torch.OutOfMemoryError."""
        if self._is_on_cpu(name):
            self.left.append(name)
            return w
        if w.type in MATRIX_TYPES:
            return DeviceMatrix.from_host(w, self.torch)
        self.converted.append(name)
        return self._converted(w)

    def upload(self, t: Tensor) -> Tensor:
        return t.to(self.torch)

    def to_host(self, t: Tensor) -> Tensor:
        return t.cpu()

    def empty_bytes(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, device=self.torch)

    def pages(self, data: Tensor, type: str, dim: int) -> Tensor:
        """(pages, 64, dim) f16 or bf16. Errors: ConfigError for another type."""
        check_gpu_kv_type(type)
        return data.view(torch.float16 if type == "f16" else torch.bfloat16)

    def table(self, spans: Sequence[Span]) -> CudaBlockTables:
        return CudaBlockTables.of(spans, self.torch)

    def linear(self, x: Tensor, w: Matrix, out: Tensor | None = None) -> Tensor:
        if isinstance(w, QuantMatrix):
            return _into(out, self.upload(ops.linear(self.to_host(x), w)))
        return product.linear(x, w, out=out)

    def dense_ffn(
        self, x: Tensor, gate: Matrix, up: Matrix, down: Matrix, base: Pending | None = None
    ) -> Tensor:
        hidden = elementwise.silu_mul(self.linear(x, gate), self.linear(x, up))
        y = self.linear(hidden, down)
        return y if base is None else y.add_(base())

    def store_latents(self, rows: Tensor, pages: Tensor, table: CudaBlockTables) -> None:
        elementwise.store_latents(rows, pages, table.slots)

    def attend(
        self,
        plain: Tensor,
        rotated: Tensor,
        k_b: Matrix,
        v_b: Matrix,
        pages: Tensor,
        table: CudaBlockTables,
        scale: float,
    ) -> Tensor:
        """Short spans in latent space, long ones with their keys and values expanded."""
        if not table.prompts and table.num_tokens <= _ABSORBED_TOKENS:
            return self._absorbed(
                plain, rotated, k_b, v_b, pages, table.tables, table.positions, scale
            )
        out = plain.new_empty(plain.shape[0], plain.shape[1], v_b.rows)  # (T, N, V)
        for first in range(0, len(table.rows), _ABSORBED_TOKENS):
            part = slice(first, first + _ABSORBED_TOKENS)
            rows = table.rows[part]
            out[rows] = self._absorbed(
                plain[rows], rotated[rows], k_b, v_b, pages, table.tables[part],
                table.positions[part], scale,
            )  # fmt: skip
        if table.prompts:
            keys, values = self._expanded(k_b), self._expanded(v_b)
        for prompt in table.prompts:
            span = slice(prompt.first_row, prompt.first_row + prompt.num_tokens)
            out[span] = expanded_attention(
                plain[span], rotated[span], keys, values, pages, prompt.pages,
                prompt.num_seen, scale,
            )  # fmt: skip
        return out

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of what `function` queues, as `model.cuda_graphs` wants it."""
        if self.torch.type != "cuda":
            function()
            return function
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
            capture_error_mode="thread_local",  # a thread of uploads goes on with its own stream
        ):
            function()
        self._pool = graph.pool()
        return graph.replay

    def _absorbed(
        self,
        plain: Tensor,
        rotated: Tensor,
        k_b: Matrix,
        v_b: Matrix,
        pages: Tensor,
        tables: Tensor,
        positions: Tensor,
        scale: float,
    ) -> Tensor:
        absorbed = self._batched(plain.transpose(0, 1), k_b)  # (N, D, R)
        most = tables.shape[1] * pages.shape[1]
        mixed = latent_attention(
            absorbed, rotated.contiguous(), pages, tables, positions, scale, max_positions=most
        )
        heads = plain.new_empty(plain.shape[0], v_b.batch, v_b.rows)  # (D, N, V)
        self._batched(mixed, v_b, out=heads.transpose(0, 1))
        return heads

    def _converted(self, w: QuantMatrix) -> DeviceMatrix:
        """Rounded to bf16, a run of rows after the other."""
        num_rows = w.batch * w.rows
        out = self.empty_bytes(num_rows * w.cols * 2)
        rounded = out.view(torch.bfloat16).view(num_rows, w.cols)
        step = max(1, _CONVERTED_BYTES // (4 * w.cols))
        for first in range(0, num_rows, step):
            last = min(first + step, num_rows)
            data = w.data[first * w.row_bytes : last * w.row_bytes]
            part = QuantMatrix(data, w.type, 1, last - first, w.cols)
            rounded[first:last] = ops.dequantize(part).bfloat16()
        return DeviceMatrix(out, GGMLQuantizationType.BF16, w.batch, w.rows, w.cols)

    def _batched(self, x: Tensor, w: Matrix, out: Tensor | None = None) -> Tensor:
        if isinstance(w, QuantMatrix):
            return _into(out, self.upload(ops.batched_linear(self.to_host(x), w)))
        return product.batched_linear(x, w, out=out)

    def _expanded(self, w: Matrix) -> Tensor:
        if isinstance(w, QuantMatrix):
            return self.upload(ops.dequantize(w).bfloat16())
        return product.dequantize(w)


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)
