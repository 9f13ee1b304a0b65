"""Incremental detokenizer: pieces join to the decoded text, in whole characters."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.vocabulary import byte_symbols


def tiny_tokenizer() -> Tokenizer:
    symbols = byte_symbols()
    han = "".join(symbols[byte] for byte in "你".encode())
    keys = {
        "model": "gpt2",
        "pre": "kimi-k2",
        "tokens": [*symbols, "ab", "<0xE2>", han, "<|im_end|>", "<think>"],
        "token_type": [1] * 256 + [1, 6, 1, 3, 4],
        "merges": ["a b"],
    }
    return Tokenizer(Path("x.gguf"), {f"tokenizer.ggml.{k}": v for k, v in keys.items()})


TOKENIZER = tiny_tokenizer()


@given(st.lists(st.integers(0, 260)), st.booleans())
def test_pieces_equal_the_whole(ids: list[int], skip: bool) -> None:
    decoder = TOKENIZER.stream(skip_special=skip)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "".join(pieces) + decoder.flush() == TOKENIZER.decode(ids, skip_special=skip)


@given(st.binary())
def test_invalid_bytes_are_replaced_as_by_python(raw: bytes) -> None:
    by_byte = {TOKENIZER.token_bytes(i): i for i in range(256)}
    decoder = TOKENIZER.stream()
    text = "".join(decoder.push(by_byte[raw[i : i + 1]]) for i in range(len(raw)))
    assert text + decoder.flush() == raw.decode("utf-8", "replace")


@given(st.text())
def test_valid_text_never_shows_a_replacement_character(text: str) -> None:
    decoder = TOKENIZER.stream()
    pieces = [decoder.push(i) for i in TOKENIZER.encode(text)]
    assert decoder.flush() == ""
    assert "".join(pieces) == text


def test_a_character_appears_with_its_last_byte() -> None:
    decoder = TOKENIZER.stream()
    assert [decoder.push(i) for i in TOKENIZER.encode("🙂")] == ["", "", "", "🙂"]


def test_flush_shows_an_unfinished_character_once() -> None:
    decoder = TOKENIZER.stream()
    assert decoder.push(257) == ""
    assert decoder.flush() == "�"
    assert decoder.flush() == ""
    assert decoder.push(256) == "ab"


def test_hidden_tokens_do_not_break_a_character() -> None:
    first, second, third = [*TOKENIZER.encode("é"), 259]
    decoder = TOKENIZER.stream()
    assert [decoder.push(i) for i in (first, third, second)] == ["", "", "é"]
