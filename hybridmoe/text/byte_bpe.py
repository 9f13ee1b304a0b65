"""Encoder of byte-level BPE vocabularies: a pre-tokenizer's pieces, merged by rank.

Sennrich et al. 2016: the pair with the lowest merge rank first, the leftmost of equals.
"""

import functools
import heapq
from collections.abc import Iterator

from hybridmoe.errors import GGUFError
from hybridmoe.text.pre_tokenizers import PreTokenizer
from hybridmoe.text.vocabulary import TokenType, Vocabulary, byte_symbols

__all__ = ["ByteBpe"]

_BATCH_TOKENS = 256
_CACHE_WORDS = 1 << 16
_MAX_CACHED_CHARS = 64
# DeepSeek-V2's vocabulary lacks those that no UTF-8 has.
_UTF8_BYTES = (*range(0xC0), *range(0xC2, 0xF5))
_ID_BITS = 22  # Vocabulary admits at most 1 << 22 tokens


class ByteBpe:
    """Encodes ordinary text; does not know special tokens."""

    def __init__(self, vocabulary: Vocabulary, pre_tokenizer: PreTokenizer, name: str) -> None:
        """name: the file's, for errors. Raises GGUFError for a missing byte or a bad merge."""
        self._pre_tokenizer = pre_tokenizer
        self.adds_bos = pre_tokenizer.adds_bos
        ids = vocabulary.ids
        self._byte_ids = [ids.get(symbol, -1) for symbol in byte_symbols()]
        for byte in _UTF8_BYTES:
            if self._byte_ids[byte] == -1:
                raise GGUFError(f"{name}: tokenizer.ggml.tokens lacks byte 0x{byte:02X}")
        self._whole_ids: dict[bytes, int] = {}
        if pre_tokenizer.has_whole_tokens:
            ordinary = (i for i, kind in enumerate(vocabulary.types) if kind == TokenType.NORMAL)
            self._whole_ids = {vocabulary.token_bytes(i): i for i in ordinary}
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
        for chunk in self._pre_tokenizer.chunks(text):
            yield from self._encode_batches(chunk)

    def _encode_batches(self, text: str) -> Iterator[list[int]]:
        out: list[int] = []
        for piece in self._pre_tokenizer.split(text):
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
        raw = piece.encode()
        if raw in self._whole_ids:
            return [self._whole_ids[raw]]
        ids = [self._byte_ids[byte] for byte in raw]
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
