"""Recall of predictors of a token's experts that run before its layer's router.

Recall: share of a decoded token's experts among the predicted ones, top_k or twice as many per
layer. Predictors learn from the training half of the conversations and are judged by the other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridmoe.cachebench.bootstrap import Bootstrap
from hybridmoe.cachebench.gates import HORIZONS
from hybridmoe.experts.policy.jit import loop
from hybridmoe.experts.routing_trace import PHASES, Trace

__all__ = ["Recall", "recalls"]

_DECODE = PHASES.index("decode")


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall of one predictor in one layer."""

    predictor: str  # previous token | static | gate
    horizon: int | None  # of a gate: layers between the states and the router
    num_predicted: int  # experts per layer
    layer: int | None  # counted from the first with experts; None = all that it predicts
    recall: float
    low: float  # 95 % of the bootstrap over conversations
    high: float


def recalls(
    trace: Trace,
    is_held: NDArray[np.bool_],
    predictions: NDArray[np.int16] | None,
    uses: NDArray[np.int64],
    seed: int,
) -> list[Recall]:
    """Measure all predictors on the decoded tokens where `is_held` (T,).

    Previous token: the experts that earlier tokens of the conversation used last. Static: those
    with the most `uses` (L, E). Gate: `predictions` (D, HORIZONS, L, G) for all D decoded tokens.
    """
    is_decoded = trace.phases == _DECODE
    judged = is_decoded & is_held
    chosen = np.ascontiguousarray(trace.ids[judged])
    if len(chosen) == 0:
        return []
    counts = sorted({trace.top_k, min(2 * trace.top_k, trace.num_experts)})
    _, owners = np.unique(trace.conversations, return_inverse=True)
    recent = _recent(trace.ids, owners.astype(np.int64), counts[-1])[judged]
    named: list[tuple[str, int | None, NDArray[np.int16]]] = [("previous token", None, recent)]
    if uses.any():
        hot = np.argsort(-uses, axis=1, kind="stable")[:, : counts[-1]].astype(np.int16)
        named.append(("static", None, np.tile(hot, (len(chosen), 1, 1))))
    if predictions is not None:
        held = predictions[is_held[is_decoded]]
        named += [("gate", h, np.ascontiguousarray(held[:, i])) for i, h in enumerate(HORIZONS)]
    bootstrap = Bootstrap(trace.conversations[judged], seed)
    wanted = (chosen >= 0).sum(2)  # (tokens, L)
    found = []
    for predictor, horizon, predicted in named:
        layers = np.flatnonzero((predicted >= 0).any((0, 2)))
        for count in counts:
            right = _count_right(chosen, predicted, count)
            for layer in (None, *layers.tolist()):
                of = layers if layer is None else [layer]
                parts, wholes = right[:, of].sum(1), wanted[:, of].sum(1)
                low, high = bootstrap.interval(parts, wholes)
                share = float(parts.sum() / max(1, wholes.sum()))
                found.append(Recall(predictor, horizon, count, layer, share, low, high))
    return found


@loop
def _recent(ids: Any, owners: Any, num_predicted: int) -> Any:
    """Find the experts (T, L, G) used by earlier tokens of the conversation, latest first."""
    num_tokens, num_layers, top_k = ids.shape
    out = np.full((num_tokens, num_layers, num_predicted), -1, np.int16)
    last = np.full(num_tokens, -1, np.int64)  # latest token of each conversation
    for token in range(num_tokens):
        before = last[owners[token]]
        last[owners[token]] = token
        if before < 0:
            continue
        for layer in range(num_layers):
            recent, count = out[token, layer], 0
            for k in range(top_k + num_predicted):
                expert = ids[before, layer, k] if k < top_k else out[before, layer, k - top_k]
                is_new = expert >= 0 and count < num_predicted
                for i in range(count):
                    is_new = is_new and recent[i] != expert
                if is_new:
                    recent[count] = expert
                    count += 1
    return out


@loop
def _count_right(chosen: Any, predicted: Any, num_predicted: int) -> Any:
    """Count (T, L) a token's experts among its first `num_predicted` predicted ones."""
    right = np.zeros(chosen.shape[:2], np.int64)
    for token in range(chosen.shape[0]):
        for layer in range(chosen.shape[1]):
            for expert in chosen[token, layer]:
                for i in range(min(num_predicted, predicted.shape[2])):
                    if expert >= 0 and predicted[token, layer, i] == expert:
                        right[token, layer] += 1
                        break
    return right
