"""Samples the next token from logits.

Order: logit bias; repetition, presence and frequency penalties; DRY; no end tokens before
`min_tokens`; the constraint's mask and EOS redirect; top-n-sigma; temperature; top-k; typical-p;
top-p; min-p; XTC; draw. With `temperature_last` the temperature comes after XTC, which is
llama.cpp's default order; vLLM and transformers have it first. A temperature below 1e-5 is greedy:
argmax after the mask, without any filter.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.constraint import EosRedirect
from hybridmoe.engine.dry import DryPenalty, SequenceBreakers
from hybridmoe.engine.penalties import Penalties
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.engine.token_filters import candidates
from hybridmoe.errors import ConfigError

__all__ = ["Sampler", "log_probabilities"]

Floats = NDArray[np.float32]
_GREEDY_BELOW = 1e-5  # temperature; scores divided by much less would overflow


class Sampler:
    """Samples the tokens of one sequence. The same seed gives the same tokens."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: list[int],
        vocab_size: int,
        breakers: SequenceBreakers | None = None,
    ) -> None:
        """breakers: those of DRY; None = none.

        Errors: ConfigError for a token id outside the vocabulary in logit_bias, stop_token_ids.
        """
        self._params = params
        self._rng = np.random.default_rng(params.seed)
        self._penalties = Penalties(params, prompt_ids)
        self._takes_best = params.temperature < _GREEDY_BELOW and not self._penalties.may_change
        self._dry: DryPenalty | None = None
        if params.dry_multiplier > 0.0 and params.dry_penalty_last_n != 0:
            self._dry = DryPenalty(params, prompt_ids, breakers or {})
            self._takes_best = False
        for name in ("logit_bias", "stop_token_ids"):
            outside = next((i for i in getattr(params, name) if not 0 <= i < vocab_size), None)
            if outside is not None:
                raise ConfigError(
                    f"{name}: token {outside} is outside the vocabulary of {vocab_size}"
                )

    def sample(
        self,
        logits: Floats,
        mask: NDArray[np.uint32] | None = None,
        eos_redirect: EosRedirect | None = None,
        banned_ids: Sequence[int] = (),
        best: int | None = None,
    ) -> int:
        """Sample a token that `mask` allows from `logits` (V,), which are not changed.

        mask: bit i % 32 of word i // 32 is that of token i. Raises ConfigError if it allows none.
        eos_redirect: end tokens that the mask forbids, and the tokens that get their best score.
        banned_ids: not sampled, unless the mask allows no others. best: argmax of the logits, if it
        is known.
        """
        params = self._params
        if best is not None and self._takes_best and best not in banned_ids and _allows(mask, best):
            return best
        scores = logits.copy()
        self._penalties.apply(scores)
        if self._dry is not None:
            self._dry.apply(scores)
        banned_scores = None
        if banned_ids:
            banned_scores = scores[banned_ids]
            scores[banned_ids] = -np.inf
        chosen = int(scores.argmax())
        is_greedy = params.temperature < _GREEDY_BELOW
        if mask is not None and not (is_greedy and _allows(mask, chosen)):
            _apply_mask(mask, scores, eos_redirect)
            if banned_scores is not None and scores.max() == -np.inf:
                scores[banned_ids] = banned_scores
                _apply_mask(mask, scores, None)
            chosen = int(scores.argmax())
        if scores[chosen] == -np.inf:
            raise ConfigError("no token is left: logit_bias or the constraint forbids every one")
        if not is_greedy:
            chosen = self._draw(scores, scores[chosen])
        self._penalties.accept(chosen)
        if self._dry is not None:
            self._dry.accept(chosen)
        return chosen

    def _draw(self, scores: Floats, best: np.float32) -> int:
        """Draw a token; overwrites `scores`."""
        weights, kept = candidates(scores, best, self._params, self._rng.random)
        if kept is None:
            return _inverse_cdf(weights, self._rng.random())
        return int(kept[_inverse_cdf(weights[kept], self._rng.random())])


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


def _allows(mask: NDArray[np.uint32] | None, token_id: int) -> bool:
    return mask is None or bool(int(mask[token_id // 32]) >> (token_id % 32) & 1)


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
