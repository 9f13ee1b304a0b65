"""Elementwise GPU kernels, against the CPU's."""

import pytest
import torch
from closeness import assert_close

from hybridmoe.errors import ShapeError
from hybridmoe.kernels import ops

pytest.importorskip("triton", reason="needs triton")

from kernel_device import on_device

from hybridmoe.kernels.triton.elementwise import rms_norm, rotate_, silu_mul, store_kv

rms_norm, rotate_, silu_mul, store_kv = map(on_device, (rms_norm, rotate_, silu_mul, store_kv))

U = 2.0**-24


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("tokens, n, stride", [(1, 7, 7), (3, 512, 576), (17, 1000, 1001)])
def test_norms_are_within_rounding_of_the_twins(
    tokens: int, n: int, stride: int, has_residual: bool
) -> None:
    x = rand(tokens, stride)
    residual = rand(tokens, n, seed=1) if has_residual else None
    weight = rand(n, seed=2)
    want_x = x.clone()
    want = ops.rms_norm(want_x[:, :n], weight, 1e-6, residual=residual)
    out = x[:, :n] if stride > n else None  # in place where rows lie apart
    got = rms_norm(x[:, :n], weight, 1e-6, residual=residual, out=out)
    bound = 16 * U * want.abs() + 1e-9  # a sum in another order, a root, two products
    assert_close(got.numpy(), want.numpy(), bound.numpy(), "rms_norm")
    if out is None:
        assert torch.equal(x, want_x)
    else:
        assert torch.equal(x[:, n:], want_x[:, n:])


@pytest.mark.parametrize("tokens, heads, dim", [(1, 1, 2), (3, 17, 6), (5, 64, 64)])
def test_rotations_are_the_twins(tokens: int, heads: int, dim: int) -> None:
    x = rand(tokens, heads, dim + 10)
    cos_sin = rand(tokens, dim, seed=1)
    want = x.clone()
    ops.rotate_(want[..., 10:], cos_sin)
    got = rotate_(x[..., 10:], cos_sin)
    size = x.abs().max() * cos_sin.abs().max()
    assert_close(x.numpy(), want.numpy(), (0 * x + 4 * U * size).numpy(), "rotate")
    assert got.data_ptr() == x[..., 10:].data_ptr()


def test_gates_have_no_overflow() -> None:
    gate = torch.tensor([[-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4]]).repeat(3, 300)
    up = rand(*gate.shape)
    want = torch.nn.functional.silu(gate.double()) * up.double()
    bound = 8 * U * want.abs() + 1e-30
    assert_close(silu_mul(gate, up).numpy(), want.numpy(), bound.numpy(), "silu_mul")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [16, 576])
def test_kv_rows_are_rounded_to_nearest_even_and_nothing_else_is_touched(
    dim: int, dtype: torch.dtype
) -> None:
    rows = rand(5, dim)
    rows[0, 0], rows[1, 1], rows[2, 2] = float("nan"), float("inf"), 1.0 + 2.0**-8
    rows[0, 1:4] = torch.tensor([65519.0, 1.0 + 2.0**-11, 3 * 2.0**-25])
    pages = torch.full((4, 64, dim), -7.0).to(dtype)
    want = pages.clone()
    slots = torch.tensor([0, 64 * 3 + 63, 100, 5, 130])
    want.flatten(0, 1)[slots] = rows.to(dtype)
    rows[3, :2], rows[4, 0] = torch.tensor([-1e6, 65520.0]), float("-inf")
    if dtype is torch.float16:  # finite numbers stay finite
        want.flatten(0, 1)[5, :2] = torch.tensor([-65504.0, 65504.0])
    else:
        want.flatten(0, 1)[5, :2] = rows[3, :2].bfloat16()
    want.flatten(0, 1)[130, 0] = float("-inf")
    store_kv(rows, pages, slots)
    assert torch.equal(pages.nan_to_num(1e9), want.nan_to_num(1e9))


def test_wrong_shapes_are_one_line() -> None:
    x = rand(3, 8)
    with pytest.raises(ShapeError, match="rms_norm: residual"):
        rms_norm(x, rand(8), 1e-6, residual=rand(2, 8))
    with pytest.raises(ShapeError, match="rms_norm: x"):
        rms_norm(x.t(), rand(3), 1e-6)
    with pytest.raises(ShapeError, match="not pairs"):
        rotate_(rand(1, 1, 3), rand(1, 3))
    with pytest.raises(ShapeError, match="silu_mul: up"):
        silu_mul(x, rand(3, 9))
    with pytest.raises(ShapeError, match="store_kv: pages"):
        store_kv(x, rand(1, 64, 8), torch.zeros(3, dtype=torch.int64))
