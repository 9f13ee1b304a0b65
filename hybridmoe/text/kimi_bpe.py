"""Kimi K2's encoder: its pre-tokenizer pattern, then byte-pair merges.

llama.cpp has a pre-tokenizer for `kimi-k2`, but it takes combining marks for punctuation. So it
splits words of Hindi, Thai, Bengali, Tamil and others, and emoji with a variation selector, where
the model's tokenizer does not: 54 tokens instead of 43 for one sentence of Hindi. Text without such
marks gets the same ids from both. The pattern is that of Moonshot's `tokenization_kimi.py`; the ids
agree with an independent implementation (tests/text/test_tokenizer.py). This encoder is also
faster, since it caches words.

Byte-pair encoding: Sennrich et al. 2016. The pair with the lowest merge rank first, the leftmost
of equals.
"""

import functools
import heapq
from collections.abc import Iterator

import regex

from hybridmoe.errors import GGUFError
from hybridmoe.text.text_splitting import split_long_runs
from hybridmoe.text.vocabulary import Vocabulary, byte_symbols

__all__ = ["PRE", "KimiBpe", "split"]

PRE = "kimi-k2"  # value of tokenizer.ggml.pre

# Han letters are separate words; a lower case letter before an upper case one ends a word.
_UPPER = r"[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]&&[^\p{Han}]]"
_LOWER = r"[[\p{Ll}\p{Lm}\p{Lo}\p{M}]&&[^\p{Han}]]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PATTERN = regex.compile(
    "|".join(
        (
            r"\p{Han}+",
            f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}",
            f"{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
    regex.V1,
)
# Moonshot's code splits a text at these lengths, and runs of blanks or of non-blanks.
_CHUNK_CHARS = 400_000
_RUN_CHARS = 25_000
_BATCH_TOKENS = 256
_CACHE_WORDS = 1 << 16
_MAX_CACHED_CHARS = 64
_ID_BITS = 22  # Vocabulary admits at most 1 << 22 tokens


def split(text: str) -> list[str]:
    """Split text into pre-tokens, which no merge crosses."""
    return _PATTERN.findall(text)  # type: ignore[no-any-return]


class KimiBpe:
    """Encodes ordinary text; does not know special tokens."""

    adds_bos = False

    def __init__(self, vocabulary: Vocabulary, name: str) -> None:
        ids = vocabulary.ids
        self._byte_ids = [ids.get(symbol, -1) for symbol in byte_symbols()]
        if -1 in self._byte_ids:
            raise GGUFError(
                f"{name}: tokenizer.ggml.tokens lacks byte 0x{self._byte_ids.index(-1):02X}"
            )
        # (left id, right id) -> (rank, merged id), each packed in one integer
        self._merges: dict[int, int] = {}
        for rank, merge in enumerate(vocabulary.merges):
            left, _, right = merge.partition(" ")
            if not {left, right, left + right} <= ids.keys():
                raise GGUFError(
                    f"{name}: tokenizer.ggml.merges[{rank}] is {merge!r:.60}; expected two tokens"
                    " that make a third"
                )
            pair = ids[left] << _ID_BITS | ids[right]
            self._merges.setdefault(pair, rank << _ID_BITS | ids[left + right])
        self._cached = functools.lru_cache(_CACHE_WORDS)(self._merge)

    def encode(self, text: str) -> Iterator[list[int]]:
        """Encode in batches. Cost: n log n in the length of a pre-token, cached ones aside."""
        for start in range(0, len(text), _CHUNK_CHARS):
            for part in split_long_runs(text[start : start + _CHUNK_CHARS], _RUN_CHARS):
                yield from self._encode_batches(part)

    def _encode_batches(self, text: str) -> Iterator[list[int]]:
        out: list[int] = []
        for match in _PATTERN.finditer(text):
            piece = match.group()
            is_short = len(piece) <= _MAX_CACHED_CHARS
            out += self._cached(piece) if is_short else self._merge(piece)
            if len(out) >= _BATCH_TOKENS:
                yield out
                out = []
        yield out

    def close(self) -> None:
        """Do nothing: no native memory to free."""

    def _merge(self, piece: str) -> list[int]:
        """Encode a pre-token: its bytes, merged by rank."""
        ids = [self._byte_ids[byte] for byte in piece.encode()]
        size = len(ids)
        after = list(range(1, size + 1))  # index of the next symbol; `size` = none
        before = list(range(-1, size - 1))
        heap: list[tuple[int, int, int]] = []  # packed rank and merged id, index, packed pair

        def push(at: int) -> None:
            if at >= 0 and after[at] < size:
                pair = ids[at] << _ID_BITS | ids[after[at]]
                merged = self._merges.get(pair)
                if merged is not None:
                    heapq.heappush(heap, (merged, at, pair))

        for at in range(size - 1):
            push(at)
        while heap:
            merged, at, pair = heapq.heappop(heap)
            right = after[at]
            if ids[at] < 0 or right >= size or ids[at] << _ID_BITS | ids[right] != pair:
                continue
            ids[at] = merged & (1 << _ID_BITS) - 1
            ids[right] = -1
            after[at] = after[right]
            if after[at] < size:
                before[after[at]] = at
            push(before[at])
            push(at)
        return [token_id for token_id in ids if token_id >= 0]
