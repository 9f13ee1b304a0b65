// Activation rows as a format's matmul wants them: rounded to int8, or the floats themselves.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/runtime.h"
#include "kernels/kernel_table.h"

namespace hm {

// Rounds rows of floats, in parallel, into `memory`, and lets `rows` point there.
inline void quantize_rows(const KernelTable& kernels, ThreadPool& pool, const void** rows,
                          int64_t num_rows, int64_t cols, Buffer& memory) {
  constexpr int64_t task_floats = 1 << 14;  // less is not worth a task
  const int64_t stride = activation_bytes(cols);
  const int64_t step = std::max<int64_t>(1, task_floats / cols);
  uint8_t* rounded = memory.get<uint8_t>(num_rows * stride);
  const auto some = [&](int64_t task, int) {
    for (int64_t r = task * step; r < std::min(num_rows, (task + 1) * step); ++r) {
      kernels.quantize(static_cast<const float*>(rows[r]), 0, cols, cols, rounded + r * stride);
      rows[r] = rounded + r * stride;
    }
  };
  if (num_rows <= step) return some(0, 0);
  pool.run((num_rows + step - 1) / step, some);
}

}  // namespace hm
