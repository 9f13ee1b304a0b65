"""Root-mean-square normalisation (Zhang & Sennrich 2019), in float32."""

from torch import Tensor

from hybridmoe.device.interface import Device

__all__ = ["RmsNorm"]


class RmsNorm:
    """RMS norm: x / rms(x) * weight, along the last dimension."""

    __slots__ = ("_device", "eps", "weight")

    def __init__(self, device: Device, weight: Tensor, eps: float) -> None:
        self._device = device
        self.weight = weight  # (dim,) f32
        self.eps = eps

    def __call__(
        self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Normalise x (T, dim), into `out` if given; with `residual`, x += residual first."""
        return self._device.rms_norm(x, self.weight, self.eps, residual=residual, out=out)
