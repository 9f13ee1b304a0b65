"""Rule by which CPUs expand keys and values of long prompts by head."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from hybridmoe.config.model import ModelConfig
from hybridmoe.env import expands_prompts

__all__ = ["Chunk", "Expansion"]

_BLOCK = 256  # the most value numbers of a head, in csrc; least_tokens is a multiple
_ALL_POSITIONS = 1 << 62


class Chunk(NamedTuple):
    """Tokens of a prompt in one step."""

    start: int
    num_tokens: int
    num_expanded: int  # of these, the first, with expanded keys and values


@dataclass(frozen=True, slots=True)
class Expansion:
    """Sizes from which on tokens of prompts attend to expanded keys and values.

    Decoded and draft tokens do not, nor the last one of a prompt, which is computed each time that
    the prompt comes again. So a response depends on neither drafts nor a second run.
    """

    least_tokens: int = 0  # of a prompt, to be computed; 0 = none is expanded
    most_positions: int = _ALL_POSITIONS  # that a token may see: sparse attention begins there

    @classmethod
    def of(cls, c: ModelConfig, isa: str, kv_type: str) -> Self:
        """Rule of a model on a CPU.

        A token's query multiplies 2 latent + rope numbers a position in latent space, and
        nope + rope + value expanded; expanding a position takes (nope + value) latent products.
        AMX has tiles for latents of two bytes.
        """
        own = c.nope_dim + c.v_dim
        saved = 2 * c.kv_lora_rank - own
        is_tiled = isa == "amx" and kv_type in ("f16", "bf16")
        is_odd = c.kv_lora_rank % 2 or any(n % 16 for n in (c.nope_dim, c.rope_dim, c.v_dim))
        is_unfit = is_odd or c.v_dim > _BLOCK
        if saved <= 0 or is_tiled or is_unfit or not expands_prompts():
            return cls()
        least = -(-own * c.kv_lora_rank // (saved * _BLOCK)) * _BLOCK
        return cls(least, c.indexer.top_k if c.indexer else _ALL_POSITIONS)

    @property
    def least_chunk(self) -> int:
        """Tokens of a step from which on they are expanded."""
        return self.least_tokens // 2

    def end(self, num_prompt: int, num_known: int) -> int:
        """Position behind the last expanded token of a prompt; 0 if none is.

        num_known: tokens at its begin that need not be computed.
        """
        end = min(num_prompt - 1, self.most_positions)
        return end if 0 < self.least_tokens <= end - num_known else 0

    def chunk(self, start: int, num_tokens: int, end: int) -> Chunk:
        """Make a chunk of a prompt whose tokens before `end` are to be expanded, if it is long."""
        count = min(start + num_tokens, end) - start
        return Chunk(start, num_tokens, count if 0 < self.least_chunk <= count else 0)

    def cut(self, start: int, end: int, share: int, most: int) -> int:
        """Size a chunk so that its tokens, and then the rest, can be expanded up to `end`.

        share: tokens that it gets if that is no matter. Returns at most `most`; 0 = it has to wait.
        """
        num_left, least = end - start, self.least_chunk
        if num_left < max(1, least):
            return share
        num_tokens = min(max(share, self.least_tokens), most)
        if 0 < num_left - num_tokens < least:
            num_tokens = num_left - least
        return num_tokens if num_tokens >= least else 0

    def chunks(self, num_prompt: int, step_tokens: Callable[[], int]) -> Iterator[Chunk]:
        """Cut a prompt that is computed alone, with nothing known.

        step_tokens: tokens of the next step.
        """
        start, end = 0, self.end(num_prompt, 0)
        while start < num_prompt:
            most = step_tokens()
            num_tokens = min(most, num_prompt - start)
            if most >= self.least_tokens:
                num_tokens = self.cut(start, end, num_tokens, num_tokens)
            yield self.chunk(start, num_tokens, end)
            start += num_tokens
