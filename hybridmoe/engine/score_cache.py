"""Log probabilities of the last scored prompts, by their prefixes.

An evaluation scores hundreds of prompts that begin with the same examples. Their KV cache is
shared, and with this their log probabilities are too: a prompt is computed from its first token
that differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.request import PromptLogprobs

__all__ = ["MAX_ENTRIES", "ScoreCache"]

_MAX_PROMPTS = 64
MAX_ENTRIES = 1 << 20  # log probabilities, of 8 bytes: more than one request of the endpoint has


@dataclass(frozen=True, slots=True, eq=False)
class _Prompt:
    ids: NDArray[np.int64]
    scores: PromptLogprobs  # of all tokens but the first

    @property
    def num_entries(self) -> int:
        return len(self.ids) + self.scores.top_ids.size


class ScoreCache:
    """LRU cache of prompts with their log probabilities. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._prompts: list[_Prompt] = []  # the last used one last

    def find(self, ids: Sequence[int], num_top: int) -> PromptLogprobs | None:
        """Find the log probabilities of the longest prefix of `ids`, with `num_top` others each.

        Returns those of its tokens from the second on; None without any.
        """
        best: _Prompt | None = None
        num_common = 1
        wanted = np.asarray(ids, np.int64)
        for prompt in self._prompts:
            if prompt.scores.top_ids.shape[1] < num_top:
                continue
            common = _common_prefix(prompt.ids, wanted)
            if common > num_common:
                best, num_common = prompt, common
        if best is None:
            return None
        self._prompts.remove(best)
        self._prompts.append(best)
        return best.scores.until(num_common, num_top)

    def add(self, ids: Sequence[int], scores: PromptLogprobs) -> None:
        """Add a prompt, with the log probabilities of all its tokens but the first."""
        prompt = _Prompt(np.array(ids, np.int64), scores)
        self._prompts = [*self._prompts[1 - _MAX_PROMPTS :], prompt]
        num_entries = sum(each.num_entries for each in self._prompts)
        while num_entries > MAX_ENTRIES:
            num_entries -= self._prompts.pop(0).num_entries


def _common_prefix(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Count the tokens with which both begin."""
    size = min(one.size, other.size)
    differs = one[:size] != other[:size]
    return int(differs.argmax()) if differs.any() else size
