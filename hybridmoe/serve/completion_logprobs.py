"""Log-probabilities in the structure of OpenAI's older completions, and prompts' in vLLM's.

A token is shown by its text, or `bytes:\\x..` if it is not whole characters, so that two tokens
rarely share a name.
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from hybridmoe.engine.request import PromptLogprobs
from hybridmoe.serve.generation import TokenLogprob
from hybridmoe.serve.logprobs import finite, id_name, token_text
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["CompletionLogprobs", "prompt_logprobs_by_id"]

Ranked = tuple[float, int, list[tuple[int, float]]]  # log-probability, rank, likeliest tokens


class CompletionLogprobs:
    """`logprobs` of one choice, in pieces: of its prompt, if that is echoed, then of its text.

    `top_logprobs` has the likeliest tokens and the token itself; it and the log-probability are
    null for a prompt's first token. `text_offset` counts characters of the choice's whole text.
    by_id: tokens are shown as `token_id:N`.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int, *, by_id: bool = False) -> None:
        self._tokenizer = tokenizer
        self._by_id = by_id
        self._num_top = num_top
        self._names: dict[int, str] = {}
        self._offset = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def of_prompt(
        self, ids: Sequence[int], events: Sequence[PromptLogprobs], num_hidden: int
    ) -> dict[str, Any]:
        """Convert those of a prompt. num_hidden: characters at its start that are not echoed."""
        piece = _Piece()
        self._offset = -num_hidden
        scored: list[Ranked | None] = [None, *_ranked(events)]
        for token_id, one in zip(ids, scored, strict=True):
            logprob, _, top = one or (None, 0, [])
            self._add(piece, token_id, logprob, top, len(self._decode(token_id)))
        self._offset += len(self._utf8.decode(b"", final=True))
        return piece.to_dict()

    def of_text(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Convert those of the next tokens of the text."""
        piece = _Piece()
        for entry in entries:
            is_hidden = self._tokenizer.is_special(entry.token_id)
            width = 0 if is_hidden else len(self._decode(entry.token_id))
            self._add(piece, entry.token_id, entry.logprob, entry.top, width)
        return piece.to_dict()

    def _decode(self, token_id: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def _add(
        self,
        piece: "_Piece",
        token_id: int,
        logprob: float | None,
        top: Sequence[tuple[int, float]],
        width: int,
    ) -> None:
        piece.tokens.append(self._name(token_id))
        piece.offsets.append(max(0, self._offset))
        self._offset += width
        if logprob is None:
            piece.logprobs.append(None)
            piece.tops.append(None)
            return
        shown: dict[str, float] = {}
        for other_id, value in [*top[: self._num_top], (token_id, logprob)]:
            shown.setdefault(self._name(other_id), finite(value))
        piece.logprobs.append(finite(logprob))
        piece.tops.append(shown)

    def _name(self, token_id: int) -> str:
        if token_id not in self._names:
            name = id_name(token_id) if self._by_id else _token_name(token_id, self._tokenizer)
            self._names[token_id] = name
        return self._names[token_id]


class _Piece:
    """The four lists of a piece."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.logprobs: list[float | None] = []
        self.tops: list[dict[str, float] | None] = []
        self.offsets: list[int] = []

    def to_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "token_logprobs": self.logprobs,
            "top_logprobs": self.tops,
            "text_offset": self.offsets,
        }


def prompt_logprobs_by_id(
    ids: Sequence[int], events: Sequence[PromptLogprobs], num_top: int, tokenizer: Tokenizer
) -> list[dict[str, dict[str, Any]] | None]:
    """Convert to vLLM's `prompt_logprobs`: for each token, itself and the likeliest, by id."""

    def convert(token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        text = token_text(token_id, tokenizer)
        return {"logprob": finite(logprob), "rank": rank, "decoded_token": text}

    out: list[dict[str, dict[str, Any]] | None] = [None]
    for token_id, (logprob, rank, top) in zip(ids[1:], _ranked(events), strict=True):
        entry = {str(token_id): convert(token_id, logprob, rank)}
        for i, (other_id, value) in enumerate(top[:num_top]):
            entry.setdefault(str(other_id), convert(other_id, value, i + 1))
        out.append(entry)
    return out


def _ranked(events: Sequence[PromptLogprobs]) -> Iterator[Ranked]:
    for event in events:
        rows = zip(
            event.logprobs.tolist(),
            event.ranks.tolist(),
            event.top_ids.tolist(),
            event.top_logprobs.tolist(),
            strict=True,
        )
        for logprob, rank, ids, values in rows:
            yield logprob, rank, list(zip(ids, values, strict=True))


def _token_name(token_id: int, tokenizer: Tokenizer) -> str:
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
