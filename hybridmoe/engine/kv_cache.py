"""The latent cache of one sequence: kv_lora_rank + rope_dim floats per token and layer."""

import torch
from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError

__all__ = ["SequenceCache"]

_FIRST_TOKENS = 256  # K2: 34 MiB


class SequenceCache:
    """Latents of the tokens in `token_ids`; grows by doubling, up to the context length."""

    def __init__(self, config: ModelConfig, capacity_tokens: int) -> None:
        self._config = config
        self._capacity = capacity_tokens
        self._rows = torch.empty(config.num_layers, 0, config.latent_dim)  # (L, S, R + rope)
        self.token_ids: list[int] = []

    @property
    def capacity_tokens(self) -> int:
        return self._capacity

    @property
    def num_bytes(self) -> int:
        return self._rows.numel() * self._rows.element_size()

    def rows(self, layer: int, num_tokens: int) -> Tensor:
        """(num_tokens, R + rope) f32: the first rows of a layer, writable."""
        return self._rows[layer, :num_tokens]

    def reserve(self, num_tokens: int) -> None:
        """Make room for that many tokens in all. Raises ConfigError past the capacity."""
        if num_tokens > self._capacity:
            raise ConfigError(f"{num_tokens} tokens do not fit a context of {self._capacity}")
        have = self._rows.shape[1]
        if num_tokens <= have:
            return
        wanted = min(max(num_tokens, 2 * have, _FIRST_TOKENS), self._capacity)
        grown = torch.empty(self._rows.shape[0], wanted, self._rows.shape[2])
        grown[:, :have] = self._rows
        self._rows = grown

    def truncate(self, num_tokens: int) -> None:
        """Forget every token from position `num_tokens` on."""
        del self.token_ids[num_tokens:]

    def common_prefix(self, token_ids: list[int]) -> int:
        """How many leading tokens of `token_ids` are held already."""
        for i, (held, wanted) in enumerate(zip(self.token_ids, token_ids, strict=False)):
            if held != wanted:
                return i
        return min(len(self.token_ids), len(token_ids))
