"""GGUF tensors by role, with shapes checked against the model's configuration.

Matrices keep their file's block format; on the CPU they stay in the memory map. Vectors (norms,
biases) become float32. Dense weights go to the device. Both generations of MLA files are supported:
split `attn_k_b` / `attn_v_b`, and the older `attn_kv_b`, whose key half is transposed once into
float32, since it is quantized along the wrong axis for the absorbed form. A `.scale` beside an
NVFP4 matrix is the factor of its products, one for each expert.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from hybridmoe.config import ModelConfig
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.device.interface import Device, Matrix
from hybridmoe.errors import GGUFError, ShapeError, UnsupportedModelError
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.gguf.names import FUSED_ROLE, is_expert_tensor
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.gguf.reader import Tensor as GGUFTensor
from hybridmoe.kernels.ops import QuantMatrix, dequantize

__all__ = ["BlockWeights", "Weights", "routed_experts"]


class Weights:
    """Tensors of an open file, on a device. Errors: GGUFError naming the tensor."""

    def __init__(
        self,
        file: GGUFFile,
        private: Mapping[str, NDArray[np.uint8]] | None = None,
        device: Device | None = None,
    ) -> None:
        """private: bytes of tensors, by name, that replace the memory map's. device: None = CPU."""
        self.device = CpuDevice() if device is None else device
        self.file = file
        self._private = private or {}

    def on(self, device: Device) -> "Weights":
        """Return the same tensors on another device."""
        return Weights(self.file, self._private, device)

    def has(self, name: str, suffix: str = "weight") -> bool:
        return f"{name}.{suffix}" in self.file.tensors

    def block(self, layer: int) -> "BlockWeights":
        """Return the tensors of one layer, by their names after `blk.N.`."""
        return BlockWeights(self, f"blk.{layer}.")

    def matrix(self, name: str, *shape: int, is_flat: bool = False) -> Matrix:
        """Bind `name`.weight on the device; shape as for `host_matrix`."""
        return self.device.matrix(self.host_matrix(name, *shape, is_flat=is_flat), f"{name}.weight")

    def host_matrix(self, name: str, *shape: int, is_flat: bool = False) -> QuantMatrix:
        """Bind `name`.weight on the CPU as a (rows, cols) or (batch, rows, cols) matrix.

        is_flat: the file may also have it as (batch * rows, cols).
        """
        tensor = self._tensor(f"{name}.weight", shape, is_flat)
        batch = shape[0] if len(shape) == 3 else 1
        data = self._private.get(tensor.name, tensor.data)
        scales = self._scales(tensor, name, batch)
        return self._quantized(tensor, data, batch, shape[-2], shape[-1], scales)

    def vector(self, name: str, size: int, suffix: str = "weight") -> torch.Tensor:
        """Dequantize `name`.suffix to float32 (size,), on the device."""
        return self.device.upload(self._host_vector(name, size, suffix))

    def _host_vector(self, name: str, size: int, suffix: str) -> torch.Tensor:
        tensor = self._tensor(f"{name}.{suffix}", (size,))
        data = self._private.get(tensor.name, tensor.data)
        vector = dequantize(self._quantized(tensor, data, 1, 1, size)).reshape(size)
        if not torch.isfinite(vector).all():  # a NaN bias would go unnoticed: routers rank it first
            raise GGUFError(
                f"{self.file.path.name}: tensor {tensor.name} holds NaN or infinity: the file is"
                " damaged"
            )
        return vector

    def _scales(self, tensor: GGUFTensor, name: str, batch: int) -> NDArray[np.float32] | None:
        """Read the factors of a matrix's products: one, or one for each expert."""
        if not self.has(name, "scale"):
            return None
        if tensor.type != QuantType.NVFP4:
            raise UnsupportedModelError(
                f"{self.file.path.name}: tensor {name}.scale: supported beside NVFP4 only, but"
                f" {tensor.name} is {tensor.type.name}"
            )
        size = batch if is_expert_tensor(tensor.name) else 1
        scales = self._host_vector(name, size, "scale").numpy()
        return np.array(np.broadcast_to(scales, batch))

    def _quantized(
        self,
        tensor: GGUFTensor,
        data: NDArray[np.uint8],
        batch: int,
        rows: int,
        cols: int,
        scales: NDArray[np.float32] | None = None,
    ) -> QuantMatrix:
        try:
            return QuantMatrix(data, tensor.type, batch, rows, cols, scales=scales)
        except ShapeError as error:  # a type without a kernel
            raise UnsupportedModelError(
                f"{self.file.path.name}: tensor {tensor.name} ({tensor.type.name}): {error}"
            ) from None

    def _tensor(self, name: str, shape: tuple[int, ...], is_flat: bool = False) -> GGUFTensor:
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise GGUFError(f"{self.file.path.name}: tensor {name} is missing")
        # Some files write dimensions of 1, others omit them: a K2 router bias may be (384, 1).
        flat = (shape[0] * shape[1], *shape[2:]) if is_flat else shape
        if _without_ones(tensor.shape) not in (_without_ones(shape), _without_ones(flat)):
            raise GGUFError(
                f"{self.file.path.name}: tensor {name} has shape {list(tensor.shape)},"
                f" expected {list(shape)}"
            )
        return tensor


class BlockWeights:
    """Tensors of one layer; methods as `Weights`."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self.device = weights.device
        self._weights = weights
        self._prefix = prefix

    def has(self, name: str, suffix: str = "weight") -> bool:
        return self._weights.has(self._prefix + name, suffix)

    def matrix(self, name: str, *shape: int, is_flat: bool = False) -> Matrix:
        return self._weights.matrix(self._prefix + name, *shape, is_flat=is_flat)

    def host_matrix(self, name: str, *shape: int) -> QuantMatrix:
        return self._weights.host_matrix(self._prefix + name, *shape)

    def vector(self, name: str, size: int, suffix: str = "weight") -> torch.Tensor:
        return self._weights.vector(self._prefix + name, size, suffix)

    def latent_projections(self, c: ModelConfig) -> tuple[Matrix, Matrix]:
        """Bind (k_b, v_b): per head, query to latent (N, R, nope) and latent to value (N, V, R)."""
        if not self.has("attn_kv_b") or (self.has("attn_k_b") and self.has("attn_v_b")):
            k_b = self.matrix("attn_k_b", c.num_heads, c.kv_lora_rank, c.nope_dim, is_flat=True)
            v_b = self.matrix("attn_v_b", c.num_heads, c.v_dim, c.kv_lora_rank, is_flat=True)
            return k_b, v_b
        rows = c.nope_dim + c.v_dim
        packed = self.host_matrix("attn_kv_b", c.num_heads * rows, c.kv_lora_rank)
        kv_b = dequantize(packed).view(c.num_heads, rows, c.kv_lora_rank)
        keys = kv_b[:, : c.nope_dim].transpose(1, 2).contiguous()  # (N, R, nope)
        # The value rows of a head are contiguous rows of the file's matrix: keep their blocks.
        blocks = packed.data.reshape(c.num_heads, rows, packed.row_bytes)[:, c.nope_dim :]
        values = np.ascontiguousarray(blocks).reshape(-1)
        scales = None if packed.scales is None else packed.scales.repeat(c.num_heads)
        v_b = QuantMatrix(values, packed.type, c.num_heads, c.v_dim, c.kv_lora_rank, scales=scales)
        name = f"{self._prefix}attn_kv_b.weight"
        k_b = QuantMatrix.from_array(keys.numpy())
        return self.device.matrix(k_b, name), self.device.matrix(v_b, name)


def routed_experts(weights: Weights, c: ModelConfig) -> RoutedExperts:
    """Bind the routed experts of all layers, in the memory map. Errors: GGUFError."""
    layers = range(c.num_dense_layers, c.num_loaded_layers)
    return RoutedExperts({i: _expert_weights(weights.block(i), c) for i in layers}, c.top_k)


def _expert_weights(block: BlockWeights, c: ModelConfig) -> ExpertWeights:
    num, inter = c.num_experts, c.expert_inter
    if block.has(FUSED_ROLE):
        both = block.host_matrix(FUSED_ROLE, num, 2 * inter, c.hidden)
        gate, up = both.slice_rows(0, inter), both.slice_rows(inter, 2 * inter)
    else:
        gate = block.host_matrix("ffn_gate_exps", num, inter, c.hidden)
        up = block.host_matrix("ffn_up_exps", num, inter, c.hidden)
    return ExpertWeights(gate, up, block.host_matrix("ffn_down_exps", num, c.hidden, inter))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
