#include "ops/expert_ffn.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "base/row_tasks.h"
#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/activations.h"
#include "ops/expert_tiles.h"
#include "ops/routing.h"
#include "ops/tiles.h"

namespace hm {
namespace {

constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kSumColumns = 1024;
constexpr int64_t kTaskTokens = 512;  // bounds the gate and up values that a task holds
constexpr int64_t kMaxTopK = 64;

void check_args(const ExpertFfnArgs& a) {
  const Matrix &gate = a.gate, &up = a.up, &down = a.down;
  check(gate.batch == up.batch && gate.rows == up.rows && gate.cols == up.cols,
        "expert_ffn: gate (", gate.batch, ", ", gate.rows, ", ", gate.cols, ") and up (", up.batch,
        ", ", up.rows, ", ", up.cols, ") differ");
  check(down.batch == gate.batch && down.rows == gate.cols && down.cols == gate.rows,
        "expert_ffn: down (", down.batch, ", ", down.rows, ", ", down.cols, "), expected (",
        gate.batch, ", ", gate.cols, ", ", gate.rows, ")");
  check(a.ids != nullptr || a.num_tokens * a.top_k == 0 || (a.top_k == 1 && gate.batch > 0),
        "expert_ffn: no experts to choose");
  for (int64_t i = 0; a.ids != nullptr && i < a.num_tokens * a.top_k; ++i) {
    check(a.ids[i] >= -1 && a.ids[i] < gate.batch, "expert_ffn: expert id ", a.ids[i], " of token ",
          i / a.top_k, ", expected -1 to ", gate.batch - 1);
  }
}

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

  // Memory of all stages, and the activation rows in slot order.
  void prepare(Runtime& runtime) {
    if (num_slots_ == 0) return;
    const bool quantized = gate_.quantized || up_.quantized;
    const void** tokens = buffers_.token_rows.get<const void*>(a_.num_tokens);
    for (int64_t t = 0; t < a_.num_tokens; ++t) tokens[t] = a_.x + t * hidden_;
    if (quantized) {
      quantize_rows(kernels_, runtime.pool, tokens, a_.num_tokens, hidden_, buffers_.activations);
    }
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
    const int64_t count = static_cast<int64_t>(batches.size());
    inter_rows_ = rows_per_task(batches, runtime, inter_, 32, 256);  // whole blocks of activations
    const RowTasks inter_tasks(runtime.pool.thread_ends(), count, inter_, inter_rows_);
    runtime.pool.run_on_nodes(inter_tasks.ends(), [&](int64_t task, int worker) {
      const RowTasks::Task rows = inter_tasks[task];
      gate_up(batches[rows.matrix], rows, runtime.scratch[worker]);
    });
    const int64_t hidden_rows = rows_per_task(batches, runtime, hidden_, 64, 1024);
    const RowTasks hidden_tasks(runtime.pool.thread_ends(), count, hidden_, hidden_rows);
    runtime.pool.run_on_nodes(hidden_tasks.ends(), [&](int64_t task, int worker) {
      const RowTasks::Task rows = hidden_tasks[task];
      project_down(batches[rows.matrix], rows, runtime.scratch[worker]);
    });
  }

  // Writes the result, as far as these experts make it.
  void sum(Runtime& runtime) const {
    const int64_t sum_blocks = (hidden_ + kSumColumns - 1) / kSumColumns;
    runtime.pool.run(a_.num_tokens * sum_blocks, [&](int64_t task, int) {
      sum_columns(task / sum_blocks, task % sum_blocks * kSumColumns);
    });
  }

 private:
  // Rows of a task. Large where memory is the bound, since a task begins with data that nothing has
  // prefetched; small for many tokens, whose results a task holds.
  static int64_t rows_per_task(std::span<const Batch> batches, const Runtime& runtime, int64_t rows,
                               int64_t least, int64_t most) {
    constexpr int64_t few_tokens = 8;
    for (const Batch& batch : batches) {
      if (batch.count > few_tokens) return least;
    }
    const int64_t count = static_cast<int64_t>(batches.size());
    const int64_t share = count * rows / (kTasksPerThread * runtime.pool.num_threads());
    return std::clamp(share / least * least, least, most);
  }

  // silu(gate x) * up x for some rows of one expert, rounded for the next stage.
  void gate_up(const Batch& batch, const RowTasks::Task& task, Buffer& memory) const {
    const int64_t first = task.first_row, rows = task.num_rows();
    const int64_t values = std::min(kTaskTokens, batch.count) * inter_rows_;
    const int64_t scratch_floats = matmul_scratch_bytes(hidden_) / int64_t{sizeof(float)};
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
          .num_tokens = std::min(kTaskTokens, batch.count - done),
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
      const int64_t rows_after = std::min(inter_rows_, task.node_end - task.end_row);
      args.next = rows_after > 0 ? a_.gate.row(batch.expert, task.end_row) : nullptr;
      args.next_bytes = rows_after * a_.gate.row_bytes;
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
    down_.matmul({
        .weights = a_.down.row(batch.expert, task.first_row),
        .row_bytes = a_.down.row_bytes,
        .num_rows = task.num_rows(),
        .cols = inter_,
        .x = inter_x_ + batch.first,
        .num_tokens = batch.count,
        .out = products_ + batch.first * hidden_ + task.first_row,
        .out_stride = hidden_,
        .scratch = memory.get<uint8_t>(matmul_scratch_bytes(inter_)),
        .next = nullptr,
        .next_bytes = 0,
    });
  }

  // Columns first..first+1024 of one token's result.
  void sum_columns(int64_t token, int64_t first) const {
    const float* rows[kMaxTopK];
    float weights[kMaxTopK];
    int64_t terms = 0;
    for (int64_t j = token * a_.top_k; j < (token + 1) * a_.top_k; ++j) {
      const int64_t slot = routing_.slot_of[j];
      if (slot < 0 || slot >= num_slots_) continue;
      rows[terms] = products_ + slot * hidden_ + first;
      weights[terms++] = pair_weight(a_, j);
    }
    const int64_t columns = std::min(kSumColumns, hidden_ - first);
    float* out = a_.out + token * hidden_ + first;
    kernels_.weighted_sum(rows, weights, terms, columns, out);
    if (a_.base == nullptr) return;
    const float* base = a_.base + token * hidden_ + first;
    for (int64_t i = 0; i < columns; ++i) out[i] += base[i];
  }

  const ExpertFfnArgs& a_;
  const Routing& routing_;
  Buffers& buffers_;
  const KernelTable& kernels_;
  const FormatKernels &gate_, &up_, &down_;
  const int64_t hidden_, inter_, num_slots_;
  int64_t inter_bytes_ = 0;
  int64_t inter_rows_ = 0;            // of a task, at most
  uint8_t* inter_memory_ = nullptr;   // (slots, inter_bytes)
  const void** rounded_x_ = nullptr;  // (slots)
  const void** float_x_ = nullptr;    // (slots)
  const void** inter_x_ = nullptr;    // (slots)
  float* products_ = nullptr;         // (slots, H), before weighting
};

void check_all(const ExpertFfnArgs& args) {
  check(args.top_k >= 0 && args.top_k <= kMaxTopK, "expert_ffn: ", args.top_k,
        " experts a token, expected at most ", kMaxTopK);
  check_args(args);
}

void check_in_memory(const ExpertMatrix& w, int64_t expert) {
  if (w.at == nullptr) return;
  const auto address = reinterpret_cast<uintptr_t>(w.at[expert]);
  check(address != 0 && address % static_cast<uintptr_t>(w.type->alignment) == 0,
        "expert_ffn: expert ", expert, " is at ", address, ", expected an address aligned to ",
        w.type->alignment);
}

}  // namespace

void expert_ffn(const ExpertFfnArgs& args) {
  check_all(args);
  if (args.num_tokens == 0) return;
  const RuntimeLock runtime;
  thread_local Routing routing;  // keeps its memory between calls
  route(args, routing);
  Forward forward(args, routing, *runtime);
  forward.prepare(*runtime);
  if (!routing.untiled.empty()) forward.compute(routing.untiled, *runtime);
  forward.sum(*runtime);
  add_expert_tiles(args, routing, routing.tiled, *runtime);
}

struct ExpertPass::State {
  std::optional<ExpertFfnArgs> args;  // none: no pass is under way
  Routing routing;
  Buffers buffers;
  std::optional<Forward> forward;
  std::vector<const Batch*> waiting;  // (E): of routing.untiled, those not computed yet
  std::vector<Batch> batches;         // of the call under way
  std::size_t num_free_done, num_tiles_done;

  // Writes what routing.untiled gives, once all of it is there, before the tiles add to it.
  void sum(Runtime& runtime) {
    if (num_tiles_done == 0) forward->sum(runtime);
  }
};

ExpertPass::ExpertPass() : state_(std::make_unique<State>()) {}
ExpertPass::~ExpertPass() = default;

ExpertPass::Order ExpertPass::begin(const ExpertFfnArgs& args) {
  check_all(args);
  const RuntimeLock runtime;
  State& s = *state_;
  s.args = args;
  route(*s.args, s.routing);
  s.forward.emplace(*s.args, s.routing, s.buffers);
  s.forward->prepare(*runtime);
  s.num_free_done = s.num_tiles_done = 0;
  s.waiting.assign(args.gate.batch, nullptr);
  Order order{.experts = {}, .num_free = static_cast<int64_t>(s.routing.untiled.size())};
  for (const Batch& batch : s.routing.untiled) {
    s.waiting[batch.expert] = &batch;
    order.experts.push_back(static_cast<int32_t>(batch.expert));
  }
  for (const Batch& batch : s.routing.tiled) {
    order.experts.push_back(static_cast<int32_t>(batch.expert));
  }
  return order;
}

void ExpertPass::compute(std::span<const int32_t> experts) {
  const RuntimeLock runtime;
  State& s = *state_;
  check(s.args.has_value(), "expert_ffn: no pass has begun");
  const auto& [untiled, tiled] = std::tie(s.routing.untiled, s.routing.tiled);
  s.batches.clear();
  std::size_t tiles = 0;
  for (const int32_t e : experts) {
    check(e >= 0 && e < s.args->gate.batch, "expert_ffn: expert ", e, " does not exist");
    for (const ExpertMatrix* w : {&s.args->gate, &s.args->up, &s.args->down})
      check_in_memory(*w, e);
  }
  for (const int32_t e : experts) {
    if (tiles == 0 && s.waiting[e] != nullptr) {
      s.batches.push_back(*s.waiting[e]);
      s.waiting[e] = nullptr;
      continue;
    }
    const std::size_t next = s.num_tiles_done + tiles;
    const bool is_next = s.num_free_done + s.batches.size() == untiled.size() &&
                         next < tiled.size() && tiled[next].expert == e;
    check(is_next, "expert_ffn: expert ", e, " is out of order");
    ++tiles;
  }
  if (!s.batches.empty()) s.forward->compute(s.batches, *runtime);
  s.num_free_done += s.batches.size();
  if (tiles == 0) return;
  s.sum(*runtime);
  add_expert_tiles(*s.args, s.routing, std::span(tiled).subspan(s.num_tiles_done, tiles), *runtime);
  s.num_tiles_done += tiles;
}

void ExpertPass::finish() {
  const RuntimeLock runtime;
  State& s = *state_;
  check(s.args.has_value(), "expert_ffn: no pass has begun");
  const std::size_t missing =
      s.routing.untiled.size() + s.routing.tiled.size() - s.num_free_done - s.num_tiles_done;
  check(missing == 0, "expert_ffn: ", missing, " experts have not been computed");
  s.sum(*runtime);
  s.forward.reset();
  s.args.reset();
}

}  // namespace hm
