"""Distances between two sets of logits: KL divergence, relative error."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Log-softmax along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(reference: Floats, logits: Floats) -> NDArray[np.float64]:
    """KL(reference || logits) in nats, per position: (T, V), (T, V) -> (T,)."""
    p, q = log_softmax(reference), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def relative_error(reference: Floats, values: Floats) -> float:
    """Largest deviation over the reference's largest magnitude."""
    return float(np.abs(values - reference).max() / np.abs(reference).max())
