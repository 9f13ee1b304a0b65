"""Interface of the device that computes the dense part: the same methods for the CPU and a GPU.

The network's modules hold a device and know no kernel. Matrices, pages and block tables are opaque
to them: the device makes them, and takes them back in its other methods. All other tensors between
these calls lie on the device. Shapes and results are those of the functions of the same name in
kernels/ops.py and kernels/paged_mla.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from hybridmoe.config import RoutingSpec
from hybridmoe.device.pending import Pending
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import Span

__all__ = ["Device", "Matrix", "Pages", "Tables"]


class Matrix(Protocol):
    """Stack of `batch` weight matrices (rows, cols), made by `Device.matrix`."""

    @property
    def batch(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...


class Pages(Protocol):
    """KV cache pages of one layer, rows of `dim` numbers, made by `Device.pages`."""

    @property
    def dim(self) -> int: ...
    @property
    def index_keys(self) -> "Pages | None":
        """Pages of the layer's index keys; None without an indexer."""
        ...


class Tables(Protocol):
    """Block tables of one step's sequences, made by `Device.tables`."""

    num_tokens: int

    @property
    def most_positions(self) -> int:
        """Upper bound on the positions that a token sees."""
        ...


class Device(Protocol):
    """Device of the dense part. Only `to_host` and `synchronize` wait for it."""

    type: str  # "cpu" | "cuda"

    def active(self) -> AbstractContextManager[object]:
        """Make this the thread's current device; needed around all work for it."""
        ...

    @property
    def is_capturable(self) -> bool:
        """True if a decode step only queues work, so that a graph can repeat it."""
        ...

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Call `function`, and return a call that repeats its queued work on the same memory."""
        ...

    def matrix(self, w: QuantMatrix, name: str) -> Matrix:
        """Make a matrix for the products; `name`: the tensor's, for messages and placement."""
        ...

    def upload(self, t: Tensor) -> Tensor:
        """Copy a CPU tensor to the device."""
        ...

    def to_host(self, t: Tensor) -> Tensor:
        """Copy a tensor of the device to the CPU, and wait for it."""
        ...

    def empty_bytes(self, *shape: int) -> Tensor:
        """Allocate uint8 memory for the KV cache. Errors: RuntimeError (torch's) if none left."""
        ...

    def host_bytes(self, size: int) -> Tensor:
        """Allocate uint8 memory of the host from and to which copies do not wait."""
        ...

    def synchronize(self) -> None:
        """Wait for all queued work."""
        ...

    def pages(self, data: Tensor, type: str, dim: int, index_keys: Pages | None = None) -> Pages:
        """Make one layer's pages over `data`, as `KvPages`.

        Errors: ConfigError for a type that the device has no kernels for.
        """
        ...

    def tables(self, spans: Sequence[Span]) -> Tables:
        """Make the block tables of a step's sequences."""
        ...

    def linear(self, x: Tensor, w: Matrix, out: Tensor | None = None) -> Tensor: ...

    def dense_ffn(
        self, x: Tensor, gate: Matrix, up: Matrix, down: Matrix, base: Pending | None = None
    ) -> Tensor:
        """Compute `ops.dense_ffn`; its `base` is taken as late as the device can use it."""
        ...

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        *,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor: ...

    def rotate_(self, x: Tensor, cos_sin: Tensor) -> Tensor: ...

    def route(
        self, logits: Tensor, bias: Tensor | None, spec: RoutingSpec
    ) -> tuple[Tensor, Tensor]: ...

    def store_kv(self, rows: Tensor, pages: Pages, tables: Tables) -> None: ...

    def select_positions(
        self, queries: Tensor, weights: Tensor, index_keys: Pages, tables: Tables, top_k: int
    ) -> Tensor: ...

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
        """Compute MLA of a step's tokens, from queries of heads to values of heads.

        Shapes:  q_nope (T, N, nope) f32 · q_rope (T, N, rope) f32, rows of both anywhere · k_b N
                 matrices (R, nope) · v_b N matrices (V, R) · selected (T, k) int32 of
                 `select_positions`; None = all that a token sees -> (T, N, V) f32, contiguous.
        Source:  DeepSeek-V2 (arXiv 2405.04434), section 2.1 and appendix C.
        """
        ...
