"""Paged KV cache of MLA and attention over it, for all sequences of a step.

As in ops.py: shapes are checked here, csrc computes, and a token's bits depend neither on the other
sequences nor on how its own are divided into calls.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.config import KV_TYPES, PAGE_TOKENS, kv_row_bytes
from hybridmoe.errors import ShapeError
from hybridmoe.kernels.ops import check_rows, check_tensor

__all__ = [
    "PAGE_TOKENS",
    "BlockTables",
    "KvPages",
    "Part",
    "Span",
    "convert_rows",
    "latent_attention",
    "row_bytes",
    "store_kv",
]

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def row_bytes(type: str, dim: int) -> int:
    """Count the bytes of one token in one layer. Raises ShapeError for an unknown type."""
    if type not in KV_TYPES:
        raise ShapeError(f"KV cache: type {type}, expected one of {', '.join(KV_TYPES)}")
    return kv_row_bytes(type, dim)


@dataclass(frozen=True, slots=True)
class KvPages:
    """Pages of one layer: PAGE_TOKENS rows of `dim` numbers, "f32", "f16", "bf16" or "int8".

    Shapes: data (pages, PAGE_TOKENS, row_bytes(type, dim)) uint8, contiguous. Raises ShapeError.
    index_keys: pages with as many rows, in layers with an indexer.
    """

    data: Tensor
    type: str
    dim: int
    index_keys: "KvPages | None" = None
    handle: _C.KvPages = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_tensor(self.data, "KvPages: data", torch.uint8, 3, row_bytes(self.type, self.dim))
        num_pages, page_tokens, _ = self.data.shape
        if page_tokens != PAGE_TOKENS:
            raise ShapeError(f"KvPages: pages of {page_tokens} rows, expected {PAGE_TOKENS}")
        handle = _C.KvPages(self.data.data_ptr(), self.data.numel(), self.type, num_pages, self.dim)
        object.__setattr__(self, "handle", handle)


class Span(NamedTuple):
    """Chunk of a sequence in a step: `num_tokens` tokens, the first at position `start`."""

    num_tokens: int
    start: int
    pages: Sequence[int]  # position p lies in pages[p // PAGE_TOKENS]
    num_expanded: int = 0  # first tokens that attend to expanded keys and values, on a CPU


class Part(NamedTuple):
    """Consecutive tokens of a step, all or none of them with expanded keys and values."""

    first: int
    tables: "BlockTables"
    is_expanded: bool


class BlockTables:
    """Block tables of a step's sequences, one after the other."""

    def __init__(self, spans: Sequence[Span]) -> None:
        rows, entries = array("q"), array("i")  # a torch tensor takes 0.1 ms in a cold cache
        self._parts: list[Part] | None = None
        self._pieces = list(spans)
        self.num_tokens = self.num_expanded = self.most_positions = 0
        for num_tokens, start, pages, num_expanded in spans:
            end = start + num_tokens
            rows.extend((num_tokens, start, len(entries)))
            entries.extend(pages[: -(-end // PAGE_TOKENS)])
            self.num_tokens += num_tokens
            self.num_expanded += num_expanded
            self.most_positions = max(self.most_positions, end)
        self._spans, self._entries = rows, entries

    def parts(self) -> list[Part]:
        """Part the tokens into those with expanded keys and values, and others."""
        if self._parts is None:
            runs = list[tuple[bool, list[Span]]]()
            for span in self._pieces:
                for piece, is_expanded in _cut(span):
                    if runs and runs[-1][0] == is_expanded:
                        runs[-1][1].append(piece)
                    else:
                        runs.append((is_expanded, [piece]))
            tables = [self] if len(runs) <= 1 else [BlockTables(spans) for _, spans in runs]
            firsts = accumulate((t.num_tokens for t in tables), initial=0)
            self._parts = [
                Part(first, t, is_expanded)
                for first, t, (is_expanded, _) in zip(firsts, tables, runs, strict=False)
            ]
        return self._parts

    @property
    def arguments(self) -> tuple[int, int, int, int]:
        """Arguments of the native functions."""
        spans, entries = self._spans.buffer_info(), self._entries.buffer_info()
        return spans[0], spans[1] // 3, *entries


def _cut(span: Span) -> Iterator[tuple[Span, bool]]:
    """Cut a span behind its expanded tokens."""
    num_expanded, rest = span.num_expanded, span.num_tokens - span.num_expanded
    if num_expanded:
        yield span._replace(num_tokens=num_expanded), True
    if rest:
        yield Span(rest, span.start + num_expanded, span.pages), False


def store_kv(rows: Tensor, pages: KvPages, tables: BlockTables) -> None:
    """Write a step's rows to the KV cache, rounded to its type.

    Shapes:  rows (T, dim) f32.
    Numeric: f16 and bf16 to nearest even, finite numbers beyond f16's range to its greatest; int8
             with a float32 scale, absmax / 127, for each 64 numbers.
    Errors:  ShapeError, also for tables that do not fit the pages.
    """
    check_tensor(rows, "store_kv: rows", torch.float32, 2, pages.dim)
    _C.store_kv(rows.data_ptr(), rows.shape[0], pages.handle, *tables.arguments)


def convert_rows(rows: Tensor, type: str, to: str, dim: int) -> Tensor:
    """Convert rows (T, row_bytes(type, dim)) to (T, row_bytes(to, dim)), uint8, on the CPU.

    Rounded as `store_kv` does it. Errors: ShapeError.
    """
    check_tensor(rows, "convert_rows: rows", torch.uint8, 2, row_bytes(type, dim))
    num_tokens, num_pages = len(rows), -(-len(rows) // PAGE_TOKENS)
    data = torch.empty((num_pages, PAGE_TOKENS, row_bytes(to, dim)), dtype=torch.uint8)
    tables = BlockTables([Span(num_tokens, 0, range(num_pages))])
    store_kv(_widened(rows, type, dim), KvPages(data, to, dim), tables)
    return data.flatten(0, 1)[:num_tokens]


def _widened(rows: Tensor, type: str, dim: int) -> Tensor:
    """Widen rows to float32 (T, dim)."""
    if type != "int8":
        return rows.view(_DTYPES[type]).float()
    codes_at = row_bytes(type, dim) - -(-dim // 4) * 4  # behind a scale for each 64 codes
    scales = rows[:, :codes_at].contiguous().view(torch.float32).repeat_interleave(64, 1)
    return rows[:, codes_at : codes_at + dim].view(torch.int8) * scales[:, :dim]


def latent_attention(
    q_latent: Tensor,
    q_rope: Tensor,
    pages: KvPages,
    tables: BlockTables,
    scale: float,
    selected: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend causally from a step's tokens to their sequences' KV cache: absorbed MLA.

    Shapes:  q_latent (N, T, R) f32 · q_rope (T, N, P) f32, its rows anywhere ·
             pages of dim R + P, the first R numbers of each row also its value ·
             selected (T, k) int32 of `indexer.select_positions` -> (N, T, R) f32, in `out` where
             that is given.
    Cost:    2 N T S (2 R + P) operations in float32, half of them where T = S; S at most k.
    Numeric: softmax over blocks of 256 positions, merged in order; no score is rounded.
    Errors:  ShapeError.
    Source:  DeepSeek-V2 (arXiv 2405.04434), section 2.1; online softmax, Milakov & Gimelshein 2018;
             pages, Kwon et al. 2023 (arXiv 2309.06180).
    """
    check_tensor(q_latent, "latent_attention: q_latent", torch.float32, 3, None)
    num_heads, tokens, latent_dim = q_latent.shape
    check_rows(q_rope, "latent_attention: q_rope", 3, None, tokens, num_heads)
    if selected is not None:
        check_tensor(selected, "latent_attention: selected", torch.int32, 2, None)
        if len(selected) != tokens:
            raise ShapeError(f"latent_attention: selections of {len(selected)} tokens of {tokens}")
    token_stride, head_stride, rope_dim = *q_rope.stride()[:2], q_rope.shape[2]
    if out is None:
        out = torch.empty_like(q_latent)  # (N, T, R)
    elif not out.is_contiguous() or out.shape != q_latent.shape or out.dtype != q_latent.dtype:
        raise ShapeError(f"latent_attention: out is {out.dtype} {tuple(out.shape)}")
    _C.latent_attention(
        q_latent.data_ptr(),
        q_rope.data_ptr(),
        token_stride,
        head_stride,
        tokens,
        num_heads,
        latent_dim,
        rope_dim,
        scale,
        0 if selected is None else selected.data_ptr(),
        0 if selected is None else selected.shape[1],
        pages.handle,
        *tables.arguments,
        out.data_ptr(),
    )
    return out
