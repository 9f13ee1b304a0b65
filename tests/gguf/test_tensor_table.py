"""Tensor table: a model's own tensors are known, any other is refused by name."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_config import VARIANTS
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.cli.inspect import inspect_command
from hybridmoe.config import ModelConfig
from hybridmoe.errors import GGUFError, UnsupportedModelError
from hybridmoe.gguf import GGUFFile
from hybridmoe.gguf.outline import read_outline
from hybridmoe.gguf.tensor_table import check_tensor_names

SMALL = {"layers": 2, "hidden": 64, "dense_width": 64, "expert_width": 32}


def names_of(path: Path) -> tuple[ModelConfig, set[str]]:
    with GGUFFile.open(path) as file:
        return ModelConfig.from_metadata(file.metadata), set(file.tensors)


@pytest.mark.parametrize("split_kv_b", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_models_own_tensors_are_known(tmp_path: Path, variant: str, split_kv_b: bool) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, variant=variant, split_kv_b=split_kv_b, **SMALL)
    check_tensor_names(*names_of(path))


@pytest.mark.parametrize(
    "name",
    ["blk.1.exp_probs_b.weight", "blk.1.ffn_gate_inp.e_score_correction_bias",
     "blk.1.ffn_norm.scale", "blk.0.ffn_up_exps.scale", "blk.1.attn_output.bias",
     "blk.0.ffn_gate_inp.weight",
     "blk.2.attn_norm.weight", "rope_freqs.weight", "output_norm.bias", "x\x1b[2J"],
)  # fmt: skip
def test_a_tensor_that_would_not_be_used_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_tiny(tmp_path / "x.gguf", **SMALL)
    config, names = names_of(tmp_path / "x.gguf")
    with pytest.raises(UnsupportedModelError, match="the network would run without it") as caught:
        check_tensor_names(config, [*names, name])
    assert name.encode("unicode_escape").decode() in str(caught.value)


def test_gate_and_up_in_one_tensor_and_apart_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "x.gguf", **SMALL)
    config, names = names_of(tmp_path / "x.gguf")
    message = r"tensor blk\.1\.ffn_gate_exps\.weight: beside blk\.1\.ffn_gate_up_exps\.weight"
    with pytest.raises(UnsupportedModelError, match=message):
        check_tensor_names(config, [*names, "blk.1.ffn_gate_up_exps.weight"])


def test_factors_of_matrices_are_known(tmp_path: Path) -> None:
    write_tiny(tmp_path / "x.gguf", **SMALL)
    config, names = names_of(tmp_path / "x.gguf")
    stems = ("output", "blk.0.attn_k_b", "blk.0.ffn_down", "blk.1.ffn_up_exps")
    factors = [f"{stem}.{suffix}" for stem in stems for suffix in ("scale", "input_scale")]
    check_tensor_names(config, [*names, *factors])


def test_only_an_indexer_that_the_file_declares_unused_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, variant="glm5", **SMALL | {"layers": 4})
    config, names = names_of(path)
    assert "blk.2.indexer.proj.weight" not in names
    check_tensor_names(config, [*names, "blk.2.indexer.proj.weight"])
    with pytest.raises(UnsupportedModelError, match=r"blk\.2\.indexer\.proj\.bias"):
        check_tensor_names(config, [*names, "blk.2.indexer.proj.bias"])
    path.write_bytes(path.read_bytes().replace(b"blk.1.indexer.proj", b"blk.2.indexer.proj"))
    with pytest.raises(GGUFError, match=r"tensor blk\.1\.indexer\.proj\.weight is missing"):
        hybridmoe.load(path)


def test_a_bias_without_a_gating_function_is_refused_by_both(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, gating=None, **SMALL)
    with pytest.raises(UnsupportedModelError, match=r"exp_probs_b\.bias: .* expert_gating_func 2"):
        check_tensor_names(*names_of(path))


def test_layers_of_multi_token_prediction_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(
        path, metadata={"deepseek2.block_count": 3, "deepseek2.nextn_predict_layers": 1}, **SMALL
    )
    config, names = names_of(path)
    check_tensor_names(config, [*names, "blk.2.nextn.eh_proj.weight"])
    with pytest.raises(UnsupportedModelError, match=r"blk\.3\.nextn"):
        check_tensor_names(config, [*names, "blk.3.nextn.eh_proj.weight"])


def test_a_renamed_router_bias_is_refused_wherever_a_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, **SMALL)
    path.write_bytes(path.read_bytes().replace(b"exp_probs_b.bias", b"exp_probs_x.bias"))
    for opened in (hybridmoe.load, read_outline):
        with pytest.raises(UnsupportedModelError, match=r"blk\.1\.exp_probs_x\.bias"):
            opened(path)
    shown = CliRunner().invoke(inspect_command, [str(path)])
    assert "not supported" in shown.output and "exp_probs_x.bias" in shown.output


def test_a_sigmoid_router_without_its_bias_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, selection_bias=False, **SMALL)
    with pytest.raises(GGUFError, match=r"blk\.1\.exp_probs_b\.bias is missing"):
        hybridmoe.load(path)
