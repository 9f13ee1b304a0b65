"""Products of the GPU: every type, awkward shapes."""

import closeness
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import block_weights, random_matrix
from torch.overrides import TorchFunctionMode

from hybridmoe.errors import ShapeError
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.kernels.matrix import QuantMatrix

pytest.importorskip("triton", reason="needs triton")

from kernel_device import DEVICE, on_device
from triton_bounds import U, bfloat16, dot_bound, offsets, sum_bound

from hybridmoe.kernels.triton import matmul, vector_gemv
from hybridmoe.kernels.triton.matmul import MAX_GEMV_TOKENS, plan_gemv
from hybridmoe.kernels.triton.matrix import TYPES, DeviceMatrix
from hybridmoe.kernels.triton.vector_gemv import MAX_VECTOR_TOKENS, plan_vectors
from hybridmoe.kernels.triton.vectors import VECTOR_KINDS

linear, batched_linear = map(on_device, (matmul.linear, matmul.batched_linear))

Q4_K = GGMLQuantizationType.Q4_K
Q8_0 = GGMLQuantizationType.Q8_0


def activations(*shape: int) -> torch.Tensor:
    """Normal activations with outliers, as in a model's hidden stream."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1]))
    x[..., ::37] *= 20
    return x


def column_counts(kind: GGMLQuantizationType) -> list[int]:
    """Columns: one block, and several chunks of 256 with a remainder if possible."""
    weights = block_weights(kind)
    return [39, 1100] if weights == 1 else [weights, 1024 + weights]


def check_linear(x: torch.Tensor, w: QuantMatrix, got: torch.Tensor, exact_tokens: int = 0) -> None:
    """Check a product.

    exact_tokens: largest step that is multiplied in float32; 0: that of this type in VRAM.
    """
    exact_x, tokens = x.numpy(), len(x)
    weights, offset = closeness.weights(w)[0], offsets(w)[0]
    magnitude = np.abs(exact_x) @ (np.abs(weights - offset) + np.abs(offset)).T
    exact_tokens = exact_tokens or (MAX_VECTOR_TOKENS if w.type.name in VECTOR_KINDS else 1)
    bound = (dot_bound if tokens > exact_tokens else sum_bound)(w.cols, magnitude)
    if tokens > exact_tokens:
        weights = bfloat16(weights.astype(np.float32))
        exact_x = x.bfloat16().double().numpy()
    want = exact_x.astype(np.float64) @ weights.T
    if tokens > MAX_GEMV_TOKENS:
        bound = bound + 2.0**-8 * (np.abs(want) + bound)  # the result is rounded to bfloat16
    closeness.assert_close(got, want, bound, f"{w.type.name} {tuple(x.shape)}")


@pytest.fixture(params=TYPES, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> GGMLQuantizationType:
    return request.param  # type: ignore[no-any-return]


# Types that came later: products differ from others' only in the order of their tiles' columns.
LATER = [kind for kind in TYPES if kind >= QuantType.Q1_0]
NUM_TOKENS = [
    (kind, tokens) for kind in TYPES for tokens in ([1] if kind in LATER else [1, 3, 5, 16, 17])
]


def test_dequantized_weights_are_those_of_gguf(kind: GGMLQuantizationType) -> None:
    w = random_matrix(kind, 2, 19, column_counts(kind)[-1])
    got = matmul.dequantize(DeviceMatrix.from_host(w, DEVICE))
    want = bfloat16(closeness.weights(w).astype(np.float32))
    assert np.array_equal(got.double().cpu().numpy(), want)


def test_mxfp4_has_all_scales() -> None:
    """The largest overflow; the smallest two are subnormal, and lost by the interpreter's bf16."""
    kind = GGMLQuantizationType.MXFP4
    blocks = random_matrix(kind, 1, 1, 256 * 32).data.reshape(256, 17)
    blocks[:, 0] = np.arange(256)
    w = QuantMatrix(blocks[2:].reshape(-1), kind, 1, 127, 64)
    with np.errstate(over="ignore"):
        want = bfloat16(closeness.weights(w).astype(np.float32))
        got = matmul.dequantize(DeviceMatrix.from_host(w, DEVICE))
    assert np.array_equal(got.double().cpu().numpy(), want) and np.isinf(want).any()
    w = QuantMatrix(blocks[:2].reshape(-1), kind, 1, 2, 32)
    for column in range(0, 32, 5):
        x = torch.zeros(1, 32)
        x[0, column] = 2.0**100
        got = linear(x, DeviceMatrix.from_host(w, DEVICE))
        assert np.array_equal(got[0].numpy(), 2.0**100 * closeness.weights(w)[0, :, column])


@pytest.mark.parametrize(
    ("kind", "tokens"), NUM_TOKENS, ids=lambda value: getattr(value, "name", None)
)
def test_linear_is_within_the_bound(
    kind: GGMLQuantizationType, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_sms = 0
    monkeypatch.setattr(matmul, "num_multiprocessors", lambda device: num_sms)
    for cols in column_counts(kind):
        w = random_matrix(kind, 1, 19, cols)
        x = activations(tokens, cols)
        device_w = DeviceMatrix.from_host(w, DEVICE)
        num_sms = 64  # columns are split
        check_linear(x, w, linear(x, device_w))
        num_sms = 1
        check_linear(x, w, linear(x, device_w))


@pytest.mark.parametrize("kind", [GGMLQuantizationType[name] for name in VECTOR_KINDS])
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_tiles_of_vectors_are_within_the_bound(
    kind: GGMLQuantizationType, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tile, with a last turn of few columns and a last program of few rows."""
    plans = {plan_vectors(kind.name, tokens, cols)._replace(repeats=4) for cols in (32, 1024, 8192)}
    assert len(plans) == 3
    cols = 4096 + block_weights(kind)
    w = random_matrix(kind, 1, 9, cols)
    x = activations(tokens, cols)
    device_w = DeviceMatrix.from_host(w, DEVICE)
    for plan in plans:
        monkeypatch.setattr(vector_gemv, "plan_vectors", lambda *sizes, plan=plan: plan)
        check_linear(x, w, linear(x, device_w))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q6_K"])
@pytest.mark.parametrize("tokens", [1, 16, 17])
def test_rows_as_in_the_file_give_the_same(name: str, tokens: int) -> None:
    """A matrix that is not packed, such as an expert in its slot."""
    kind = GGMLQuantizationType[name]
    w = random_matrix(kind, 2, 19, 1024)
    packed = DeviceMatrix.from_host(w, DEVICE)
    plain = DeviceMatrix(torch.from_numpy(w.data.copy()).to(DEVICE), kind, 2, 19, 1024)
    assert packed.has_vectors and not plain.has_vectors
    assert torch.equal(matmul.dequantize(packed), matmul.dequantize(plain))
    x = activations(2, tokens, 1024)
    got = batched_linear(x, plain)
    for b in range(2):
        check_linear(x[b], w.slice(b, b + 1), got[b], exact_tokens=1)


@pytest.mark.parametrize("num_sms", [1, 64])
@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_rows_lie_anywhere(tokens: int, num_sms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "num_multiprocessors", lambda device: num_sms)
    w = random_matrix(Q8_0, 3, 18, 1120)
    device_w = DeviceMatrix.from_host(w, DEVICE)
    x = activations(tokens, 3, 1200)[..., 7:1127].transpose(0, 1)  # (B, T, K)
    out = torch.full((tokens, 3, 20), 5.0)
    batched_linear(x, device_w, out[..., 1:19].transpose(0, 1))
    for b in range(3):
        check_linear(x[b], w.slice(b, b + 1), out[:, b, 1:19])
    assert (out[..., 0] == 5).all() and (out[..., 19] == 5).all()


@pytest.mark.parametrize("tokens", [1, 17])
def test_float32_matrices_are_multiplied_in_float32(tokens: int) -> None:
    w = random_matrix(GGMLQuantizationType.F32, 1, 11, 96)
    x = activations(tokens, 96)
    got = linear(x, DeviceMatrix.from_host(w, DEVICE))
    weights = closeness.weights(w)[0]
    bound = sum_bound(96, np.abs(x.numpy()) @ np.abs(weights).T)
    closeness.assert_close(got, x.double().numpy() @ weights.T, bound, "F32")


@pytest.mark.parametrize("precision", ["none", "tf32"])
def test_float32_products_are_never_tf32(precision: str) -> None:
    """Also if a program has set it by torch's new name: reading the old one then fails."""
    flags = torch.backends.cuda.matmul
    before, flags.fp32_precision = flags.fp32_precision, precision
    seen = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if "matmul" in function.__name__:
                seen.append(flags.fp32_precision)
            return function(*args, **(kwargs or {}))

    try:
        w = DeviceMatrix.from_host(random_matrix(GGMLQuantizationType.F32, 1, 3, 8), DEVICE)
        with Spy():
            linear(activations(2, 8), w)
        assert flags.fp32_precision == precision
    finally:
        flags.fp32_precision = before
    assert seen == ["ieee"]


@pytest.mark.parametrize("tokens", [1, 3, 17])
@pytest.mark.parametrize(
    "kind", [kind for kind in TYPES if kind not in LATER], ids=lambda kind: kind.name
)
def test_a_wrong_scale_is_seen(kind: GGMLQuantizationType, tokens: int) -> None:
    cols = max(512, block_weights(kind))
    w = random_matrix(kind, 1, 11, cols)
    x = activations(tokens, cols)
    wrong = x.clone()
    wrong[:, 64:96] *= 1.01 if tokens == 1 else 1.03  # more than bfloat16 may lose
    with pytest.raises(AssertionError, match="out of bounds"):
        check_linear(x, w, linear(wrong, DeviceMatrix.from_host(w, DEVICE)))


@pytest.mark.parametrize("tokens", [1, 5, 20])
def test_a_stack_is_its_matrices(tokens: int) -> None:
    w = random_matrix(Q8_0, 3, 18, 96)
    x = activations(3, tokens, 96)
    got = batched_linear(x, DeviceMatrix.from_host(w, DEVICE))
    for b in range(3):
        check_linear(x[b], w.slice(b, b + 1), got[b])


@pytest.mark.parametrize("num_rows", [5, 18, 36, 50])
def test_slabs_are_put_together(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a matrix, or several whole ones of a stack."""
    monkeypatch.setattr(matmul, "SLAB_BYTES", 2 * 96 * num_rows)
    w, x = random_matrix(Q8_0, 3, 18, 96), activations(3, 17, 96)
    got = batched_linear(x, DeviceMatrix.from_host(w, DEVICE))
    for b in range(3):
        check_linear(x[b], w.slice(b, b + 1), got[b])


def test_nothing_in_gives_nothing_out() -> None:
    w = DeviceMatrix.from_host(random_matrix(Q8_0, 1, 4, 64), DEVICE)
    assert linear(torch.zeros(0, 64), w).shape == (0, 4)
    empty = DeviceMatrix(torch.zeros(0, dtype=torch.uint8, device=DEVICE), Q8_0, 1, 0, 64)
    assert linear(torch.zeros(2, 64), empty).shape == (2, 0)


def test_a_poisoned_token_spoils_only_itself() -> None:
    w = DeviceMatrix.from_host(random_matrix(Q4_K, 1, 6, 512), DEVICE)
    x = activations(3, 512)
    clean = linear(x, w)
    x[1, 300] = float("nan")
    got = linear(x, w)
    assert torch.isnan(got[1]).all()
    assert torch.equal(got[::2], clean[::2])


@pytest.mark.parametrize(("rows", "chunks"), [(1, 1), (2048, 28), (18432, 28), (163840, 28)])
@pytest.mark.parametrize("num_sms", [1, 24, 132])
@pytest.mark.parametrize("block_rows", [16, 32, 64])
def test_plans_cover_all_columns_and_fill_the_gpu(
    rows: int, chunks: int, num_sms: int, block_rows: int
) -> None:
    plan = plan_gemv(rows, chunks, num_sms, block_rows)
    assert (plan.num_splits - 1) * plan.chunks_per_split < chunks
    assert plan.num_splits * plan.chunks_per_split >= chunks
    programs = -(-rows // plan.block_rows) * plan.num_splits
    assert plan.chunks_per_split <= 3 or programs >= (4 if block_rows == 16 else 2) * num_sms


def test_wrong_arguments_are_refused() -> None:
    w = DeviceMatrix.from_host(random_matrix(Q8_0, 2, 4, 64), DEVICE)
    with pytest.raises(ShapeError, match="stack of 2"):
        linear(torch.zeros(2, 64), w)
    with pytest.raises(ShapeError, match=rf"expected a {DEVICE.type} tensor \(2, any, 64\)"):
        batched_linear(torch.zeros(2, 3, 32), w)
    with pytest.raises(ShapeError, match="float64"):
        batched_linear(torch.zeros(2, 3, 64, dtype=torch.float64), w)
    with pytest.raises(ShapeError, match="contiguous rows"):
        batched_linear(torch.zeros(2, 64, 3).transpose(1, 2), w)
    with pytest.raises(ShapeError, match="NVFP4 has no Triton kernel"):
        DeviceMatrix(w.data, GGMLQuantizationType.NVFP4, 1, 1, 256)
    with pytest.raises(ShapeError, match="multiple of 32"):
        DeviceMatrix(w.data, Q8_0, 1, 1, 65)
    with pytest.raises(ShapeError, match=r"data is .* \(640,\) .* expected .* \(272\)"):
        DeviceMatrix(w.data, Q8_0, 1, 4, 64)


def test_error_bounds_are_small() -> None:
    """The bound of one token is a few float32 roundings, not a tolerance."""
    assert sum_bound(7168, np.ones(1))[0] < 128 * U
