// Stack of row-major matrices in a GGUF block format; does not own its memory.
// Others may lie between them: gate and up of an expert in one tensor.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/check.h"
#include "formats/types.h"

namespace hm {

struct Matrix {
  const uint8_t* data;  // (batch, rows, row_bytes)
  const TypeInfo* type;
  int64_t batch, rows, cols, row_bytes;
  int64_t stride;       // bytes from a matrix to the next
  const float* scales;  // (batch): factors of the matrices; null: 1

  // stride: 0 = one matrix right after the other. Throws Error unless the type is known, whole
  // blocks fill the rows, and `num_bytes` reaches from the first to the last byte.
  Matrix(const void* data, int64_t num_bytes, int32_t type_id, int64_t batch, int64_t rows,
         int64_t cols, int64_t stride = 0, const float* scales = nullptr)
      : data(static_cast<const uint8_t*>(data)),
        type(find_type(type_id)),
        batch(batch),
        rows(rows),
        cols(cols),
        scales(scales) {
    constexpr int64_t limit = int64_t{1} << 40;
    check(type != nullptr, "tensor type ", type_id, " has no CPU kernel");
    check(batch >= 0 && rows >= 0 && cols > 0 && batch <= limit && rows <= limit && cols <= limit,
          type->name, " matrix: shape (", batch, ", ", rows, ", ", cols, ") is not usable");
    check(cols % type->block_weights == 0, type->name, " matrix: ", cols,
          " columns, expected a multiple of ", type->block_weights);
    row_bytes = hm::row_bytes(*type, cols);
    int64_t matrix_bytes = 0, expected = 0;
    const bool overflow = __builtin_mul_overflow(rows, row_bytes, &matrix_bytes) ||
                          __builtin_mul_overflow(std::max<int64_t>(batch - 1, 0),
                                                 std::max(stride, matrix_bytes), &expected) ||
                          __builtin_add_overflow(expected, batch > 0 ? matrix_bytes : 0, &expected);
    check(stride == 0 || stride >= matrix_bytes, type->name, " matrix: ", stride,
          " bytes from one to the next, which have ", matrix_bytes);
    this->stride = std::max(stride, matrix_bytes);
    check(!overflow && num_bytes == expected, type->name, " matrix (", batch, ", ", rows, ", ",
          cols, "): ", num_bytes, " bytes, expected ", expected);
    const auto alignment = static_cast<uintptr_t>(type->alignment);
    const auto address = reinterpret_cast<uintptr_t>(data);
    check(address % alignment == 0 && static_cast<uintptr_t>(this->stride) % alignment == 0,
          type->name, " matrix: data is not aligned to ", type->alignment, " bytes");
  }

  const uint8_t* row(int64_t b, int64_t r) const { return data + b * stride + r * row_bytes; }
  float scale(int64_t b) const { return scales == nullptr ? 1.0f : scales[b]; }
};

// Applies a matrix's factor to some of its products.
inline void scale_products(float scale, float* products, int64_t count) {
  if (scale == 1.0f) return;
  for (int64_t i = 0; i < count; ++i) products[i] *= scale;
}

}  // namespace hm
