"""Inputs of paged latent attention."""

from collections.abc import Sequence

import torch

from hybridmoe.kernels.paged_mla import (
    PAGE_TOKENS,
    BlockTables,
    KvPages,
    Span,
    row_bytes,
    store_kv,
)

SCALE = 0.25

BLOCK = 256  # csrc/kernels/kernel_table.h: kAttentionBlock

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

TILE_SHAPES = [  # as SHAPES; latent and rope are multiples of 32, as matrix tiles want them
    (4, 16, 128, 32, 16),
    (64, 20, 512, 64, BLOCK + 44),
    (3, 70, 160, 0, 2 * BLOCK + 1),
    (128, 17, 128, 64, BLOCK - 1),
]

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(heads: int, tokens: int, latent: int, rope: int, positions: int) -> Inputs:
    generator = torch.Generator().manual_seed(heads + tokens)
    shapes = ((heads, tokens, latent), (tokens, heads, rope), (positions, latent + rope))
    a, b, c = (torch.randn(shape, generator=generator) for shape in shapes)
    return a, b, c


def paged(sequences: Sequence[torch.Tensor], type: str = "f32") -> tuple[KvPages, list[list[int]]]:
    """Fill scattered pages with each sequence's rows; returns them and the block tables."""
    dim = sequences[0].shape[1]
    counts = [-(-len(rows) // PAGE_TOKENS) for rows in sequences]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).tolist()
    data = torch.full((len(order), PAGE_TOKENS, row_bytes(type, dim)), 0xA5, dtype=torch.uint8)
    pages = KvPages(data, type, dim)
    tables = [[order.pop() for _ in range(count)] for count in counts]
    for rows, table in zip(sequences, tables, strict=True):
        store_kv(rows.contiguous(), pages, BlockTables([Span(len(rows), 0, table)]))
    return pages, tables


def stored(kv: torch.Tensor, type: str) -> torch.Tensor:
    """Round KV cache rows to a type, in numpy."""
    if type in DTYPES:
        return kv.to(DTYPES[type]).float()
    groups = torch.nn.functional.pad(kv, (0, -kv.shape[1] % 64)).unflatten(1, (-1, 64))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return (groups / scale).round().mul(scale).flatten(1)[:, : kv.shape[1]]
