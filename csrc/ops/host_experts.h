// The CPU's part of a layer whose experts are all in memory, one after the other.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/host_call.h"
#include "ops/matrix.h"

namespace hm {

struct HostExpertArgs {
  HostCallMemory memory;
  Matrix gate;  // (E, I, H)
  Matrix up;    // (E, I, H)
  Matrix down;  // (E, H, I)
};

class HostExpertCall final : public HostCall {
 public:
  // Throws Error where something is missing or shapes disagree.
  explicit HostExpertCall(const HostExpertArgs& args);

 protected:
  void compute(int64_t num_tokens) override;

 private:
  const Matrix gate_, up_, down_;
  std::vector<int32_t> ids_;  // the CPU's part of memory_.ids
};

}  // namespace hm
