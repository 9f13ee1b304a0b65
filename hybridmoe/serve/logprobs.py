"""Log-probabilities and token texts in OpenAI's structure."""

from collections.abc import Sequence
from typing import Any

from hybridmoe.serve.generation import TokenLogprob
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["chat_logprobs", "finite", "id_name", "token_text"]

_MIN_LOGPROB = -9999.0  # in place of minus infinity, which JSON lacks


def chat_logprobs(
    entries: Sequence[TokenLogprob], tokenizer: Tokenizer, *, by_id: bool = False
) -> list[dict[str, Any]]:
    """Convert to the entries of a chat completion's `logprobs.content`.

    by_id: tokens are shown as `token_id:N`.
    """

    def convert(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": id_name(token_id) if by_id else token_text(token_id, tokenizer),
            "logprob": finite(logprob),
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    return [
        {
            **convert(entry.token_id, entry.logprob),
            "top_logprobs": [convert(token_id, logprob) for token_id, logprob in entry.top],
        }
        for entry in entries
    ]


def token_text(token_id: int, tokenizer: Tokenizer) -> str:
    """Decode a single token; U+FFFD for a part of a character."""
    return tokenizer.decode([token_id], skip_special=False)


def id_name(token_id: int) -> str:
    """Name a token by its id, as vLLM does on request."""
    return f"token_id:{token_id}"


def finite(logprob: float) -> float:
    """Replace minus infinity, which JSON lacks."""
    return max(logprob, _MIN_LOGPROB)
