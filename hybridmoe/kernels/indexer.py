"""Selection of the positions that sparse attention attends to, by a paged cache of index keys."""

import torch
from torch import Tensor

from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.kernels.ops import check_tensor
from hybridmoe.kernels.paged_mla import BlockTables, KvPages

__all__ = ["select_positions"]


def select_positions(
    queries: Tensor, weights: Tensor, pages: KvPages, tables: BlockTables, top_k: int
) -> Tensor:
    """Select for each of a step's tokens the `top_k` positions that its index heads score highest.

    A score is sum over heads of weight max(query . key, 0).
    Shapes:  queries (T, J, D) f32 · weights (T, J) f32 · pages of dim D -> (T, top_k) int32,
             ascending; of equal scores the earlier positions. Rows of tokens that see at most
             top_k positions are undefined: they attend to all.
    Cost:    2 T S J D operations in float32 for S positions.
    Numeric: a token's scores depend neither on the batch nor on threads.
    Errors:  ShapeError.
    Source:  DeepSeek-V3.2-Exp (arXiv 2512.02556), section 2.
    """
    check_tensor(queries, "select_positions: queries", torch.float32, 3, pages.dim)
    num_tokens, num_heads, dim = queries.shape
    check_tensor(weights, "select_positions: weights", torch.float32, 2, num_heads)
    if len(weights) != num_tokens:
        raise ShapeError(f"select_positions: weights of {len(weights)} tokens of {num_tokens}")
    selected = torch.empty((num_tokens, top_k), dtype=torch.int32)
    _C.select_positions(
        queries.data_ptr(),
        weights.data_ptr(),
        num_tokens,
        num_heads,
        dim,
        top_k,
        pages.handle,
        *tables.arguments,
        selected.data_ptr(),
    )
    return selected
