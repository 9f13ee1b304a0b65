"""Untrusted texts: pieces and searches are bounded, and what cannot fit is not tokenized."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny

from hybridmoe.demo import demo_path
from hybridmoe.errors import ContextLengthError, HybridMoeError, TemplateError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.text import literal_matcher
from hybridmoe.text import llama_bpe as llama_vocab
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.literal_matcher import LiteralMatcher
from hybridmoe.text.prompt_limit import PromptLimit
from hybridmoe.text.template_sandbox import MAX_SOURCE_TOKENS
from hybridmoe.text.text_splitting import split_long_runs, split_text
from hybridmoe.text.tokenizer import Tokenizer

SHORT_NAMES = st.lists(st.text("<|ab", min_size=1, max_size=5), min_size=1, unique=True)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    with GGUFFile.open(demo_path()) as file:
        tokenizer = Tokenizer(file.path, file.metadata)
        yield tokenizer
        tokenizer.close()


@given(SHORT_NAMES, st.text("<|ab", max_size=40), st.integers(1, 50))
def test_names_are_found_as_by_trying_each(given_names: list[str], text: str, stretch: int) -> None:
    longest_first = sorted(given_names, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    found = LiteralMatcher(given_names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(literal_matcher, "_STRETCH_CHARS", stretch)
        assert list(found.find(text)) == [match.span() for match in pattern.finditer(text)]
        begins = [i for i in range(len(text)) if pattern.match(text, i)]
        assert [begin for begin, _ in found.find(text, is_overlapping=True)] == begins


def test_names_with_one_beginning_are_tried_only_behind_it() -> None:
    reserved = [f"<|reserved_token_{i}|>" for i in range(163_602, 163_838)]
    pattern = literal_matcher._any_of([*reserved, "<|im_end|>", "[BOS]"], 16)
    assert pattern.count("<") == 1 and pattern.count("reserved") == 1


def test_a_search_is_cut_into_stretches() -> None:
    checks: list[None] = []
    text = "a" * 10 * literal_matcher._STRETCH_CHARS
    assert list(LiteralMatcher(["<|x|>"]).find(text, lambda: checks.append(None))) == []
    assert len(checks) == 10


@given(st.text("a \n", max_size=60), st.integers(2, 9))
def test_long_runs_are_cut_and_nothing_else(text: str, most: int) -> None:
    wanted, start = [], 0
    for match in re.finditer(rf"\S{{{most}}}|\s{{{most}}}", text):
        wanted.append(text[start : match.end()])
        start = match.end()
    assert list(split_long_runs(text, most)) == [part for part in (*wanted, text[start:]) if part]


@given(st.text("ab \n。1", max_size=80), st.integers(1, 9))
def test_pieces_are_bounded_and_join_to_the_text(text: str, least: int) -> None:
    pieces = list(split_text(text, least))
    assert "".join(pieces) == text
    assert all(len(piece) <= 2 * least for piece in pieces)


@pytest.mark.parametrize("pre", ["deepseek-v3", "deepseek-llm", "deepseek-coder", "gpt-2"])
def test_where_long_texts_are_cut_does_not_show(
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
        monkeypatch.setattr(llama_vocab, "_PIECE_CHARS", size)
        assert len(list(split_text(text, size))) > 5
        places = _safe_text(text, size)
        assert tokenizer.encode(places) == _uncut(tokenizer, places, monkeypatch)
    monkeypatch.undo()
    assert tokenizer.encode(text) == whole
    tokenizer.close()


def _safe_text(text: str, size: int) -> str:
    """As much of the text as has a good place in each window."""
    out = ""
    for piece in split_text(text, size):
        if len(piece) == 2 * size:
            break
        out += piece
    return out


def _uncut(tokenizer: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    with monkeypatch.context() as patch:
        patch.setattr(llama_vocab, "_PIECE_CHARS", 1 << 20)
        return tokenizer.encode(text)


class Endless:
    """An encoder that never comes to an end by itself."""

    adds_bos = False

    def __init__(self) -> None:
        self.num_tokens = 0

    def encode(self, text: str) -> Iterator[list[int]]:
        while True:
            self.num_tokens += 10
            yield [65] * 10

    def close(self) -> None:
        pass


def test_encoding_stops_behind_the_last_token_that_is_counted(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    monkeypatch.setattr(tokenizer, "_encoder", endless)
    for encode in (
        lambda limit: tokenizer.encode("text", limit=limit),
        lambda limit: tokenizer.encode_untrusted("text", limit),
    ):
        endless.num_tokens = 0
        with pytest.raises(ContextLengthError, match="more than 400 tokens, the context holds 100"):
            encode(tokenizer.prompt_limit(100))
        assert endless.num_tokens == 410


def test_what_is_too_long_whatever_its_tokens_is_not_encoded(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.num_tokens))
    endless = Endless()
    monkeypatch.setattr(tokenizer, "_encoder", endless)
    with pytest.raises(ContextLengthError):
        tokenizer.encode("a" * (4 * 100 * longest + 1), limit=tokenizer.prompt_limit(100))
    assert endless.num_tokens == 0


def test_the_longest_text_that_may_fit_is_encoded(tokenizer: Tokenizer) -> None:
    token_id = max(range(tokenizer.num_tokens), key=lambda i: len(tokenizer.token_bytes(i)))
    text = tokenizer.decode([token_id] * 400, skip_special=False)
    ids = tokenizer.encode(text, parse_special=True, limit=tokenizer.prompt_limit(100))
    assert len(ids) <= 400


class LeaveError(HybridMoeError):
    """An error that a test's check raises."""


def leave() -> None:
    raise LeaveError


def test_encoding_and_templates_end_when_they_are_told(tokenizer: Tokenizer) -> None:
    limit = PromptLimit(1 << 20, 1 << 10, leave)
    with pytest.raises(LeaveError):
        tokenizer.encode("a b c", limit=limit)
    with pytest.raises(LeaveError):
        ChatTemplate("{% for i in range(9) %}a{% endfor %}").render(HELLO, limit=limit)


def test_a_template_stops_where_its_text_cannot_fit() -> None:
    source = "{% for i in range(9999) %}{{ messages }}{% endfor %}"
    checks: list[None] = []
    limit = PromptLimit(10, 8, lambda: checks.append(None))
    with pytest.raises(ContextLengthError, match="more than 40 tokens"):
        ChatTemplate(source).render(HELLO, limit=limit)
    assert len(checks) < 20


def test_a_template_of_too_many_parts_is_not_compiled() -> None:
    with pytest.raises(TemplateError, match=f"more than {MAX_SOURCE_TOKENS} names"):
        ChatTemplate("{{x}}" * (MAX_SOURCE_TOKENS // 3 + 2))
    ChatTemplate("{{x}}" * 100)
