"""Comparison of hybridmoe's GGUF reader with gguf-py."""

from pathlib import Path

import gguf
import numpy as np

from hybridmoe.gguf import GGUFFile


def assert_same_as_gguf_py(path: Path) -> None:
    """Metadata, names, types, shapes, offsets and bytes are those of gguf.GGUFReader."""
    oracle = gguf.GGUFReader(path)
    with GGUFFile.open(path) as file:
        expected = {k: v.contents() for k, v in oracle.fields.items() if not k.startswith("GGUF.")}
        assert repr(dict(file.metadata)) == repr(expected)  # repr: NaN equals itself
        assert list(file.tensors) == [tensor.name for tensor in oracle.tensors]
        for theirs in oracle.tensors:
            ours = file.tensors[theirs.name]
            assert ours.type == theirs.tensor_type
            assert ours.shape == tuple(reversed(theirs.shape.tolist()))
            assert ours.num_elements == theirs.n_elements
            assert ours.num_bytes == theirs.n_bytes == len(ours.data)
            assert ours.offset == theirs.data_offset
            assert np.array_equal(ours.data, np.ravel(theirs.data).view(np.uint8))
