// A product with the kernels that an emulation has compiled: included after them.
#pragma once

#include "kernels/table-inl.h"

#ifndef HM_EMULATED_TABLE
#define HM_EMULATED_TABLE hm::make_table("emulated")
#endif

// x (num_tokens, cols) f32, w (num_rows, cols) of `type` -> out (num_tokens, num_rows).
extern "C" __attribute__((visibility("default"))) void emulated_linear(
    int type, const uint8_t* w, int64_t num_rows, int64_t row_bytes, int64_t cols, const float* x,
    int64_t num_tokens, float* out) {
  static constexpr hm::KernelTable table = HM_EMULATED_TABLE;
  constexpr int64_t max_tokens = 64, max_cols = 4096;
  alignas(64) static uint8_t rounded[max_tokens][hm::activation_bytes(max_cols)];
  alignas(64) static uint8_t scratch[hm::matmul_scratch_bytes(max_cols, max_tokens)];
  const void* rows[max_tokens];
  const hm::FormatKernels& format = table.formats[type];
  for (int64_t t = 0; t < num_tokens; ++t) {
    table.quantize(x + t * cols, 0, format.quantized ? cols : 0, cols, rounded[t]);
    rows[t] = format.quantized ? static_cast<const void*>(rounded[t]) : x + t * cols;
  }
  format.matmul({w, row_bytes, num_rows, cols, rows, num_tokens, out, num_rows, scratch});
}
