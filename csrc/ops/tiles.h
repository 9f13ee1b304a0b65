// Products by matrix tiles: when they pay, and how many tokens go together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernel_table.h"

namespace hm {

constexpr int64_t kTileBlockRows = 128;  // of one call

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
  return tile_cost(c, rows, tokens) <
         std::min(gemv_cost(c, rows, tokens), gemm_cost(c, rows, tokens));
}

constexpr int64_t kMostTilesTogether = 12;  // the sums of 32 rows stay in or near the L1 cache

// Tiles of tokens that are multiplied with all rows of a task before the next ones are: they stay
// in the L2 cache, and the sums of 32 rows in or near the L1 cache. Even, since tiles go in pairs.
inline int64_t tiles_together(int64_t num_tiles, int64_t tile_words) {
  constexpr int64_t cache_bytes = 1400 * 1024;
  const int64_t tile_bytes = tile_words * int64_t{sizeof(uint16_t)};
  const int64_t most = std::clamp<int64_t>(cache_bytes / tile_bytes / 2 * 2, 2, kMostTilesTogether);
  const int64_t even = ceil_div(num_tiles, ceil_div(num_tiles, most));
  return std::min(num_tiles, (even + 1) / 2 * 2);
}

// Columns that are multiplied with all rows of a task before the next ones are, where the sums of
// these rows can wait: num_tiles tiles of tokens, in num_parts parts, stay in the L2 cache.
inline int64_t columns_together(int64_t num_tiles, int64_t num_parts, int64_t cols) {
  constexpr int64_t cache_bytes = 800 * 1024, step = 256;
  const int64_t most =
      cache_bytes / (num_tiles * num_parts * kTokenTile * int64_t{sizeof(uint16_t)});
  const int64_t parts = ceil_div(cols, std::max(step, most / step * step));
  return ceil_div(ceil_div(cols, parts), step) * step;
}

}  // namespace hm
