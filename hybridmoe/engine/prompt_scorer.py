"""Log probabilities of a prompt's own tokens, from the hidden states of a chunk of it.

The logits are computed for a few tokens at a time, so that memory does not grow with the chunk.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.engine.request import PromptLogprobs
from hybridmoe.engine.sequence import Sequence
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.threads import torch_threads

__all__ = ["BLOCK_BYTES", "send_prompt_logprobs"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
BLOCK_BYTES = 1 << 26  # of logits: 102 tokens of Kimi K2


def send_prompt_logprobs(model: Decoder, sequence: Sequence, states: Tensor) -> bool:
    """Send the log probabilities of the prompt's tokens that follow those of a chunk, if asked for.

    states: (T, H), of the chunk's tokens. Returns False if a logit is not finite.
    """
    num_top = sequence.request.prompt_logprobs
    first = sequence.num_scored
    offset = sequence.num_computed + 1  # of the token that the first state predicts
    end = min(offset + len(states), sequence.num_prompt)
    if num_top is None or first >= end:  # also a chunk computed again after a preemption
        return True
    num_rows = max(1, BLOCK_BYTES // (4 * model.config.vocab_size))
    blocks = []
    for start in range(first, end, num_rows):
        token_ids = sequence.ids[start : min(start + num_rows, end)]
        logits = model.logits(states[start - offset : start - offset + len(token_ids)])
        if not model.is_finite(logits):
            return False
        blocks.append(_score(logits, token_ids, num_top))
    sequence.send_scores(PromptLogprobs(first, *map(np.concatenate, zip(*blocks, strict=True))))
    return True


@torch.inference_mode()
def _score(logits: Tensor, token_ids: list[int], num_top: int) -> tuple[Floats, Ints, Ints, Floats]:
    """Log probabilities and ranks (T,), best ids and log probabilities (T, num_top).

    Row by row, since a row of 163 840 logits fits the cache, and a block of them takes 5 times as
    long.
    """
    count, num_top = len(token_ids), min(num_top, logits.shape[1])
    logprobs, ranks = np.empty(count, np.float32), np.empty(count, np.int32)
    top_ids, top = np.empty((count, num_top), np.int32), np.empty((count, num_top), np.float32)
    weights = np.empty(logits.shape[1], np.float32)
    with torch_threads(1):
        for i, token_id in enumerate(token_ids):
            row = logits[i].numpy()
            best = row.max()
            np.exp(np.subtract(row, best, out=weights), out=weights)
            norm = float(best) + math.log(float(weights.sum(dtype=np.float64)))
            logprobs[i] = float(row[token_id]) - norm
            ranks[i] = 1 + np.count_nonzero(row > row[token_id])
            if num_top:
                values, ids = logits[i].topk(num_top)
                top_ids[i], top[i] = ids.numpy(), values.numpy().astype(np.float64) - norm
    return logprobs, ranks, top_ids, top
