"""Text splitting: bounded pieces that join to the text, at places that do not change the ids."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny

from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.text import llama_bpe
from hybridmoe.text.text_splitting import split_long_runs, split_text
from hybridmoe.text.tokenizer import Tokenizer


@given(st.text("a \n", max_size=60), st.integers(2, 9))
def test_only_long_runs_are_split(text: str, max_chars: int) -> None:
    expected, start = [], 0
    for match in re.finditer(rf"\S{{{max_chars}}}|\s{{{max_chars}}}", text):
        expected.append(text[start : match.end()])
        start = match.end()
    assert list(split_long_runs(text, max_chars)) == [
        part for part in (*expected, text[start:]) if part
    ]


@given(st.text("ab \n。1", max_size=80), st.integers(1, 9))
def test_pieces_are_bounded_and_join_to_the_text(text: str, min_chars: int) -> None:
    pieces = list(split_text(text, min_chars))
    assert "".join(pieces) == text
    assert all(len(piece) <= 2 * min_chars for piece in pieces)


@pytest.mark.parametrize("pre", ["deepseek-v3", "deepseek-llm", "deepseek-coder", "gpt-2"])
def test_splits_at_safe_places_do_not_change_the_ids(
    pre: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant="v3", pre=pre)
    text = (
        "Hello world,  this is it: 12345 times.\n\nfoo()\n\tBAR\nnew line 7\n"
        "你好，世界。\n人人生而自由\n  the end of it \r\n!\nx"
    ) * 3
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer(path, file.metadata)
    whole = tokenizer.encode(text)
    for size in (8, 16, 23):
        monkeypatch.setattr(llama_bpe, "PIECE_CHARS", size)
        assert len(list(split_text(text, size))) > 5
        prefix = _safe_prefix(text, size)
        assert tokenizer.encode(prefix) == _unsplit_ids(tokenizer, prefix, monkeypatch)
    monkeypatch.undo()
    assert tokenizer.encode(text) == whole
    tokenizer.close()


def _safe_prefix(text: str, size: int) -> str:
    """Leading pieces of the text, up to the first without a safe place to split."""
    out = ""
    for piece in split_text(text, size):
        if len(piece) == 2 * size:
            break
        out += piece
    return out


def _unsplit_ids(tokenizer: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    with monkeypatch.context() as patch:
        patch.setattr(llama_bpe, "PIECE_CHARS", 1 << 20)
        return tokenizer.encode(text)
