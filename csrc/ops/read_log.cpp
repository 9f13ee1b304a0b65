#include "ops/read_log.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/runtime.h"
#include "kernels/select.h"

namespace hm {
namespace {

struct Log {
  const KernelTable& kernels;
  KernelTable noting;  // the same, but that each product is noted
  std::vector<WeightAccess> accesses;
};

// Under the lock of Runtime, as all jobs are.
std::unique_ptr<Log>& current_log() {
  static std::unique_ptr<Log> log;
  return log;
}

void note(const void* data, int64_t num_bytes, WeightAccess::Kind kind) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  current_log()->accesses.push_back({address, num_bytes, traced_node, kind});
}

template <int type>
void noted_matmul(const MatmulArgs& args) {
  note(args.weights, args.num_rows * args.row_bytes, WeightAccess::kRead);
  if (args.next != nullptr) note(args.next, args.next_bytes, WeightAccess::kFetch);
  current_log()->kernels.formats[type].matmul(args);
}

template <int type>
void noted_tiles(const TileArgs& args) {
  note(args.weights, args.num_rows * args.row_bytes, WeightAccess::kRead);
  note(args.next, kPanelRows * args.row_bytes, WeightAccess::kFetch);
  const auto real = current_log()->kernels.formats[type].matmul_tiles;
  if (real != nullptr) real(args);
}

template <int type>
void wrap(FormatKernels& format) {
  if (format.matmul != nullptr) format.matmul = &noted_matmul<type>;
  if (format.matmul_tiles != nullptr) format.matmul_tiles = &noted_tiles<type>;
}

void no_tiles(const TileArgs&) {}

// out[t][r] = 0, or += 0 where there are weights.
void finish_nothing(const float*, int64_t, int64_t num_rows, int64_t num_tokens,
                    const float* weights, float* const* out) {
  for (int64_t t = 0; t < num_tokens && weights == nullptr; ++t) {
    std::fill_n(out[t], num_rows, 0.0f);
  }
}

// Tiles that compute nothing and always pay, for a table without any.
void pretend_tiles(KernelTable& table) {
  for (FormatKernels& format : table.formats) {
    if (format.matmul == nullptr) continue;
    format.matmul_tiles = &no_tiles;
    format.tile_parts = 1;
  }
  table.tiles = {
      .pack = [](const float* const*, int64_t, int64_t, uint16_t*, uint16_t*) {},
      .pack_swiglu = [](const float*, const float*, int64_t, int64_t, uint16_t*, uint16_t*) {},
      .finish = &finish_nothing,
  };
  table.costs.matrix_unpack = table.costs.matrix_dot = 1e-3;
}

}  // namespace

void begin_read_log(bool with_tiles) {
  const RuntimeLock runtime;
  check(current_log() == nullptr, "reads are being logged already");
  const KernelTable& kernels = active_table();
  auto& log = current_log() = std::make_unique<Log>(Log{kernels, kernels, {}});
  if (with_tiles && kernels.tiles.pack == nullptr) pretend_tiles(log->noting);
  [&]<int... types>(std::integer_sequence<int, types...>) {
    (wrap<types>(log->noting.formats[types]), ...);
  }(std::make_integer_sequence<int, kNumTypeIds>());
  use_table(log->noting);
  runtime->pool.set_trace(&runtime->trace.emplace());
}

std::vector<WeightAccess> end_read_log() {
  const RuntimeLock runtime;
  check(current_log() != nullptr, "no reads are being logged");
  use_table(current_log()->kernels);
  runtime->pool.set_trace(nullptr);
  runtime->trace.reset();
  const std::unique_ptr<Log> log = std::move(current_log());
  return std::move(log->accesses);
}

void note_touch(const void* data, int64_t num_bytes) {
  if (current_log() != nullptr) [[unlikely]]
    note(data, num_bytes, WeightAccess::kTouch);
}

}  // namespace hm
