#include "ops/linear.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "base/pause.h"
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
                   int num_threads, int64_t row_step) {
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
  const int64_t step = std::max<int64_t>(panels ? kPanelRows : 4, row_step);
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
  VectorProduct(int64_t num_tokens, const Matrix& w, const Rows<float>& out, Runtime& runtime,
                int64_t row_step = 1)
      : num_tokens_(num_tokens),
        w_(w),
        out_(out),
        format_(active_table().formats[w.type->id]),
        tasks_(runtime.pool.thread_ends(), w.batch, w.rows, num_tokens,
               task_size(w, active_table(), format_.quantized, num_tokens,
                         runtime.pool.num_threads(), row_step)),
        scratch_(runtime.scratch) {}

  bool takes_rounded() const { return format_.quantized; }
  std::span<const int64_t> ends() const { return tasks_.ends(); }
  SideWork::Part operator[](int64_t number) const { return tasks_[number]; }

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

// Tasks that every part of a product needs. Each is a task of the job, which come first; a thread
// that has a part already does those that nobody has begun, and waits for the others.
class FirstTasks {
 public:
  explicit FirstTasks(const SideWork& work) : work_(work), num_left_(work.num_first) {}

  // False if all have begun.
  bool run_one() {
    const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= work_.num_first) return false;
    struct Done {  // also where it throws: then the whole job ends with that
      std::atomic<int64_t>& num_left;
      ~Done() { num_left.fetch_sub(1, std::memory_order_release); }
    } const done{num_left_};
    work_.first(task);
    return true;
  }

  void finish() {
    if (num_left_.load(std::memory_order_acquire) == 0) return;
    while (run_one()) {
    }
    constexpr int most_spins = 1 << 12;  // then the OS may have taken a thread's core
    for (int i = 0; num_left_.load(std::memory_order_acquire) > 0; ++i) {
      if (i < most_spins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  const SideWork& work_;
  std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int64_t> num_left_;
};

// multiply(number, worker): a task of the products, part(number): what of them it is.
template <class Part, class Multiply>
void run_with(const SideWork& work, std::span<const int64_t> ends, ThreadPool& pool,
              const Part& part_of, const Multiply& multiply) {
  FirstTasks first(work);
  const auto part = [&](int64_t number, int worker) {
    first.finish();
    if (work.before) work.before(part_of(number));
    multiply(number, worker);
    if (work.after) work.after(part_of(number));
  };
  const int64_t before_all = work.num_first + (work.once ? 1 : 0);
  if (before_all == 0) return pool.run_on_nodes(ends, part);
  const std::vector<int64_t> of_first_node(ends.size(), before_all);
  const JoinedTasks tasks(of_first_node, ends);
  pool.run_on_nodes(tasks.ends(), [&](int64_t task, int worker) {
    const auto [job, number] = tasks[task];
    if (job == 1) return part(number, worker);
    if (number == work.num_first) return work.once();
    first.run_one();
  });
}

template <class Multiply>
void run_with(const SideWork& work, const VectorProduct& product, ThreadPool& pool,
              const Multiply& multiply) {
  run_with(work, product.ends(), pool, [&](int64_t number) { return product[number]; }, multiply);
}

// Before or after all of a product, a few tokens a task.
void each_part(const std::function<void(const SideWork::Part&)>& work, const Matrix& w,
               int64_t num_tokens, ThreadPool& pool) {
  if (!work) return;
  const int64_t parts = ceil_div(num_tokens, kTokenTile);
  pool.run(w.batch * parts, [&](int64_t task, int) {
    const int64_t first = task % parts * kTokenTile;
    work({task / parts, 0, w.rows, first, std::min<int64_t>(kTokenTile, num_tokens - first)});
  });
}

void run_pair(const void* const* rows, int64_t num_tokens, const Matrix* const (&w)[2],
              const Rows<float> (&out)[2], const SideWork& work, Runtime& runtime) {
  const VectorProduct products[2] = {{num_tokens, *w[0], out[0], runtime},
                                     {num_tokens, *w[1], out[1], runtime}};
  const JoinedTasks tasks(products[0].ends(), products[1].ends());
  run_with(
      work, tasks.ends(), runtime.pool,
      [&](int64_t task) { return products[tasks[task].job][tasks[task].number]; },
      [&](int64_t task, int worker) {
        const auto [job, number] = tasks[task];
        products[job].run(number, worker, rows);
      });
}

bool takes_tiles(const Matrix& w, int64_t num_tokens) {
  const KernelTable& kernels = active_table();
  return num_tokens >= kLeastTileTokens &&
         prefers_tiles(kernels, kernels.formats[w.type->id], w.rows, num_tokens);
}

}  // namespace

bool are_alike(const Matrix& a, const Matrix& b) {
  const KernelTable& kernels = active_table();
  return kernels.formats[a.type->id].quantized == kernels.formats[b.type->id].quantized &&
         a.cols == b.cols && a.batch == 1 && b.batch == 1;
}

bool takes_rounded(const Matrix& w, int64_t num_tokens) {
  return active_table().formats[w.type->id].quantized && !takes_tiles(w, num_tokens);
}

void linear(const Rows<const float>& x, int64_t num_tokens, const Matrix& w, const Rows<float>& out,
            const SideWork& work) {
  if (num_tokens == 0 || w.batch == 0 || w.rows == 0) return;
  check(work.num_first == 0, "linear: its rows are floats from the start");
  const RuntimeLock runtime;
  ThreadPool& pool = runtime->pool;
  if (takes_tiles(w, num_tokens)) {
    if (work.once) work.once();
    each_part(work.before, w, num_tokens, pool);
    linear_by_tiles(x, num_tokens, w, out, *runtime);
    return each_part(work.after, w, num_tokens, pool);
  }
  const VectorProduct product(num_tokens, w, out, *runtime, work.row_step);
  const auto rows = rows_of(x, w.batch, num_tokens, runtime->rows);
  if (product.takes_rounded() && w.batch > 1 && num_tokens <= kFewTokens) {  // a job less
    return run_with(work, product, pool, [&](int64_t number, int worker) {
      product.round_and_run(number, worker, rows);
    });
  }
  if (product.takes_rounded()) {
    quantize_rows(active_table(), pool, rows, w.batch * num_tokens, w.cols, runtime->activations);
  }
  run_with(work, product, pool,
           [&](int64_t number, int worker) { product.run(number, worker, rows); });
}

void linear_of(const void* const* rows, int64_t num_tokens, const Matrix& w, const Rows<float>& out,
               const SideWork& work) {
  if (num_tokens == 0 || w.rows == 0) return;
  const RuntimeLock runtime;
  const VectorProduct product(num_tokens, w, out, *runtime, work.row_step);
  run_with(work, product, runtime->pool,
           [&](int64_t number, int worker) { product.run(number, worker, rows); });
}

void linear_pair(const Rows<const float>& x, int64_t num_tokens, const Matrix* const (&w)[2],
                 const Rows<float> (&out)[2]) {
  const KernelTable& kernels = active_table();
  if (!are_alike(*w[0], *w[1]) || num_tokens == 0 || num_tokens >= kLeastTileTokens) {
    for (int i = 0; i < 2; ++i) linear(x, num_tokens, *w[i], out[i]);
    return;
  }
  const RuntimeLock runtime;
  const auto rows = rows_of(x, 1, num_tokens, runtime->rows);
  if (kernels.formats[w[0]->type->id].quantized) {
    quantize_rows(kernels, runtime->pool, rows, num_tokens, w[0]->cols, runtime->activations);
  }
  run_pair(rows, num_tokens, w, out, {}, *runtime);
}

void linear_pair_of(const void* const* rows, int64_t num_tokens, const Matrix* const (&w)[2],
                    const Rows<float> (&out)[2], const SideWork& work) {
  run_pair(rows, num_tokens, w, out, work, *RuntimeLock());
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
