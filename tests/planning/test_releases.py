"""Published models have the sizes that their makers state."""

from math import prod

import pytest
from gguf import GGMLQuantizationType as Q
from k2_config import K2
from k2_header import k2_tensors

from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import outline_of
from hybridmoe.planning.releases import (
    RELEASES,
    Release,
    release_named,
    releases_beginning,
    releases_like,
)

# Billions of parameters, as model cards have them, without layers of multi-token prediction.
BILLIONS = {
    "kimi-k2": 1026, "kimi-k2-0905": 1026, "kimi-k2-thinking": 1026, "deepseek-v3": 671,
    "r1": 671, "v3.1": 671, "deepseek-v2": 236, "v2-lite": 15.7, "moonlight": 16.0,
    "glm-4.7-flash": 29.9, "glm-5": 744, "glm-5.2": 743, "v3.2": 672, "kimi-k2.7": 1026,
    "kimi-vl": 16.0, "mistral-large-3": 673, "mistral-small-4": 119,
}  # fmt: skip


def release(name: str) -> Release:
    found = release_named(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", BILLIONS)
def test_parameters_are_as_many_as_the_model_card_says(name: str) -> None:
    tensors = outline_of(release(name).metadata, "Q8_0").tensors
    billions = sum(prod(tensor.shape) for tensor in tensors) / 1e9
    assert billions == pytest.approx(BILLIONS[name], rel=0.004)


def test_kimi_k2_is_the_file_that_llama_cpp_writes() -> None:
    outline = outline_of(release("k2").metadata, "Q4_K_M")
    of_file = {name: (shape, type) for name, shape, type in k2_tensors()}
    assert {t.name: t.shape for t in outline.tensors} == {n: s for n, (s, _) in of_file.items()}
    unlike = {t.name.split(".")[-2] for t in outline.tensors if t.type != of_file[t.name][1]}
    assert unlike <= {"attn_k_b"}  # Q8_0 in files of today
    differing = {key for key, value in release("k2").metadata.items() if K2.get(key) != value}
    assert differing == {"general.name"}


def test_rows_of_1408_fall_back_as_in_llama_cpp() -> None:
    found = {t.name: t.type for t in outline_of(release("v2-lite").metadata, "Q4_K_M").tensors}
    assert found["blk.9.ffn_down_exps.weight"] == Q.Q5_0
    assert found["blk.1.ffn_down_exps.weight"] == Q.Q8_0
    assert found["blk.9.ffn_gate_exps.weight"] == Q.Q4_K


def test_names_are_unique_and_found_in_any_case() -> None:
    names = [name for r in RELEASES for name in (r.name.lower(), *r.aliases)]
    assert all(name == name.lower() for name in names)
    assert all(release_named(name) is r for r in RELEASES for name in (r.name, *r.aliases))
    assert release_named("KIMI_K2") is RELEASES[0] and release_named("kimi") is None
    for text in ("glm5.2", "GLM 5.2", "glm_5.2", "glm52", "Glm-5.2"):
        assert release(text).name == "GLM-5.2"
    assert release("glm5").name == "GLM-5" and release("deepseekv3.1").name == "DeepSeek-V3.1"
    assert releases_like("glm5.3")[0].name.startswith("GLM-5") and not releases_like("llama-3")
    assert len(releases_beginning("glm")) == 3 and len(releases_beginning("deepseek")) > 3


def test_dynamic_quantizations_have_their_main_type() -> None:
    for quant, type in (("UD-Q4_K_XL", Q.Q4_K), ("ud-q2_k_xl", Q.Q2_K), ("UD-IQ1_S", Q.IQ1_S)):
        found = {t.name: t.type for t in outline_of(release("k2").metadata, quant).tensors}
        assert found["blk.9.ffn_gate_exps.weight"] == type


@pytest.mark.parametrize("quant", ["Q9", "IQ3_M", "GUESSED", ""])
def test_a_quantization_without_a_main_type_is_refused(quant: str) -> None:
    with pytest.raises(ConfigError, match="is unknown; known: F32, F16, Q4_0"):
        outline_of(release("k2").metadata, quant)
