"""Ids equal those of independent tokenizers; bad vocabularies end in one line, not in a crash."""

import ctypes
import functools
import os
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import kimi_vocabulary
import llama_cpp.llama_cpp as llama
import pytest
from gguf import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny
from tiny_vocab import make_vocabulary

from hybridmoe.errors import ConfigError, GGUFError, UnsupportedModelError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.text import kimi_bpe as kimi
from hybridmoe.text.tokenizer import Tokenizer

PLAIN = {
    "english": "The quick brown fox doesn't jump over the dog's back; I'LL — “quoted” naïve café.",
    "spaces": "two  spaces\n\n\tTab\r\nCRLF   \n  indented\n   ",
    "code": "def getElementById(self, x_1: int) -> XMLHttpRequest:\n\treturn {**a, 'k': 0x1F}",
    "numbers": "1234567 3.14159 1,000,000 2^10 ½ ² Ⅷ ٣٤ 1e-9",
    "camel": "iPhone macOS eBay LaTeX McDonald's fooBAR'S ǅungla éÉlan straßeÜber КамелКейс",
    "chinese": "月之暗面科技有限公司发布了Kimi K2模型，参数1万亿。你好，世界！《红楼梦》〇々　全角",
    "japanese": "人々は日本語のテストを書く。カタカナ、ひらがな。ﾊﾝｶｸ 東京タワー２０２４年",
    "korean": "안녕하세요 세계! 모든 인간은 태어날 때부터 자유로우며",
    "arabic": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق",
    "emoji": "Hi 👋🏽👨‍👩‍👧‍👦 🇩🇪🇨🇳 🙂🙂 ✅ done",
    "mixed": "用Python写hello_world()函数, then 运行 it: ∑x² ≤ ½·π ∈ ℝ",
}
# Words with combining marks: where llama.cpp's splitter departs from the model's.
MARKED = {
    "hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में स्वतन्त्रता और समानता प्राप्त है।",
    "thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "bengali": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "tamil": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்",
    "variation selector": "❤️\\u200d👨",
}


@functools.cache
def kimi_from_metadata() -> Tokenizer:
    return Tokenizer(Path("kimi.gguf"), kimi_vocabulary.metadata())


@pytest.fixture(scope="module")
def kimi_tokenizer() -> Tokenizer:
    return kimi_from_metadata()


@pytest.fixture(scope="module")
def by_llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], "Reference"]]:
    opened: list[Reference] = []

    def open_file(path: Path) -> "Reference":
        opened.append(Reference(path))
        return opened[-1]

    yield open_file
    for reference in opened:
        llama.llama_model_free(reference.model)


class Reference:
    """llama.cpp's own tokenizer, called directly."""

    def __init__(self, path: Path) -> None:
        params = llama.llama_model_default_params()
        params.vocab_only = True
        llama.llama_log_set(_SILENT, ctypes.c_void_p())
        self.model = llama.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = llama.llama_model_get_vocab(self.model)

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        raw = text.encode()
        buffer = (llama.llama_token * (len(raw) + 1))()
        count = llama.llama_tokenize(
            self.vocab, raw, len(raw), buffer, len(buffer), False, parse_special
        )
        return list(buffer[:count])

    def piece(self, token_id: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        count = llama.llama_token_to_piece(self.vocab, token_id, buffer, 256, 0, True)
        return buffer.raw[:count]


_SILENT = llama.llama_log_callback(lambda level, text, user_data: None)


@pytest.fixture(scope="module")
def kimi_by_llama(
    by_llama: Callable[[Path], Reference], tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    path = tmp_path_factory.mktemp("kimi") / "kimi.gguf"
    kimi_vocabulary.write_file(path)
    return by_llama(path)


@pytest.fixture(scope="module", params=["k2", "v3", "v2"])
def tiny(
    request: pytest.FixtureRequest,
    by_llama: Callable[[Path], Reference],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Tokenizer, Reference]]:
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


def test_llama_cpp_agrees_where_no_mark_combines(
    kimi_tokenizer: Tokenizer, kimi_by_llama: Reference
) -> None:
    for text in PLAIN.values():
        assert kimi_tokenizer.encode(text) == kimi_by_llama.encode(text)


@pytest.mark.parametrize("name", MARKED)
def test_llama_cpp_still_cuts_marks_off_words(
    kimi_tokenizer: Tokenizer, kimi_by_llama: Reference, name: str
) -> None:
    # If this fails, llama.cpp was mended, and text/kimi_bpe.py can say so.
    text = MARKED[name]
    assert len(kimi_tokenizer.encode(text)) < len(kimi_by_llama.encode(text))


def test_the_pattern_loses_nothing_and_splits_as_the_model_does() -> None:
    assert kimi.split("iPhone getURLNow'S") == ["i", "Phone", " get", "URLNow'S"]
    assert kimi.split("人々 नमस्ते x") == ["人々", " नमस्ते", " x"]
    for text in (PLAIN | MARKED).values():
        assert "".join(kimi.split(text)) == text


def test_tiny_vocabularies_agree_with_llama_cpp(tiny: tuple[Tokenizer, Reference]) -> None:
    tokenizer, reference = tiny
    specials = [tokenizer.decode([i], skip_special=False) for i in tokenizer.eos_ids]
    for text in PLAIN.values():
        assert tokenizer.encode(text) == reference.encode(text)
        marked = f"{specials[0]}{text}<think>{specials[-1]} x"
        ids = tokenizer.encode(marked, parse_special=True)
        assert ids == reference.encode(marked, parse_special=True)
        marked = marked.replace("<think>", "")  # which llama.cpp always takes for the token
        assert tokenizer.encode(marked) == reference.encode(marked, parse_special=False)
    for token_id in range(tokenizer.num_tokens):
        assert tokenizer.token_bytes(token_id) == reference.piece(token_id)
        is_end = bool(llama.llama_vocab_is_eog(reference.vocab, token_id))
        assert (token_id in tokenizer.eos_ids) == is_end
        is_control = bool(llama.llama_vocab_is_control(reference.vocab, token_id))
        is_thinking = tokenizer.token_bytes(token_id) in (b"<think>", b"</think>")
        assert tokenizer.is_special(token_id) == (is_control or is_thinking)


@pytest.mark.parametrize("variant", ["k2", "v3", "v2"])
@pytest.mark.parametrize("character", ["a", " ", "."])
def test_very_long_runs_neither_crash_nor_hang(
    variant: str, character: str, tmp_path: Path
) -> None:
    # llama.cpp alone dies of a stack overflow at some 25 000 characters with DeepSeek's patterns.
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant=variant, layers=1, dense_layers=1)
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer(path, file.metadata)
        text = character * 60_000
        assert tokenizer.decode(tokenizer.encode(text)) == text
        tokenizer.close()


def test_special_names_are_text_unless_asked_for(kimi_tokenizer: Tokenizer) -> None:
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


MARKS = ("<|tool_call_end|>", "<｜tool▁sep｜>", "<|im_end|>", "<think>", "[EOT]")
PLAIN_TYPES = (TokenType.NORMAL, TokenType.USER_DEFINED)


def retyped(path: Path, kind: TokenType, names: Sequence[str], pre: str) -> Tokenizer:
    """A tiny file's tokenizer, with further tokens of a type that text has."""
    vocabulary = make_vocabulary()
    pairs = zip(vocabulary.tokens, vocabulary.types, strict=True)
    kept = {text: type_ for text, type_ in pairs if text not in names}
    tokens = list(kept)
    keys = {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, *names],
        "tokenizer.ggml.token_type": [*kept.values(), *[int(kind)] * len(names)],
        "tokenizer.ggml.bos_token_id": tokens.index("[BOS]"),
        "tokenizer.ggml.eos_token_id": tokens.index("[EOS]"),
        "tokenizer.ggml.padding_token_id": tokens.index("[PAD]"),
        "tokenizer.chat_template": "[gMASK]<sop><tool_call>{{ messages }}",
    }
    write_tiny(path, layers=1, dense_layers=1, metadata=keys)
    with GGUFFile.open(path) as file:
        return Tokenizer(path, file.metadata)


@pytest.mark.parametrize("kind", PLAIN_TYPES)
@pytest.mark.parametrize("pre", ["kimi-k2", "deepseek-v3"])
def test_marks_are_special_whatever_their_type(kind: TokenType, pre: str, tmp_path: Path) -> None:
    tokenizer = retyped(tmp_path / "tiny.gguf", kind, MARKS, pre)
    for name in MARKS:
        token_id = tokenizer.special_id(name)
        assert token_id is not None and tokenizer.is_special(token_id)
        text = f"a{name}b {name}"
        assert tokenizer.encode(text, parse_special=True).count(token_id) == 2
        assert next(tokenizer.special_spans(text)) == (1, 1 + len(name))
        assert tokenizer.token_bytes(token_id) == name.encode()
        shown = name if name == "<think>" else ""
        assert tokenizer.decode([token_id]) == shown
        for ids in (tokenizer.encode(text), tokenizer.encode_untrusted(text)):
            assert token_id not in ids
            assert tokenizer.decode(ids, skip_special=False) == text
    ends = {tokenizer.special_id(name) for name in ("[EOS]", "[EOT]", "[PAD]", "<|im_end|>")}
    assert tokenizer.eos_ids == ends
    tokenizer.close()


@pytest.mark.parametrize("kind", PLAIN_TYPES)
def test_names_that_a_template_writes_are_found_in_it(kind: TokenType, tmp_path: Path) -> None:
    names = ("[gMASK]", "<sop>", "<tool_call>", "<other>")
    tokenizer = retyped(tmp_path / "tiny.gguf", kind, names, "kimi-k2")
    for name in names:
        is_found = kind == TokenType.USER_DEFINED or name != "<other>"
        token_id = tokenizer.special_id(name)
        assert (token_id is not None) == is_found
        if token_id is not None:
            assert not tokenizer.is_special(token_id)
            assert tokenizer.decode([token_id]) == name
            assert tokenizer.encode(f"a{name}b", parse_special=True).count(token_id) == 1
            assert token_id not in tokenizer.encode_untrusted(f"a{name}b")
    tokenizer.close()


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
    write_tiny(path, variant="v3", layers=1, dense_layers=1)
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer(path, file.metadata)
        assert tokenizer.decode(tokenizer.encode("a b")) == "a b"
        tokenizer.close()


def test_beginning_token_is_added_where_the_file_asks_for_it(tmp_path: Path) -> None:
    for variant, expected in (("k2", False), ("v3", True)):
        path = tmp_path / f"{variant}.gguf"
        write_tiny(path, variant=variant, layers=1, dense_layers=1)
        with GGUFFile.open(path) as file:
            tokenizer = Tokenizer(path, file.metadata)
            assert (tokenizer.encode("a", add_special=True)[0] == tokenizer.bos_id) == expected
            tokenizer.close()


def _bad(**changes: object) -> dict[str, object]:
    symbols = kimi.byte_symbols()
    keys: dict[str, object] = {
        "model": "gpt2", "pre": "kimi-k2", "tokens": [*symbols, "ab"], "token_type": [1] * 257,
        "merges": ["a b"],
    }  # fmt: skip
    return {f"tokenizer.ggml.{k}": v for k, v in {**keys, **changes}.items() if v is not None}


BAD = {
    "model is 'llama'": _bad(model="llama"),
    "model is None": _bad(model=None),
    "tokens is missing": _bad(tokens=None),
    "tokens has 0 entries": _bad(tokens=[]),
    "tokens is 7": _bad(tokens=7),
    "tokens is [1, 2]": _bad(tokens=[1, 2]),
    "a NUL is in it": _bad(tokens=[*kimi.byte_symbols(), "a\0b"]),
    "'a' twice": _bad(tokens=["a"] * 257),
    "tokens[256] has 20000 characters": _bad(tokens=[*kimi.byte_symbols(), "a" * 20_000]),
    "tokens[256] has 2000 characters": _bad(tokens=[*kimi.byte_symbols(), "汉" * 2000]),
    "tokens[256] is 'ab'; expected <0x00>": _bad(token_type=[1] * 256 + [6]),
    "lacks byte 0x21": _bad(tokens=[*kimi.byte_symbols()[:33], *map(str, range(10, 234))]),
    "token_type has 3 entries": _bad(token_type=[1, 1, 1]),
    "merges is missing": _bad(merges=None),
    "merges[0] is 'b a'": _bad(merges=["b a"]),
    "merges[0] is ''": _bad(merges=[""]),
    "eos_token_id is 257": _bad(eos_token_id=257),
    "bos_token_id is True": _bad(bos_token_id=True),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_vocabularies_are_one_line_that_names_the_file(message: str) -> None:
    with pytest.raises(GGUFError) as caught:
        Tokenizer(Path("/some/bad.gguf"), BAD[message])
    text = str(caught.value)
    assert text.startswith("bad.gguf: ") and message in text and "\n" not in text
    assert isinstance(caught.value, UnsupportedModelError) == ("model is" in message)


def test_what_llama_cpp_refuses_is_one_line(
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


def test_a_closed_tokenizer_says_so(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant="v3", layers=1, dense_layers=1)
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer(path, file.metadata)
        tokenizer.close()
        tokenizer.close()
        with pytest.raises(ConfigError, match="closed"):
            tokenizer.encode("a")
