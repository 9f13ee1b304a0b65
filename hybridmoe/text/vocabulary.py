"""Vocabulary of a GGUF file: text, type and bytes of every token, checked.

Reads the `tokenizer.ggml.*` keys of byte-level BPE vocabularies (`gpt2` in GGUF), which all
deepseek2 models have. Does not split text. Whatever would make llama.cpp abort the process is an
error here first.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from hybridmoe.errors import GGUFError, UnsupportedModelError

__all__ = ["TokenType", "Vocabulary", "byte_symbols"]

_MAX_TOKENS = 1 << 22
_MAX_TOKEN_CHARS = 1 << 14
# llama.cpp's memory is quadratic in the length of a token with characters that encode no byte.
_MAX_FOREIGN_CHARS = 1 << 10

# Texts of end-of-generation tokens, besides those that the metadata gives by id.
_END_TEXTS = (
    "<|im_end|>", "[EOS]", "[EOT]", "[PAD]", "<｜end▁of▁sentence｜>", "<|eot_id|>", "<|eom_id|>",
    "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>",
    "<eos>", "</s>", "<EOT>", "<|user|>", "<|observation|>",  # the last two begin GLM's next turn
)  # fmt: skip

# Marks of turns and tools, which have a shape that text does not, and of thinking.
_MARK = re.compile(
    r"<\|[^<>|\s]+\|>|<｜[^<>｜\s]+｜>|｜DSML｜|\[(?:BOS|EOS|EOT|PAD|UNK)\]|</?think>"
)
_BRACKETED = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_NAMED = ("bos", "eos", "eot", "eom", "padding", "unknown")  # by `tokenizer.ggml.X_token_id`


class TokenType(IntEnum):
    """GGUF's `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def byte_symbols() -> list[str]:
    """Map each of the 256 bytes to its printable character in byte-level BPE (GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


_TO_BYTE = {ord(symbol): byte for byte, symbol in enumerate(byte_symbols())}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token texts as written in the file, and the type of each."""

    texts: list[str]
    types: list[int]  # the file's, except for marks that it types as text
    recognized: list[str]  # texts that an encoder finds in ordinary text, by the file's types
    mistyped: list[str]  # texts of special tokens that the file types as ordinary ones
    ids: dict[str, int]  # inverse of `texts`
    pre: str  # name of the pre-tokenizer
    merges: list[str]
    bos_id: int | None
    eos_ids: frozenset[int]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], name: str) -> "Vocabulary":
        """Read and check the keys. name: the file's, for error messages.

        Errors: GGUFError; UnsupportedModelError unless the vocabulary is byte-level BPE.
        """
        model = metadata.get("tokenizer.ggml.model")
        if model != "gpt2":
            raise UnsupportedModelError(
                f"{name}: tokenizer.ggml.model is {model!r:.60}; supported: 'gpt2' (byte-level BPE)"
            )
        texts = _list_of(str, metadata, "tokens", name)
        if not 0 < len(texts) <= _MAX_TOKENS:
            raise GGUFError(
                f"{name}: tokenizer.ggml.tokens has {len(texts)} entries;"
                f" expected 1 to {_MAX_TOKENS}"
            )
        types = [int(TokenType.NORMAL)] * len(texts)
        if "tokenizer.ggml.token_type" in metadata:
            types = _list_of(int, metadata, "token_type", name)
            if len(types) != len(texts):
                raise GGUFError(
                    f"{name}: tokenizer.ggml.token_type has {len(types)} entries;"
                    f" expected {len(texts)}, as many as tokens"
                )
        # As llama.cpp does: an empty special token would match everywhere.
        texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
        ids = {text: i for i, text in enumerate(texts)}
        _check_texts(texts, types, ids, name)
        merges = _list_of(str, metadata, "merges", name)
        marked = _with_marks(texts, types, merges, metadata)
        special = {TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN}
        named = (
            _token_id(metadata, f"{role}_token_id", len(texts), name)
            for role in ("eos", "eot", "eom")
        )
        by_text = (ids[text] for text in _END_TEXTS if text in ids)
        typed = list(zip(texts, types, marked, strict=True))
        return cls(
            texts=texts,
            types=marked,
            recognized=[
                text
                for text, given, kind in typed
                if given == TokenType.USER_DEFINED or given != kind
            ],
            mistyped=[
                text for text, given, kind in typed if given == TokenType.NORMAL and given != kind
            ],
            ids=ids,
            pre=str(metadata.get("tokenizer.ggml.pre", "")),
            merges=merges,
            bos_id=_token_id(metadata, "bos_token_id", len(texts), name),
            eos_ids=frozenset(i for i in named if i is not None)
            | frozenset(i for i in by_text if marked[i] in special),
        )

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of a token; of a special token, its text."""
        text, kind = self.texts[token_id], self.types[token_id]
        if kind == TokenType.NORMAL:
            try:
                return text.translate(_TO_BYTE).encode("latin-1")
            except UnicodeEncodeError:
                return text.encode("utf-8", "replace")
        if kind == TokenType.BYTE:
            return bytes([int(text[3:5], 16)])
        if kind in (TokenType.UNUSED, TokenType.UNDEFINED):
            return b""
        return text.encode("utf-8", "replace")


def _with_marks(
    texts: list[str], types: list[int], merges: list[str], metadata: Mapping[str, Any]
) -> list[int]:
    """Correct the types of special tokens that converters have typed as text.

    Marks, and tokens that the metadata gives by id, become control tokens. Other bracketed texts
    that a template writes (`[gMASK]`) and no merge produces become user-defined: found, and shown.
    """
    out = list(types)
    named = {metadata.get(f"tokenizer.ggml.{role}_token_id") for role in _NAMED}
    texty = [
        i
        for i, text in enumerate(texts)
        if types[i] in (TokenType.NORMAL, TokenType.USER_DEFINED)
        and (text[0] in "<[｜" or i in named)
    ]
    for i in texty:
        if _MARK.fullmatch(texts[i]):
            out[i] = TokenType.CONTROL
    template = "\n".join(
        str(value) for key, value in metadata.items() if key.startswith("tokenizer.chat_template")
    )
    used = set(_BRACKETED.findall(template))
    left = [i for i in texty if out[i] != TokenType.CONTROL and (i in named or texts[i] in used)]
    made = {merge.replace(" ", "", 1) for merge in merges} if left else set()
    for i in left:
        if len(texts[i]) > 1 and texts[i] not in made:
            out[i] = TokenType.CONTROL if i in named else TokenType.USER_DEFINED
    return out


def _check_texts(texts: list[str], types: list[int], ids: dict[str, int], name: str) -> None:
    if len(ids) != len(texts):
        twice = next(text for i, text in enumerate(texts) if ids[text] != i)
        raise GGUFError(f"{name}: tokenizer.ggml.tokens has {twice!r:.60} twice")
    for i, text in enumerate(texts):
        if "\0" in text:  # llama.cpp would read up to there, and end the process at a duplicate
            raise GGUFError(f"{name}: tokenizer.ggml.tokens[{i}] is {text!r:.60}; a NUL is in it")
        if len(text) > _MAX_FOREIGN_CHARS and (
            len(text) > _MAX_TOKEN_CHARS or not all(ord(c) in _TO_BYTE for c in text)
        ):
            raise GGUFError(f"{name}: tokenizer.ggml.tokens[{i}] has {len(text)} characters")
        if types[i] == TokenType.BYTE and not _is_byte_name(text):
            raise GGUFError(
                f"{name}: tokenizer.ggml.tokens[{i}] is {text!r:.60}; expected <0x00> to <0xFF>"
            )


def _is_byte_name(text: str) -> bool:
    digits = text[3:5]
    return text == f"<0x{digits}>" and all(d in "0123456789abcdefABCDEF" for d in digits)


def _list_of(kind: type, metadata: Mapping[str, Any], key: str, name: str) -> list[Any]:
    key = f"tokenizer.ggml.{key}"
    values = metadata.get(key)
    if values is None:
        raise GGUFError(f"{name}: {key} is missing")
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise GGUFError(f"{name}: {key} is {values!r:.60}; expected a list of {kind.__name__}")
    return values


def _token_id(metadata: Mapping[str, Any], key: str, num_tokens: int, name: str) -> int | None:
    key = f"tokenizer.ggml.{key}"
    value = metadata.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < num_tokens:
        raise GGUFError(f"{name}: {key} is {value!r:.60}; expected 0 to {num_tokens - 1}")
    return value
