"""Tokenizer of one GGUF file: text to token ids and back, also incrementally.

Finds special tokens itself; the text between them goes to an encoder: text/byte_bpe.py where
`tokenizer.ggml.pre` names a known pre-tokenizer, llama.cpp for all others. Decoding uses the token
table of the file alone.
"""

import codecs
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hybridmoe.errors import ConfigError
from hybridmoe.packages import install_command
from hybridmoe.text.byte_bpe import ByteBpe
from hybridmoe.text.literal_matcher import LiteralMatcher
from hybridmoe.text.pre_tokenizers import find_pre_tokenizer
from hybridmoe.text.prompt_limit import PromptLimit
from hybridmoe.text.vocabulary import TokenType, Vocabulary

__all__ = ["StreamDecoder", "Tokenizer"]

# Shown by `decode` even if the file types them as control tokens.
_THINKING_MARKS = frozenset({"<think>", "</think>"})
_SHOWN_TOKENS = 6  # of those that a file types wrongly


class Encoder(Protocol):
    """Encodes ordinary text; does not know special tokens."""

    adds_bos: bool

    def encode(self, text: str) -> Iterator[list[int]]:
        """Encode lazily, so that the caller can stop early."""
        ...

    def close(self) -> None: ...


class Tokenizer:
    """Encodes and decodes with the vocabulary of one file. Thread-safe until it is closed."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Read the vocabulary of the GGUF file at `path`; of a split file, the first part.

        Errors: GGUFError with the file's name; UnsupportedModelError unless the vocabulary is
        byte-level BPE.
        """
        self._vocabulary = vocabulary = Vocabulary.from_metadata(metadata, path.name)
        by_type: dict[int, list[str]] = {}
        for text, kind in zip(vocabulary.texts, vocabulary.types, strict=True):
            if kind not in (TokenType.NORMAL, TokenType.UNUSED):
                by_type.setdefault(kind, []).append(text)
        hidden = [*by_type.get(TokenType.CONTROL, ()), *by_type.get(TokenType.UNKNOWN, ())]
        visible = by_type.get(TokenType.USER_DEFINED, [])
        self._special_ids = {text: vocabulary.ids[text] for text in [*hidden, *visible]}
        self._hidden_ids = {vocabulary.ids[text] for text in hidden}
        self._skipped_ids = self._hidden_ids - {vocabulary.ids.get(t) for t in _THINKING_MARKS}
        self._any_special = LiteralMatcher([*hidden, *visible])
        self._user_defined = LiteralMatcher(visible)
        # Texts that an encoder may take for tokens, as llama.cpp does by the file's types.
        self._recognized = LiteralMatcher(vocabulary.recognized)
        self._recognized_marks = LiteralMatcher(list(set(vocabulary.recognized) - set(visible)))
        self._encoder = _make_encoder(path, vocabulary)
        adds_bos = metadata.get("tokenizer.ggml.add_bos_token", self._encoder.adds_bos)
        self._prefix = [vocabulary.bos_id] if adds_bos and vocabulary.bos_id is not None else []
        self.notes = _notes(vocabulary.mistyped)  # for people
        self.num_tokens = len(vocabulary.texts)
        self.bos_id = vocabulary.bos_id
        self.eos_ids = vocabulary.eos_ids  # end tokens: eos, eot, <|im_end|> ...

    def encode(
        self,
        text: str,
        *,
        add_special: bool = False,
        parse_special: bool = False,
        limit: PromptLimit | None = None,
    ) -> list[int]:
        """Encode text. Lone surrogates become U+FFFD. Errors: those of the limit.

        add_special: start with the BOS token if the file asks for it (`add_bos_token`).
        parse_special: find special tokens in the text. Tokens of the type "user defined" are found
        in any case, since the file calls them text.
        """
        limit = limit or PromptLimit.unlimited()
        limit.check_size(len(text))
        text = _valid(text)
        out = list(self._prefix) if add_special else []
        matcher = self._any_special if parse_special else self._user_defined
        start = 0
        for begin, end in matcher.find(text, limit.check):
            out += self._encode_split(self._recognized_marks, text[start:begin], limit)
            out.append(self._special_ids[text[begin:end]])
            limit.add_tokens(1)
            start = end
        return out + self._encode_split(self._recognized_marks, text[start:], limit)

    def encode_untrusted(self, text: str, limit: PromptLimit | None = None) -> list[int]:
        """Encode text without finding any special or user-defined token in it."""
        limit = limit or PromptLimit.unlimited()
        limit.check_size(len(text))
        return self._encode_split(self._recognized, _valid(text), limit)

    def prompt_limit(
        self, context_tokens: int, check: Callable[[], None] | None = None
    ) -> PromptLimit:
        """Make the limit of one prompt. check: called during the work; raises to cancel it."""
        checks = () if check is None else (check,)
        return PromptLimit(context_tokens, self._max_token_bytes, *checks)

    @functools.cached_property
    def _max_token_bytes(self) -> int:
        return max(len(self.token_bytes(i)) for i in range(self.num_tokens))

    def _encode_split(self, matcher: LiteralMatcher, text: str, limit: PromptLimit) -> list[int]:
        """Encode ordinary text, split within each match so that the encoder finds none."""
        out: list[int] = []
        start = 0
        for begin, _ in matcher.find(text, limit.check, is_overlapping=True):
            self._append(out, text[start : begin + 1], limit)
            start = begin + 1
        self._append(out, text[start:], limit)
        return out

    def _append(self, out: list[int], text: str, limit: PromptLimit) -> None:
        for ids in self._encoder.encode(text):
            out += ids
            limit.add_tokens(len(ids))

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Decode ids; invalid UTF-8 becomes U+FFFD. Raises ConfigError for an unknown id."""
        raw = b"".join(
            self.token_bytes(i) for i in ids if not (skip_special and i in self._skipped_ids)
        )
        return raw.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token, maybe a part of a character; of a special token, its text."""
        if not 0 <= token_id < self.num_tokens:
            raise ConfigError(f"token id {token_id}: expected 0 to {self.num_tokens - 1}")
        return self._vocabulary.token_bytes(token_id)

    def special_id(self, text: str) -> int | None:
        """Look up a special token by its text; None for other text."""
        return self._special_ids.get(text)

    def special_spans(
        self, text: str, check: Callable[[], None] | None = None
    ) -> Iterator[tuple[int, int]]:
        """Iterate over the spans of special tokens that `parse_special` would find."""
        return self._any_special.find(text, check)

    def is_special(self, token_id: int) -> bool:
        """True for a control token, False for text."""
        return token_id in self._hidden_ids

    def stream(self, *, skip_special: bool = True) -> "StreamDecoder":
        """Make an incremental decoder."""
        return StreamDecoder(self, skip_special=skip_special)

    def close(self) -> None:
        """Release native memory; encoding afterwards may raise ConfigError."""
        self._encoder.close()


class StreamDecoder:
    """Incremental detokenizer: decodes token by token into whole characters.

    The joined pieces equal `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer._skipped_ids if skip_special else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Add a token; returns the characters that it completes, often none."""
        if token_id in self._skipped:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """Return U+FFFD for an unfinished character, else nothing. Resets the decoder."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def _notes(mistyped: Sequence[str]) -> tuple[str, ...]:
    if not mistyped:
        return ()
    shown = ", ".join(f"{text!r:.40}" for text in mistyped[:_SHOWN_TOKENS])
    more = len(mistyped) - _SHOWN_TOKENS
    return (
        f"the file types special tokens as text; they are special here: {shown}"
        + (f" and {more} more" if more > 0 else ""),
    )


def _make_encoder(path: Path, vocabulary: Vocabulary) -> Encoder:
    pre_tokenizer = find_pre_tokenizer(vocabulary.pre)
    if pre_tokenizer is not None:
        return ByteBpe(vocabulary, pre_tokenizer, path.name)
    try:
        from hybridmoe.text.llama_bpe import LlamaBpe
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path.name}: its pre-tokenizer ({vocabulary.pre!r:.40}) needs llama-cpp-python:"
            f" {install_command('llama_cpp')}"
        ) from None
    return LlamaBpe(path, len(vocabulary.texts))


def _valid(text: str) -> str:
    """Replace lone surrogates."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
