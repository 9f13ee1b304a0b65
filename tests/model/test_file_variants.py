"""Other layouts of the same tensors: the same logits, bit for bit, from each tier."""

from pathlib import Path

import numpy as np
import pytest
from exact_network import exact_logits
from gguf import GGMLQuantizationType as Type
from logit_distance import kl_divergence
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.errors import GGUFError, UnsupportedModelError
from hybridmoe.gguf.outline import read_outline
from hybridmoe.planning.model_sizes import sizes_of

SMALL = {"layers": 3, "hidden": 256, "dense_width": 256, "expert_width": 128, "q_lora": 64}
TYPES = {"default": Type.Q8_0, "ffn_down_exps": Type.Q4_0}
VARIANTS = {
    "fused": {"fused_gate_up": True},
    "flat": {"flat_kv_b": True},
    "both": {"both_kv_b": True},
}
IDS = list(range(60, 100))


def logits(path: Path, **options: object) -> np.ndarray:
    with hybridmoe.load(path, device="cpu", **options) as llm:
        return llm.logits(IDS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "x.gguf"
    write_tiny(path, type=TYPES, **SMALL)
    return path


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_layout_changes_neither_bits_nor_sizes(
    variant: dict[str, bool], plain: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, type=TYPES, **SMALL, **variant)
    assert np.array_equal(logits(path), logits(plain))
    theirs, ours = read_outline(plain), read_outline(path)
    assert sizes_of(ours.tensors, ours.config) == sizes_of(theirs.tensors, theirs.config)
    on_disk = {"expert_ram": "1MiB"}
    assert np.array_equal(logits(path, **on_disk), logits(plain, **on_disk))


def test_factors_of_nvfp4_are_applied(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    sizes = {**SMALL, "gain": 0.7}
    weights = write_tiny(path, type=Type.NVFP4, scaled=True, **sizes)
    with hybridmoe.load(path, device="cpu") as llm:
        exact, found = exact_logits(llm.config, weights, IDS), llm.logits(IDS)
    assert np.median(kl_divergence(exact, found)) <= 5e-3
    assert np.array_equal(logits(path, expert_ram="1MiB"), found)
    wrong = {**weights, "blk.1.ffn_gate_exps.weight": 2 * weights["blk.1.ffn_gate_exps.weight"]}
    with_wrong = exact_logits(llm.config, wrong, IDS)
    assert np.median(kl_divergence(with_wrong, found)) > 2e-2


def test_a_factor_of_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, type={"ffn_up_exps": Type.NVFP4}, scaled=True, **SMALL)
    path.write_bytes(path.read_bytes().replace(b"ffn_up_exps.scale", b"attn_output.scale"))
    with pytest.raises(UnsupportedModelError, match=r"attn_output\.scale: .* NVFP4 only.* is F32"):
        hybridmoe.load(path)


def test_factors_of_another_number_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(
        path,
        type={"attn_output": Type.NVFP4, "ffn_up_exps": Type.NVFP4},
        scaled=True,
        dense_layers=0,
        **SMALL,
    )
    data = path.read_bytes().replace(b"attn_output.scale", b"attn_outpux.scale")
    data = data.replace(b"ffn_up_exps.scale", b"attn_output.scale")
    path.write_bytes(data.replace(b"attn_outpux.scale", b"ffn_up_exps.scale"))
    with pytest.raises(GGUFError, match=r"scale has shape \[\d\], expected \[\d\]"):
        hybridmoe.load(path)
