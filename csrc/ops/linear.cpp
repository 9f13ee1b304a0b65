#include "ops/linear.h"

#include <algorithm>

#include "base/row_tasks.h"
#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/activations.h"
#include "ops/tiles.h"

namespace hm {
namespace {

// Rows of a task. Large, since a task begins with data that nothing has prefetched, but all threads
// share. By gemm: whole panels.
int64_t rows_per_task(const Matrix& w, const MatmulCosts& costs, int64_t num_tokens,
                      int num_threads) {
  constexpr int64_t task_bytes = 1024 * 1024, tasks_per_thread = 6;
  const bool panels = gemm_cost(costs, w.rows, num_tokens) < gemv_cost(costs, w.rows, num_tokens);
  const int64_t tile = panels ? 2 * kPanelRows : 4;
  const int64_t by_size = std::max<int64_t>(1, task_bytes / w.row_bytes);
  const int64_t by_share = w.batch * w.rows / (num_threads * tasks_per_thread);
  const int64_t rows = std::clamp<int64_t>(by_share, 1, by_size);
  return std::clamp<int64_t>((rows + tile - 1) / tile * tile, 1, std::max<int64_t>(w.rows, 1));
}

// By matrix tiles: tokens are packed once, then each task multiplies some rows with them.
void linear_by_tiles(const Rows<const float>& x, int64_t num_tokens, const Matrix& w,
                     const Rows<float>& out, Runtime& runtime) {
  const KernelTable& kernels = active_table();
  const int64_t parts = kernels.formats[w.type->id].tile_parts;
  const int64_t tiles = ceil_div(num_tokens, kTokenTile), part = packed_tile_words(w.cols);
  const int64_t words = parts * part;
  auto* packed = runtime.activations.get<uint16_t>(w.batch * tiles * words);
  runtime.pool.run(w.batch * tiles, [&](int64_t task, int) {
    const int64_t first = task % tiles * kTokenTile;
    const int64_t count = std::min<int64_t>(kTokenTile, num_tokens - first);
    const float* rows[kTokenTile];
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = x.data + task / tiles * x.batch_stride + (first + i) * x.token_stride;
    }
    uint16_t* tile = packed + task * words;
    kernels.tiles.pack(rows, count, w.cols, tile, parts == 2 ? tile + part : nullptr);
  });
  constexpr int64_t tasks_per_thread = 6;
  const int64_t share = w.batch * w.rows / (tasks_per_thread * runtime.pool.num_threads());
  const int64_t block = ceil_div(std::clamp<int64_t>(share, 64, 512), kPanelRows) * kPanelRows;
  const int64_t together = std::min(tiles, kMostTilesTogether);
  const int64_t cols_together = columns_together(together, parts, w.cols);
  const RowTasks tasks(runtime.pool.thread_ends(), w.batch, w.rows, block);
  runtime.pool.run_on_nodes(tasks.ends(), [&](int64_t task, int worker) {
    const auto [b, first] = tasks[task];
    const int64_t num_rows = std::min(block, w.rows - first), most = together * kTokenTile;
    uint8_t* scratch = runtime.scratch[worker].get<uint8_t>(
        kTileScratchBytes + block * most * int64_t{sizeof(float)} + most * int64_t{sizeof(float*)});
    auto* sums = reinterpret_cast<float*>(scratch + kTileScratchBytes);
    auto* to = reinterpret_cast<float**>(sums + block * most);
    for (int64_t t = 0; t < tiles; t += together) {
      const int64_t count = std::min(together * kTokenTile, num_tokens - t * kTokenTile);
      const int64_t num_tiles = ceil_div(count, kTokenTile);
      for (int64_t col = 0; col < w.cols; col += cols_together) {
        const bool is_last = col + cols_together >= w.cols;
        kernels.formats[w.type->id].matmul_tiles({
            .weights = w.row(b, first),
            .row_bytes = w.row_bytes,
            .num_rows = num_rows,
            .cols = w.cols,
            .first_col = col,
            .end_col = is_last ? w.cols : col + cols_together,
            .x = packed + (b * tiles + t) * words,
            .parts = parts,
            .num_tiles = num_tiles,
            .out = sums,
            .scratch = scratch,
            .next = w.row(b, first),
        });
      }
      scale_products(w.scale(b), sums, num_rows * num_tiles * kTokenTile);
      for (int64_t i = 0; i < count; ++i) {
        to[i] = out.data + b * out.batch_stride + (t * kTokenTile + i) * out.token_stride + first;
      }
      kernels.tiles.finish(sums, num_tiles * kTokenTile, num_rows, count, nullptr, to);
    }
  });
}

}  // namespace

void linear(const Rows<const float>& x, int64_t num_tokens, const Matrix& w,
            const Rows<float>& out) {
  if (num_tokens == 0 || w.batch == 0 || w.rows == 0) return;
  const KernelTable& kernels = active_table();
  const FormatKernels& format = kernels.formats[w.type->id];
  const RuntimeLock runtime;
  if (num_tokens >= kLeastTileTokens && prefers_tiles(kernels, format, w.rows, num_tokens)) {
    return linear_by_tiles(x, num_tokens, w, out, *runtime);
  }
  const int64_t num_inputs = w.batch * num_tokens;
  const auto rows = runtime->rows.get<const void*>(num_inputs);
  for (int64_t i = 0; i < num_inputs; ++i) {
    rows[i] = x.data + i / num_tokens * x.batch_stride + i % num_tokens * x.token_stride;
  }
  if (format.quantized) {
    quantize_rows(kernels, runtime->pool, rows, num_inputs, w.cols, runtime->activations);
  }
  const int64_t block = rows_per_task(w, kernels.costs, num_tokens, runtime->pool.num_threads());
  const RowTasks tasks(runtime->pool.thread_ends(), w.batch, w.rows, block);
  std::vector<Buffer>& scratch = runtime->scratch;
  runtime->pool.run_on_nodes(tasks.ends(), [&](int64_t task, int worker) {
    const auto [b, first] = tasks[task];
    const int64_t num_rows = std::min(block, w.rows - first);
    float* to = out.data + b * out.batch_stride + first;
    format.matmul({
        .weights = w.row(b, first),
        .row_bytes = w.row_bytes,
        .num_rows = num_rows,
        .cols = w.cols,
        .x = rows + b * num_tokens,
        .num_tokens = num_tokens,
        .out = to,
        .out_stride = out.token_stride,
        .scratch = scratch[worker].get<uint8_t>(matmul_scratch_bytes(w.cols)),
        .next = nullptr,
        .next_bytes = 0,
    });
    for (int64_t t = 0; t < num_tokens; ++t) {
      scale_products(w.scale(b), to + t * out.token_stride, num_rows);
    }
  });
}

void dequantize(const Matrix& w, float* out) {
  const auto dequantize_row = active_table().formats[w.type->id].dequantize;
  const RuntimeLock runtime;
  runtime->pool.run(w.batch * w.rows, [&](int64_t r, int) {
    const int64_t b = r / w.rows;
    dequantize_row(w.row(b, r % w.rows), w.cols, out + r * w.cols);
    scale_products(w.scale(b), out + r * w.cols, w.cols);
  });
}

void gather_rows(const Matrix& w, const int64_t* ids, int64_t num_ids, float* out) {
  check(w.batch == 1, "gather_rows: a stack of ", w.batch, " matrices, expected one");
  for (int64_t i = 0; i < num_ids; ++i) {
    check(ids[i] >= 0 && ids[i] < w.rows, "gather_rows: id ", ids[i], " at position ", i,
          ", expected 0 to ", w.rows - 1);
  }
  const auto dequantize_row = active_table().formats[w.type->id].dequantize;
  const RuntimeLock runtime;
  runtime->pool.run(num_ids, [&](int64_t i, int) {
    dequantize_row(w.row(0, ids[i]), w.cols, out + i * w.cols);
    scale_products(w.scale(0), out + i * w.cols, w.cols);
  });
}

}  // namespace hm
