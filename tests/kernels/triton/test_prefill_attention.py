"""Attention of a step of the GPU: prefill, decode and both."""

from collections.abc import Sequence

import closeness
import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import random_matrix
from torch.utils._python_dispatch import TorchDispatchMode

from hybridmoe.config import RoutingSpec
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.device.interface import Device
from hybridmoe.device.pending import Ready
from hybridmoe.kernels import paged_mla, reference
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import Span

pytest.importorskip("triton", reason="needs triton")

from interpreted_gpu import gpu_device
from kernel_device import DEVICE, on_device
from triton_bounds import U, dot_bound

from hybridmoe.device import cuda as device_module
from hybridmoe.device import cuda_block_tables as table
from hybridmoe.device.cuda_block_tables import CudaBlockTables
from hybridmoe.kernels.triton import prefill_attention as prompt_attention

expanded_attention = on_device(prompt_attention.expanded_attention)

SCALE = 0.2


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("expanded_bytes", [1, 256 << 20])
@pytest.mark.parametrize(
    "sizes",  # tokens, positions, heads, nope, rope, latent, value
    [(1, 1, 1, 8, 2, 16, 8), (17, 17, 5, 24, 8, 40, 16), (20, 150, 3, 16, 8, 32, 40)],
)
def test_a_prompt_is_within_the_bound(
    sizes: tuple[int, ...], expanded_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries and KV cache are exact in bfloat16 here. With g = 2^-9 a rounding to it, to nearest:

    keys, values, shares and results lose g of themselves, all else is float32 (tensor cores:
    `dot_bound`). A score is off by e <= scale (g |q| . |key| + (R + D) u |q| . (|latent| |k_b|)), a
    share by a factor of e^(2 e).
    """
    tokens, positions, heads, nope, rope, latent, value = sizes
    monkeypatch.setattr(prompt_attention, "EXPANDED_BYTES", expanded_bytes)
    q_nope = rand(tokens, heads, nope, seed=1).bfloat16().float()
    q_rope = rand(tokens, heads, rope, seed=2).bfloat16().float()
    k_b, v_b = (
        rand(heads, latent, nope, seed=3).bfloat16() / 4,
        rand(heads, value, latent, seed=4).bfloat16() / 4,
    )
    num_pages = -(-positions // 64)
    pages = rand(num_pages + 1, 64, latent + rope, seed=5).bfloat16()
    pages[0] = float("nan")
    page_ids = torch.arange(num_pages, 0, -1)
    rows = pages[page_ids].flatten(0, 1)
    rows[positions:] = float("nan")
    pages[page_ids] = rows.view(num_pages, 64, -1)
    inputs = (q_nope, q_rope, k_b, v_b, pages, page_ids, positions)
    got = expanded_attention(*inputs, SCALE)

    seen = rows[:positions].double()
    keys = k_b.double().transpose(1, 2)  # (N, nope, R)
    absorbed = q_nope.double().transpose(0, 1) @ keys  # (N, T, R)
    want = reference.latent_attention(absorbed, q_rope.double(), seen, SCALE)
    want = (want @ v_b.double().transpose(1, 2)).transpose(0, 1)  # (T, N, V)

    g, size = 2.0**-9, (latent + nope + rope) * U + dot_bound(latent + nope + rope + 16, 1.0)
    q_nope, q_rope = q_nope.double().transpose(0, 1), q_rope.double().transpose(0, 1)  # (N, T, ...)
    seen, ropes = seen[:, :latent], seen[:, latent:].T
    scores = (absorbed @ seen.T + q_rope @ ropes) * SCALE
    future = ~torch.ones(tokens, positions).tril(positions - tokens).bool()
    shares = scores.masked_fill(future, float("-inf")).softmax(-1)
    error = g * (q_nope.abs() @ (keys @ seen.T).abs())
    error += size * (q_nope.abs() @ keys.abs() @ seen.abs().T + q_rope.abs() @ ropes.abs())
    error = (SCALE * error).amax(-1, keepdim=True)
    values = (seen @ v_b.double().transpose(1, 2)).abs()
    sums = seen.abs() @ v_b.double().abs().transpose(1, 2)
    relative = 2.1 * g + 2 * U * positions + dot_bound(positions, 1.0)
    bound = (torch.expm1(2 * error) + relative) * (shares @ values)
    bound = (bound + 1.1 * size * (shares @ sums)).transpose(0, 1)
    bound += g * (want.abs() + bound)
    closeness.assert_close(got, want.numpy(), bound.numpy(), str(sizes))
    if positions > 1:
        got = expanded_attention(*inputs, 0.85 * SCALE)
        with pytest.raises(AssertionError, match="out of bounds"):
            closeness.assert_close(got, want.numpy(), bound.numpy(), "another scale")


class Layer:
    """Attention of one layer on a device; pages are filled span by span, as by a model."""

    HEADS, NOPE, ROPE, LATENT, VALUE = 3, 16, 8, 32, 16
    DIM = LATENT + ROPE

    def __init__(self, device: Device, kv_type: str) -> None:
        self.device = device
        self.k_b = device.matrix(self._matrix(self.LATENT, self.NOPE, 1), "k_b")
        self.v_b = device.matrix(self._matrix(self.VALUE, self.LATENT, 2), "v_b")
        data = device.empty_bytes(8, 64, paged_mla.row_bytes(kv_type, self.DIM)).fill_(0xFF)
        self.pages = device.pages(data, kv_type, self.DIM)

    def _matrix(self, rows: int, cols: int, seed: int) -> QuantMatrix:
        return QuantMatrix.from_array((rand(self.HEADS, rows, cols, seed=seed) / 4).numpy())

    def step(self, spans: Sequence[Span]) -> torch.Tensor:
        """Run a step whose inputs depend on page and row alone, not on the division into steps."""
        found = self.device.tables(spans)
        where = [(span.pages[p // 64], p % 64) for span in spans
                 for p in range(span.start, span.start + span.num_tokens)]  # fmt: skip
        at = torch.tensor([page * 64 + row for page, row in where])
        every = 8 * 64
        rows = rand(every, self.DIM, seed=3)[at]
        queries = rand(every, self.HEADS, self.NOPE + self.ROPE, seed=4)[at]
        self.device.store_kv(self.device.upload(rows), self.pages, found)
        queries = self.device.upload(queries)
        q_nope, q_rope = queries[..., : self.NOPE], queries[..., self.NOPE :]
        return self.device.attend(q_nope, q_rope, self.k_b, self.v_b, self.pages, found, SCALE)


A, B, C = [3, 0, 6], [5, 1], [2, 7]
STEPS = [
    [Span(70, 0, A), Span(1, 0, B), Span(3, 0, C)],
    [Span(1, 1, B), Span(64, 70, A), Span(66, 3, C), Span(5, 134, A)],
    [Span(1, 139, A), Span(1, 69, C), Span(1, 2, B)],
]


@pytest.mark.parametrize("kv_type", ["f16", "bf16"])
@pytest.mark.parametrize("prompt_tokens", [4, 64, 1000])
def test_steps_of_any_spans_are_the_cpus(
    prompt_tokens: int, kv_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's bits depend on no division; the GPU's roundings to bfloat16 lose 1 % at most."""
    monkeypatch.setattr(table, "PROMPT_TOKENS", prompt_tokens)
    monkeypatch.setattr(device_module, "_ABSORBED_TOKENS", 50)
    ours, theirs = Layer(gpu_device(), kv_type), Layer(CpuDevice(), kv_type)
    for step in STEPS:
        got, want = ours.step(step).cpu(), theirs.step(step)
        bound = torch.full_like(want, 0.02 * float(want.abs().max()))
        closeness.assert_close(got, want.numpy(), bound.numpy(), f"{step}")
    wrong = [span._replace(start=span.start - 1) for span in STEPS[-1]]
    assert (ours.step(wrong).cpu() - want).abs().max() > 0.1 * want.abs().max()


def test_tables_say_where_tokens_lie() -> None:
    found = CudaBlockTables.of(STEPS[1], DEVICE)
    assert found.num_tokens == 136
    assert found.rows.tolist() == [0, 131, 132, 133, 134, 135]
    assert found.positions.tolist() == [2, 135, 136, 137, 138, 139]
    assert found.tables.tolist() == [[5, 0, 0], *[A] * 5]
    places = [(B, 1), *[(A, p) for p in range(70, 134)], *[(C, p) for p in range(3, 69)],
              *[(A, p) for p in range(134, 139)]]  # fmt: skip
    assert found.slots.tolist() == [pages[p // 64] * 64 + p % 64 for pages, p in places]
    first, second = found.prompts
    assert (first.first_row, first.num_tokens, first.num_positions) == (1, 64, 134)
    assert (second.first_row, second.num_tokens, second.num_positions) == (65, 66, 69)
    assert (first.pages.tolist(), second.pages.tolist()) == (A, C)


def test_tables_of_decoding_are_padded_to_few_sizes() -> None:
    found = CudaBlockTables.of(STEPS[2], DEVICE)
    assert found.num_pages == 16  # of three
    assert found.positions.tolist() == [140, 70, 3]


class NoReading(TorchDispatchMode):
    """Fails where the host would wait for a tensor's value."""

    READING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func.overloadpacket.__name__ not in self.READING, func
        return func(*args, **(kwargs or {}))


def test_nothing_but_to_host_waits_for_the_gpu() -> None:
    gpu = gpu_device()
    layer = Layer(gpu, "f16")
    w = gpu.matrix(random_matrix(GGMLQuantizationType.Q8_0, 1, 32, 32), "w")
    spec = RoutingSpec(
        top_k=3, num_groups=4, num_groups_used=2, is_sigmoid=True, is_normalized=True
    )
    with NoReading():
        for step in STEPS:
            layer.step(step)
        for tokens in (1, 3, 17):
            x = gpu.upload(rand(tokens, 32, seed=1))
            gpu.dense_ffn(x, w, w, w, base=Ready(x))
            gpu.rms_norm(x, gpu.upload(rand(32, seed=2)), 1e-6, residual=x.clone(), out=x)
            gpu.route(x, None, spec)
            gpu.rotate_(x.view(tokens, 4, 8), gpu.upload(rand(tokens, 8, seed=3)))
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReading():
        rand(1, seed=1).item()
