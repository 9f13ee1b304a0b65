"""Where a model's dense part is computed: one object with the same methods for CPU and card.

The network's modules hold a device and know no kernel. What its products and pages are made of is
the device's own affair: matrices come from `matrix`, pages from `pages`, tables from `table`, and
go back into the methods of the same device. Tensors between these calls lie on the device. Shapes,
and what a method computes, are those of the functions of the same name in ops.py and latents.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import Span

__all__ = ["Device", "Pending"]

Pending = Callable[[], Tensor]  # a result that is being made; to be called once


class Device(Protocol):
    """Nothing but `to_host` waits for the device; Matrix, Pages and Table are its own types."""

    type: str  # "cpu" | "cuda"

    def active(self) -> AbstractContextManager[object]:
        """Around work for this device, in any thread."""
        ...

    @property
    def is_capturable(self) -> bool:
        """Whether a step of few tokens only queues work, so that a graph can repeat it."""
        ...

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """What repeats, on the same memory, the work that `function` queues; calls it before."""
        ...

    def matrix(self, w: QuantMatrix, name: str) -> Any:
        """A Matrix for the products; `name` is the tensor's, for messages and placement."""
        ...

    def upload(self, t: Tensor) -> Tensor:
        """A tensor of the CPU, on the device."""
        ...

    def to_host(self, t: Tensor) -> Tensor:
        """A tensor of the device, on the CPU."""
        ...

    def empty_bytes(self, *shape: int) -> Tensor:
        """Memory for latents, uint8. Errors: RuntimeError (torch's) where there is none."""
        ...

    def pages(self, data: Tensor, type: str, dim: int) -> Any:
        """Pages of one layer over `data`, as `LatentPages`. Errors: ConfigError for a type that
        the device has no kernels for.
        """
        ...

    def table(self, spans: Sequence[Span]) -> Any:
        """The Table of a step's sequences."""
        ...

    def linear(self, x: Tensor, w: Any, out: Tensor | None = None) -> Tensor: ...

    def dense_ffn(
        self, x: Tensor, gate: Any, up: Any, down: Any, base: Pending | None = None
    ) -> Tensor:
        """`ops.dense_ffn`; base is called as late as the device can use it."""
        ...

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        *,
        delta: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor: ...

    def rotate_(self, x: Tensor, turns: Tensor) -> Tensor: ...

    def route(
        self,
        logits: Tensor,
        bias: Tensor | None,
        top_k: int,
        *,
        num_groups: int,
        num_groups_used: int,
        is_sigmoid: bool,
        is_normalized: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor]: ...

    def store_latents(self, rows: Tensor, pages: Any, table: Any) -> None: ...

    def attend(
        self,
        plain: Tensor,
        rotated: Tensor,
        k_b: Any,
        v_b: Any,
        pages: Any,
        table: Any,
        scale: float,
    ) -> Tensor:
        """Latent attention of a step's tokens, of queries as they are to values of heads.

        Shapes:  plain (T, N, nope) f32 · rotated (T, N, rope) f32, rows of both anywhere · k_b N
                 matrices (R, nope) · v_b N matrices (V, R) -> (T, N, V) f32, contiguous.
        Source:  DeepSeek-V2 (arXiv 2405.04434), section 2.1 and appendix C.
        """
        ...
