"""`hybridmoe.load` and the LLM on a random model: streaming, stopping, prefix reuse, bad input."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tiny_gguf import write_tiny

import hybridmoe
from hybridmoe.errors import (
    ConfigError,
    GGUFError,
    HybridMoeError,
    TemplateError,
    UnsupportedModelError,
)

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llm") / "tiny.gguf"
    write_tiny(path, variant="k2", type=Type.Q8_0)
    return path


@pytest.fixture
def llm(exact_kernels: None, path: Path) -> Iterator[hybridmoe.LLM]:
    with hybridmoe.load(path, context_tokens=512) as llm:
        yield llm


def test_stream_pieces_add_up_to_the_result(llm: hybridmoe.LLM) -> None:
    whole = llm.generate("Once", **GREEDY)
    stream = llm.generate("Once", stream=True, **GREEDY)
    assert "".join(stream) == whole.text
    assert stream.result.token_ids == whole.token_ids
    assert stream.result.finish_reason == whole.finish_reason == "length"
    assert len(whole.token_ids) == 24


def test_greedy_tokens_are_the_argmax_of_logits(llm: hybridmoe.LLM) -> None:
    result = llm.generate("Once", **GREEDY)
    prompt = llm.tokenizer.encode("Once", add_special=True, parse_special=True)
    logits = llm.logits([*prompt, *result.token_ids])
    assert logits.dtype == np.float32
    assert logits.shape == (len(prompt) + 24, llm.config.vocab_size)
    assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == result.token_ids


def test_the_same_seed_gives_the_same_text(llm: hybridmoe.LLM) -> None:
    def run(seed: int) -> list[int]:
        return llm.generate("A", temperature=1.5, max_tokens=30, seed=seed).token_ids

    assert run(11) == run(11)
    assert run(11) != run(12)


def test_a_repeated_prefix_is_not_computed_again(llm: hybridmoe.LLM) -> None:
    first = llm.generate("The quick brown fox", **GREEDY)
    again = llm.generate("The quick brown fox", **GREEDY)
    assert first.timing.cached_tokens == 0
    assert again.timing.cached_tokens == again.timing.prompt_tokens - 1
    assert again.token_ids == first.token_ids


def test_after_a_different_prompt_the_answer_is_the_same(llm: hybridmoe.LLM) -> None:
    first = llm.generate("The quick brown fox", **GREEDY).token_ids
    llm.generate("The quick red cat", **GREEDY)
    assert llm.generate("The quick brown fox", **GREEDY).token_ids == first


def test_a_stop_string_ends_the_text_and_does_not_show(llm: hybridmoe.LLM) -> None:
    whole = llm.generate("Once", **GREEDY).text
    stop = whole[8:11]
    result = llm.generate("Once", stop=stop, **GREEDY)
    assert result.finish_reason == "stop"
    assert result.text == whole[: whole.index(stop)]


def test_closing_a_stream_stops_at_once(llm: hybridmoe.LLM) -> None:
    stream = llm.generate("Once", stream=True, **GREEDY)
    first = next(stream)
    stream.close()
    assert list(stream) == []
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text == first
    assert len(stream.result.token_ids) < 24


def test_a_new_generation_ends_an_unread_stream(llm: hybridmoe.LLM) -> None:
    stream = llm.generate("Once", stream=True, **GREEDY)
    next(stream)
    llm.generate("Twice", **GREEDY)
    assert list(stream) == []
    assert stream.result.finish_reason == "cancelled"


def test_the_end_token_ends_the_answer(llm: hybridmoe.LLM) -> None:
    eos = min(llm.tokenizer.eos_ids)
    result = llm.generate("Once", temperature=0.0, max_tokens=9, logit_bias={eos: 1e6})
    assert (result.finish_reason, result.token_ids, result.text) == ("stop", [], "")


def test_generation_ends_where_the_context_does(path: Path) -> None:
    with hybridmoe.load(path, context_tokens=20) as llm:
        result = llm.generate("abc", temperature=0.0, ignore_eos=True)
        assert result.finish_reason == "length"
        assert result.timing.prompt_tokens + result.timing.generated_tokens == 20
        with pytest.raises(ConfigError, match=r"prompt has \d+ tokens, the context holds 20"):
            llm.generate("x" * 60)


def test_progress_is_reported_for_load_and_prompt(path: Path) -> None:
    seen: list[hybridmoe.Progress] = []
    with hybridmoe.load(path, progress=seen.append) as llm:
        assert seen[0].phase == "load"
        assert seen[-1].done == seen[-1].total > 0
        seen.clear()
        llm.generate("word " * 300, max_tokens=1, progress=seen.append)
    assert {p.phase for p in seen} == {"prompt"}
    assert len(seen) >= 3
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total


def test_sampling_defaults_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "defaults.gguf"
    values = {"temp": 0.0, "top_k": 3, "penalty_last_n": 64, "xtc_probability": 0.5,
              "xtc_threshold": 0.25}  # fmt: skip
    write_tiny(path, metadata={f"general.sampling.{key}": v for key, v in values.items()})
    with hybridmoe.load(path) as llm:
        params = llm.sampling_params({"top_k": 5})
        assert (params.temperature, params.top_k, params.repeat_last_n) == (0.0, 5, 64)
        assert (params.xtc_probability, params.xtc_threshold) == (0.5, 0.25)
        assert (
            llm.generate("A", max_tokens=9).token_ids == llm.generate("A", max_tokens=9).token_ids
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temprature": 1.0}, "unknown parameter 'temprature'; known: temperature"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"logit_bias": {10**9: 1.0}}, "outside the vocabulary"),
    ],
)
def test_bad_parameters_are_named(
    llm: hybridmoe.LLM, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        llm.generate("A", **arguments)


def test_empty_prompts_and_foreign_tokens_are_refused(llm: hybridmoe.LLM) -> None:
    with pytest.raises(ConfigError, match="prompt is empty"):
        llm.generate("")
    with pytest.raises(ConfigError, match="token -1 is outside"):
        llm.logits([1, -1])


@pytest.mark.parametrize("options", [{"context_tokens": 0}, {"context_tokens": 1 << 40}])
def test_bad_load_options_are_refused(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="context_tokens"):
        hybridmoe.load(path, **options)


def test_bad_thread_counts_are_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="threads"):
        hybridmoe.load(path, num_threads=0)


def test_another_architecture_is_refused_with_the_file_and_what_is_supported(
    tmp_path: Path,
) -> None:
    path = tmp_path / "other.gguf"
    write_tiny(path, metadata={"general.architecture": "llama"})
    with pytest.raises(UnsupportedModelError, match=r"^other.gguf: .*'llama'; supported: d"):
        hybridmoe.load(path)


@pytest.mark.parametrize(
    "key",
    [
        "deepseek2.block_count",
        "deepseek2.embedding_length",
        "deepseek2.attention.kv_lora_rank",
        "deepseek2.rope.dimension_count",
        "deepseek2.expert_count",
        "deepseek2.expert_used_count",
        "deepseek2.context_length",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.model",
    ],
)
def test_a_missing_key_is_one_line_naming_it(tmp_path: Path, key: str) -> None:
    path = tmp_path / "bad.gguf"
    write_tiny(path, metadata={key: None})
    _refused(path, key.split(".")[-1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"deepseek2.embedding_length": 512}, "blk.1.ffn_gate_exps.weight"),
        ({"deepseek2.block_count": 9}, "blk.3"),
        ({"deepseek2.attention.head_count": 8}, "attn_q_b"),
        ({"deepseek2.expert_count": 16}, "exps"),
        ({"deepseek2.expert_feed_forward_length": 128}, "exps"),
        ({"deepseek2.attention.kv_lora_rank": 256}, "attn_kv_a_mqa"),
        ({"deepseek2.vocab_size": 7}, "vocab_size"),
        ({"deepseek2.expert_used_count": 2**31}, "expert_used_count"),
        ({"deepseek2.block_count": 2**31}, "block_count"),
    ],
)
def test_metadata_that_contradicts_the_tensors_is_one_line(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    path = tmp_path / "bad.gguf"
    write_tiny(path, metadata=changes)
    _refused(path, named)


def _refused(path: Path, named: str) -> None:
    with pytest.raises(HybridMoeError) as caught:
        hybridmoe.load(path)
    message = str(caught.value)
    assert isinstance(caught.value, GGUFError)
    assert message.startswith(path.name)
    assert named in message
    assert "\n" not in message


def test_whether_a_file_can_chat(tmp_path: Path) -> None:
    plain, silent = tmp_path / "k2.gguf", tmp_path / "v3.gguf"
    write_tiny(plain)
    write_tiny(silent, variant="v3")
    with hybridmoe.load(plain) as llm:
        assert llm.can_chat  # by Kimi K2's tokens
    with hybridmoe.load(silent) as llm:
        assert not llm.can_chat
        with pytest.raises(TemplateError, match="no chat template"):
            llm.chat([{"role": "user", "content": "x"}])
    write_tiny(silent, variant="v3", chat_template="{{ messages[0].content }}")
    with hybridmoe.load(silent) as llm:
        assert llm.can_chat
