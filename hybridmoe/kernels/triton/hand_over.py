"""Hand-over of a layer's experts to the CPU and back, in memory of the host that the GPU reaches.

`send` writes what the CPU needs and then counts it; `receive` waits until the CPU has counted it,
too, and adds what it computed. Neither waits on the host, nor resets anything, so that a CUDA graph
can repeat both. The order of the writes is kept by fences of the whole system.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridmoe.config import PREFILL_TOKENS
from hybridmoe.errors import ShapeError
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED, check_device_tensor

__all__ = ["receive", "send"]

_IS_INTERPRETED = tl.constexpr(IS_INTERPRETED)
_F32, _I32 = (torch.float32,), (torch.int32,)
_BLOCK = 8192  # numbers of a program


def send(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    host: tuple[Tensor, Tensor, Tensor],
    count: Tensor,
    sent: Tensor,
) -> None:
    """Write a submission of up to 16 tokens to the host, then count it.

    Shapes:  x (T, H) f32 · ids (T, K) int32 · weights (T, K) f32 · host: as these, pinned · count
             (1,) int32: submissions so far · sent (1,) int32, pinned: what the CPU is told.
    Errors:  ShapeError.
    """
    check_device_tensor(x, "send: x", _F32, (None, None))
    tokens, hidden = x.shape
    check_device_tensor(ids, "send: ids", _I32, (tokens, None))
    top_k = ids.shape[1]
    check_device_tensor(weights, "send: weights", _F32, (tokens, top_k))
    check_device_tensor(count, "send: count", _I32, (1,))
    for t, name, of in zip(host, ("x", "ids", "weights"), (x, ids, weights), strict=True):
        _check_host(t, f"send: host {name}", of.dtype, tuple(of.shape))
    _check_host(sent, "send: sent", torch.int32, (1,))
    _send_kernel[(1,)](
        x,
        ids,
        weights,
        *host,
        count,
        sent,
        tokens * hidden,
        tokens * top_k,
        BLOCK=_block(hidden),
        K_BLOCK=triton.next_power_of_2(PREFILL_TOKENS * top_k),
        num_warps=8,
    )


def receive(
    y: Tensor,
    part: Tensor | None,
    out: Tensor,
    count: Tensor,
    done: Tensor,
    *,
    max_polls: int = -1,
) -> None:
    """Wait until the CPU has computed the last submission; y += part + out.

    Shapes:  y, part (T, H) f32 · out (T, H) f32, pinned: the CPU's result · count: as of `send` ·
             done (1,) int32, pinned: what the CPU has computed.
    max_polls: looks at `done`, of a microsecond or two, before it goes on with whatever is there;
             -1 = 2^32, more than an hour.
    Errors:  ShapeError.
    """
    check_device_tensor(y, "receive: y", _F32, (None, None))
    shape = tuple(y.shape)
    if part is not None:
        check_device_tensor(part, "receive: part", _F32, shape)
    _check_host(out, "receive: out", torch.float32, shape)
    check_device_tensor(count, "receive: count", _I32, (1,))
    _check_host(done, "receive: done", torch.int32, (1,))
    size, block = y.numel(), _block(shape[1])
    _receive_kernel[(triton.cdiv(size, block),)](
        y,
        y if part is None else part,
        out,
        count,
        done,
        size,
        max_polls,
        HAS_PART=part is not None,
        BLOCK=block,
        num_warps=8,
    )


def _block(hidden: int) -> int:
    """Choose the numbers of a program, alike for all steps of a model: one binary."""
    return min(_BLOCK, int(triton.next_power_of_2(PREFILL_TOKENS * hidden)))


def _check_host(t: Tensor, what: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Check memory of the host; that the GPU reaches it is up to the caller."""
    if t.dtype is dtype and tuple(t.shape) == shape and t.is_contiguous() and t.is_cpu:
        return
    raise ShapeError(
        f"{what} is {t.dtype} {tuple(t.shape)} on {t.device.type}, expected a contiguous tensor"
        f" {shape} of {dtype} on the host"
    )


@triton.jit
def _fence(value):
    """Order all reads and writes before it with those after it, for GPU and CPU."""
    if not _IS_INTERPRETED:
        value = tl.inline_asm_elementwise(
            "fence.acq_rel.sys; mov.b32 $0, $1;",
            "=r,r",
            [value],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    return value


# One thread looks: 28 KB each way took 47 us a layer with 28 warps that look, 22 with 8.
_WAIT = tl.constexpr("""{
  .reg .pred p;
  .reg .b32 left, ahead;
  mov.b32 $0, $2;
  mov.b32 left, %tid.x;
  setp.ne.u32 p, left, 0;
  @p bra END;
  mov.b32 left, $3;
LOOK:
  ld.relaxed.sys.global.b32 $0, [$1];
  sub.s32 ahead, $0, $2;
  setp.ge.s32 p, ahead, 0;
  @p bra END;
  sub.u32 left, left, 1;
  setp.ne.u32 p, left, 0;
  @p bra LOOK;
END:
  fence.acq_rel.sys;
}""")


@triton.jit
def _wait(done_ptr, number, max_polls):
    """Look at `done` until it is `number` or more; both may wrap."""
    if _IS_INTERPRETED:
        while (tl.load(done_ptr) - number < 0) & (max_polls != 0):
            max_polls -= 1
    else:
        tl.inline_asm_elementwise(
            _WAIT,
            "=&r,l,r,r",
            [done_ptr.to(tl.int64), number, max_polls],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit(do_not_specialize=["top_k_count"])
def _send_kernel(
    x_ptr,
    ids_ptr,
    weights_ptr,
    host_x_ptr,
    host_ids_ptr,
    host_weights_ptr,
    count_ptr,
    sent_ptr,
    x_count,
    top_k_count,
    BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
):
    """One program, so that all is written when it counts."""
    for first in range(0, x_count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        tl.store(host_x_ptr + i, tl.load(x_ptr + i, mask=i < x_count), mask=i < x_count)
    k = tl.arange(0, K_BLOCK)
    is_k = k < top_k_count
    tl.store(host_ids_ptr + k, tl.load(ids_ptr + k, mask=is_k), mask=is_k)
    tl.store(host_weights_ptr + k, tl.load(weights_ptr + k, mask=is_k), mask=is_k)
    number = tl.load(count_ptr) + 1
    tl.debug_barrier()  # every thread has written, and read the count
    number = _fence(number)
    tl.store(count_ptr, number)
    tl.store(sent_ptr, number)


@triton.jit(do_not_specialize=["max_polls"])
def _receive_kernel(
    y_ptr,
    part_ptr,
    out_ptr,
    count_ptr,
    done_ptr,
    size,
    max_polls,
    HAS_PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Read past every cache: the CPU writes `out` and `done` while the kernel runs."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    y = tl.load(y_ptr + i, mask=mask)
    if HAS_PART:
        part = tl.load(part_ptr + i, mask=mask)
    _wait(done_ptr, tl.load(count_ptr), max_polls)
    tl.debug_barrier()
    out = tl.load(out_ptr + i, mask=mask, volatile=True)
    if HAS_PART:
        out = part + out
    tl.store(y_ptr + i, y + out, mask=mask)
