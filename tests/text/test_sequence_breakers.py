"""Sequence breakers: every way in which tokens spell a string is found."""

from collections.abc import Iterator

import pytest

from hybridmoe.demo import demo_path
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.text.sequence_breakers import BreakerFinder
from hybridmoe.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    with GGUFFile.open(demo_path()) as file:
        tokenizer = Tokenizer(file.path, file.metadata)
        yield tokenizer
        tokenizer.close()


def test_a_token_that_contains_the_string_breaks_alone(tokenizer: Tokenizer) -> None:
    found = BreakerFinder(tokenizer).find(("\n", "the"))
    texts = [tokenizer.token_bytes(i) for i in range(tokenizer.num_tokens)]
    holding = {i for i, text in enumerate(texts) if b"\n" in text or b"the" in text}
    assert {i for i, tails in found.items() if () in tails} == holding
    assert len(holding) > 5


def test_a_special_token_is_found_by_its_text(tokenizer: Tokenizer) -> None:
    end_id = tokenizer.special_id("<|im_end|>")
    assert () in BreakerFinder(tokenizer).find(("<|im_end|>",))[end_id]


@pytest.mark.parametrize("text", ["th", " User:", "...", "aé", "日本"])
def test_a_string_across_tokens_is_found(tokenizer: Tokenizer, text: str) -> None:
    """A first token that ends with a beginning of it, then the tokens of the rest."""
    found = BreakerFinder(tokenizer).find((text,))
    for at in range(1, len(text)):
        head, rest = tokenizer.encode_untrusted(text[:at]), tokenizer.encode_untrusted(text[at:])
        if len(head) == 1 and text.encode() not in tokenizer.token_bytes(head[0]):
            assert tuple(rest) in found[head[0]]


def test_the_same_list_is_searched_once(tokenizer: Tokenizer) -> None:
    finder = BreakerFinder(tokenizer)
    assert finder.find((":",)) is finder.find((":",))
    assert finder.find(()) == {}
