"""Block tables of a step's sequences in the layout of the GPU kernels."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span

__all__ = ["CudaBlockTables", "Prompt", "TokenGroup"]

# Spans of at least this many tokens have their keys and values expanded. By operations it pays from
# 170 with K2's sizes, but that kernel does more of them a second. Not measured.
PROMPT_TOKENS = 64
# Block tables of decode steps are at least as long, so that one graph serves 1024 positions.
_DECODE_PAGES = 16


class Prompt(NamedTuple):
    """Long span of a step: `num_tokens` rows, the first is `first_row`."""

    first_row: int
    num_tokens: int
    num_positions: int  # up to its last token's
    pages: Tensor  # (pages,) int64

    def group(self, first: int, end: int) -> "TokenGroup":
        """Make a group of some of its tokens."""
        seen = self.num_positions - self.num_tokens + 1  # by its first token
        return TokenGroup(
            slice(self.first_row + first, self.first_row + end),
            self.pages.int().expand(end - first, -1).contiguous(),
            torch.arange(seen + first, seen + end, dtype=torch.int32, device=self.pages.device),
        )


class TokenGroup(NamedTuple):
    """Some tokens of a step: their numbers there, tables and positions as in `CudaBlockTables`."""

    rows: slice | Tensor
    tables: Tensor
    positions: Tensor


class CudaBlockTables:
    """Block tables in VRAM, made on the host and copied in one piece.

    slots (T,) int64: KV position of each token, page * 64 + row. For the D tokens of short spans:
    rows (D,) int64, their numbers in the step; tables (D, num_pages) int32 and positions (D,) int32
    as in `latent_attention`. prompts: the long spans. If every span is one token, num_pages is
    rounded up to a power of two, so that few shapes occur.
    """

    def __init__(self, buffer: Tensor, num_tokens: int, num_short: int, num_pages: int) -> None:
        """buffer: int32, packed by `of`."""
        self.num_tokens, self.num_pages = num_tokens, num_pages
        longs = buffer[: 2 * (num_tokens + num_short)].view(torch.int64)
        self.slots, self.rows = longs[:num_tokens], longs[num_tokens:]
        rest = buffer[2 * (num_tokens + num_short) :]
        self.positions = rest[:num_short]
        self.tables = rest[num_short : num_short * (1 + num_pages)].view(num_short, num_pages)
        self.prompts: tuple[Prompt, ...] = ()

    @property
    def most_positions(self) -> int:
        """Upper bound on the positions that a token sees, the same for all steps of a graph."""
        return max(self.num_pages * PAGE_TOKENS, *(p.num_positions for p in self.prompts), 0)

    def groups(self, most_tokens: int, *, with_prompts: bool) -> Iterator[TokenGroup]:
        """Divide the tokens of short spans, and of prompts, into groups; few tokens are one."""
        if not self.prompts and self.num_tokens <= most_tokens:
            yield TokenGroup(slice(None), self.tables, self.positions)
            return
        for first in range(0, len(self.rows), most_tokens):
            part = slice(first, first + most_tokens)
            yield TokenGroup(self.rows[part], self.tables[part], self.positions[part])
        for prompt in self.prompts if with_prompts else ():
            for first in range(0, prompt.num_tokens, most_tokens):
                yield prompt.group(first, min(first + most_tokens, prompt.num_tokens))

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device) -> Self:
        """Pack the spans of a step's sequences."""
        num_tokens = sum(span.num_tokens for span in spans)
        short = [span for span in spans if span.num_tokens < PROMPT_TOKENS]
        num_pages = max((_num_pages(span) for span in short), default=0)
        if all(span.num_tokens == 1 for span in spans):
            num_pages = cls.padded_pages(spans)
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
        table = cls(buffer, num_tokens, len(rows), num_pages)
        table.prompts = tuple(prompts)
        return table

    @staticmethod
    def num_ints(num_tokens: int, num_short: int, num_pages: int) -> int:
        """Return the size of the buffer."""
        return 2 * (num_tokens + num_short) + num_short * (1 + num_pages)

    @staticmethod
    def padded_pages(spans: Sequence[Span]) -> int:
        """Return num_pages of spans of one token each."""
        num_pages = max((_num_pages(span) for span in spans), default=0)
        return max(_DECODE_PAGES, 1 << (num_pages - 1).bit_length()) if num_pages else 0

    @staticmethod
    def pack_decode(spans: Sequence[Span], num_pages: int, out: NDArray[np.int32]) -> None:
        """Write the buffer of spans of one token each, as `of` makes it."""
        tokens = len(spans)
        slots = out[: 2 * tokens].view(np.int64)
        out[2 * tokens : 4 * tokens].view(np.int64)[:] = range(tokens)  # rows
        positions = out[4 * tokens : 5 * tokens]
        tables = out[5 * tokens :].reshape(tokens, num_pages)
        for i, span in enumerate(spans):
            used = _num_pages(span)
            tables[i, :used] = span.pages[:used]
            tables[i, used:] = 0
            page, row = divmod(span.start, PAGE_TOKENS)
            slots[i] = span.pages[page] * PAGE_TOKENS + row
            positions[i] = span.start + 1


def _num_pages(span: Span) -> int:
    return -(-(span.start + span.num_tokens) // PAGE_TOKENS)
