#include "ops/host_experts.h"

#include <algorithm>

#include "base/check.h"
#include "ops/expert_ffn.h"

namespace hm {

HostExpertCall::HostExpertCall(const HostExpertArgs& args)
    : HostCall(args.memory, args.gate.cols), gate_(args.gate), up_(args.up), down_(args.down) {
  // Of no tokens: only the shapes are looked at.
  expert_ffn({
      .x = memory_.x,
      .ids = memory_.ids,
      .weights = memory_.weights,
      .num_tokens = 0,
      .top_k = memory_.top_k,
      .gate = {gate_},
      .up = {up_},
      .down = {down_},
      .base = nullptr,
      .out = memory_.out,
  });
  ids_.resize(memory_.max_tokens * memory_.top_k);
}

void HostExpertCall::compute(int64_t num_tokens) {
  const int64_t num_experts = gate_.batch;
  bool is_needed = false;
  for (int64_t i = 0; i < num_tokens * memory_.top_k; ++i) {
    const int32_t id = memory_.ids[i];
    check(id >= -1 && id < num_experts, "expert_ffn: expert id ", id, " of token ",
          i / memory_.top_k, ", expected -1 to ", num_experts - 1);
    const bool is_on_gpu = id >= 0 && memory_.slot_of != nullptr && memory_.slot_of[id] >= 0;
    ids_[i] = is_on_gpu ? -1 : id;
    is_needed |= ids_[i] >= 0;
  }
  if (!is_needed) {  // not worth waking the pool
    std::fill_n(memory_.out, num_tokens * hidden_, 0.0f);
    return;
  }
  expert_ffn({
      .x = memory_.x,
      .ids = ids_.data(),
      .weights = memory_.weights,
      .num_tokens = num_tokens,
      .top_k = memory_.top_k,
      .gate = {gate_},
      .up = {up_},
      .down = {down_},
      .base = nullptr,
      .out = memory_.out,
  });
}

}  // namespace hm
