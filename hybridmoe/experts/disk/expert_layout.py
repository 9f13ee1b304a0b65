"""File ranges of experts: each layer's gate, up and down, of which two may be in one tensor."""

from typing import NamedTuple

from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.names import FUSED_ROLE
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.matrix import QuantMatrix

__all__ = ["ExpertLayout", "FilePart"]


class FilePart(NamedTuple):
    """One of an expert's three matrices, of all experts of a layer."""

    file: int  # index into GGUFFile.parts
    offset: int  # of expert 0
    stride: int  # bytes from an expert to the next
    num_bytes: int  # of each
    name: str  # for messages


class ExpertLayout:
    """File ranges of a model's routed experts, by layer index."""

    def __init__(self, file: GGUFFile, experts: RoutedExperts) -> None:
        """experts: of the same file."""
        self._file, self._experts = file, experts
        self.num_bytes = sum(weights.num_bytes for weights in experts.by_index)

    def parts(self, layer_index: int) -> tuple[FilePart, FilePart, FilePart]:
        """Of a layer's gate, up and down."""
        block = f"blk.{self._experts.numbers[layer_index]}."
        gate, up, down = self._experts.by_index[layer_index]
        is_fused = f"{block}{FUSED_ROLE}.weight" in self._file.tensors

        def part(role: str, w: QuantMatrix, skip: int = 0) -> FilePart:
            tensor = self._file.tensors[f"{block}{role}.weight"]
            file = printable(self._file.parts[tensor.part].name, 255)
            name = f"{file}: tensor {printable(tensor.name)}"
            offset = tensor.offset + self._experts.first * w.stride + skip
            return FilePart(tensor.part, offset, w.stride, w.matrix_bytes, name)

        return (
            part(FUSED_ROLE if is_fused else "ffn_gate_exps", gate),
            part(FUSED_ROLE if is_fused else "ffn_up_exps", up, gate.matrix_bytes * is_fused),
            part("ffn_down_exps", down),
        )
