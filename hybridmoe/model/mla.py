"""Multi-head latent attention in its absorbed form.

The cache holds, per token and layer, the normalised latent (kv_lora_rank) and the rotated key that
all heads share (rope_dim), and nothing else. Queries are brought into latent space by `k_b`, so
that attention is multi-query attention over latents, and `v_b` brings the result back. Source:
DeepSeek-V2 (arXiv 2405.04434), section 2.1 and appendix C.
"""

from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.kernels.ops import QuantMatrix, batched_linear, latent_attention, linear
from hybridmoe.model.norm import RmsNorm
from hybridmoe.model.rope import RotaryTable
from hybridmoe.model.weights import BlockWeights

__all__ = ["LatentAttention"]


class LatentAttention:
    """One layer's attention; `forward` appends to the layer's latent cache."""

    def __init__(self, block: BlockWeights, config: ModelConfig, rope: RotaryTable) -> None:
        self._config = c = config
        self._rope = rope
        num_query = c.num_heads * c.qk_dim
        if c.q_lora_rank:
            self._q_a: QuantMatrix | None = block.matrix("attn_q_a", c.q_lora_rank, c.hidden)
            self._q_a_norm = RmsNorm(block.vector("attn_q_a_norm", c.q_lora_rank), c.rms_eps)
            self._q_b = block.matrix("attn_q_b", num_query, c.q_lora_rank)
        else:
            self._q_a = None
            self._q_b = block.matrix("attn_q", num_query, c.hidden)
        self._kv_a = block.matrix("attn_kv_a_mqa", c.latent_dim, c.hidden)
        self._kv_a_norm = RmsNorm(block.vector("attn_kv_a_norm", c.kv_lora_rank), c.rms_eps)
        self._k_b, self._v_b = block.latent_projections(c)
        self._out = block.matrix("attn_output", c.hidden, c.num_heads * c.v_dim)

    def forward(self, x: Tensor, latents: Tensor, start: int) -> Tensor:
        """Attend from T tokens at positions start, start + 1, ... to themselves and all before.

        Shapes: x (T, H) f32 · latents (S >= start + T, R + rope) f32, rows [start, start + T) are
                written -> (T, H) f32.
        """
        c = self._config
        num_tokens = x.shape[0]
        stop = start + num_tokens
        self._append(x, latents[start:stop], start)
        absorbed, rotated = self._queries(x, start)
        mixed = latent_attention(absorbed, rotated, latents[:stop], c.softmax_scale)  # (N, T, R)
        heads = x.new_empty(num_tokens, c.num_heads, c.v_dim)  # (T, N, V)
        batched_linear(mixed, self._v_b, out=heads.transpose(0, 1))
        return linear(heads.view(num_tokens, -1), self._out)

    def _append(self, x: Tensor, rows: Tensor, start: int) -> None:
        linear(x, self._kv_a, out=rows)  # (T, R + rope)
        latents, keys = rows[:, : self._config.kv_lora_rank], rows[:, self._config.kv_lora_rank :]
        self._kv_a_norm(latents, out=latents)
        self._rope.rotate_(keys.unsqueeze(1), start)

    def _queries(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """In latent space (N, T, R), and rotated (T, N, rope)."""
        c = self._config
        if self._q_a is not None:
            x = linear(x, self._q_a)
            self._q_a_norm(x, out=x)
        q = linear(x, self._q_b).view(-1, c.num_heads, c.qk_dim)
        plain, rotated = q[..., : c.nope_dim], q[..., c.nope_dim :]  # (T, N, nope | rope)
        return batched_linear(plain.transpose(0, 1), self._k_b), self._rope.rotate_(rotated, start)
