// A norm whose numbers are written, and rounded, by the threads of the product that takes them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/fused_layer.h"
#include "ops/linear.h"
#include "ops/token_ops.h"

namespace hm {

// Rows of floats by kernels.quantize, with the pointers to them.
class RoundedRows {
 public:
  RoundedRows(int64_t num_rows, int64_t cols, Buffer& memory)
      : cols_(cols), bytes_(activation_bytes(cols)) {
    uint8_t* rows = memory.get<uint8_t>(num_rows * (bytes_ + int64_t{sizeof(void*)}));
    pointers_ = reinterpret_cast<const void**>(rows + num_rows * bytes_);
    for (int64_t i = 0; i < num_rows; ++i) pointers_[i] = rows + i * bytes_;
  }

  // Columns from `first` on, a multiple of kActivationBlock, as `count` is.
  void round(int64_t row, const float* x, int64_t first, int64_t count) const {
    active_table().quantize(x, first, count, cols_, const_cast<void*>(pointers_[row]));
  }
  const void* const* pointers() const { return pointers_; }

 private:
  int64_t cols_, bytes_;
  const void** pointers_;
};

// Of at most kFewTokens tokens, whose scales alone the caller finds.
class SharedNorm {
 public:
  // floats: (T, n), may be x where that is dense; null: only rounded ones are wanted.
  SharedNorm(const RmsNorm& norm, const float* x, int64_t num_tokens, int64_t n, float* floats,
             const RoundedRows* rounded)
      : weight_(norm.weight),
        x_(x),
        n_(n),
        parts_((n + kSuperWeights - 1) / kSuperWeights),
        num_tokens_(num_tokens),
        floats_(floats),
        rounded_(rounded) {
    for (int64_t t = 0; t < num_tokens; ++t) {
      scales_[t] = norm_scale(x + t * n, n, norm.eps);
      rows_[t] = rounded == nullptr ? floats + t * n : rounded->pointers()[t];
    }
  }

  // (T), as a product takes them once `add_to` is done: rounded, or floats.
  const void* const* rows() const { return rows_; }

  void add_to(SideWork& work) const {
    work.num_first = num_tokens_ * parts_;
    work.first = [this](int64_t task) { run(task); };
  }

 private:
  void run(int64_t task) const {
    const int64_t t = task / parts_, first = task % parts_ * kSuperWeights;
    const int64_t count = std::min<int64_t>(kSuperWeights, n_ - first);
    float own[kSuperWeights];
    float* out = floats_ == nullptr ? own : floats_ + t * n_ + first;
    norm_columns(x_ + t * n_ + first, scales_[t], weight_ + first, count, out);
    if (rounded_ != nullptr) rounded_->round(t, out, first, count);
  }

  const float *weight_, *x_;
  const int64_t n_, parts_, num_tokens_;
  float* const floats_;
  const RoundedRows* const rounded_;
  float scales_[kFewTokens];
  const void* rows_[kFewTokens];
};

}  // namespace hm
