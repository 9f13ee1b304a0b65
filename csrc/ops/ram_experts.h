// The routed experts of a model larger than RAM, layer by layer: all that are missing are read at
// once, what is in memory computes meanwhile, then each expert as its read ends. Bit for bit the
// result of `expert_ffn`. Native from the look-up to the sum: no GIL, and a GPU's stream may call.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "ops/expert_ffn.h"
#include "ops/host_call.h"
#include "ops/ram_table.h"

namespace hm {

// Type and shape of a layer's experts; the data is not looked at.
struct RamLayer {
  Matrix gate;          // (E, I, H)
  Matrix up;            // (E, I, H)
  Matrix down;          // (E, H, I)
  int64_t num_staging;  // buffers of its pool for experts that do not stay
};

// One layer of a step.
struct RamStep {
  int64_t layer;
  const float* x;        // (T, H)
  const int32_t* ids;    // (T, k), -1 = none
  const float* weights;  // (T, k)
  int64_t num_tokens, top_k;
  const int32_t* slot_of;  // (E) or null; experts with a slot (>= 0) are the GPU's
  float* out;              // (T, H)
};

// Not thread-safe: one call at a time, the table's included.
class RamExperts {
 public:
  // decode_tokens: most tokens of a step that is no prefill. Throws Error where layers and table
  // disagree.
  RamExperts(std::unique_ptr<RamTable> table, std::vector<RamLayer> layers, int64_t decode_tokens);

  RamTable& table() { return *table_; }
  const RamTable& table() const { return *table_; }
  int64_t hidden(int64_t layer) const;  // checks the layer

  // Throws ReadFailure where an expert cannot be read, StalledRead, Error. The next call tries
  // again.
  void compute(const RamStep& step);

  // Steps whose calls cannot throw begin here: once a call has failed, the step's other calls are
  // given up at once.
  void begin_step() { has_failed_ = false; }
  bool has_failed() const { return has_failed_; }
  enum class Failure { kNone, kStall, kRead, kOther };
  void note_failure(Failure failure);
  // Of the first call that has failed since this was asked last.
  Failure take_failure() { return std::exchange(failure_, Failure::kNone); }

 private:
  bool take_ids(const RamStep& step);
  void compute(const ExpertPass::Order& order, int64_t first_key, int64_t num_staging);
  void request(int64_t first_key);
  void take_ready(int64_t first_key, int64_t num_staging);
  void compute_ready(int64_t first_key);

  const std::unique_ptr<RamTable> table_;
  const std::vector<RamLayer> layers_;
  const int64_t decode_tokens_;
  bool has_failed_ = false;
  Failure failure_ = Failure::kNone;
  ExpertPass pass_;
  std::vector<int32_t> ids_;  // the CPU's part
  // Experts of the layer under way: not requested yet; not computed yet, those of any order and
  // those of matrix tiles, which have theirs; loaded ones that are computed next.
  std::vector<int32_t> wanted_, free_, tiled_, ready_;
};

// A layer of it as a host function of a CUDA stream. After the first error since
// RamExperts::begin_step `out` is zeros.
class RamExpertCall final : public HostCall {
 public:
  // Throws Error where something is missing.
  RamExpertCall(RamExperts& experts, int64_t layer, const HostCallMemory& memory);

 protected:
  void compute(int64_t num_tokens) override;

 private:
  RamExperts& experts_;
  const int64_t layer_;
};

}  // namespace hm
