"""Where the tokens of a step's sequences lie, as the card's kernels take it."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span

__all__ = ["CudaBlockTables", "Prompt"]

# Spans of so many tokens are prompts, whose keys and values are worth expanding. By operations that
# begins at 170 with Kimi K2's sizes, but a prompt's kernel does more of them in a second, and reads
# latents once. A guess, to be tuned where there is a card.
PROMPT_TOKENS = 64


class Prompt(NamedTuple):
    """A span of a step that is no mere decoding: `num_tokens` rows, the first is `first_row`."""

    first_row: int
    num_tokens: int
    num_seen: int  # positions up to its last token's
    pages: Tensor  # (pages,) int64


class CudaBlockTables:
    """Made on the host, copied to the device in one piece.

    slots (T,) int64: where each token's latents go, page * 64 + row. Of the D tokens in short
    spans: rows (D,) int64, which they are; tables (D, num_pages) int32 and positions (D,) int32 as
    `latent_attention` has them. prompts: the other spans. Where every span is one token, num_pages
    is rounded up to a power of two, so that steps of equal sizes have equal shapes.
    """

    def __init__(
        self, buffer: Tensor, num_tokens: int, num_short: int, num_pages: int, num_prompts: int
    ) -> None:
        """buffer: int32, as `of` packs it."""
        self._buffer = buffer
        self._sizes = (num_tokens, num_short, num_pages, num_prompts)
        self.num_tokens, self.num_pages = num_tokens, num_pages
        longs = buffer[: 2 * (num_tokens + num_short)].view(torch.int64)
        self.slots, self.rows = longs[:num_tokens], longs[num_tokens:]
        rest = buffer[2 * (num_tokens + num_short) :]
        self.positions = rest[:num_short]
        self.tables = rest[num_short : num_short * (1 + num_pages)].view(num_short, num_pages)
        self.prompts: tuple[Prompt, ...] = ()

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device) -> Self:
        """The table of a step's sequences, one after the other."""
        num_tokens = sum(span.num_tokens for span in spans)
        short = [span for span in spans if span.num_tokens < PROMPT_TOKENS]
        num_pages = max((_num_pages(span) for span in short), default=0)
        if all(span.num_tokens == 1 for span in spans):
            num_pages = 1 << (num_pages - 1).bit_length() if num_pages else 0
        slots, rows, seen, tables, prompts = [], list[int](), list[int](), list[Tensor](), []
        first = 0
        for span in spans:
            pages = torch.tensor(list(span.pages[: _num_pages(span)]), dtype=torch.int32)
            positions = torch.arange(span.start, span.start + span.num_tokens)
            slots.append(
                pages[positions // PAGE_TOKENS].long() * PAGE_TOKENS + positions % PAGE_TOKENS
            )
            if span.num_tokens < PROMPT_TOKENS:
                row = torch.zeros(num_pages, dtype=torch.int32)
                row[: len(pages)] = pages
                tables += [row] * span.num_tokens
                rows += range(first, first + span.num_tokens)
                seen += (positions + 1).tolist()
            else:
                last = span.start + span.num_tokens
                prompts.append(Prompt(first, span.num_tokens, last, pages.long().to(device)))
            first += span.num_tokens
        longs = torch.cat([*slots, torch.tensor(rows, dtype=torch.int64)])
        ints = torch.cat([torch.tensor(seen, dtype=torch.int32), *tables])
        buffer = torch.cat([longs.view(torch.int32), ints]).to(device)
        table = cls(buffer, num_tokens, len(rows), num_pages, len(prompts))
        table.prompts = tuple(prompts)
        return table

    def clone(self) -> Self:
        """The same in memory of its own. Without prompts only."""
        assert not self.prompts
        return type(self)(self._buffer.clone(), *self._sizes)

    def copy_(self, other: Self) -> None:
        """Take another table's contents, which has the same sizes."""
        assert self._sizes == other._sizes, (self._sizes, other._sizes)
        self._buffer.copy_(other._buffer)


def _num_pages(span: Span) -> int:
    return -(-(span.start + span.num_tokens) // PAGE_TOKENS)
