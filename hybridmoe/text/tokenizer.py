"""Token ids of text and text of token ids, for the vocabulary of one GGUF file.

Special tokens are cut out here, the text between them goes to an encoder: Kimi K2's own way for
`tokenizer.ggml.pre` = `kimi-k2` (text/kimi_bpe.py says why), llama.cpp for every other. Bytes of a
token come from the file's table, so that decoding needs neither.
"""

import codecs
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from hybridmoe.errors import ConfigError
from hybridmoe.text import kimi_bpe as kimi
from hybridmoe.text.literal_matcher import LiteralMatcher
from hybridmoe.text.llama_bpe import LlamaBpe
from hybridmoe.text.prompt_limit import PromptLimit
from hybridmoe.text.vocabulary import TokenType, Vocabulary

__all__ = ["StreamDecoder", "Tokenizer"]

# Marks of thinking are text to a reader, whatever type the file gives them.
_SHOWN_TEXTS = frozenset({"<think>", "</think>"})


class Encoder(Protocol):
    """Ordinary text to ids."""

    adds_bos: bool

    def encode(self, text: str) -> Iterator[list[int]]:
        """Ids of the text, some at a time: whoever reads them may stop."""
        ...

    def close(self) -> None: ...


class Tokenizer:
    """The tokenizer of one file; safe to share between threads until it is closed."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Read the vocabulary of the GGUF at `path` (of a split file: the first part).

        Errors: GGUFError, with the file's name; UnsupportedModelError where the vocabulary is
        not byte-level BPE.
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
        self._skipped_ids = self._hidden_ids - {vocabulary.ids.get(t) for t in _SHOWN_TEXTS}
        self._any_special = LiteralMatcher([*hidden, *visible])
        self._user_defined = LiteralMatcher(visible)
        # What the encoder itself might take for a token, as llama.cpp does by the file's types.
        self._readable = LiteralMatcher(vocabulary.readable)
        self._readable_marks = LiteralMatcher(list(set(vocabulary.readable) - set(visible)))
        self._encoder: Encoder = (
            kimi.KimiBpe(vocabulary, path.name)
            if vocabulary.pre == kimi.PRE
            else LlamaBpe(path, len(vocabulary.texts))
        )
        adds_bos = metadata.get("tokenizer.ggml.add_bos_token", self._encoder.adds_bos)
        self._prefix = [vocabulary.bos_id] if adds_bos and vocabulary.bos_id is not None else []
        self.num_tokens = len(vocabulary.texts)
        self.bos_id = vocabulary.bos_id
        self.eos_ids = vocabulary.end_ids  # all that end a generation: eos, eot, <|im_end|>

    def encode(
        self,
        text: str,
        *,
        add_special: bool = False,
        parse_special: bool = False,
        limit: PromptLimit | None = None,
    ) -> list[int]:
        """Ids of the text.

        add_special: begin with the token that the file asks for (`add_bos_token`), if any.
        parse_special: names of special tokens in the text stand for those tokens. Other tokens of
        the type "user defined" are text by the file's own word and always recognised.
        Lone surrogates become U+FFFD. Errors: those of the limit.
        """
        limit = limit or PromptLimit.unlimited()
        limit.check_size(len(text))
        text = _valid(text)
        out = list(self._prefix) if add_special else []
        names = self._any_special if parse_special else self._user_defined
        start = 0
        for begin, end in names.find(text, limit.check):
            out += self._encode_apart(self._readable_marks, text[start:begin], limit)
            out.append(self._special_ids[text[begin:end]])
            limit.add_tokens(1)
            start = end
        return out + self._encode_apart(self._readable_marks, text[start:], limit)

    def encode_untrusted(self, text: str, limit: PromptLimit | None = None) -> list[int]:
        """Ids of the text, in which no name stands for a token, user-defined ones included."""
        limit = limit or PromptLimit.unlimited()
        limit.check_size(len(text))
        return self._encode_apart(self._readable, _valid(text), limit)

    def prompt_limit(
        self, context_tokens: int, check: Callable[[], None] | None = None
    ) -> PromptLimit:
        """A limit for one text that is to fit a context; check: raises to end the work."""
        more = () if check is None else (check,)
        return PromptLimit(context_tokens, self._max_token_bytes, *more)

    @functools.cached_property
    def _max_token_bytes(self) -> int:
        return max(len(self.token_bytes(i)) for i in range(self.num_tokens))

    def _encode_apart(self, names: LiteralMatcher, text: str, limit: PromptLimit) -> list[int]:
        """Ids of ordinary text, cut inside each of the names so that the encoder finds none."""
        out: list[int] = []
        start = 0
        for begin, _ in names.find(text, limit.check, is_overlapping=True):
            self._append(out, text[start : begin + 1], limit)
            start = begin + 1
        self._append(out, text[start:], limit)
        return out

    def _append(self, out: list[int], text: str, limit: PromptLimit) -> None:
        for ids in self._encoder.encode(text):
            out += ids
            limit.add_tokens(len(ids))

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD. Raises ConfigError."""
        raw = b"".join(
            self.token_bytes(i) for i in ids if not (skip_special and i in self._skipped_ids)
        )
        return raw.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which may be a part of a character; a special token's name."""
        if not 0 <= token_id < self.num_tokens:
            raise ConfigError(f"token id {token_id}: expected 0 to {self.num_tokens - 1}")
        return self._vocabulary.token_bytes(token_id)

    def special_id(self, text: str) -> int | None:
        """The id of the special token of this name, or None."""
        return self._special_ids.get(text)

    def special_spans(
        self, text: str, check: Callable[[], None] | None = None
    ) -> Iterator[tuple[int, int]]:
        """Where names of special tokens (that `parse_special` would take) stand in the text."""
        return self._any_special.find(text, check)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a mark for the model (control) rather than text."""
        return token_id in self._hidden_ids

    def stream(self, *, skip_special: bool = True) -> "StreamDecoder":
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self, skip_special=skip_special)

    def close(self) -> None:
        """Release native memory; encoding afterwards may raise ConfigError."""
        self._encoder.close()


class StreamDecoder:
    """Decodes token by token and never returns a part of a character.

    All pieces together equal `Tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer._skipped_ids if skip_special else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes; often none."""
        if token_id in self._skipped:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left: U+FFFD for an unfinished character, else nothing. Resets the decoder."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def _valid(text: str) -> str:
    """The text with lone surrogates replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
