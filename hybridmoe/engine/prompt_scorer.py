"""Log probabilities of a prompt's own tokens, from the hidden states of a chunk of it.

The logits are computed for a few tokens at a time, so that memory does not grow with the chunk.
"""

import numpy as np
import torch
from torch import Tensor

from hybridmoe.engine.request import PromptLogprobs
from hybridmoe.engine.sequence import Sequence
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.threads import torch_threads

__all__ = ["BLOCK_BYTES", "send_prompt_logprobs"]

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
    sequence.num_scored = end
    sequence.send(PromptLogprobs(first, *map(np.concatenate, zip(*blocks, strict=True))))
    return True


@torch.inference_mode()
def _score(logits: Tensor, token_ids: list[int], num_top: int) -> tuple[np.ndarray, ...]:
    """Log probabilities and ranks (T,), best ids and log probabilities (T, num_top)."""
    with torch_threads(1):
        own = logits.gather(1, torch.tensor(token_ids)[:, None])
        ranks = 1 + (logits > own).sum(1, dtype=torch.int32)
        top, top_ids = logits.topk(min(num_top, logits.shape[1]), 1)
        best = logits.amax(1, keepdim=True)
        norm = (logits - best).exp_().sum(1, keepdim=True, dtype=torch.float64).log() + best
        return (
            (own - norm).float()[:, 0].numpy(),
            ranks.numpy(),
            top_ids.int().numpy(),
            (top - norm).float().numpy(),
        )
