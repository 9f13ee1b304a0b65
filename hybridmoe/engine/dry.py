"""DRY penalty ("don't repeat yourself"): on tokens that would continue a repeated sequence.

If the last L tokens stand at an earlier place too, the token that followed there is penalized by
multiplier * base ** (L - allowed length). No repetition spans a sequence breaker (a quote, a line
break). Source: p-e-w 2024, in text-generation-webui; breakers and limits as in llama.cpp.
Cost: the prompt once, in linear time; then one numpy comparison with the last tokens per token.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.sampling_params import SamplingParams

__all__ = ["DryPenalty", "SequenceBreakers"]

# First token of a breaker -> the tokens after it; () where the first one contains the breaker.
SequenceBreakers = Mapping[int, tuple[tuple[int, ...], ...]]

_MAX_LOG_POWER = math.log(1e30)  # a larger penalty would change nothing, and overflow


class DryPenalty:
    """Repetitions that end with the last token of one sequence, kept up to date as it grows."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], breakers: SequenceBreakers
    ) -> None:
        self._params = params
        self._breakers = breakers
        self._longest_tail = max(
            (len(tail) for tails in breakers.values() for tail in tails), default=0
        )
        log_base = math.log(params.dry_base)
        self._max_power = _MAX_LOG_POWER / log_base if log_base > 0.0 else math.inf
        self._tokens = list(prompt_ids)
        self._ids = np.array(self._tokens, np.int64)  # grows by halves; beyond the tokens: unused
        self._break_end = 0  # position after the last breaker
        # Last positions of repetitions, ascending, and their lengths in tokens.
        self._ends = self._lengths = np.empty(0, np.int64)
        self._has_searched_prompt = False

    def apply(self, scores: NDArray[np.float32]) -> None:
        """Lower the scores (V,) of tokens that continue a repetition."""
        if not self._has_searched_prompt:  # here, in the engine's thread
            self._search_prompt()
        params = self._params
        start = self._start
        lengths = np.minimum(self._lengths, self._ends - start + 1)
        lengths = np.minimum(lengths, len(self._tokens) - self._break_end)
        is_long = lengths >= params.dry_allowed_length
        if not is_long.any():
            return
        following, places = np.unique(self._ids[self._ends[is_long] + 1], return_inverse=True)
        longest = np.zeros(following.size, np.int64)
        np.maximum.at(longest, places, lengths[is_long])
        powers = np.minimum(longest - params.dry_allowed_length, self._max_power)
        penalties = params.dry_multiplier * params.dry_base**powers
        for token_id, penalty in zip(following.tolist(), penalties.tolist(), strict=True):
            if () not in self._breakers.get(token_id, ()):
                scores[token_id] -= penalty

    def accept(self, token_id: int) -> None:
        """Add a generated token, after `apply`."""
        end = len(self._tokens)
        self._tokens.append(token_id)
        if end == self._ids.size:
            self._ids = np.resize(self._ids, end + end // 2 + 256)
        self._ids[end] = token_id
        start = self._start
        ends = np.flatnonzero(self._ids[start:end] == token_id) + start
        lengths = np.ones(ends.size, np.int64)
        if self._ends.size:
            before = np.minimum(np.searchsorted(self._ends, ends - 1), self._ends.size - 1)
            is_longer = self._ends[before] == ends - 1
            lengths[is_longer] += self._lengths[before[is_longer]]
        self._ends, self._lengths = ends, lengths
        self._find_break(max(0, end - self._longest_tail))

    def _search_prompt(self) -> None:
        self._has_searched_prompt = True
        self._find_break(0)
        start = self._start
        lengths = _suffix_matches(self._tokens[start:])
        self._ends = np.flatnonzero(lengths) + start
        self._lengths = lengths[lengths > 0]

    @property
    def _start(self) -> int:
        """First of the last tokens, in which repetitions are looked for."""
        last_n = self._params.dry_penalty_last_n
        return 0 if last_n < 0 else max(0, len(self._tokens) - last_n)

    def _find_break(self, lowest: int) -> None:
        """Find the last breaker that begins at `lowest` or later, as far as it is complete."""
        tokens = self._tokens
        for first in range(len(tokens) - 1, lowest - 1, -1):
            ends = [
                first + 1 + len(tail)
                for tail in self._breakers.get(tokens[first], ())
                if tuple(tokens[first + 1 : first + 1 + len(tail)]) == tail
            ]
            if ends:
                self._break_end = max(ends)
                return


def _suffix_matches(tokens: list[int]) -> NDArray[np.int64]:
    """For each position but the last, the length of the suffix of all tokens that ends there.

    Source: the Z-algorithm (Gusfield 1997), from the end; linear time.
    """
    size = len(tokens)
    reverse = tokens[::-1]
    matches = [0] * size
    left = right = 0
    for i in range(1, size):
        length = min(matches[i - left], right - i) if i < right else 0
        while i + length < size and reverse[length] == reverse[i + length]:
            length += 1
        matches[i] = length
        if i + length > right:
            left, right = i, i + length
    return np.array(matches[::-1], np.int64)[:-1] if size else np.empty(0, np.int64)
