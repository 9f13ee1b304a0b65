"""A model whose next token depends on all tokens before it, as stored in the KV cache's pages."""

from typing import Any

import torch
from k2_config import K2

from hybridmoe.config import ModelConfig
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span

__all__ = ["EOS", "MODEL", "VOCAB", "HashModel", "expected"]

MODEL = ModelConfig.from_metadata(K2 | {"deepseek2.block_count": 2})
VOCAB = 3  # so few that prompts share prefixes
EOS = VOCAB  # never sampled


def hash_of(before: int, token_id: int) -> int:
    return (before * 31 + token_id + 7) % 9973


def expected(prompt: list[int], num_tokens: int) -> list[int]:
    """Compute the right response of `HashModel`."""
    digest, out = 0, list[int]()
    for token_id in prompt:
        digest = hash_of(digest, token_id)
    while len(out) < num_tokens:
        out.append(digest % VOCAB)
        digest = hash_of(digest, out[-1])
    return out


class HashModel:
    """Stores a hash of a position's prefix in its row, and derives the next token from it."""

    config = MODEL

    def __init__(self, cache: KvCache) -> None:
        self._hashes = cache.parts[0][0].view(torch.float32)[..., 0].numpy()  # (pages, PAGE_TOKENS)

    def forward(self, ids: list[int], spans: list[Span], *_: Any) -> torch.Tensor:
        states, left = [], iter(ids)
        for span in spans:
            for position in range(span.start, span.start + span.num_tokens):
                before = self._hashes[self._at(span, position - 1)] if position else 0
                digest = hash_of(int(before), next(left))
                self._hashes[self._at(span, position)] = digest
                states.append(digest)
        return torch.tensor(states)

    def decode(self, *_: Any) -> None:
        """Leave all steps to `forward`."""

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(states % VOCAB, VOCAB + 1).to(torch.float32)

    def is_finite(self, numbers: torch.Tensor) -> bool:
        return bool(numbers.isfinite().all())

    @staticmethod
    def _at(span: Span, position: int) -> tuple[int, int]:
        return span.pages[position // PAGE_TOKENS], position % PAGE_TOKENS
