// The experts of a step by gemv or gemm: their tokens sorted by expert, and the jobs on them.
#pragma once

#include <algorithm>
#include <iterator>
#include <span>

#include "base/fetch.h"
#include "base/row_tasks.h"
#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/activations.h"
#include "ops/expert_ffn.h"
#include "ops/joined_tasks.h"
#include "ops/routing.h"
#include "ops/task_split.h"
#include "ops/tiles.h"

namespace hm {
namespace {

constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kSumColumns = 1024, kLeastSumColumns = 256;  // of a task
constexpr int64_t kTaskTokens = 512;  // bounds the gate and up values that a task holds
constexpr int64_t kMaxTopK = 64;

// True if an expert with this many tokens goes through matrix tiles.
bool takes_tiles(const ExpertFfnArgs& a, int64_t tokens) {
  if (a.num_tokens < kLeastTileTokens) return false;
  const KernelTable& kernels = active_table();
  for (const Matrix* w : {&a.gate, &a.up, &a.down}) {
    if (!prefers_tiles(kernels, kernels.formats[w->type->id], w->rows, tokens)) return false;
  }
  return true;
}

void route(const ExpertFfnArgs& a, Routing& r) {
  const int64_t pairs = a.num_tokens * a.top_k, experts = a.gate.batch;
  r.next.assign(experts, 0);
  for (int64_t i = 0; i < pairs; ++i) {
    if (expert_of(a, i) >= 0) ++r.next[expert_of(a, i)];
  }
  r.untiled.clear();
  r.tiled.clear();
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t count = r.next[e];
    if (count > 0) (takes_tiles(a, count) ? r.tiled : r.untiled).push_back({e, 0, count});
  }
  int64_t slots = 0;
  for (auto* batches : {&r.untiled, &r.tiled}) {
    for (Batch& batch : *batches) {
      batch.first = r.next[batch.expert] = slots;
      slots += batch.count;
    }
    if (batches == &r.untiled) r.num_untiled_slots = slots;
  }
  r.slot_of.assign(pairs, -1);
  r.pair_of.resize(slots);
  for (int64_t i = 0; i < pairs; ++i) {
    if (expert_of(a, i) < 0) continue;
    const int64_t slot = r.next[expert_of(a, i)]++;
    r.slot_of[i] = slot;
    r.pair_of[slot] = i;
  }
}

// The experts by gemv or gemm. Their products wait in `buffers` until all are there.
class Forward {
 public:
  Forward(const ExpertFfnArgs& args, const Routing& routing, Buffers& buffers)
      : a_(args),
        routing_(routing),
        buffers_(buffers),
        kernels_(active_table()),
        gate_(kernels_.formats[args.gate.type->id]),
        up_(kernels_.formats[args.up.type->id]),
        down_(kernels_.formats[args.down.type->id]),
        hidden_(args.gate.cols),
        inter_(args.gate.rows),
        num_slots_(routing.num_untiled_slots) {}

  // Memory of all stages, and the activation rows in slot order. `other` has been prepared with the
  // same tokens, or is null.
  void prepare(Runtime& runtime, const Forward* other = nullptr) {
    if (num_slots_ == 0) return;
    tasks_ahead_ = std::max(1, runtime.pool.num_threads() / runtime.pool.num_nodes());
    const bool quantized = gate_.quantized || up_.quantized;
    const void** tokens = buffers_.token_rows.get<const void*>(a_.num_tokens);
    if (quantized && a_.rounded != nullptr) {
      std::copy_n(a_.rounded, a_.num_tokens, tokens);
    } else if (quantized && other != nullptr && other->rounded_tokens_ != nullptr) {
      std::copy_n(other->rounded_tokens_, a_.num_tokens, tokens);
    } else {
      for (int64_t t = 0; t < a_.num_tokens; ++t) tokens[t] = a_.x + t * hidden_;
      if (quantized) {
        quantize_rows(kernels_, runtime.pool, tokens, a_.num_tokens, hidden_, buffers_.activations);
      }
    }
    if (quantized) rounded_tokens_ = tokens;
    rounded_x_ = buffers_.rows.get<const void*>(2 * num_slots_);
    float_x_ = rounded_x_ + num_slots_;
    inter_bytes_ = down_.quantized ? activation_bytes(inter_) : inter_ * int64_t{sizeof(float)};
    inter_memory_ = buffers_.hidden.get<uint8_t>(num_slots_ * inter_bytes_);
    inter_x_ = buffers_.hidden_rows.get<const void*>(num_slots_);
    products_ = buffers_.outputs.get<float>(num_slots_ * hidden_);
    for (int64_t slot = 0; slot < num_slots_; ++slot) {
      const int64_t token = routing_.pair_of[slot] / a_.top_k;
      rounded_x_[slot] = tokens[token];
      float_x_[slot] = a_.x + token * hidden_;
      inter_x_[slot] = inter_memory_ + slot * inter_bytes_;
    }
  }

  // The products of some of routing.untiled.
  void compute(std::span<const Batch> batches, Runtime& runtime) {
    const RowTasks inter_tasks = this->inter_tasks(batches, runtime);
    runtime.pool.run_on_nodes(inter_tasks.ends(), [&](int64_t task, int worker) {
      const RowTasks::Task rows = inter_tasks[task];
      gate_up(batches[rows.matrix], rows, runtime.scratch[worker]);
    });
    const RowTasks hidden_tasks = this->hidden_tasks(batches, runtime);
    runtime.pool.run_on_nodes(hidden_tasks.ends(), [&](int64_t task, int worker) {
      const RowTasks::Task rows = hidden_tasks[task];
      project_down(batches[rows.matrix], rows, runtime.scratch[worker]);
    });
  }

  // Writes the result, as far as these experts make it.
  void sum(Runtime& runtime) const {
    each_sum(a_.num_tokens, hidden_, runtime, [&](int64_t token, int64_t first, int64_t count) {
      sum_columns(token, first, count);
    });
  }

  // All of routing.untiled, and of another network of the same tokens, which has the results of
  // this one as its base: in the jobs of one.
  void compute_and_sum_with(Forward& other, Runtime& runtime) {
    Forward* const both[] = {this, &other};
    const std::span<const Batch> batches[] = {routing_.untiled, other.routing_.untiled};
    {
      const RowTasks rows[] = {inter_tasks(batches[0], runtime),
                               other.inter_tasks(batches[1], runtime)};
      const JoinedTasks tasks(rows[0].ends(), rows[1].ends());
      runtime.pool.run_on_nodes(tasks.ends(), [&](int64_t task, int worker) {
        const auto [job, number] = tasks[task];
        const RowTasks::Task of = rows[job][number];
        both[job]->gate_up(batches[job][of.matrix], of, runtime.scratch[worker]);
      });
    }
    const RowTasks rows[] = {hidden_tasks(batches[0], runtime),
                             other.hidden_tasks(batches[1], runtime)};
    const JoinedTasks tasks(rows[0].ends(), rows[1].ends());
    runtime.pool.run_on_nodes(tasks.ends(), [&](int64_t task, int worker) {
      const auto [job, number] = tasks[task];
      const RowTasks::Task of = rows[job][number];
      both[job]->project_down(batches[job][of.matrix], of, runtime.scratch[worker]);
    });
    each_sum(a_.num_tokens, hidden_, runtime, [&](int64_t token, int64_t first, int64_t count) {
      for (const Forward* one : both) one->sum_columns(token, first, count);
    });
  }

 private:
  // Rows of a task. Large where memory is the bound, since a task begins with data that nothing has
  // prefetched; small for many tokens, whose results a task holds.
  static int64_t rows_per_task(std::span<const Batch> batches, const Runtime& runtime,
                               const Matrix& w, int64_t least, int64_t most) {
    constexpr int64_t few_tokens = 8, many_tokens = 128;
    constexpr int64_t step = 32, long_task_bytes = 128 * 1024;
    const int64_t share =
        std::ssize(batches) * w.rows / (kTasksPerThread * runtime.pool.num_threads());
    const int64_t wanted = std::max(share / step * step, step);
    int64_t most_tokens = 0;
    for (const Batch& batch : batches) most_tokens = std::max(most_tokens, batch.count);
    if (most_tokens > few_tokens) {  // a task of many panels prepares its tokens once for all
      return most_tokens < many_tokens ? least : std::clamp(wanted, least, 4 * step);
    }
    return std::min(most,
                    wanted * w.row_bytes < long_task_bytes ? std::max(least, wanted) : wanted);
  }

  RowTasks inter_tasks(std::span<const Batch> batches, const Runtime& runtime) {
    inter_rows_ = rows_per_task(batches, runtime, a_.gate, 32, 256);  // whole blocks of activations
    return {runtime.pool.thread_ends(), std::ssize(batches), inter_, inter_rows_};
  }

  RowTasks hidden_tasks(std::span<const Batch> batches, const Runtime& runtime) const {
    return {runtime.pool.thread_ends(), std::ssize(batches), hidden_,
            rows_per_task(batches, runtime, a_.down, 64, 1024)};
  }

  // f(token, first column, number of columns)
  template <class Function>
  static void each_sum(int64_t num_tokens, int64_t hidden, Runtime& runtime, const Function& f) {
    const int64_t share = ceil_div(num_tokens * hidden, runtime.pool.num_threads());
    const int64_t columns = round_up(std::clamp(share, kLeastSumColumns, kSumColumns), 16);
    const int64_t parts = ceil_div(hidden, columns);
    runtime.pool.run(num_tokens * parts, [&](int64_t task, int) {
      const int64_t first = task % parts * columns;
      f(task / parts, first, std::min(columns, hidden - first));
    });
  }

  // The rows that a thread will probably read after a task: a node's threads take turns.
  void set_next(MatmulArgs& args, const ExpertMatrix& w, int64_t expert,
                const RowTasks::Task& task) const {
    const int64_t first = task.first_row + tasks_ahead_ * task.num_rows();
    const int64_t rows = std::clamp<int64_t>(task.node_end - first, 0, task.num_rows());
    args.next = rows > 0 ? w.row(expert, first) : nullptr;
    args.next_bytes = rows * w.row_bytes;
  }

  // silu(gate x) * up x for some rows of one expert, rounded for the next stage.
  void gate_up(const Batch& batch, const RowTasks::Task& task, Buffer& memory) const {
    const int64_t first = task.first_row, rows = task.num_rows();
    const int64_t most_tokens = std::min(kTaskTokens, batch.count);
    const int64_t values = most_tokens * inter_rows_;
    const int64_t scratch_floats =
        matmul_scratch_bytes(hidden_, most_tokens) / int64_t{sizeof(float)};
    float* gate_out = memory.get<float>(3 * values + scratch_floats);
    float* up_out = gate_out + values;
    float* product = up_out + values;
    float* scratch = product + values;
    for (int64_t done = 0; done < batch.count; done += kTaskTokens) {
      const int64_t slot = batch.first + done;
      MatmulArgs args{
          .weights = a_.gate.row(batch.expert, first),
          .row_bytes = a_.gate.row_bytes,
          .num_rows = rows,
          .cols = hidden_,
          .x = (gate_.quantized ? rounded_x_ : float_x_) + slot,
          .num_tokens = std::min(most_tokens, batch.count - done),
          .out = gate_out,
          .out_stride = inter_rows_,
          .scratch = scratch,
          .next = a_.up.row(batch.expert, first),
          .next_bytes = rows * a_.up.row_bytes,
      };
      gate_.matmul(args);
      scale_products(a_.gate.scale(batch.expert), gate_out, args.num_tokens * inter_rows_);
      args.weights = a_.up.row(batch.expert, first);
      args.row_bytes = a_.up.row_bytes;
      args.x = (up_.quantized ? rounded_x_ : float_x_) + slot;
      args.out = up_out;
      set_next(args, a_.gate, batch.expert, task);
      up_.matmul(args);
      scale_products(a_.up.scale(batch.expert), up_out, args.num_tokens * inter_rows_);
      for (int64_t t = 0; t < args.num_tokens; ++t) {
        uint8_t* row = inter_memory_ + (slot + t) * inter_bytes_;
        const int64_t at = t * inter_rows_;
        if (down_.quantized) {
          kernels_.silu_mul(gate_out + at, up_out + at, rows, product + at);
          kernels_.quantize(product + at, first, rows, inter_, row);
        } else {
          kernels_.silu_mul(gate_out + at, up_out + at, rows,
                            reinterpret_cast<float*>(row) + first);
        }
      }
    }
  }

  void project_down(const Batch& batch, const RowTasks::Task& task, Buffer& memory) const {
    MatmulArgs args{
        .weights = a_.down.row(batch.expert, task.first_row),
        .row_bytes = a_.down.row_bytes,
        .num_rows = task.num_rows(),
        .cols = inter_,
        .x = inter_x_ + batch.first,
        .num_tokens = batch.count,
        .out = products_ + batch.first * hidden_ + task.first_row,
        .out_stride = hidden_,
        .scratch = memory.get<uint8_t>(matmul_scratch_bytes(inter_, batch.count)),
        .next = nullptr,
        .next_bytes = 0,
    };
    set_next(args, a_.down, batch.expert, task);
    down_.matmul(args);
  }

  // Some columns of one token's result.
  void sum_columns(int64_t token, int64_t first, int64_t columns) const {
    const float* rows[kMaxTopK];
    float weights[kMaxTopK];
    int64_t terms = 0;
    for (int64_t j = token * a_.top_k; j < (token + 1) * a_.top_k; ++j) {
      const int64_t slot = routing_.slot_of[j];
      if (slot < 0 || slot >= num_slots_) continue;
      rows[terms] = products_ + slot * hidden_ + first;
      weights[terms++] = pair_weight(a_, j);
    }
    float* out = a_.out + token * hidden_ + first;
    kernels_.weighted_sum(rows, weights, terms, columns, out);
    if (a_.read_next != nullptr) fetch(a_.read_next + first, columns * int64_t{sizeof(float)});
    if (a_.base != nullptr) {
      const float* base = a_.base + token * hidden_ + first;
      for (int64_t i = 0; i < columns; ++i) out[i] += base[i];
    }
    if (a_.added_to == nullptr) return;
    float* sums = a_.added_to + token * hidden_ + first;
    for (int64_t i = 0; i < columns; ++i) sums[i] += out[i];
  }

  const ExpertFfnArgs& a_;
  const Routing& routing_;
  Buffers& buffers_;
  const KernelTable& kernels_;
  const FormatKernels &gate_, &up_, &down_;
  const int64_t hidden_, inter_, num_slots_;
  int64_t tasks_ahead_ = 1;  // until a thread has its next one
  int64_t inter_bytes_ = 0;
  int64_t inter_rows_ = 0;                 // of a task, at most
  const void** rounded_tokens_ = nullptr;  // (T), where a product takes rounded ones
  uint8_t* inter_memory_ = nullptr;        // (slots, inter_bytes)
  const void** rounded_x_ = nullptr;       // (slots)
  const void** float_x_ = nullptr;         // (slots)
  const void** inter_x_ = nullptr;         // (slots)
  float* products_ = nullptr;              // (slots, H), before weighting
};

}  // namespace
}  // namespace hm
