"""Properties of the GGUF reader over generated files: it agrees with gguf-py or refuses."""

import math
from pathlib import Path

import gguf
import hypothesis.strategies as st
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_compare import assert_same_as_gguf_py
from hypothesis import given, settings
from raw_gguf import RawFile, RawTensor, V, array, key, packed, scalar, u32_key

from hybridmoe.errors import GGUFError
from hybridmoe.gguf import GGUFFile
from hybridmoe.gguf.quant_types import _REMOVED, _UNREAD_IK, QuantType

RANGES = {
    V.UINT8: (0, 2**8 - 1), V.INT8: (-(2**7), 2**7 - 1), V.UINT16: (0, 2**16 - 1),
    V.INT16: (-(2**15), 2**15 - 1), V.UINT32: (0, 2**32 - 1), V.INT32: (-(2**31), 2**31 - 1),
    V.UINT64: (0, 2**64 - 1), V.INT64: (-(2**63), 2**63 - 1),
}  # fmt: skip
VALUES = {
    **{kind: st.integers(*bounds) for kind, bounds in RANGES.items()},
    V.FLOAT32: st.floats(width=32),
    V.FLOAT64: st.floats(),
    V.BOOL: st.booleans(),
    V.STRING: st.text(max_size=20),
}
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: not name.startswith(("GGUF.", "general.alignment"))
)


@st.composite
def values(draw: st.DrawFn) -> tuple[int, bytes]:
    """Draw a value type and the bytes of a value."""
    kind = draw(st.sampled_from(list(VALUES)))
    if draw(st.booleans()):
        return V.ARRAY, array(kind, draw(st.lists(VALUES[kind], max_size=6)))
    return kind, scalar(kind, draw(VALUES[kind]))


@st.composite
def tensor_entries(draw: st.DrawFn) -> tuple[list[int], int]:
    """Draw dimensions and a type that fit each other."""
    tensor_type = draw(st.sampled_from(list(GGML_QUANT_SIZES)))
    block, _ = GGML_QUANT_SIZES[tensor_type]
    outer = draw(st.lists(st.integers(1, 3), max_size=3))
    return [draw(st.integers(1, 3)) * block, *outer], tensor_type


@st.composite
def files(draw: st.DrawFn) -> RawFile:
    """Draw a sound file with up to six keys and five tensors."""
    alignment = draw(st.sampled_from([8, 32, 64, 256]))
    keys = [
        key(name, *value)
        for name, value in draw(st.dictionaries(NAMES, values(), max_size=6)).items()
    ]
    if alignment != 32:
        keys.insert(0, u32_key("general.alignment", alignment))
    entries = draw(st.dictionaries(NAMES, tensor_entries(), max_size=5))
    tensors, data = packed(
        [RawTensor(name, dims, kind) for name, (dims, kind) in entries.items()], alignment
    )
    version = draw(st.sampled_from([2, 3]))
    return RawFile(keys, tensors, data, alignment=alignment, version=version)


@settings(max_examples=80)
@given(file=files())
def test_a_sound_file_reads_as_gguf_py_reads_it(tmp_path: Path, file: RawFile) -> None:
    assert_same_as_gguf_py(file.write(tmp_path / "x.gguf"))


@settings(max_examples=80)
@given(file=files(), data=st.data())
def test_a_cut_file_is_refused_unless_only_padding_is_gone(
    tmp_path: Path, file: RawFile, data: st.DataObject
) -> None:
    raw = file.to_bytes()
    length = data.draw(st.integers(0, len(raw) - 1))
    path = tmp_path / "x.gguf"
    path.write_bytes(raw[:length])
    if not file.tensors and length >= len(file.header()):
        GGUFFile.open(path).close()
        return
    with pytest.raises(GGUFError, match=r"^x\.gguf: "):
        GGUFFile.open(path)


@settings(max_examples=200)
@given(file=files(), data=st.data())
def test_changed_bytes_give_a_sound_file_or_one_line(
    tmp_path: Path, file: RawFile, data: st.DataObject
) -> None:
    raw = bytearray(file.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(file.header()) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    try:
        with GGUFFile.open(path) as opened:
            assert all(math.isfinite(np.sum(t.data)) for t in opened.tensors.values())
    except GGUFError as error:
        assert str(error).startswith("x.gguf: ") and str(error).isprintable()


def test_the_types_refused_by_name_are_not_read() -> None:
    assert not (_REMOVED | _UNREAD_IK).keys() & {*GGMLQuantizationType, *QuantType}
    assert not _REMOVED.keys() & _UNREAD_IK.keys()
    assert set(gguf.GGML_QUANT_SIZES) == set(GGMLQuantizationType)
