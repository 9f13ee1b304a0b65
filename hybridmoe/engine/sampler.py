"""Samples the next token from logits.

Order: bias, repetition / presence / frequency penalties, the constraint's mask and EOS redirect,
temperature, top-k, top-p, min-p, draw. A temperature below 1e-5 is greedy: argmax after the mask.
Sources: repetition penalty, CTRL (Keskar et al. 2019); top-p, Holtzman et al. 2019; min-p, Nguyen
et al. 2024 (arXiv 2407.01082); presence and frequency penalties as in OpenAI's API: over generated
tokens only.
"""

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.constraint import EosRedirect
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.errors import ConfigError

__all__ = ["Sampler", "log_probabilities"]

Floats = NDArray[np.float32]
_LIKELY = 1e-4  # weight, of 1 for the best token: nearly always, the others are beyond top-p
_GREEDY_BELOW = 1e-5  # temperature; scores divided by much less would overflow


class Sampler:
    """Samples the tokens of one sequence. The same seed gives the same tokens."""

    def __init__(self, params: SamplingParams, prompt_ids: list[int], vocab_size: int) -> None:
        """Raises ConfigError for a logit_bias on an id outside the vocabulary."""
        self._params = params
        self._rng = np.random.default_rng(params.seed)
        self._output = Counter[int]()
        self._seen = set(prompt_ids) if params.repetition_penalty != 1.0 else set[int]()
        for token_id in params.logit_bias:
            if not 0 <= token_id < vocab_size:
                raise ConfigError(
                    f"logit_bias: token {token_id} is outside the vocabulary of {vocab_size}"
                )

    def sample(
        self,
        logits: Floats,
        mask: NDArray[np.uint32] | None = None,
        eos_redirect: EosRedirect | None = None,
    ) -> int:
        """Sample a token that `mask` allows from `logits` (V,), which are not changed.

        mask: bit i % 32 of word i // 32 is that of token i. Raises ConfigError if it allows none.
        eos_redirect: end tokens that the mask forbids, and the tokens that get their best score.
        """
        params = self._params
        scores = self._penalized(logits)
        chosen = int(scores.argmax())
        is_greedy = params.temperature < _GREEDY_BELOW
        if mask is not None and not (is_greedy and _allows(mask, chosen)):
            _apply_mask(mask, scores, eos_redirect)
            chosen = int(scores.argmax())
        if scores[chosen] == -np.inf:
            raise ConfigError("no token is left: logit_bias or the constraint forbids every one")
        if not is_greedy:
            chosen = self._draw(scores, scores[chosen])
        self._output[chosen] += 1
        if params.repetition_penalty != 1.0:
            self._seen.add(chosen)
        return chosen

    def _penalized(self, logits: Floats) -> Floats:
        params = self._params
        scores = logits.copy()
        for token_id, bias in params.logit_bias.items():
            scores[token_id] += bias
        if self._seen:
            ids = np.fromiter(self._seen, np.int64, len(self._seen))
            seen = scores[ids]
            penalty = np.float32(params.repetition_penalty)
            scores[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._output and (params.presence_penalty or params.frequency_penalty):
            ids = np.fromiter(self._output, np.int64, len(self._output))
            counts = np.fromiter(self._output.values(), np.float32, len(self._output))
            scores[ids] -= params.presence_penalty + params.frequency_penalty * counts
        return scores

    def _draw(self, scores: Floats, best: np.float32) -> int:
        """Draw a token; overwrites `scores`, since new memory costs more than the arithmetic."""
        scores -= best
        scores /= np.float32(self._params.temperature)
        weights = np.exp(scores, out=scores)  # the best one's is 1
        kept = self._filter(weights)
        if kept is None:
            return _inverse_cdf(weights, self._rng.random())
        return int(kept[_inverse_cdf(weights[kept], self._rng.random())])

    def _filter(self, weights: Floats) -> NDArray[np.int64] | None:
        """Ids that pass top-k, top-p and min-p; None = all. Of equal ones the lower ids pass."""
        params = self._params
        has_top_k = 0 < params.top_k < weights.size
        if not has_top_k and params.top_p >= 1.0:
            return np.flatnonzero(weights >= params.min_p) if params.min_p > 0.0 else None
        best = weights
        if has_top_k:
            best = np.partition(weights, weights.size - params.top_k)[-params.top_k :]
        values = _nucleus(best, params.top_p) if params.top_p < 1.0 else np.sort(best)[::-1]
        if params.min_p > 0.0:
            values = values[: max(1, int(np.count_nonzero(values >= params.min_p)))]
        better = np.flatnonzero(weights > values[-1])
        equal = np.flatnonzero(weights == values[-1])[: values.size - better.size]
        return np.concatenate((better, equal))


def _nucleus(weights: Floats, top_p: float) -> Floats:
    """Sort the best weights, descending, until they are the share `top_p` of all.

    Sorts those that can matter first: all 163 840 of Kimi K2 take 3 ms.
    """
    wanted = top_p * weights.sum(dtype=np.float64)
    for some in (weights[weights >= _LIKELY], weights):
        values = np.sort(some)[::-1]
        cumulative = np.cumsum(values, dtype=np.float64)
        if cumulative[-1] >= wanted:
            break
    count = int(np.count_nonzero(cumulative - values < wanted))
    return values[: max(1, count)]  # the best one always stays


def log_probabilities(
    logits: Floats, token_id: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Log probability of a token under softmax(logits), and (id, logprob) of the best `count`."""
    best = logits.max()
    norm = float(best) + math.log(float(np.exp(logits - best).sum(dtype=np.float64)))
    count = min(count, logits.size)
    ids = np.argpartition(logits, -count)[-count:] if count else np.empty(0, np.int64)
    order = sorted(((int(i), float(logits[i]) - norm) for i in ids), key=lambda p: (-p[1], p[0]))
    return float(logits[token_id]) - norm, tuple(order)


_DRAW_BLOCK = 512


def _inverse_cdf(weights: Floats, point: float) -> int:
    """Find the index at which the cumulative weight reaches the share `point` of the total."""
    sums = np.add.reduceat(weights, np.arange(0, weights.size, _DRAW_BLOCK), dtype=np.float64)
    ends = np.cumsum(sums)
    wanted = point * ends[-1]
    block = min(int(np.searchsorted(ends, wanted, side="right")), ends.size - 1)
    first = block * _DRAW_BLOCK
    inner = np.cumsum(weights[first : first + _DRAW_BLOCK], dtype=np.float64)
    inner += ends[block] - sums[block]
    at = first + min(int(np.searchsorted(inner, wanted, side="right")), inner.size - 1)
    return int(np.flatnonzero(weights[: at + 1])[-1]) if weights[at] == 0.0 else at


def _allows(mask: NDArray[np.uint32], token_id: int) -> bool:
    return bool(int(mask[token_id // 32]) >> (token_id % 32) & 1)


def _apply_mask(mask: NDArray[np.uint32], scores: Floats, eos_redirect: EosRedirect | None) -> None:
    """Ban all tokens whose bit is 0, after passing the score of end tokens on."""
    if not mask.any():
        raise ConfigError("the constraint allows no token of the vocabulary here")
    banned = np.unpackbits(~mask.view(np.uint8), bitorder="little", count=scores.size)
    eos_score = -np.inf if eos_redirect is None else scores[eos_redirect[0]].max()
    np.copyto(scores, -np.inf, where=banned.view(np.bool_))
    if eos_redirect is not None:
        ids = eos_redirect[1][scores[eos_redirect[1]] > -np.inf]  # not those that a bias forbids
        scores[ids] = np.maximum(scores[ids], eos_score)
