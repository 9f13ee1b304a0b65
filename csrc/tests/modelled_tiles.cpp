// The tasks of prompts by AMX tiles, and how long each would take: kernels that compute nothing but
// add modelled seconds to the clock that a job trace reads. Built and called by
// bench/_modelled_tiles.py; no memory of weights, tokens and results is touched.
#include <algorithm>
#include <cstdint>
#include <optional>

#include "base/job_trace.h"
#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/expert_ffn.h"
#include "ops/linear.h"

namespace {

// Cycles; see bench/_modelled_tiles.py.
struct Costs {
  double hertz, unpack, dot, fixed_rows, float_pack, value_swiglu, value_finish, shared_byte;
};
Costs costs;
double seconds;
const void* columns_held;  // what the core's own cache has of the tokens

void pass(double cycles) { seconds += cycles / costs.hertz; }

void matmul_tiles(const hm::TileArgs& args) {
  const auto groups = static_cast<double>((args.end_col - args.first_col + 255) / 256);
  const auto rows = static_cast<double>((args.num_rows + 31) / 32 * 32);
  const auto tiles = static_cast<double>(args.num_tiles);
  pass(groups * (costs.unpack * (rows + costs.fixed_rows) + costs.dot * tiles * rows));
  const void* columns = args.x + args.first_col * hm::kTokenTile;
  if (columns == columns_held) return;
  columns_held = columns;
  pass(costs.shared_byte * groups * 256 * 2 * hm::kTokenTile * tiles);
}

void pack(const float* const*, int64_t tokens, int64_t cols, uint16_t* packed, uint16_t*) {
  pass((costs.float_pack + 4 * costs.shared_byte) * static_cast<double>(tokens * cols));
  columns_held = packed;
}

void pack_swiglu(const float*, const float*, int64_t, int64_t rows, uint16_t*, uint16_t*) {
  pass(costs.value_swiglu * static_cast<double>(rows * hm::kTokenTile));
}

void finish(const float*, int64_t, int64_t rows, int64_t tokens, const float*, float* const*) {
  pass(costs.value_finish * static_cast<double>(rows * tokens));
}

// Runs `call` divided for a machine's threads. Writes, of each job, whether it is local, its nodes,
// their ends, and the seconds of its chunks; returns how many numbers that are.
template <class Call>
int64_t trace(int64_t num_nodes, int64_t num_threads, const Call& call, double* out, int64_t most) {
  hm::set_threads(hm::ThreadPlan(num_nodes, hm::ThreadPlan::value_type(num_threads)));
  {
    const hm::RuntimeLock runtime;
    runtime->pool.set_trace(&runtime->trace.emplace());
  }
  columns_held = nullptr;
  call();
  int64_t count = 0;
  const auto put = [&](double value) {
    if (count < most) out[count] = value;
    ++count;
  };
  const hm::RuntimeLock runtime;
  for (const hm::JobTrace::Job& job : runtime->trace->jobs()) {
    put(job.is_local);
    put(static_cast<double>(job.ends.size()));
    for (const int64_t end : job.ends) put(static_cast<double>(end));
    for (const double chunk : job.seconds) put(chunk);
  }
  runtime->pool.set_trace(nullptr);
  return count;
}

// Q8_0, or for experts Q4_K, at an address that nobody reads.
hm::Matrix matrix(int64_t batch, int64_t rows, int64_t cols, hm::TypeId type = hm::kQ8_0) {
  const int64_t bytes = batch * rows * hm::row_bytes(*hm::find_type(type), cols);
  return {reinterpret_cast<const void*>(64), bytes, type, batch, rows, cols};
}

}  // namespace

namespace hm {

double thread_seconds() { return seconds; }
double clock_seconds() { return 0.0; }

const KernelTable& active_table() {
  static const KernelTable table = [] {
    KernelTable kernels{};
    kernels.quantize = [](const float*, int64_t, int64_t, int64_t, void*) {};
    kernels.weighted_sum = [](const float* const*, const float*, int64_t, int64_t, float*) {};
    kernels.tiles = {pack, pack_swiglu, finish};
    kernels.costs = {.unpack = 20,
                     .dot = 1000,  // nothing but tiles
                     .panel_unpack = 60,
                     .panel_dot = 1000,
                     .matrix_unpack = costs.unpack,
                     .matrix_dot = costs.dot};
    for (const TypeId type : {kQ8_0, kQ4_K}) {
      kernels.formats[type].quantized = true;
      kernels.formats[type].matmul_tiles = matmul_tiles;
      kernels.formats[type].tile_parts = 1;
    }
    return kernels;
  }();
  return table;
}

}  // namespace hm

// Before all else.
extern "C" __attribute__((visibility("default"))) void set_costs(const double* values) {
  costs = {values[0], values[1], values[2], values[3], values[4], values[5], values[6], values[7]};
}

// ids: (tokens, top_k), or null for one expert; weights: as many numbers.
extern "C" __attribute__((visibility("default"))) int64_t
model_experts(int64_t num_nodes, int64_t num_threads, const int32_t* ids, const float* weights,
              int64_t num_tokens, int64_t top_k, int64_t num_experts, int64_t hidden, int64_t inter,
              double* out, int64_t most) {
  static float nowhere[1];
  const auto call = [&] {
    hm::expert_ffn({.x = nowhere,
                    .ids = ids,
                    .weights = weights,
                    .num_tokens = num_tokens,
                    .top_k = top_k,
                    .gate = {matrix(num_experts, inter, hidden, hm::kQ4_K)},
                    .up = {matrix(num_experts, inter, hidden, hm::kQ4_K)},
                    .down = {matrix(num_experts, hidden, inter, hm::kQ4_K)},
                    .base = nullptr,
                    .out = nowhere});
  };
  return trace(num_nodes, num_threads, call, out, most);
}

extern "C" __attribute__((visibility("default"))) int64_t
model_linear(int64_t num_nodes, int64_t num_threads, int64_t num_tokens, int64_t batch,
             int64_t rows, int64_t cols, double* out, int64_t most) {
  static float nowhere[1];
  const auto call = [&] {
    hm::linear({nowhere, 0, 0}, num_tokens, matrix(batch, rows, cols), {nowhere, 0, 0});
  };
  return trace(num_nodes, num_threads, call, out, most);
}
