// Products by matrix tiles: when they pay, and how many tokens go together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernel_table.h"

namespace hm {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Smaller steps do without tiles, so that a decoding sequence has the same bits whatever else is in
// its batch.
constexpr int64_t kLeastTileTokens = kTokenTile;

// True if the active kernels' cost model prefers tiles for this many tokens.
inline bool prefers_tiles(const KernelTable& kernels, const FormatKernels& format, int64_t rows,
                          int64_t tokens) {
  if (format.matmul_tiles == nullptr) return false;
  MatmulCosts c = kernels.costs;
  c.matrix_dot *= format.tile_parts;
  return tile_cost(c, rows, tokens) < vector_cost(c, rows, tokens);
}

constexpr int64_t kMostTilesTogether = 16;

// Rows whose sums wait, in the L2 cache, from one part of the columns to the next.
constexpr int64_t rows_together(int64_t num_tiles) {
  return std::min<int64_t>(512, 4096 / num_tiles / kPanelRows * kPanelRows);
}
static_assert(rows_together(kMostTilesTogether) >= kPanelRows);

// Tiles of tokens that share an unpacking of the weights. Even, since tiles go in pairs.
inline int64_t tiles_together(int64_t num_tiles) {
  const int64_t even = ceil_div(num_tiles, ceil_div(num_tiles, kMostTilesTogether));
  return std::min(num_tiles, (even + 1) / 2 * 2);
}

// Columns that are multiplied with all rows of a block before the next ones are: num_tiles tiles of
// tokens, in num_parts parts, and the panels of weights stay in the L2 cache.
inline int64_t columns_together(int64_t num_tiles, int64_t num_parts, int64_t cols) {
  constexpr int64_t cache_bytes = 1024 * 1024, step = 256, word = sizeof(uint16_t);
  const bool held = num_tiles <= kHeldTiles;
  const int64_t panels = held ? 0 : 2 * kPanelRows * word;  // of a column
  const int64_t most = cache_bytes / (num_tiles * num_parts * kTokenTile * word + panels);
  const int64_t parts = ceil_div(cols, std::max(step, most / step * step));
  return ceil_div(ceil_div(cols, parts), step) * step;
}

}  // namespace hm
