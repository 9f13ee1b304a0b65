"""Where each expert's weights are in a model's files.

An expert is three pieces: its gate, up and down matrices, each within its layer's stack.
"""

from collections.abc import Sequence
from pathlib import Path

from hybridmoe.experts.disk.arena import buffer_bytes
from hybridmoe.experts.disk.read_queue import Piece
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.gguf.reader import GGUFFile, Tensor

__all__ = ["ROLES", "ExpertLayout", "is_expert_tensor"]

ROLES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def is_expert_tensor(name: str) -> bool:
    """Whether a tensor holds routed experts."""
    return name.endswith(tuple(f".{role}.weight" for role in ROLES))


class ExpertLayout:
    """The routed experts of one file. Layers with experts are counted from 0 here."""

    def __init__(self, file: GGUFFile, experts: RoutedExperts) -> None:
        """experts: shapes agree with the file's."""
        self.paths: Sequence[Path] = file.parts
        self.num_layers = experts.num_layers
        self.num_experts = experts.num_experts
        self._tensors: list[list[Tensor]] = [
            [file.tensors[f"blk.{number}.{role}.weight"] for role in ROLES]
            for number in experts.numbers
        ]
        # A buffer takes an expert of any layer: layers may differ in type.
        sizes = [[t.num_bytes // self.num_experts for t in tensors] for tensors in self._tensors]
        self.piece_bytes = tuple(map(max, zip(*sizes, strict=True)))
        self.buffer_bytes = buffer_bytes(self.piece_bytes)
        self.num_bytes = sum(t.num_bytes for tensors in self._tensors for t in tensors)

    def pieces(self, layer: int, expert: int) -> list[Piece]:
        """Gate, up and down of one expert. layer: counted from 0."""
        found = []
        for tensor in self._tensors[layer]:
            size = tensor.num_bytes // self.num_experts
            found.append(Piece(tensor.part, tensor.offset + expert * size, size, tensor.name))
        return found
