"""GGUF files on disk: validated headers, memory-mapped tensors, split parts, tensor names."""

from hybridmoe.gguf.header import MetadataValue
from hybridmoe.gguf.names import PARTS, TensorName, parse_name, part_of
from hybridmoe.gguf.reader import GGUFFile, Tensor

__all__ = [
    "PARTS",
    "GGUFFile",
    "MetadataValue",
    "Tensor",
    "TensorName",
    "parse_name",
    "part_of",
]
