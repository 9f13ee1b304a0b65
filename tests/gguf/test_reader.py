"""GGUF reader: equal to gguf-py, joins split parts, copies no bytes."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf_compare import assert_same_as_gguf_py
from raw_gguf import RawFile, RawTensor, V, array, key, packed, text_key, u32_key
from tiny_config import VARIANTS
from tiny_gguf import split_file, write_tiny

from hybridmoe.errors import GGUFError
from hybridmoe.gguf import GGUFFile
from hybridmoe.gguf.cursor import printable


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_tiny(path, type=Q.Q8_0)
    return path


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("split_kv_b", [True, False])
def test_a_model_reads_as_gguf_py_reads_it(tmp_path: Path, variant: str, split_kv_b: bool) -> None:
    small = {"layers": 2, "dense_layers": 1, "hidden": 64, "dense_width": 64, "expert_width": 32}
    path = tmp_path / "model.gguf"
    write_tiny(path, variant=variant, type=Q.Q8_0, split_kv_b=split_kv_b, **small)
    assert_same_as_gguf_py(path)


def test_every_value_type_is_read(tmp_path: Path) -> None:
    keys = [
        key("u8", V.UINT8, b"\xff"),
        key("i8", V.INT8, b"\xff"),
        key("bool", V.BOOL, b"\x01"),
        key("u64", V.UINT64, b"\xff" * 8),
        key("i64", V.INT64, b"\xfe" + b"\xff" * 7),
        key("f64", V.FLOAT64, np.float64(0.1).tobytes()),
        text_key("text", "ä🙂\nb"),
        text_key("empty", ""),
        key("floats", V.ARRAY, array(V.FLOAT32, [1.5, -0.25])),
        key("flags", V.ARRAY, array(V.BOOL, [True, False])),
        key("words", V.ARRAY, array(V.STRING, ["a", "", "你好"])),
        key("none", V.ARRAY, array(V.INT32, [])),
    ]
    path = RawFile(keys).write(tmp_path / "x.gguf")
    assert_same_as_gguf_py(path)
    with GGUFFile.open(path) as file:
        assert file.metadata == {
            "u8": 255, "i8": -1, "bool": True, "u64": 2**64 - 1, "i64": -2, "f64": 0.1,
            "text": "ä🙂\nb", "empty": "", "floats": [1.5, -0.25], "flags": [True, False],
            "words": ["a", "", "你好"], "none": [],
        }  # fmt: skip
        assert file.metadata["bool"] is True and file.metadata["flags"][0] is True


def test_invalid_utf8_in_values_is_replaced_so_that_it_prints(tmp_path: Path) -> None:
    words = key("words", V.ARRAY, array(V.STRING, [b"a\xff", b"\xed\xa0\x80"]))
    path = RawFile([text_key("text", b"\xc3("), words]).write(tmp_path / "x.gguf")
    with GGUFFile.open(path) as file:
        assert file.metadata == {"text": "\ufffd(", "words": ["a\ufffd", "\ufffd" * 3]}


def test_version_2_and_another_alignment(tmp_path: Path) -> None:
    tensors, data = packed([RawTensor("a", [3]), RawTensor("b", [32, 2], Q.Q8_0)], alignment=128)
    file = RawFile([u32_key("general.alignment", 128)], tensors, data, version=2, alignment=128)
    path = file.write(tmp_path / "x.gguf")
    assert_same_as_gguf_py(path)
    with GGUFFile.open(path) as opened:
        assert opened.version == 2
        assert opened.tensors["b"].offset % 128 == 0
        assert opened.num_bytes == path.stat().st_size


def test_a_file_without_tensors_may_end_after_its_header(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(RawFile([text_key("a", "b")]).header())
    with GGUFFile.open(path) as file:
        assert dict(file.tensors) == {}


def test_the_last_tensor_needs_no_padding(tmp_path: Path) -> None:
    tensors, data = packed([RawTensor("a", [5])])
    path = RawFile([], tensors, data).write(tmp_path / "x.gguf")
    with GGUFFile.open(path) as file:
        assert file.tensors["a"].offset + 20 == file.num_bytes


def test_tensor_data_is_a_read_only_view_of_the_map(tiny: Path) -> None:
    file = GGUFFile.open(tiny)
    tensor = file.tensors["token_embd.weight"]
    assert tensor.data.dtype == np.uint8 and tensor.data.ndim == 1
    assert tensor.data.flags.c_contiguous and not tensor.data.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        tensor.data[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        tensor.data.flags.writeable = True
    file.close()
    file.close()
    assert dict(file.tensors) == {}
    assert tensor.data[:4].tolist() == list(_bytes_at(tiny, tensor.offset, 4))  # still mapped


def test_metadata_and_tensors_cannot_be_changed(tiny: Path) -> None:
    with GGUFFile.open(tiny) as file:
        with pytest.raises(TypeError):
            file.metadata["a"] = 1  # type: ignore[index]
        with pytest.raises(TypeError):
            del file.tensors["output.weight"]  # type: ignore[attr-defined]


def test_closing_returns_the_file_descriptor(tiny: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with GGUFFile.open(tiny):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("parts", [2, 5])
def test_a_split_file_equals_the_whole(tmp_path: Path, parts: int) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, type=Q.Q8_0, layers=2)
    paths = split_file(path, parts)
    with GGUFFile.open(path) as whole, GGUFFile.open(str(paths[0])) as split:
        assert split.path == paths[0] and split.parts == tuple(paths)
        assert split.num_bytes == sum(part.stat().st_size for part in paths)
        assert {k: v for k, v in split.metadata.items() if "split." not in k} == whole.metadata
        assert list(split.tensors) == list(whole.tensors)
        assert {tensor.part for tensor in split.tensors.values()} == set(range(parts))
        for name, tensor in split.tensors.items():
            assert np.array_equal(tensor.data, whole.tensors[name].data)
            start = _bytes_at(paths[tensor.part], tensor.offset, 8)
            assert bytes(tensor.data[:8]) == start


def test_a_later_part_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, type=Q.Q8_0, layers=2)
    paths = split_file(path, 3)
    with pytest.raises(GGUFError, match=r"^tiny-00002-of-00003\.gguf: split\.no: .*00001-of-00003"):
        GGUFFile.open(paths[1])


def test_a_vocabulary_of_kimi_k2s_size_opens_within_a_second(tmp_path: Path) -> None:
    words = [f"w{i:x}" for i in range(163_840)]
    keys = [
        key("tokenizer.ggml.tokens", V.ARRAY, array(V.STRING, words)),
        key("tokenizer.ggml.token_type", V.ARRAY, array(V.INT32, [1] * len(words))),
        key("tokenizer.ggml.merges", V.ARRAY, array(V.STRING, words)),
    ]
    path = RawFile(keys).write(tmp_path / "x.gguf")
    start = time.process_time()
    with GGUFFile.open(path) as file:
        assert time.process_time() - start < 1
        assert file.metadata["tokenizer.ggml.tokens"] == words


def test_printable_escapes_what_a_terminal_would_act_on() -> None:
    assert printable("blk.0.ä") == "blk.0.ä"
    assert printable("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert printable("\udcff") == "\\udcff"
    assert printable("x" * 200) == "x" * 80 + "..."


def _bytes_at(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)
