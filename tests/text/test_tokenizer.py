"""Tokenizer: ids equal those of independent implementations; special tokens; errors."""

import ctypes
import functools
import os
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import kimi_vocabulary
import llama_cpp.llama_cpp as llama
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_vocabulary import LlamaVocabulary, write_vocabulary
from sample_texts import MARKED, PLAIN
from tiny_gguf import write_tiny

from hybridmoe.errors import ConfigError, GGUFError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.text.pre_tokenizers import find_pre_tokenizer
from hybridmoe.text.tokenizer import Tokenizer

SPLITS_AS_LLAMA = ("deepseek-llm", "deepseek-coder", "deepseek-v3", "glm4")


@functools.cache
def kimi_from_metadata() -> Tokenizer:
    return Tokenizer(Path("kimi.gguf"), kimi_vocabulary.metadata())


@pytest.fixture(scope="module")
def kimi_tokenizer() -> Tokenizer:
    return kimi_from_metadata()


@pytest.fixture(scope="module")
def by_llama(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Path], "LlamaVocabulary"]]:
    opened: list[LlamaVocabulary] = []

    def open_file(path: Path) -> "LlamaVocabulary":
        opened.append(LlamaVocabulary(path))
        return opened[-1]

    yield open_file
    for reference in opened:
        reference.close()


@pytest.fixture(scope="module")
def kimi_by_llama(
    by_llama: Callable[[Path], LlamaVocabulary], tmp_path_factory: pytest.TempPathFactory
) -> LlamaVocabulary:
    path = tmp_path_factory.mktemp("kimi") / "kimi.gguf"
    write_vocabulary(path, kimi_vocabulary.metadata())
    return by_llama(path)


@pytest.fixture(scope="module", params=["k2", "v3", "v2"])
def tiny(
    request: pytest.FixtureRequest,
    by_llama: Callable[[Path], LlamaVocabulary],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Tokenizer, LlamaVocabulary]]:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_tiny(path, variant=request.param, layers=1, dense_layers=1)
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer(path, file.metadata)
        yield tokenizer, by_llama(path)
        tokenizer.close()


@pytest.mark.parametrize("name", [*PLAIN, *MARKED])
def test_kimi_ids_equal_an_independent_implementation(kimi_tokenizer: Tokenizer, name: str) -> None:
    text = (PLAIN | MARKED)[name]
    ids = kimi_tokenizer.encode(text)
    assert ids == kimi_vocabulary.oracle().encode_ordinary(text)
    assert kimi_tokenizer.decode(ids) == text


def test_kimi_ids_of_source_files_equal_an_independent_implementation(
    kimi_tokenizer: Tokenizer,
) -> None:
    for module in (unicodedata, random, pytest, ctypes, sys.modules["argparse"]):
        if getattr(module, "__file__", "").endswith(".py"):
            text = Path(module.__file__).read_text(encoding="utf-8")
            assert kimi_tokenizer.encode(text) == kimi_vocabulary.oracle().encode_ordinary(text)


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"])))
def test_kimi_ids_of_any_text_equal_an_independent_implementation(text: str) -> None:
    assert kimi_from_metadata().encode(text) == kimi_vocabulary.oracle().encode_ordinary(text)


def test_kimi_known_ids(kimi_tokenizer: Tokenizer) -> None:
    assert kimi_tokenizer.encode("Hello world") == [19180, 2695]
    assert kimi_tokenizer.encode("<|im_end|>", parse_special=True) == [163_586]
    assert kimi_tokenizer.eos_ids == {163_585, 163_586, 163_593, 163_839}


def test_llama_cpp_agrees_without_combining_marks(
    kimi_tokenizer: Tokenizer, kimi_by_llama: LlamaVocabulary
) -> None:
    for text in PLAIN.values():
        assert kimi_tokenizer.encode(text) == kimi_by_llama.encode(text)


@pytest.mark.parametrize("name", MARKED)
def test_llama_cpp_still_splits_words_at_combining_marks(
    kimi_tokenizer: Tokenizer, kimi_by_llama: LlamaVocabulary, name: str
) -> None:
    # If this fails, llama.cpp was fixed: update text/pre_tokenizers.py.
    text = MARKED[name]
    assert len(kimi_tokenizer.encode(text)) < len(kimi_by_llama.encode(text))


def test_kimis_pattern_splits_words() -> None:
    assert split("kimi-k2", "iPhone getURLNow'S") == ["i", "Phone", " get", "URLNow'S"]
    assert split("kimi-k2", "人々 नमस्ते x") == ["人々", " नमस्ते", " x"]


@pytest.mark.parametrize("pre", [*SPLITS_AS_LLAMA, "kimi-k2"])
def test_splitting_loses_nothing(pre: str) -> None:
    for text in (PLAIN | MARKED).values():
        assert "".join(split(pre, text)) == text


def split(pre: str, text: str) -> list[str]:
    pre_tokenizer = find_pre_tokenizer(pre)
    assert pre_tokenizer is not None
    return [*pre_tokenizer.split(text)]


@pytest.fixture(scope="module", params=SPLITS_AS_LLAMA)
def under_another_pre(
    request: pytest.FixtureRequest,
    by_llama: Callable[[Path], LlamaVocabulary],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Tokenizer, LlamaVocabulary]:
    """Kimi K2's vocabulary, whose merges show where a text was split."""
    path = tmp_path_factory.mktemp("pre") / "kimi.gguf"
    metadata = {**kimi_vocabulary.metadata(), "tokenizer.ggml.pre": request.param}
    write_vocabulary(path, metadata)
    return Tokenizer(path, metadata), by_llama(path)


def test_other_families_split_as_llama_cpp_does(
    under_another_pre: tuple[Tokenizer, LlamaVocabulary],
) -> None:
    tokenizer, reference = under_another_pre
    source = Path(str(sys.modules["argparse"].__file__)).read_text(encoding="utf-8")
    for text in [*(PLAIN | MARKED).values(), source]:
        assert tokenizer.encode(text) == reference.encode(text)
    characters = [
        *map(chr, (*range(0x20, 0x3100), *range(0x4E00, 0x4E40), *range(0xFF00, 0xFFEF))),
        *(" \n\r\t.,'aA1" * 400),
    ]  # fmt: skip
    known = [c for c in characters if unicodedata.category(c) not in ("Cn", "Cs")]
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(known, k=rng.randint(1, 20)))
        assert tokenizer.encode(text) == reference.encode(text), ascii(text)


def test_tiny_vocabularies_agree_with_llama_cpp(tiny: tuple[Tokenizer, LlamaVocabulary]) -> None:
    tokenizer, reference = tiny
    specials = [tokenizer.decode([i], skip_special=False) for i in tokenizer.eos_ids]
    for text in PLAIN.values():
        assert tokenizer.encode(text) == reference.encode(text)
        marked = f"{specials[0]}{text}<think>{specials[-1]} x"
        ids = tokenizer.encode(marked, parse_special=True)
        assert ids == reference.encode(marked, parse_special=True)
        marked = marked.replace("<think>", "")  # llama.cpp always finds it
        assert tokenizer.encode(marked) == reference.encode(marked, parse_special=False)
    for token_id in range(tokenizer.num_tokens):
        assert tokenizer.token_bytes(token_id) == reference.piece(token_id)
        is_end = bool(llama.llama_vocab_is_eog(reference.vocab, token_id))
        assert (token_id in tokenizer.eos_ids) == is_end
        is_control = bool(llama.llama_vocab_is_control(reference.vocab, token_id))
        is_thinking = tokenizer.token_bytes(token_id) in (b"<think>", b"</think>")
        assert tokenizer.is_special(token_id) == (is_control or is_thinking)


@pytest.mark.parametrize("variant", ["k2", "v3", "v2", "by llama.cpp"])
@pytest.mark.parametrize("character", ["a", " ", "."])
def test_very_long_runs_neither_crash_nor_hang(
    variant: str, character: str, tmp_path: Path
) -> None:
    # llama.cpp overflows its stack at some 25 000 characters with DeepSeek's patterns.
    path = tmp_path / "tiny.gguf"
    write_tiny(
        path,
        variant="v3" if variant == "by llama.cpp" else variant,
        layers=1,
        dense_layers=1,
        **({"pre": "gpt-2"} if variant == "by llama.cpp" else {}),
    )
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer(path, file.metadata)
        text = character * 60_000
        assert tokenizer.decode(tokenizer.encode(text)) == text
        tokenizer.close()


def test_special_tokens_are_text_unless_parsed(kimi_tokenizer: Tokenizer) -> None:
    text = "a<|im_end|>b"
    assert 163_586 not in kimi_tokenizer.encode(text)
    assert kimi_tokenizer.decode(kimi_tokenizer.encode(text)) == text
    ids = kimi_tokenizer.encode(text, parse_special=True)
    assert ids[1] == 163_586
    assert kimi_tokenizer.decode(ids) == "ab"
    assert kimi_tokenizer.decode(ids, skip_special=False) == text
    assert kimi_tokenizer.special_id("<|im_end|>") == 163_586
    assert kimi_tokenizer.special_id("Hello") is None
    assert kimi_tokenizer.is_special(163_586) and not kimi_tokenizer.is_special(19180)


def test_thinking_marks_stay_visible(kimi_tokenizer: Tokenizer) -> None:
    assert kimi_tokenizer.decode([163_606, 19180, 163_607]) == "<think>Hello</think>"


def test_lone_surrogates_become_replacement_characters(kimi_tokenizer: Tokenizer) -> None:
    assert kimi_tokenizer.decode(kimi_tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_ids_outside_the_vocabulary_are_refused(kimi_tokenizer: Tokenizer) -> None:
    for token_id in (-1, 163_840):
        with pytest.raises(ConfigError, match=r"expected 0 to 163839"):
            kimi_tokenizer.decode([token_id])


def test_llama_cpp_opens_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"v3\xff.gguf")
    write_tiny(path, variant="v3", layers=1, dense_layers=1, pre="gpt-2")
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer(path, file.metadata)
        assert tokenizer.decode(tokenizer.encode("a b")) == "a b"
        tokenizer.close()


def test_bos_is_added_if_the_file_asks_for_it(tmp_path: Path) -> None:
    for variant, expected in (("k2", False), ("v3", True)):
        path = tmp_path / f"{variant}.gguf"
        write_tiny(path, variant=variant, layers=1, dense_layers=1)
        with GGUFFile.open(path) as file:
            tokenizer = Tokenizer(path, file.metadata)
            assert (tokenizer.encode("a", add_special=True)[0] == tokenizer.bos_id) == expected
            tokenizer.close()


def test_a_refusal_by_llama_cpp_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant="v3", layers=1, dense_layers=1, pre="no-such-pre")
    with GGUFFile.open(path) as file, pytest.raises(GGUFError) as caught:
        Tokenizer(path, file.metadata)
    text = str(caught.value)
    assert text.startswith("tiny.gguf: llama.cpp refuses") and "no-such-pre" in text
    assert "\n" not in text
    assert capfd.readouterr() == ("", "")


def test_without_llama_cpp_an_unknown_pre_tokenizer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.delitem(sys.modules, "hybridmoe.text.llama_bpe", raising=False)
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant="v3", layers=1, dense_layers=1, pre="gpt-2")
    with (
        GGUFFile.open(path) as file,
        pytest.raises(ConfigError, match=r"tiny.gguf: .* \('gpt-2'\) needs llama-cpp-python"),
    ):
        Tokenizer(path, file.metadata)


def test_a_closed_tokenizer_raises(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant="v3", layers=1, dense_layers=1, pre="gpt-2")
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer(path, file.metadata)
        tokenizer.close()
        tokenizer.close()
        with pytest.raises(ConfigError, match="closed"):
            tokenizer.encode("a")
