"""Penalties on tokens that the prompt or the output contains.

Sources: repetition penalty, CTRL (Keskar et al. 2019); presence and frequency penalties as in
OpenAI's API: over generated tokens only.
"""

from collections import Counter, deque

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.sampling_params import SamplingParams

__all__ = ["Penalties"]


class Penalties:
    """Logit bias, and repetition, presence and frequency penalties of one sequence."""

    def __init__(self, params: SamplingParams, prompt_ids: list[int]) -> None:
        self._params = params
        self._output = Counter[int]()
        self._has_repetition = params.repetition_penalty != 1.0 and params.repeat_last_n != 0
        self._has_window = self._has_repetition and params.repeat_last_n > 0
        self._seen = set[int]()
        self._last = deque[int](maxlen=params.repeat_last_n if self._has_window else 0)
        if self._has_window:
            self._last.extend(prompt_ids[-params.repeat_last_n :])
        elif self._has_repetition:
            self._seen.update(prompt_ids)

    @property
    def may_change(self) -> bool:
        """True if some scores may change."""
        params = self._params
        of_output = params.presence_penalty or params.frequency_penalty
        return bool(params.logit_bias or self._has_repetition or of_output)

    def apply(self, scores: NDArray[np.float32]) -> None:
        """Change the scores (V,) in place."""
        params = self._params
        for token_id, bias in params.logit_bias.items():
            scores[token_id] += bias
        seen_ids = set(self._last) if self._has_window else self._seen
        if seen_ids:
            ids = np.fromiter(seen_ids, np.int64, len(seen_ids))
            seen = scores[ids]
            penalty = np.float32(params.repetition_penalty)
            scores[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._output and (params.presence_penalty or params.frequency_penalty):
            ids = np.fromiter(self._output, np.int64, len(self._output))
            counts = np.fromiter(self._output.values(), np.float32, len(self._output))
            scores[ids] -= params.presence_penalty + params.frequency_penalty * counts

    def accept(self, token_id: int) -> None:
        """Count a generated token."""
        self._output[token_id] += 1
        if self._has_window:
            self._last.append(token_id)
        elif self._has_repetition:
            self._seen.add(token_id)
