"""Truncated and bit-flipped GGUFs open soundly or are refused by one line; see refusal.py."""

import os
import random
from pathlib import Path

import gguf
import pytest
from gguf import GGMLQuantizationType as Q
from raw_gguf import RawFile, RawTensor, V, array, key, packed, text_key, u32_key
from refusal import refusal
from tiny_gguf import write_tiny


def sample() -> RawFile:
    """A small sound file with every kind of entry."""
    tensors, data = packed([RawTensor("a.weight", [64, 3], Q.Q8_0), RawTensor("b.bias", [5])])
    keys = [
        text_key("general.architecture", "deepseek2"),
        u32_key("general.alignment", 32),
        key("flag", V.BOOL, b"\x01"),
        key("words", V.ARRAY, array(V.STRING, ["one", "", "three"])),
        key("numbers", V.ARRAY, array(V.INT16, [1, -2, 3])),
    ]
    return RawFile(keys, tensors, data)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    raw = sample().to_bytes()
    path = tmp_path / "x.gguf"
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        assert refusal(path) is not None, length


def test_a_flipped_bit_in_each_header_byte_opens_or_is_refused(tmp_path: Path) -> None:
    file = sample()
    raw = bytearray(file.to_bytes())
    path = tmp_path / "x.gguf"
    num_refused = 0
    for bit in range(0, 8 * len(file.header()), 3):
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        num_refused += refusal(path) is not None
        raw[bit // 8] ^= 1 << bit % 8
    assert num_refused > 100


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole tiny model, with vocabulary."""
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    small = {"hidden": 32, "kv_lora": 32, "dense_width": 32, "expert_width": 32, "q_lora": 32}
    write_tiny(path, type=Q.Q8_0, layers=2, rope=16, nope=16, v=16, **small)
    return path.read_bytes()


def test_a_model_cut_at_each_boundary_is_refused(tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(model)
    reader = gguf.GGUFReader(path)
    tensors = reader.tensors
    fields = [*reader.fields.values(), *(tensor.field for tensor in tensors)]
    boundaries = {field.offset for field in fields} | {t.data_offset for t in tensors}
    boundaries |= {t.data_offset + t.n_bytes for t in tensors}
    end = max(t.data_offset + t.n_bytes for t in tensors)
    del reader, fields, tensors
    cuts = {b + d for b in boundaries for d in (-1, 0)} & set(range(end))
    assert len(cuts) > 200
    for length in sorted(cuts, reverse=True):
        os.truncate(path, length)
        assert refusal(path) is not None, length


def test_the_missing_bytes_of_a_cut_model_are_counted(tmp_path: Path) -> None:
    raw = sample().to_bytes()
    path = tmp_path / "x.gguf"
    path.write_bytes(raw[:-7])
    assert refusal(path) == (
        f"x.gguf: tensor b.bias: data ends at byte {len(raw)}, the file at {len(raw) - 7}: "
        "the download is incomplete, 7 bytes are missing (7 bytes); hybridmoe plan works with it"
    )


@pytest.mark.parametrize("seed", range(150))
def test_a_model_with_random_header_damage_opens_or_is_refused(
    tmp_path: Path, model: bytes, seed: int
) -> None:
    rng = random.Random(seed)
    raw = bytearray(model)
    header_bytes = raw.rfind(b"output.weight") + 64
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        raw[rng.randrange(header_bytes)] ^= 1 << rng.randrange(8)
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    refusal(path)
