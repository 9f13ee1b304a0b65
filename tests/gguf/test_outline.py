"""Outlines: tensors of missing parts follow from the model's sizes and the types seen."""

from math import prod
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from k2_header import k2_tensors, write_k2
from tiny_gguf import split_file, write_tiny

from hybridmoe.errors import ConfigError, GGUFError, UnsupportedModelError
from hybridmoe.gguf import GGUFFile
from hybridmoe.gguf.outline import read_outline, with_expert_type

K2 = {name: (shape, type) for name, shape, type in k2_tensors()}
K2_PARAMS = 1_026_408_232_448  # as llama.cpp counts them: "1026.41 B"


def _bytes(shape: tuple[int, ...], type: Q) -> int:
    block, block_bytes = GGML_QUANT_SIZES[type]
    return prod(shape) // block * block_bytes


def test_the_sizes_here_are_those_of_kimi_k2() -> None:
    assert sum(prod(shape) for shape, _ in K2.values()) == K2_PARAMS


@pytest.mark.parametrize("variant", ["k2", "v3", "v2lite", "moonlight"])
@pytest.mark.parametrize("split_kv_b", [True, False])
def test_a_whole_file_gives_what_opening_it_gives(
    tmp_path: Path, variant: str, split_kv_b: bool
) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant=variant, type=Q.Q8_0, split_kv_b=split_kv_b)
    outline = read_outline(path)
    with GGUFFile.open(path) as file:
        opened = {name: (t.type, t.shape, t.num_bytes) for name, t in file.tensors.items()}
    assert {t.name: (t.type, t.shape, t.num_bytes) for t in outline.tensors} == opened
    assert (outline.num_derived, outline.missing_parts, outline.has_weights) == (0, (), True)


@pytest.mark.parametrize("variant", ["k2", "v3", "v2lite", "moonlight"])
@pytest.mark.parametrize("split_kv_b", [True, False])
def test_parts_that_are_missing_are_derived_exactly_where_types_do_not_change(
    tmp_path: Path, variant: str, split_kv_b: bool
) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant=variant, type=Q.Q8_0, split_kv_b=split_kv_b)
    with GGUFFile.open(path) as file:
        whole = {name: (t.type, t.shape, t.num_bytes) for name, t in file.tensors.items()}
    first, *others = split_file(path, 2)
    for part in others:
        part.unlink()
    outline = read_outline(first)
    assert {t.name: (t.type, t.shape, t.num_bytes) for t in outline.tensors} == whole
    assert outline.num_derived > 0
    assert (outline.missing_parts, outline.has_weights) == ((2,), False)


@pytest.mark.parametrize("first_layers", [1, 3, 10])
def test_kimi_k2_is_known_to_the_byte_by_its_first_part(tmp_path: Path, first_layers: int) -> None:
    outline = read_outline(write_k2(tmp_path / "k2.gguf", first_layers=first_layers))
    assert {t.name: (t.shape, t.type) for t in outline.tensors} == K2
    assert sum(t.num_bytes for t in outline.tensors) == sum(_bytes(*t) for t in K2.values())
    assert outline.missing_parts == tuple(range(2, 14))


def test_a_first_part_of_metadata_alone_is_close(tmp_path: Path) -> None:
    outline = read_outline(write_k2(tmp_path / "k2.gguf", first_layers=-1))
    assert outline.num_derived == len(outline.tensors) == len(K2)
    found = sum(t.num_bytes for t in outline.tensors)
    assert found == pytest.approx(sum(_bytes(*t) for t in K2.values()), rel=0.01)


def test_a_mixture_that_differs_from_llama_cpps_is_continued_as_seen(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    write_tiny(path, layers=5, type={"default": Q.Q4_K, "ffn_down_exps": Q.Q5_K},
               metadata={"general.file_type": 15})  # fmt: skip
    first, *others = split_file(path, 2)
    for part in others:
        part.unlink()
    types = {t.name: t.type for t in read_outline(first).tensors}
    assert types["blk.4.ffn_down_exps.weight"] == Q.Q5_K


def test_a_header_without_its_weights_is_enough(tmp_path: Path) -> None:
    path = write_k2(tmp_path / "k2.gguf")
    with pytest.raises(GGUFError, match="bytes are missing"):
        GGUFFile.open(path)
    outline = read_outline(path)
    assert not outline.has_weights and not outline.missing_parts and not outline.num_derived


def test_experts_can_be_requantized_on_paper(tmp_path: Path) -> None:
    tensors = read_outline(write_k2(tmp_path / "k2.gguf")).tensors
    types = {t.name: t.type for t in with_expert_type(tensors, "q2_k")}
    assert types["blk.1.ffn_down_exps.weight"] == types["blk.60.ffn_up_exps.weight"] == Q.Q2_K
    assert types["blk.1.ffn_down_shexp.weight"] == Q.Q6_K
    with pytest.raises(ConfigError, match="type 'Q4_K_M' is unknown; known: BF16"):
        with_expert_type(tensors, "Q4_K_M")


def test_rows_that_do_not_fit_a_type_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant="moonlight", type=Q.Q8_0)
    with pytest.raises(ConfigError, match=r"Q4_K: rows of 128 in blk\.1\.ffn_gate_exps"):
        with_expert_type(read_outline(path).tensors, "Q4_K")


def test_other_models_and_later_parts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path)
    parts = split_file(path, 2)
    with pytest.raises(GGUFError, match="this is a later part"):
        read_outline(parts[1])
    write_tiny(path, metadata={"general.architecture": "llama"})
    with pytest.raises(UnsupportedModelError, match="'llama'"):
        read_outline(path)
