"""Sequence breakers of the DRY penalty: from strings to the tokens that contain or begin them."""

import functools

from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["BreakerFinder", "Breakers"]

# First token -> the tokens after it; () where the first one contains the whole string.
Breakers = dict[int, tuple[tuple[int, ...], ...]]

_CACHED_LISTS = 16


class BreakerFinder:
    """Finds the tokens of breakers in one vocabulary. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.find = functools.lru_cache(_CACHED_LISTS)(self._find)

    def _find(self, strings: tuple[str, ...]) -> Breakers:
        """Find how tokens can spell each string; the last of them may hold more than it.

        A token that contains the string breaks alone. One that ends with a beginning of the string
        breaks if the rest follows, in the tokens that encode it. `find` remembers the last lists.
        """
        found: dict[int, set[tuple[int, ...]]] = {}
        texts = [string.encode("utf-8", "replace") for string in strings]
        rests = {text: self._rests(text) for text in texts}
        for token_id in range(self._tokenizer.num_tokens):
            token = self._tokenizer.token_bytes(token_id)
            for text in texts:
                if text in token:
                    found.setdefault(token_id, set()).add(())
                    continue
                for beginning, rest_ids in rests[text].items():
                    if token.endswith(beginning):
                        found.setdefault(token_id, set()).add(rest_ids)
        return {token_id: tuple(sorted(tails)) for token_id, tails in found.items()}

    def _rests(self, text: bytes) -> dict[bytes, tuple[int, ...]]:
        """Map each proper beginning of a text to the tokens of the rest."""
        rests = {}
        for at in range(1, len(text)):
            try:
                rest = text[at:].decode()
            except UnicodeDecodeError:  # within a character
                continue
            rests[text[:at]] = tuple(self._tokenizer.encode_untrusted(rest))
        return rests
