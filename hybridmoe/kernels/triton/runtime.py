"""Target of the Triton kernels: a GPU, or Triton's interpreter on the CPU, for tests.

The interpreter runs if `TRITON_INTERPRET=1` was set before this module was imported. Tensors of
torch's meta device stand for a GPU's while launches are recorded (launches.py).
"""

from contextvars import ContextVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmoe.errors import ShapeError

__all__ = [
    "DOT_TYPE",
    "IS_INTERPRETED",
    "check_device_rows",
    "check_device_tensor",
    "num_multiprocessors",
    "planned_multiprocessors",
]

IS_INTERPRETED: bool = triton.knobs.runtime.interpret

# Operands of `tl.dot`, rounded to bfloat16 in either case: the interpreter multiplies the bits of
# bfloat16 numbers as integers (Triton 3.7 and 3.9).
DOT_TYPE = tl.float32 if IS_INTERPRETED else tl.bfloat16


_DEVICES = ("cpu" if IS_INTERPRETED else "cuda", "meta")

# Multiprocessors of the GPU that recorded launches are planned for.
planned_multiprocessors: ContextVar[int] = ContextVar("planned_multiprocessors", default=1)


def num_multiprocessors(device: torch.device) -> int:
    """Count the GPU's multiprocessors; 1 for the interpreter."""
    if device.type == "meta":
        return planned_multiprocessors.get()
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def check_device_tensor(
    t: Tensor, what: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...]
) -> None:
    """Raise ShapeError unless `t` is contiguous, of this shape (None: any) and on the device."""
    if (
        t.dtype in dtypes
        and t.ndim == len(shape)
        and all(want in (None, size) for size, want in zip(t.shape, shape, strict=True))
        and t.is_contiguous()
        and t.device.type in _DEVICES
    ):
        return
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    raise ShapeError(
        f"{what} is {t.dtype} {tuple(t.shape)} on {t.device.type}"
        f"{'' if t.is_contiguous() else ', not contiguous'}, expected a contiguous"
        f" {_DEVICES[0]} tensor ({sizes}) of {' or '.join(map(str, dtypes))}"
    )


def check_device_rows(t: Tensor, what: str, shape: tuple[int | None, ...]) -> None:
    """Check float32 tensors of which only the last dimension must be contiguous."""
    if (
        t.dtype is torch.float32
        and t.ndim == len(shape)
        and all(want in (None, size) for size, want in zip(t.shape, shape, strict=True))
        and (t.stride(-1) == 1 or t.shape[-1] <= 1)
        and t.device.type in _DEVICES
    ):
        return
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    raise ShapeError(
        f"{what} is {t.dtype} {tuple(t.shape)} with strides {t.stride()} on {t.device.type}, "
        f"expected a {_DEVICES[0]} tensor ({sizes}) of torch.float32 with contiguous rows"
    )
