"""How well a token's experts can be known before its layer's router has run.

Recall: which share of a decoded token's experts is among the guesses, top_k of them or twice as
many. What is learned is learned from the training half of the conversations, and all is judged by
the other half.
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
    """One predictor in one layer."""

    predictor: str  # previous token | static | gate
    horizon: int | None  # a gate's: layers between the states and the router
    num_guesses: int  # of each layer
    layer: int | None  # of those with experts; None = all that could be guessed
    recall: float
    low: float  # 95 % of the bootstrap over conversations
    high: float


def recalls(
    trace: Trace,
    is_held: NDArray[np.bool_],
    guesses: NDArray[np.int16] | None,
    uses: NDArray[np.int64],
    seed: int,
) -> list[Recall]:
    """Recalls of all predictors, for decoded tokens where `is_held` (T,).

    Previous token: the experts that the conversation's tokens before used last. Static: those
    with the most `uses` (L, E). Gate: `guesses` (D, HORIZONS, L, G) of all D decoded tokens.
    """
    is_decoded = trace.phases == _DECODE
    judged = is_decoded & is_held
    chosen = np.ascontiguousarray(trace.ids[judged])
    if len(chosen) == 0:
        return []
    budgets = sorted({trace.top_k, min(2 * trace.top_k, trace.num_experts)})
    _, owners = np.unique(trace.conversations, return_inverse=True)
    recent = _recent(trace.ids, owners.astype(np.int64), budgets[-1])[judged]
    named: list[tuple[str, int | None, NDArray[np.int16]]] = [("previous token", None, recent)]
    if uses.any():
        hot = np.argsort(-uses, axis=1, kind="stable")[:, : budgets[-1]].astype(np.int16)
        named.append(("static", None, np.tile(hot, (len(chosen), 1, 1))))
    if guesses is not None:
        held = guesses[is_held[is_decoded]]
        named += [("gate", h, np.ascontiguousarray(held[:, i])) for i, h in enumerate(HORIZONS)]
    bootstrap = Bootstrap(trace.conversations[judged], seed)
    wanted = (chosen >= 0).sum(2)  # (tokens, L)
    found = []
    for predictor, horizon, guess in named:
        layers = np.flatnonzero((guess >= 0).any((0, 2)))
        for budget in budgets:
            right = _count_right(chosen, guess, budget)
            for layer in (None, *layers.tolist()):
                of = layers if layer is None else [layer]
                parts, wholes = right[:, of].sum(1), wanted[:, of].sum(1)
                low, high = bootstrap.interval(parts, wholes)
                share = float(parts.sum() / max(1, wholes.sum()))
                found.append(Recall(predictor, horizon, budget, layer, share, low, high))
    return found


@loop
def _recent(ids: Any, owners: Any, num_guesses: int) -> Any:
    """(T, L, G): experts that tokens before one used in its conversation, the last ones first."""
    num_tokens, num_layers, top_k = ids.shape
    out = np.full((num_tokens, num_layers, num_guesses), -1, np.int16)
    last = np.full(num_tokens, -1, np.int64)  # of each conversation: its token before
    for token in range(num_tokens):
        before = last[owners[token]]
        last[owners[token]] = token
        if before < 0:
            continue
        for layer in range(num_layers):
            guess, count = out[token, layer], 0
            for k in range(top_k + num_guesses):
                expert = ids[before, layer, k] if k < top_k else out[before, layer, k - top_k]
                is_new = expert >= 0 and count < num_guesses
                for i in range(count):
                    is_new = is_new and guess[i] != expert
                if is_new:
                    guess[count] = expert
                    count += 1
    return out


@loop
def _count_right(chosen: Any, guess: Any, budget: int) -> Any:
    """(T, L): how many of a token's experts are among its first `budget` guesses."""
    right = np.zeros(chosen.shape[:2], np.int64)
    for token in range(chosen.shape[0]):
        for layer in range(chosen.shape[1]):
            for expert in chosen[token, layer]:
                for i in range(min(budget, guess.shape[2])):
                    if expert >= 0 and guess[token, layer, i] == expert:
                        right[token, layer] += 1
                        break
    return right
