"""Rotary position embedding with YaRN, in deepseek2's interleaved convention.

Neighbours form pairs, (x0, x1), (x2, x3), ..., that are rotated by position * frequency.
Frequencies are computed in float64; the table is float32. Sources: Su et al. 2021
(RoFormer); Peng et al. 2023 (YaRN, arXiv 2309.00071); bounds of the ramp: DeepSeek-V3's
`modeling_deepseek.py`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hybridmoe.config import ModelConfig, YarnConfig

__all__ = ["RotaryTable", "inverse_frequencies"]


class RotaryTable:
    """Table of cos and sin by position; grows to the largest position asked for.

    With an attention temperature, rows end with the factor of the position's query.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._frequencies = inverse_frequencies(config.rope_dim, config.rope_base, config.yarn)
        self._mscale = config.yarn.rotary_mscale if config.yarn else 1.0
        self._temperature = config.temperature
        self._context_tokens = config.context_tokens
        self._known = self._rows(0), 0

    @property
    def num_positions(self) -> int:
        """Positions that the table holds now."""
        return self._known[1]

    def cos_sin(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        """Look up runs of positions, each from its first up to its end, T in sum.

        Returns (T, rope_dim), cos and sin interleaved, scaled by YaRN; with an attention
        temperature (T, rope_dim + 1). Not to be written to.
        """
        table = self.rows(max((end for _, end in runs), default=0))
        parts = [table[first:end] for first, end in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else table[:0]

    def rows(self, stop: int) -> Tensor:
        """Return the rows of all positions below `stop`, and perhaps more; not to be written to.

        The same tensor until it grows.
        """
        table, num_positions = self._known
        if stop > num_positions:
            table = self._rows(max(stop, min(max(1024, 2 * stop), self._context_tokens)))
            self._known = table, len(table)  # at once: other threads look, too
        return table

    def _rows(self, count: int) -> Tensor:
        positions = torch.arange(count, dtype=torch.float64)[:, None]
        angles = positions * self._frequencies
        rotations = torch.polar(torch.full_like(angles, self._mscale), angles)
        rows = torch.view_as_real(rotations).flatten(1)
        if (t := self._temperature) is not None:
            factors = 1.0 + t.scale * torch.log(torch.floor(positions / t.num_tokens) + 1.0)
            rows = torch.cat((rows, factors), 1)
        return rows.float()


def inverse_frequencies(rope_dim: int, base: float, yarn: YarnConfig | None) -> Tensor:
    """Compute radians per position of each pair: (rope_dim / 2,) f64."""
    pair = torch.arange(rope_dim // 2, dtype=torch.float64)
    frequencies = base ** (-2.0 * pair / rope_dim)
    if yarn is None:
        return frequencies

    def pair_with_rotations(rotations: float) -> float:
        """Return the (fractional) pair that makes `rotations` over the original context."""
        ratio = yarn.original_context_tokens / (rotations * 2.0 * math.pi)
        return rope_dim * math.log(ratio) / (2.0 * math.log(base))

    low = max(math.floor(pair_with_rotations(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with_rotations(yarn.beta_slow)), rope_dim - 1)
    ramp = ((pair - low) / max(high - low, 1e-3)).clamp(0.0, 1.0)  # 0 = keep, 1 = interpolate
    return frequencies * (1.0 - ramp) + frequencies / yarn.factor * ramp
