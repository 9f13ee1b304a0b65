#include "ops/linear.h"

#include <algorithm>

#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/activations.h"
#include "ops/joined_tasks.h"
#include "ops/task_split.h"
#include "ops/tiles.h"

namespace hm {
namespace {

// Rounded activations are read again for each panel, and rows of floats for each few tokens.
TaskSize task_size(const Matrix& w, const KernelTable& kernels, bool quantized, int64_t num_tokens,
                   int num_threads) {
  const MatmulCosts& costs = kernels.costs;
  const auto groups = static_cast<double>(padded_weights(w.cols) / 256);
  const int64_t token_bytes = quantized ? activation_bytes(w.cols) : 4 * w.cols;
  const bool panels = quantized && takes_panels(w.rows, num_tokens);
  const auto cycles = [&](int64_t rows, int64_t tokens) {
    const bool is_large = (panels ? tokens * token_bytes : rows * w.row_bytes) > kOwnCacheBytes;
    const int64_t again = !is_large ? 1 : panels ? ceil_div(rows, kPanelRows) : ceil_div(tokens, 6);
    const int64_t bytes =
        rows * w.row_bytes * (panels ? 1 : again) + tokens * token_bytes * (panels ? again : 1);
    const double work = quantized ? vector_cost(costs, rows, tokens)
                                  : static_cast<double>(rows * tokens) * costs.dot;
    return groups * work + kCyclesPerByte * static_cast<double>(bytes);
  };
  constexpr int64_t least_tokens = 24;  // a multiple of those that any kernel takes at once
  const int64_t step = panels ? kPanelRows : 4;
  return best_task({.batch = w.batch,
                    .rows = w.rows,
                    .tokens = num_tokens,
                    .row_step = step,
                    .token_step = least_tokens,
                    .most_rows = round_up(w.rows, step),
                    .most_tokens = round_up(num_tokens, least_tokens)},
                   num_threads, cycles);
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
  const auto groups = static_cast<double>(padded_weights(w.cols) / 256);
  const auto cycles = [&](int64_t rows, int64_t some) {
    const int64_t tokens_bytes = ceil_div(some, kTokenTile) * words * int64_t{sizeof(uint16_t)};
    return groups * tile_cost(kernels.costs, rows + kPanelRows, some) +
           kCyclesPerByte * static_cast<double>(rows * w.row_bytes + tokens_bytes);
  };
  const TaskSize size = best_task({.batch = w.batch,
                                   .rows = w.rows,
                                   .tokens = num_tokens,
                                   .row_step = kPanelRows,
                                   .token_step = 2 * kTokenTile,
                                   .most_rows = 512,
                                   .most_tokens = kMostTilesTogether * kTokenTile},
                                  runtime.pool.num_threads(), cycles);
  const MatrixTasks tasks(runtime.pool.thread_ends(), w.batch, w.rows, num_tokens, size);
  const int64_t most = round_up(size.tokens, kTokenTile);
  const int64_t cols_together = columns_together(most / kTokenTile, parts, w.cols);
  const int64_t panel_bytes = tile_scratch_bytes(most / kTokenTile, cols_together);
  runtime.pool.run_on_nodes(tasks.ends(), [&](int64_t number, int worker) {
    const auto [b, first, num_rows, first_token, count] = tasks[number];
    uint8_t* scratch = runtime.scratch[worker].get<uint8_t>(
        panel_bytes + size.rows * most * int64_t{sizeof(float)} + most * int64_t{sizeof(float*)});
    auto* sums = reinterpret_cast<float*>(scratch + panel_bytes);
    auto* to = reinterpret_cast<float**>(sums + size.rows * most);
    const int64_t num_tiles = ceil_div(count, kTokenTile);
    for (int64_t col = 0; col < w.cols; col += cols_together) {
      kernels.formats[w.type->id].matmul_tiles({
          .weights = w.row(b, first),
          .row_bytes = w.row_bytes,
          .num_rows = num_rows,
          .cols = w.cols,
          .first_col = col,
          .end_col = std::min(w.cols, col + cols_together),
          .x = packed + (b * tiles + first_token / kTokenTile) * words,
          .parts = parts,
          .num_tiles = num_tiles,
          .out = sums,
          .scratch = scratch,
          .next = w.row(b, first),
      });
    }
    scale_products(w.scale(b), sums, num_rows * num_tiles * kTokenTile);
    for (int64_t i = 0; i < count; ++i) {
      to[i] = out.data + b * out.batch_stride + (first_token + i) * out.token_stride + first;
    }
    kernels.tiles.finish(sums, num_tiles * kTokenTile, num_rows, count, nullptr, to);
  });
}

// By gemv, gemm or dot products of floats: tasks of some rows of a matrix and some tokens.
class VectorProduct {
 public:
  VectorProduct(int64_t num_tokens, const Matrix& w, const Rows<float>& out, Runtime& runtime)
      : num_tokens_(num_tokens),
        w_(w),
        out_(out),
        format_(active_table().formats[w.type->id]),
        tasks_(runtime.pool.thread_ends(), w.batch, w.rows, num_tokens,
               task_size(w, active_table(), format_.quantized, num_tokens,
                         runtime.pool.num_threads())),
        scratch_(runtime.scratch) {}

  bool takes_rounded() const { return format_.quantized; }
  std::span<const int64_t> ends() const { return tasks_.ends(); }

  // rows: of x, (B, T), as the format takes them.
  void run(int64_t number, int worker, const void* const* rows) const {
    const MatrixTasks::Task task = tasks_[number];
    auto* scratch = scratch_[worker].get<uint8_t>(matmul_scratch_bytes(w_.cols, task.num_tokens));
    multiply(task, rows + task.matrix * num_tokens_ + task.first_token, scratch);
  }

  // rows: of x, (B, T), floats. Rounds those that the task takes.
  void round_and_run(int64_t number, int worker, const void* const* rows) const {
    const MatrixTasks::Task task = tasks_[number];
    const int64_t bytes = activation_bytes(w_.cols);
    const int64_t rounded_bytes = round_up(task.num_tokens * bytes, 64);
    auto* rounded = scratch_[worker].get<uint8_t>(rounded_bytes +
                                                  matmul_scratch_bytes(w_.cols, task.num_tokens));
    const void* own[kFewTokens];
    for (int64_t t = 0; t < task.num_tokens; ++t) {
      const void* row = rows[task.matrix * num_tokens_ + task.first_token + t];
      own[t] = rounded + t * bytes;
      active_table().quantize(static_cast<const float*>(row), 0, w_.cols, w_.cols,
                              rounded + t * bytes);
    }
    multiply(task, own, rounded + rounded_bytes);
  }

 private:
  // rows: of the task's tokens.
  void multiply(const MatrixTasks::Task& task, const void* const* rows, uint8_t* scratch) const {
    const auto [b, first, num_rows, first_token, count] = task;
    float* to = out_.data + b * out_.batch_stride + first_token * out_.token_stride + first;
    format_.matmul({
        .weights = w_.row(b, first),
        .row_bytes = w_.row_bytes,
        .num_rows = num_rows,
        .cols = w_.cols,
        .x = rows,
        .num_tokens = count,
        .out = to,
        .out_stride = out_.token_stride,
        .scratch = scratch,
        .next = nullptr,
        .next_bytes = 0,
    });
    for (int64_t t = 0; t < count; ++t) {
      scale_products(w_.scale(b), to + t * out_.token_stride, num_rows);
    }
  }

  const int64_t num_tokens_;
  const Matrix& w_;
  const Rows<float>& out_;
  const FormatKernels& format_;
  const MatrixTasks tasks_;
  std::vector<Buffer>& scratch_;
};

// Pointers to the rows of x, (B, T).
const void** rows_of(const Rows<const float>& x, int64_t batch, int64_t num_tokens,
                     Buffer& memory) {
  const auto rows = memory.get<const void*>(batch * num_tokens);
  for (int64_t b = 0, i = 0; b < batch; ++b) {
    const float* row = x.data + b * x.batch_stride;
    for (int64_t t = 0; t < num_tokens; ++t, row += x.token_stride) rows[i++] = row;
  }
  return rows;
}

}  // namespace

void linear(const Rows<const float>& x, int64_t num_tokens, const Matrix& w,
            const Rows<float>& out) {
  if (num_tokens == 0 || w.batch == 0 || w.rows == 0) return;
  const KernelTable& kernels = active_table();
  const RuntimeLock runtime;
  const FormatKernels& format = kernels.formats[w.type->id];
  if (num_tokens >= kLeastTileTokens && prefers_tiles(kernels, format, w.rows, num_tokens)) {
    return linear_by_tiles(x, num_tokens, w, out, *runtime);
  }
  const VectorProduct product(num_tokens, w, out, *runtime);
  const auto rows = rows_of(x, w.batch, num_tokens, runtime->rows);
  if (product.takes_rounded() && w.batch > 1 && num_tokens <= kFewTokens) {  // a job less
    runtime->pool.run_on_nodes(product.ends(), [&](int64_t number, int worker) {
      product.round_and_run(number, worker, rows);
    });
    return;
  }
  if (product.takes_rounded()) {
    quantize_rows(kernels, runtime->pool, rows, w.batch * num_tokens, w.cols, runtime->activations);
  }
  runtime->pool.run_on_nodes(
      product.ends(), [&](int64_t number, int worker) { product.run(number, worker, rows); });
}

void linear_pair(const Rows<const float>& x, int64_t num_tokens, const Matrix* const (&w)[2],
                 const Rows<float> (&out)[2]) {
  const KernelTable& kernels = active_table();
  const bool are_alike =
      kernels.formats[w[0]->type->id].quantized == kernels.formats[w[1]->type->id].quantized &&
      w[0]->cols == w[1]->cols && w[0]->batch == 1 && w[1]->batch == 1;
  if (!are_alike || num_tokens == 0 || num_tokens >= kLeastTileTokens) {
    for (int i = 0; i < 2; ++i) linear(x, num_tokens, *w[i], out[i]);
    return;
  }
  const RuntimeLock runtime;
  const VectorProduct products[2] = {{num_tokens, *w[0], out[0], *runtime},
                                     {num_tokens, *w[1], out[1], *runtime}};
  const auto rows = rows_of(x, 1, num_tokens, runtime->rows);
  if (products[0].takes_rounded()) {
    quantize_rows(kernels, runtime->pool, rows, num_tokens, w[0]->cols, runtime->activations);
  }
  const JoinedTasks tasks(products[0].ends(), products[1].ends());
  runtime->pool.run_on_nodes(tasks.ends(), [&](int64_t task, int worker) {
    const auto [job, number] = tasks[task];
    products[job].run(number, worker, rows);
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
