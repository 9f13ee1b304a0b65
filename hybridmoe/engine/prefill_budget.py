"""How many prompt tokens a step may take, so that running answers keep flowing.

Without running answers: a full chunk. With some, the chunk grows or shrinks with what steps are
seen to cost, next to a step of the answers alone. Knows numbers of tokens and seconds, no clock.
"""

__all__ = ["PrefillBudget"]

_FIRST_TOKENS = 16
_STEPS_TO_CHECK = 64  # mixed steps after which the quiet pace is measured again
_SHARE = 0.7  # of the slowdown allowed: what is aimed at, since steps vary
_LEAVE = 0.8  # of the aim: a step that costs as much is left as it is


class PrefillBudget:
    """Learns from the steps of one engine."""

    def __init__(self, chunk_tokens: int, slowdown: float) -> None:
        self._most = chunk_tokens
        self._aim = 1.0 + (slowdown - 1.0) * _SHARE
        self._chunk = float(min(_FIRST_TOKENS, chunk_tokens))
        self._quiet_s: dict[int, float] = {}  # by the number of answers
        self._since_check = 0

    def budget(self, num_decodes: int) -> int:
        """Prompt tokens for a step in which so many answers go on; 0 = measure these alone."""
        if num_decodes == 0:
            return self._most
        if num_decodes not in self._quiet_s or self._since_check >= _STEPS_TO_CHECK:
            return 0
        return int(self._chunk)

    def note(self, num_decodes: int, num_prompt: int, seconds: float) -> None:
        """Learn what a step has cost."""
        if num_decodes == 0:
            return
        quiet = self._quiet_s.get(num_decodes)
        if num_prompt == 0:
            self._since_check = 0
            if quiet is None:
                self._quiet_s[num_decodes] = seconds
            else:  # a step may take longer for many reasons, but shorter for one only
                weight = 0.5 if seconds < quiet else 0.05
                self._quiet_s[num_decodes] = quiet + weight * (seconds - quiet)
            return
        self._since_check += 1
        if quiet is None:
            return
        ratio = seconds / quiet
        if ratio > self._aim:
            self._chunk = max(1.0, self._chunk * max(0.5, self._aim / ratio))
        elif ratio < _LEAVE * self._aim and num_prompt >= int(self._chunk):
            self._chunk = min(float(self._most), self._chunk * 1.25 + 1.0)
