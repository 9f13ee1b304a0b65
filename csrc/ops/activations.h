// Activation rows as a format's matmul wants them: rounded to int8, or the floats themselves.
#pragma once

#include <cstdint>

#include "base/runtime.h"
#include "kernels/kernel_table.h"

namespace hm {

// Rounds the rows of x (num_rows, cols), in parallel, into `memory`.
inline const uint8_t* quantize_rows(const KernelTable& kernels, ThreadPool& pool, const float* x,
                                    int64_t num_rows, int64_t cols, Buffer& memory) {
  const int64_t stride = activation_bytes(cols);
  uint8_t* rows = memory.get<uint8_t>(num_rows * stride);
  pool.run(num_rows, [&](int64_t r, int) {
    kernels.quantize(x + r * cols, 0, cols, cols, rows + r * stride);
  });
  return rows;
}

}  // namespace hm
