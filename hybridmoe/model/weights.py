"""GGUF tensors by role, with shapes checked against the model's configuration.

Matrices keep their file's block format; on the CPU they stay in the memory map. Vectors (norms,
biases) become float32. Dense weights go to the device. Both generations of MLA files are supported:
split `attn_k_b` / `attn_v_b`, and the older `attn_kv_b`, whose key half is transposed once into
float32, since it is quantized along the wrong axis for the absorbed form.
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

    def matrix(self, name: str, *shape: int) -> Matrix:
        """Bind `name`.weight on the device; shape as for `host_matrix`."""
        return self.device.matrix(self.host_matrix(name, *shape), f"{name}.weight")

    def host_matrix(self, name: str, *shape: int) -> QuantMatrix:
        """Bind `name`.weight on the CPU as a (rows, cols) or (batch, rows, cols) matrix."""
        tensor = self._tensor(f"{name}.weight", shape)
        batch = shape[0] if len(shape) == 3 else 1
        data = self._private.get(tensor.name, tensor.data)
        return self._quantized(tensor, data, batch, shape[-2], shape[-1])

    def vector(self, name: str, size: int, suffix: str = "weight") -> torch.Tensor:
        """Dequantize `name`.suffix to float32 (size,), on the device."""
        tensor = self._tensor(f"{name}.{suffix}", (size,))
        data = self._private.get(tensor.name, tensor.data)
        vector = dequantize(self._quantized(tensor, data, 1, 1, size)).reshape(size)
        if not torch.isfinite(vector).all():  # a NaN bias would go unnoticed: routers rank it first
            raise GGUFError(
                f"{self.file.path.name}: tensor {tensor.name} holds NaN or infinity: the file is"
                " damaged"
            )
        return self.device.upload(vector)

    def _quantized(
        self, tensor: GGUFTensor, data: NDArray[np.uint8], batch: int, rows: int, cols: int
    ) -> QuantMatrix:
        try:
            return QuantMatrix(data, tensor.type, batch, rows, cols)
        except ShapeError as error:  # a type without a kernel
            raise UnsupportedModelError(
                f"{self.file.path.name}: tensor {tensor.name} ({tensor.type.name}): {error}"
            ) from None

    def _tensor(self, name: str, shape: tuple[int, ...]) -> GGUFTensor:
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise GGUFError(f"{self.file.path.name}: tensor {name} is missing")
        # Some files write dimensions of 1, others omit them: a K2 router bias may be (384, 1).
        if _without_ones(tensor.shape) != _without_ones(shape):
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

    def matrix(self, name: str, *shape: int) -> Matrix:
        return self._weights.matrix(self._prefix + name, *shape)

    def host_matrix(self, name: str, *shape: int) -> QuantMatrix:
        return self._weights.host_matrix(self._prefix + name, *shape)

    def vector(self, name: str, size: int, suffix: str = "weight") -> torch.Tensor:
        return self._weights.vector(self._prefix + name, size, suffix)

    def latent_projections(self, c: ModelConfig) -> tuple[Matrix, Matrix]:
        """Bind (k_b, v_b): per head, query to latent (N, R, nope) and latent to value (N, V, R)."""
        if not self.has("attn_kv_b"):
            k_b = self.matrix("attn_k_b", c.num_heads, c.kv_lora_rank, c.nope_dim)
            return k_b, self.matrix("attn_v_b", c.num_heads, c.v_dim, c.kv_lora_rank)
        rows = c.nope_dim + c.v_dim
        packed = self.host_matrix("attn_kv_b", c.num_heads * rows, c.kv_lora_rank)
        kv_b = dequantize(packed).view(c.num_heads, rows, c.kv_lora_rank)
        keys = kv_b[:, : c.nope_dim].transpose(1, 2).contiguous()  # (N, R, nope)
        # The value rows of a head are contiguous rows of the file's matrix: keep their blocks.
        blocks = packed.data.reshape(c.num_heads, rows, packed.row_bytes)[:, c.nope_dim :]
        values = np.ascontiguousarray(blocks).reshape(-1)
        v_b = QuantMatrix(values, packed.type, c.num_heads, c.v_dim, c.kv_lora_rank)
        name = f"{self._prefix}attn_kv_b.weight"
        k_b = QuantMatrix.from_array(keys.numpy())
        return self.device.matrix(k_b, name), self.device.matrix(v_b, name)


def routed_experts(weights: Weights, c: ModelConfig) -> RoutedExperts:
    """Bind the routed experts of all layers, in the memory map. Errors: GGUFError."""
    layers = range(c.num_dense_layers, c.num_layers)
    return RoutedExperts({i: _expert_weights(weights.block(i), c) for i in layers}, c.top_k)


def _expert_weights(block: BlockWeights, c: ModelConfig) -> ExpertWeights:
    return ExpertWeights(
        gate=block.host_matrix("ffn_gate_exps", c.num_experts, c.expert_inter, c.hidden),
        up=block.host_matrix("ffn_up_exps", c.num_experts, c.expert_inter, c.hidden),
        down=block.host_matrix("ffn_down_exps", c.num_experts, c.hidden, c.expert_inter),
    )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
