"""Routed experts of a model: the memory that they take in the file's map."""

from gguf import GGMLQuantizationType as T
from random_weights import random_matrix

from hybridmoe.experts.routed_experts import ExpertWeights


def test_matrices_in_one_tensor_are_one_span() -> None:
    both, down = random_matrix(T.Q8_0, 3, 8, 32), random_matrix(T.Q8_0, 3, 32, 32)
    gate, up = both.slice_rows(0, 4), both.slice_rows(4, 8)
    of_both, of_down = (
        (w.data.ctypes.data, w.data.ctypes.data + w.data.nbytes) for w in (both, down)
    )
    assert ExpertWeights(gate, up, down).spans == [of_both, of_down]
    assert ExpertWeights(down, both, down).spans == [of_down, of_both, of_down]
    weights = ExpertWeights(gate, up, down)
    assert weights.matrix_bytes == (136, 136, 1088)
    assert weights.num_bytes == both.num_bytes + down.num_bytes
