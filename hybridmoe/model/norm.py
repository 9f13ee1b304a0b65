"""Root-mean-square normalisation (Zhang & Sennrich 2019), in float32."""

import torch
from torch import Tensor

__all__ = ["RmsNorm"]


class RmsNorm:
    """x / rms(x) * weight along the last dimension."""

    __slots__ = ("_eps", "_weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight  # (dim,) f32
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, self._weight.shape, self._weight, self._eps)
