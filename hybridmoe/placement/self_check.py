"""Self-check at load: the GPU's kernels against the CPU's, on the model's own weights.

A compiler's fault gives wrong numbers without an error, on some GPU, for some type. So each matrix
type and shape, each layout of experts, attention, routing and the elementwise kernels are run once
and compared. What is wrong is left to the CPU.

Bounds. States are integers of up to 127, of random sign, with one of 127 in each 32: no rounding to
int8, bfloat16 or float16 changes them. What is left is rounding of weights (2^-8 of themselves at
most), of results, and of a feed-forward's hidden activations (half a step of int8 at most). With
random signs the errors of a sum have the standard deviation of a random walk; 8 of those are
allowed (Hoeffding: exceeded once in 10^13). Garbage is off by 10 to 100 times as much.
"""

from collections.abc import Callable, Container
from functools import partial
from math import inf

import numpy as np
import torch
from torch import Tensor

from hybridmoe.config import PREFILL_TOKENS, ModelConfig
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.device.cuda import CudaDevice
from hybridmoe.device.cuda_errors import is_gpu_error
from hybridmoe.errors import KernelError
from hybridmoe.experts.gpu.weight_stream import HostExperts
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.kernels import ops
from hybridmoe.kernels.expert_groups import (
    FEW_ROWS,
    MANY_ROWS,
    ExpertGroup,
    LayerStates,
    tiles_of,
)
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.expert_ffn import SlotLayout, expert_ffn, pack_slot
from hybridmoe.kernels.triton.expert_prefill import add_experts, layout_of
from hybridmoe.kernels.triton.matmul import batched_linear
from hybridmoe.kernels.triton.matrix import DeviceMatrix
from hybridmoe.kernels.triton.vector_gemv import MAX_VECTOR_TOKENS
from hybridmoe.placement.kernel_checks import KernelCheck, KernelChecks
from hybridmoe.placement.network_check import network_cases

__all__ = ["SelfCheck"]

_FEW, _MANY = 5, PREFILL_TOKENS + 1  # tokens, of the kernels for up to 16 and for prompts
_ROWS = 32  # compared, at either end of a matrix
_SIGMAS = 8
_EXACT, _ROUNDED = 2.0**-13, 2.0**-8  # rounding of a weight: float32 sums alone; bfloat16
_HALF_STEP = 0.5 / 127 / 3**0.5  # of int8, its standard deviation, as a share of the largest


class SelfCheck:
    """Comparisons of one GPU's kernels, and what they found."""

    def __init__(self, device: CudaDevice, found: KernelChecks | None = None) -> None:
        """device: of the GPU, with nothing pinned to the CPU. found: takes what is found."""
        self.device = device
        self.found = KernelChecks() if found is None else found
        self._wrong: dict[tuple[object, ...], KernelCheck | None] = {}  # by kind of matrix

    def check_network(self, config: ModelConfig, kv_type: str) -> None:
        """Check attention, routing and the elementwise kernels.

        Errors: KernelError where one is wrong: the GPU is of no use then.
        """
        for case in network_cases(config, kv_type):
            error = partial(case.error, CpuDevice(), self.device)
            check = self._compared(case.name, case.given, error)
            if self.found.add([check]) is not None:
                raise KernelError(f"self-check: the GPU is wrong in {check}")

    def is_right(self, on_gpu: DeviceMatrix, w: QuantMatrix, name: str) -> bool:
        """Check products with a matrix, unless one of its type and shape was; record the outcome.

        name: the tensor's.
        """
        kind = (w.type, w.batch, w.rows, w.cols)
        if kind not in self._wrong:
            counts = (1, *((2, MAX_VECTOR_TOKENS) if on_gpu.has_vectors else ()), _FEW, _MANY)
            checks = [self._product(on_gpu, w, tokens) for tokens in counts]
            self._wrong[kind] = self.found.add(checks)
        wrong = self._wrong[kind]
        if wrong is not None:
            self.found.leave_to_cpu(wrong, f"products of {w.type.name}", name)
        return wrong is None

    def wrong_layers(self, experts: RoutedExperts, pinned: Container[int]) -> frozenset[int]:
        """Check the first layer of each layout of experts; return the numbers of wrong ones.

        pinned: layers that the CPU computes anyway. Types without a GPU kernel are not checked.
        """
        found: dict[SlotLayout, KernelCheck | None] = {}
        numbers = set[int]()
        for number, weights in experts.layers.items():
            layout = layout_of(*weights)
            if layout is None or number in pinned:
                continue
            if layout not in found:
                found[layout] = self._check_experts(weights, layout, experts.top_k)
            if (wrong := found[layout]) is not None:
                kinds = ", ".join(w.type.name for w in weights)
                self.found.leave_to_cpu(wrong, f"experts of {kinds}", f"blk.{number}")
                numbers.add(number)
        return frozenset(numbers)

    def _check_experts(
        self, experts: ExpertWeights, layout: SlotLayout, top_k: int
    ) -> KernelCheck | None:
        """Check a layer's first expert, decoding in a slot and reading a prompt."""
        slot = np.zeros((1, layout.slot_bytes), np.uint8)
        for offset, data in HostExperts(experts, layout).parts(0):
            slot[0, offset : offset + data.nbytes] = data.numpy()
        streamed = self.device.upload(torch.from_numpy(slot))
        slots = pack_slot(streamed[0], layout)[None]

        def of_slots(x: Tensor) -> Tensor:
            chosen = torch.full((len(x), top_k), -1, dtype=torch.int32)
            chosen[:, -1] = 0
            weights = torch.ones((len(x), top_k), device=x.device)
            return expert_ffn(x, self.device.upload(chosen), weights, slots, layout.packed)

        def of_prompts(rows: int, data: Tensor, layout: SlotLayout, x: Tensor) -> Tensor:
            """Add half of the expert twice, as two experts of a group."""
            upload, count = self.device.upload, len(x)
            numbers = torch.arange(2 * count, dtype=torch.int32)
            pairs, places = numbers.view(count, 2).T.reshape(-1), numbers.view(2, count).T
            tiles = torch.from_numpy(tiles_of(0, [count, count], rows))
            half, out = x.new_full((count, 2), 0.5), torch.zeros_like(x)
            states = LayerStates(
                x.bfloat16(), half, upload(pairs), upload(places.contiguous()), out
            )
            twice = upload(torch.zeros(2, dtype=torch.int32))
            add_experts(states, ExpertGroup(twice, upload(tiles), 0, 2 * count), data, layout, rows)
            return out

        first = ExpertWeights(*(w.slice(0, 1) for w in experts))
        given = ", ".join(w.type.name for w in first)
        cases = (
            (of_slots, 1),
            (of_slots, _FEW),
            (partial(of_prompts, FEW_ROWS, streamed, layout), _MANY),
            (partial(of_prompts, MANY_ROWS, slots, layout.packed), _MANY),
        )
        return self.found.add(
            [
                self._compared(
                    f"experts, {_tokens(tokens)}",
                    given,
                    partial(self._ffn_error, first, run, tokens),
                )
                for run, tokens in cases
            ]
        )

    def _product(self, on_gpu: DeviceMatrix, w: QuantMatrix, tokens: int) -> KernelCheck:
        rounding = _ROUNDED if tokens > 1 or on_gpu.type != w.type else _EXACT

        def error() -> float:
            x = _states(w.batch * tokens, w.cols).view(w.batch, tokens, w.cols)
            got = self.device.to_host(batched_linear(self.device.upload(x), on_gpu))
            count = min(_ROWS, w.rows)
            ends = ((0, 0), (w.batch - 1, w.rows - count))
            return max(
                _Product(_rows(w, b, first, count), x[b].double()).error(
                    got[b, :, first : first + count], rounding
                )
                for b, first in ends
            )

        stack = f"{w.batch} x " if w.batch > 1 else ""
        given = f"{w.type.name}, {stack}{w.rows} x {w.cols}"
        return self._compared(f"products of {_tokens(tokens)}", given, error)

    def _ffn_error(
        self, expert: ExpertWeights, run: Callable[[Tensor], Tensor], tokens: int
    ) -> float:
        """Compare SwiGLU of exact states, which the CPU's kernels do not round either."""
        x = _states(tokens, expert.gate.cols)
        rms = float(ops.linear(x, expert.gate).square().mean().sqrt())
        if 0 < rms < inf:
            x *= 2.0 ** -round(np.log2(rms))  # gates near one, where silu is curved
        gate, up = ops.linear(x, expert.gate).double(), ops.linear(x, expert.up).double()
        silu = gate * torch.sigmoid(gate)
        hidden = silu * up
        noise = _ROUNDED * (1.1 * _rms(gate) * up.abs() + silu.abs() * _rms(up))
        noise = noise + _HALF_STEP * hidden.abs().amax(1, keepdim=True)
        got = self.device.to_host(run(self.device.upload(x)))
        count = min(_ROWS, expert.down.rows)
        return max(
            _Product(_rows(expert.down, 0, first, count), hidden, noise).error(
                got[:, first : first + count], _ROUNDED
            )
            for first in (0, expert.down.rows - count)
        )

    def _compared(self, kernel: str, given: str, error: Callable[[], float]) -> KernelCheck:
        """Run a comparison. A kernel that fails is wrong; a GPU that fails is an error."""
        try:
            return KernelCheck(kernel, given, error())
        except Exception as raised:
            if is_gpu_error(raised):
                raise
            return KernelCheck(kernel, given, inf, f"{type(raised).__name__}: {raised}"[:120])


class _Product:
    """x W^T in float64 for some rows of a matrix, and the error that rounding explains."""

    def __init__(self, w: Tensor, x: Tensor, noise: Tensor | None = None) -> None:
        """w (n, K), x (T, K) f64. noise (T, K): standard deviation of x."""
        self._want = x @ w.T
        self._walk = (x.square() @ w.square().T).sqrt()
        self._from_x = torch.zeros(()) if noise is None else noise.square() @ w.square().T
        self._floor = 2.0**-20 * x.abs().sum(1, keepdim=True) * w.abs().amax(1)

    def error(self, got: Tensor, rounding: float) -> float:
        """Return the largest error over what is allowed; infinite where only one is finite."""
        of_results = rounding * self._want.abs()
        sigma = ((rounding * self._walk).square() + self._from_x + of_results.square()).sqrt()
        return worst(got.double(), self._want, _SIGMAS * sigma + self._floor)


def worst(got: Tensor, want: Tensor, bound: Tensor) -> float:
    """Return the largest |got - want| / bound; infinite where just one of the two is finite."""
    share = (got - want).abs() / bound.clamp_min(2.0**-140)
    share = torch.where(want.isfinite() == got.isfinite(), share.nan_to_num(0.0), inf)
    return float(share.max())


def _states(tokens: int, cols: int) -> Tensor:
    """Make states (T, K) f32 that no rounding of activations changes."""
    generator = torch.Generator().manual_seed(cols)
    x = torch.randint(-127, 128, (tokens, cols), generator=generator)
    largest = x[:, ::32]
    largest.copy_(torch.where(largest < 0, -127, 127))
    return x.float()


def _rows(w: QuantMatrix, matrix: int, first: int, count: int) -> Tensor:
    """Dequantize rows of one matrix on the CPU: (count, K) f64."""
    rows = w.slice(matrix, matrix + 1).slice_rows(first, first + count)
    return ops.dequantize(rows).view(count, -1).double()


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(1, keepdim=True).sqrt()


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"
