"""Multi-head latent attention in its absorbed form.

Per token and layer, the KV cache holds the normalised latent (kv_lora_rank) and the rotated key
that all heads share (rope_dim). `k_b` projects queries into latent space, where attention is
multi-query attention; `v_b` projects the result back to heads.
Sparse attention differs in its positions only: a selector chooses them.
Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1 and appendix C.
"""

from torch import Tensor

from hybridmoe.config import ModelConfig
from hybridmoe.device.cpu import CpuDevice, quantized
from hybridmoe.device.interface import Pages, Tables
from hybridmoe.kernels.fused_layer import AttentionWeights, FusedAttention
from hybridmoe.model.indexer import Selector
from hybridmoe.model.norm import RmsNorm
from hybridmoe.model.weights import BlockWeights

__all__ = ["LatentAttention"]


class LatentAttention:
    """Attention of one layer. `forward` also appends the step's tokens to the KV cache."""

    def __init__(
        self, block: BlockWeights, config: ModelConfig, selector: Selector | None = None
    ) -> None:
        """selector: None = dense attention."""
        self._config = c = config
        self._selector = selector
        self._device = device = block.device
        num_query = c.num_heads * c.qk_dim
        self._q_a = None
        if c.q_lora_rank:
            self._q_a = block.matrix("attn_q_a", c.q_lora_rank, c.hidden)
            q_a_norm = block.vector("attn_q_a_norm", c.q_lora_rank)
            self._q_a_norm = RmsNorm(device, q_a_norm, c.rms_eps)
            self._q_b = block.matrix("attn_q_b", num_query, c.q_lora_rank)
        else:
            self._q_b = block.matrix("attn_q", num_query, c.hidden)
        self._kv_a = block.matrix("attn_kv_a_mqa", c.latent_dim, c.hidden)
        kv_a_norm = block.vector("attn_kv_a_norm", c.kv_lora_rank)
        self._kv_a_norm = RmsNorm(device, kv_a_norm, c.rms_eps)
        self._k_b, self._v_b = block.latent_projections(c)
        self._out = block.matrix("attn_output", c.hidden, c.num_heads * c.v_dim)

    def forward(self, x: Tensor, pages: Pages, tables: Tables, cos_sin: Tensor) -> Tensor:
        """Compute causal attention of T tokens over their sequences.

        Shapes: x (T, H) f32 · cos_sin (T, rope) f32 of the tokens' positions, or as `RotaryTable`
                has it with an attention temperature (T, rope + 1) -> (T, H) f32.
        """
        cos_sin, factors = self._split(cos_sin)
        self._append(x, pages, tables, cos_sin)
        q_latent = self._query_latents(x)
        selected = None
        if self._selector is not None:
            selected = self._selector.select(x, q_latent, pages, tables, cos_sin)
        q_nope, q_rope = self._queries(q_latent, cos_sin, factors)
        scale = self._config.softmax_scale
        heads = self._device.attend(
            q_nope, q_rope, self._k_b, self._v_b, pages, tables, scale, selected
        )  # (T, N, V)
        return self._device.linear(heads.view(x.shape[0], -1), self._out)

    def fused(self, norm: RmsNorm) -> FusedAttention | None:
        """Return `norm` and this as one call, for steps in latent space.

        None but on the CPU, and with a selector or an attention temperature.
        """
        is_plain = self._selector is None and self._config.temperature is None
        if type(self._device) is not CpuDevice or not is_plain:
            return None
        weights = AttentionWeights(
            q_a=None if self._q_a is None else quantized(self._q_a),
            q_a_norm=None if self._q_a is None else self._q_a_norm.weight,
            q_b=quantized(self._q_b),
            kv_a=quantized(self._kv_a),
            kv_a_norm=self._kv_a_norm.weight,
            k_b=quantized(self._k_b),
            v_b=quantized(self._v_b),
            out=quantized(self._out),
            scale=self._config.softmax_scale,
        )
        return FusedAttention(norm.weight, norm.eps, weights)

    def append(self, x: Tensor, pages: Pages, tables: Tables, cos_sin: Tensor) -> None:
        """Append tokens to the KV cache alone; shapes as for `forward`."""
        self._append(x, pages, tables, self._split(cos_sin)[0])

    def _split(self, cos_sin: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split off the queries' factors of an attention temperature."""
        if self._config.temperature is None:
            return cos_sin, None
        return cos_sin[:, :-1].contiguous(), cos_sin[:, -1:]

    def _append(self, x: Tensor, pages: Pages, tables: Tables, cos_sin: Tensor) -> None:
        rows = self._device.linear(x, self._kv_a)  # (T, R + rope)
        latents, keys = rows[:, : self._config.kv_lora_rank], rows[:, self._config.kv_lora_rank :]
        self._kv_a_norm(latents, out=latents)
        self._device.rotate_(keys.unsqueeze(1), cos_sin)
        self._device.store_kv(rows, pages, tables)

    def _query_latents(self, x: Tensor) -> Tensor:
        """Project x (T, H) to what queries are projected from, (T, Q): x itself without a rank."""
        if self._q_a is None:
            return x
        latents = self._device.linear(x, self._q_a)
        return self._q_a_norm(latents, out=latents)

    def _queries(
        self, latents: Tensor, cos_sin: Tensor, factors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Project latents (T, Q) to q_nope (T, N, nope) and rotated q_rope (T, N, rope).

        factors: (T, 1) of the queries, or None.
        """
        c = self._config
        q = self._device.linear(latents, self._q_b)
        if factors is not None:
            q.mul_(factors)
        q = q.view(-1, c.num_heads, c.qk_dim)
        return q[..., : c.nope_dim], self._device.rotate_(q[..., c.nope_dim :], cos_sin)
