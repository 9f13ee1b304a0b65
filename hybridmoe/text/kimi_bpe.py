"""Kimi K2's own way from text to token ids: its pattern, then byte-pair merges.

llama.cpp has a splitter for `kimi-k2`, but it takes combining marks for punctuation and so cuts
words of Hindi, Thai, Bengali, Tamil and others, and emoji with a variation selector, where the
model's tokenizer does not: 54 tokens instead of 43 for one sentence of Hindi, the model having
seen the 43. Text without such marks gets the same ids from both. The pattern below is the one of
Moonshot's `tokenization_kimi.py`, and the ids agree with an independent implementation
(tests/text/test_tokenizer.py). It is also faster: words repeat, and their ids are kept.

Byte-pair encoding: Sennrich et al. 2016; the pair with the lowest merge rank first, the leftmost
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

# Han stand apart from all other letters; a word is lower case after upper case (CamelCase is two).
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
# Moonshot's own code cuts a text there before it looks at it, and longer runs of blanks, or of
# anything else.
_CHUNK_CHARS = 400_000
_RUN_CHARS = 25_000
_BATCH_TOKENS = 256
_CACHE_WORDS = 1 << 16
_MAX_CACHED_CHARS = 64
_ID_BITS = 22  # Vocabulary admits at most 1 << 22 tokens


def split(text: str) -> list[str]:
    """Cut text where no merge may cross; the pieces join to the text."""
    return _PATTERN.findall(text)  # type: ignore[no-any-return]


class KimiBpe:
    """Token ids of ordinary text; special tokens are the caller's affair."""

    adds_bos = False

    def __init__(self, vocabulary: Vocabulary, name: str) -> None:
        ids = vocabulary.ids
        self._byte_ids = [ids.get(symbol, -1) for symbol in byte_symbols()]
        if -1 in self._byte_ids:
            raise GGUFError(
                f"{name}: tokenizer.ggml.tokens lacks byte 0x{self._byte_ids.index(-1):02X}"
            )
        # (left id, right id) -> (rank, id of both together), each packed in one integer
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
        self._cached = functools.lru_cache(_CACHE_WORDS)(self._encode_piece)

    def encode(self, text: str) -> Iterator[list[int]]:
        """Ids of the text, some at a time. Cost: n log n in the longest piece, once for each
        distinct piece.
        """
        for start in range(0, len(text), _CHUNK_CHARS):
            for stretch in split_long_runs(text[start : start + _CHUNK_CHARS], _RUN_CHARS):
                yield from self._encode_stretch(stretch)

    def _encode_stretch(self, text: str) -> Iterator[list[int]]:
        out: list[int] = []
        for match in _PATTERN.finditer(text):
            piece = match.group()
            is_short = len(piece) <= _MAX_CACHED_CHARS
            out += self._cached(piece) if is_short else self._encode_piece(piece)
            if len(out) >= _BATCH_TOKENS:
                yield out
                out = []
        yield out

    def close(self) -> None:
        """Nothing to release; llama.cpp's vocabularies have something."""

    def _encode_piece(self, piece: str) -> list[int]:
        ids = [self._byte_ids[byte] for byte in piece.encode()]
        size = len(ids)
        after = list(range(1, size + 1))  # the next symbol still alive; `size` = none
        before = list(range(-1, size - 1))
        heap: list[tuple[int, int, int]] = []  # packed rank and merged id, place, packed pair

        def offer(at: int) -> None:
            if at >= 0 and after[at] < size:
                pair = ids[at] << _ID_BITS | ids[after[at]]
                merged = self._merges.get(pair)
                if merged is not None:
                    heapq.heappush(heap, (merged, at, pair))

        for at in range(size - 1):
            offer(at)
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
            offer(before[at])
            offer(at)
        return [token_id for token_id in ids if token_id >= 0]
