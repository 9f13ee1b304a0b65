"""Prompt limit: prompts that cannot fit are refused while they are rendered and tokenized."""

from collections.abc import Iterator

import pytest

from hybridmoe.demo import demo_path
from hybridmoe.errors import ContextLengthError, HybridMoeError, TemplateError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.text.byte_bpe import ByteBpe
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.prompt_limit import PromptLimit
from hybridmoe.text.template_sandbox import MAX_SOURCE_TOKENS
from hybridmoe.text.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    with GGUFFile.open(demo_path()) as file:
        tokenizer = Tokenizer(file.path, file.metadata)
        yield tokenizer
        tokenizer.close()


class EndlessEncoder:
    """An encoder that yields tokens until its caller stops."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def encode(self, _encoder: ByteBpe, text: str) -> Iterator[list[int]]:
        while True:
            self.num_tokens += 10
            yield [65] * 10


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> EndlessEncoder:
    endless = EndlessEncoder()
    monkeypatch.setattr(ByteBpe, "encode", lambda encoder, text: endless.encode(encoder, text))
    return endless


def test_encoding_stops_after_the_last_counted_token(
    tokenizer: Tokenizer, endless: EndlessEncoder
) -> None:
    for encode in (
        lambda limit: tokenizer.encode("text", limit=limit),
        lambda limit: tokenizer.encode_untrusted("text", limit),
    ):
        endless.num_tokens = 0
        with pytest.raises(ContextLengthError, match="more than 400 tokens, the context holds 100"):
            encode(tokenizer.prompt_limit(100))
        assert endless.num_tokens == 410


def test_a_text_too_long_for_any_tokens_is_not_encoded(
    tokenizer: Tokenizer, endless: EndlessEncoder
) -> None:
    longest = max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.num_tokens))
    with pytest.raises(ContextLengthError):
        tokenizer.encode("a" * (4 * 100 * longest + 1), limit=tokenizer.prompt_limit(100))
    assert endless.num_tokens == 0


def test_a_text_of_the_longest_tokens_is_encoded(tokenizer: Tokenizer) -> None:
    token_id = max(range(tokenizer.num_tokens), key=lambda i: len(tokenizer.token_bytes(i)))
    text = tokenizer.decode([token_id] * 400, skip_special=False)
    ids = tokenizer.encode(text, parse_special=True, limit=tokenizer.prompt_limit(100))
    assert len(ids) <= 400


class CancelledError(HybridMoeError):
    """Raised by the check below."""


def cancel() -> None:
    raise CancelledError


def test_encoding_and_rendering_are_cancelled_by_the_check(tokenizer: Tokenizer) -> None:
    limit = PromptLimit(1 << 20, 1 << 10, cancel)
    with pytest.raises(CancelledError):
        tokenizer.encode("a b c", limit=limit)
    with pytest.raises(CancelledError):
        ChatTemplate("{% for i in range(9) %}a{% endfor %}").render(HELLO, limit=limit)


def test_rendering_stops_once_the_text_cannot_fit() -> None:
    source = "{% for i in range(9999) %}{{ messages }}{% endfor %}"
    checks: list[None] = []
    limit = PromptLimit(10, 8, lambda: checks.append(None))
    with pytest.raises(ContextLengthError, match="more than 40 tokens"):
        ChatTemplate(source).render(HELLO, limit=limit)
    assert len(checks) < 20


def test_a_template_with_too_many_tokens_is_not_compiled() -> None:
    with pytest.raises(TemplateError, match=f"more than {MAX_SOURCE_TOKENS} names"):
        ChatTemplate("{{x}}" * (MAX_SOURCE_TOKENS // 3 + 2))
    ChatTemplate("{{x}}" * 100)
