"""File ranges of each expert: its gate, up and down matrices, each within its layer's stack."""

from collections.abc import Sequence
from pathlib import Path

from hybridmoe.experts.disk.read_request import FileRange
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.reader import GGUFFile, Tensor

__all__ = ["ROLES", "ExpertLayout", "is_expert_tensor"]

ROLES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def is_expert_tensor(name: str) -> bool:
    """Return True for a stack of routed experts."""
    return name.endswith(tuple(f".{role}.weight" for role in ROLES))


class ExpertLayout:
    """File ranges of a model's routed experts, by layer index."""

    def __init__(self, file: GGUFFile, experts: RoutedExperts) -> None:
        """experts: of the same file."""
        self.paths: Sequence[Path] = file.parts
        self.num_layers = experts.num_layers
        self.num_experts = experts.num_experts
        self._tensors: list[list[Tensor]] = [
            [file.tensors[f"blk.{number}.{role}.weight"] for role in ROLES]
            for number in experts.numbers
        ]
        self.num_bytes = sum(t.num_bytes for tensors in self._tensors for t in tensors)

    def parts(self, layer_index: int) -> list[tuple[int, int, int, str]]:
        """Of a layer's gate, up and down: file, offset of expert 0, bytes of one, name."""
        return [
            (
                t.part,
                t.offset,
                t.num_bytes // self.num_experts,
                f"{printable(self.paths[t.part].name, 255)}: tensor {printable(t.name)}",
            )
            for t in self._tensors[layer_index]
        ]

    def ranges(self, layer_index: int, expert: int) -> list[FileRange]:
        """File ranges of one expert's gate, up and down."""
        found = []
        for tensor in self._tensors[layer_index]:
            size = tensor.num_bytes // self.num_experts
            found.append(FileRange(tensor.part, tensor.offset + expert * size, size, tensor.name))
        return found
