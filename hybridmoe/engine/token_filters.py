"""Filters of the tokens to draw from: which of them stay.

All take weights, probabilities up to a factor, and keep at least one token. Of equal weights the
tokens of lower ids count as more likely. Sources: top-p, Holtzman et al. 2019; min-p, Nguyen et al.
2024 (arXiv 2407.01082); typical-p, Meister et al. 2022 (arXiv 2202.00666); top-n-sigma, Tang et al.
2024 (arXiv 2411.07641); XTC ("exclude top choices"), p-e-w 2024.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.sampling_params import SamplingParams

__all__ = ["candidates"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
_LIKELY = 1e-4  # weight, of 1 for the best token: nearly always, the others are beyond top-p
_MAX_XTC_THRESHOLD = 0.5  # above it, no two tokens can be above the threshold


def candidates(
    scores: Floats, best: np.float32, params: SamplingParams, random: Callable[[], float]
) -> tuple[Floats, Ids | None]:
    """Weights (V,) of all tokens at the temperature, and the ids that pass the filters; None = all.

    scores: (V,), overwritten, since new memory costs more than the arithmetic. best: the highest,
    above -inf. random: returns a number in [0, 1); called for XTC alone.
    """
    temperature = np.float32(params.temperature)
    if params.top_n_sigma > 0.0:
        _cut_below_sigma(scores, params.top_n_sigma)
    scores -= best
    if params.temperature_last:
        kept = _filter(np.exp(scores), params, random)
        scores /= temperature
        return np.exp(scores, out=scores), kept
    scores /= temperature
    weights = np.exp(scores, out=scores)  # the best one's is 1
    return weights, _filter(weights, params, random)


def _filter(weights: Floats, params: SamplingParams, random: Callable[[], float]) -> Ids | None:
    """Ids that pass top-k, typical-p, top-p, min-p and XTC, in this order; None = all."""
    has_xtc = params.xtc_probability > 0.0 and params.xtc_threshold <= _MAX_XTC_THRESHOLD
    if params.typical_p < 1.0:
        kept = _top_k(weights, params.top_k)
        kept = kept[_typical(weights[kept], params.typical_p)]
        passed = _top_p_min_p(weights[kept], params)
        kept = kept if passed is None else kept[passed]
    else:
        passed = _top_k_top_p_min_p(weights, params)
        if not has_xtc:
            return passed
        kept = np.flatnonzero(weights) if passed is None else passed
    if has_xtc and random() < params.xtc_probability:
        kept = kept[_without_top_choices(weights[kept], params.xtc_threshold)]
    return kept


def _cut_below_sigma(scores: Floats, num_sigmas: float) -> None:
    """Set scores (V,) to -inf that are more than `num_sigmas` deviations below the best one.

    The standard deviation is that of the scores above -inf. A temperature makes no difference.
    """
    possible = scores if scores.min() > -np.inf else scores[scores > -np.inf]
    deviations = possible - np.float32(possible.mean(dtype=np.float64))
    sigma = math.sqrt(float(np.dot(deviations, deviations)) / possible.size)
    np.copyto(scores, -np.inf, where=scores < possible.max() - np.float32(num_sigmas * sigma))


def _top_k(weights: Floats, top_k: int) -> Ids:
    """Ids of the best `top_k` tokens with a weight; 0 = all of them."""
    possible = np.flatnonzero(weights)
    if not 0 < top_k < possible.size:
        return possible
    return _at_least(weights, np.partition(weights, -top_k)[-top_k], top_k)


def _top_p_min_p(weights: Floats, params: SamplingParams) -> Ids | None:
    if params.top_p < 1.0:
        values = _nucleus(weights, params.top_p)
        num_kept = _num_above_min_p(values, params.min_p)
        return _at_least(weights, values[num_kept - 1], num_kept)
    if params.min_p > 0.0:
        return np.flatnonzero(weights >= params.min_p * weights.max())
    return None


def _top_k_top_p_min_p(weights: Floats, params: SamplingParams) -> Ids | None:
    """Ids that pass; sorts no more of them than needed."""
    if not 0 < params.top_k < weights.size:
        return _top_p_min_p(weights, params)
    best = np.partition(weights, weights.size - params.top_k)[-params.top_k :]
    values = _nucleus(best, params.top_p) if params.top_p < 1.0 else np.sort(best)[::-1]
    num_kept = _num_above_min_p(values, params.min_p)
    return _at_least(weights, values[num_kept - 1], num_kept)


def _num_above_min_p(values: Floats, min_p: float) -> int:
    """Count the descending `values` that are at least `min_p` of the first."""
    return max(1, int(np.count_nonzero(values >= min_p * values[0])))


def _at_least(weights: Floats, lowest: np.float32, count: int) -> Ids:
    """Ids of the best `count` weights, of which `lowest` is the last."""
    better = np.flatnonzero(weights > lowest)
    equal = np.flatnonzero(weights == lowest)[: count - better.size]
    return np.concatenate((better, equal))


def _nucleus(weights: Floats, top_p: float) -> Floats:
    """Sort the best weights, descending, until they are the share `top_p` of all.

    Sorts those that can matter first: all 163 840 of Kimi K2 take 3 ms.
    """
    wanted = top_p * weights.sum(dtype=np.float64)
    for some in (weights[weights >= _LIKELY], weights):
        values = np.sort(some)[::-1]
        cumulative = np.cumsum(values, dtype=np.float64)
        if values.size and cumulative[-1] >= wanted:
            break
    count = int(np.count_nonzero(cumulative - values < wanted))
    return values[: max(1, count)]  # the best one always stays


def _typical(weights: Floats, typical_p: float) -> Ids:
    """Indices of the tokens with the most typical surprise, up to the share `typical_p`.

    Typical is a surprise -log p near the entropy. Sorts those that can matter first.
    """
    total = np.float32(weights.sum(dtype=np.float64))
    probabilities = weights / total
    surprise = np.log(total) - np.log(weights)  # of the weights: a tiny one's probability can be 0
    distance = np.abs(surprise - np.float32(np.dot(probabilities, surprise)))
    for limit in (1.0, 2.0, 4.0, 6.0, 8.0, np.inf):
        some = np.flatnonzero(distance <= limit)
        some = some[np.argsort(distance[some])]
        cumulative = np.cumsum(probabilities[some], dtype=np.float64)
        if some.size and cumulative[-1] > typical_p:
            break
    count = min(some.size, 1 + int(np.count_nonzero(cumulative <= typical_p)))
    return _at_least(-distance, -distance[some[count - 1]], count)


def _without_top_choices(weights: Floats, threshold: float) -> Ids:
    """Indices without those of at least `threshold`, except the least likely of these."""
    is_top = weights >= threshold * weights.sum(dtype=np.float64)
    top = np.flatnonzero(is_top)
    if top.size > 1:
        is_top[top[::-1][np.argmin(weights[top[::-1]])]] = False
        return np.flatnonzero(~is_top)
    return np.arange(weights.size)
