"""Vocabulary: special tokens that converters type as text; bad files are one line."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from gguf import TokenType
from tiny_gguf import write_tiny
from tiny_vocab import make_vocabulary

from hybridmoe.errors import GGUFError, UnsupportedModelError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.vocabulary import byte_symbols

MARKS = ("<|tool_call_end|>", "<｜tool▁sep｜>", "<|im_end|>", "<think>", "[EOT]")
TEXT_TYPES = (TokenType.NORMAL, TokenType.USER_DEFINED)


def tokenizer_with(path: Path, kind: TokenType, texts: Sequence[str], pre: str) -> Tokenizer:
    """Make a tiny file's tokenizer with further tokens, typed as text."""
    vocabulary = make_vocabulary()
    pairs = zip(vocabulary.tokens, vocabulary.types, strict=True)
    kept = {text: type_ for text, type_ in pairs if text not in texts}
    tokens = list(kept)
    keys = {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, *texts],
        "tokenizer.ggml.token_type": [*kept.values(), *[int(kind)] * len(texts)],
        "tokenizer.ggml.bos_token_id": tokens.index("[BOS]"),
        "tokenizer.ggml.eos_token_id": tokens.index("[EOS]"),
        "tokenizer.ggml.padding_token_id": tokens.index("[PAD]"),
        "tokenizer.chat_template": "[gMASK]<sop><tool_call>{{ messages }}",
    }
    write_tiny(path, layers=1, dense_layers=1, metadata=keys)
    with GGUFFile.open(path) as file:
        return Tokenizer(path, file.metadata)


@pytest.mark.parametrize("kind", TEXT_TYPES)
@pytest.mark.parametrize("pre", ["kimi-k2", "deepseek-v3"])
def test_marks_are_special_even_if_typed_as_text(kind: TokenType, pre: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path / "tiny.gguf", kind, MARKS, pre)
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
    said = "the file types special tokens as text; they are special here: " + ", ".join(
        map(repr, MARKS)
    )
    assert tokenizer.notes == ((said,) if kind == TokenType.NORMAL else ())
    tokenizer.close()


@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_bracketed_texts_of_a_template_are_found(kind: TokenType, tmp_path: Path) -> None:
    names = ("[gMASK]", "<sop>", "<tool_call>", "<other>")
    tokenizer = tokenizer_with(tmp_path / "tiny.gguf", kind, names, "kimi-k2")
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


def test_a_note_names_a_few_mistyped_tokens(tmp_path: Path) -> None:
    names = [f"<|mark_{i}|>" for i in range(9)]
    tokenizer = tokenizer_with(tmp_path / "tiny.gguf", TokenType.NORMAL, names, "kimi-k2")
    (note,) = tokenizer.notes
    assert note.endswith(": " + ", ".join(map(repr, names[:6])) + " and 3 more")


def test_glms_next_turn_ends_a_response(tmp_path: Path) -> None:
    names = ("<|endoftext|>", "<|user|>", "<|observation|>", "<|assistant|>", "<|system|>")
    tokenizer = tokenizer_with(tmp_path / "tiny.gguf", TokenType.CONTROL, names, "glm4")
    ends = {tokenizer.special_id(name) for name in names[:3]}
    assert ends <= tokenizer.eos_ids
    assert not {tokenizer.special_id(name) for name in names[3:]} & tokenizer.eos_ids


def keys_with(**changes: object) -> dict[str, object]:
    symbols = byte_symbols()
    keys: dict[str, object] = {
        "model": "gpt2", "pre": "kimi-k2", "tokens": [*symbols, "ab"], "token_type": [1] * 257,
        "merges": ["a b"],
    }  # fmt: skip
    return {f"tokenizer.ggml.{k}": v for k, v in {**keys, **changes}.items() if v is not None}


BAD = {
    "model is 'llama'": keys_with(model="llama"),
    "model is None": keys_with(model=None),
    "tokens is missing": keys_with(tokens=None),
    "tokens has 0 entries": keys_with(tokens=[]),
    "tokens is 7": keys_with(tokens=7),
    "tokens is [1, 2]": keys_with(tokens=[1, 2]),
    "a NUL is in it": keys_with(tokens=[*byte_symbols(), "a\0b"]),
    "'a' twice": keys_with(tokens=["a"] * 257),
    "tokens[256] has 20000 characters": keys_with(tokens=[*byte_symbols(), "a" * 20_000]),
    "tokens[256] has 2000 characters": keys_with(tokens=[*byte_symbols(), "汉" * 2000]),
    "tokens[256] is 'ab'; expected <0x00>": keys_with(token_type=[1] * 256 + [6]),
    "lacks byte 0x21": keys_with(tokens=[*byte_symbols()[:33], *map(str, range(10, 234))]),
    "token_type has 3 entries": keys_with(token_type=[1, 1, 1]),
    "merges is missing": keys_with(merges=None),
    "merges[0] is 'b a'": keys_with(merges=["b a"]),
    "merges[0] is ''": keys_with(merges=[""]),
    "eos_token_id is 257": keys_with(eos_token_id=257),
    "bos_token_id is True": keys_with(bos_token_id=True),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_vocabulary_is_one_line_with_the_file_name(message: str) -> None:
    with pytest.raises(GGUFError) as caught:
        Tokenizer(Path("/some/bad.gguf"), BAD[message])
    text = str(caught.value)
    assert text.startswith("bad.gguf: ") and message in text and "\n" not in text
    assert isinstance(caught.value, UnsupportedModelError) == ("model is" in message)
