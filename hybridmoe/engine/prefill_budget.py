"""Prefill token budget of a step (chunked prefill), so that prompts do not stall decoding.

Without running responses: a full chunk, or a longer one that takes a second at most, so that what
arrives meanwhile does not wait long. With some, the chunk grows or shrinks so that a mixed step
takes at most `slowdown` times as long as a step that only decodes. Reads no clock.
"""

__all__ = ["PrefillBudget"]

_INITIAL_TOKENS = 16
_REMEASURE_STEPS = 64  # mixed steps after which a decode-only step is measured again
_TARGET_SHARE = 0.7  # of the slowdown allowed, since step times vary
_GROW_BELOW = 0.8  # of the target; between the two the chunk stays as it is
_QUICK_S = 1.0  # a step of more than `chunk_tokens` at most


class PrefillBudget:
    """Adapts the prefill chunk to the measured step times of one engine."""

    def __init__(self, chunk_tokens: int, slowdown: float, quick_tokens: int = 0) -> None:
        """quick_tokens: of a step without decoding, as long as that is quick."""
        self._max_tokens = chunk_tokens
        self._quick_tokens = max(chunk_tokens, quick_tokens)
        self._alone = chunk_tokens  # of the next step without decoding
        self._target = 1.0 + (slowdown - 1.0) * _TARGET_SHARE
        self._chunk = float(min(_INITIAL_TOKENS, chunk_tokens))
        self._decode_s: dict[int, float] = {}  # time of a decode-only step, by its batch size
        self._num_mixed = 0  # steps since the last decode-only one

    def num_tokens(self, num_decodes: int) -> int:
        """Prompt tokens for a step that decodes `num_decodes` tokens.

        0: decode alone, to measure it.
        """
        if num_decodes == 0:
            return self._alone
        if num_decodes not in self._decode_s or self._num_mixed >= _REMEASURE_STEPS:
            return 0
        return int(self._chunk)

    def update(self, num_decodes: int, num_prefill: int, seconds: float) -> None:
        """Adapt to the measured time of a step."""
        if num_decodes == 0:
            if num_prefill >= self._max_tokens // 2:  # fewer say little about a token's time
                quick = int(num_prefill * _QUICK_S / max(seconds, 1e-9))
                self._alone = min(max(self._max_tokens, quick), self._quick_tokens)
            return
        decode_s = self._decode_s.get(num_decodes)
        if num_prefill == 0:
            self._num_mixed = 0
            if decode_s is None:
                self._decode_s[num_decodes] = seconds
            else:  # other load can lengthen a step, but nothing shortens it
                weight = 0.5 if seconds < decode_s else 0.05
                self._decode_s[num_decodes] = decode_s + weight * (seconds - decode_s)
            return
        self._num_mixed += 1
        if decode_s is None:
            return
        ratio = seconds / decode_s
        if ratio > self._target:
            self._chunk = max(1.0, self._chunk * max(0.5, self._target / ratio))
        elif ratio < _GROW_BELOW * self._target and num_prefill >= int(self._chunk):
            self._chunk = min(float(self._max_tokens), self._chunk * 1.25 + 1.0)
