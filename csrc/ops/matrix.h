// Stack of row-major matrices in a GGUF block format; does not own its memory.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "formats/types.h"

namespace hm {

struct Matrix {
  const uint8_t* data;  // (batch, rows, row_bytes)
  const TypeInfo* type;
  int64_t batch, rows, cols, row_bytes;

  // Throws Error unless the type is known, whole blocks fill the rows, and `num_bytes` is exact.
  Matrix(const void* data, int64_t num_bytes, int32_t type_id, int64_t batch, int64_t rows,
         int64_t cols)
      : data(static_cast<const uint8_t*>(data)),
        type(find_type(type_id)),
        batch(batch),
        rows(rows),
        cols(cols) {
    constexpr int64_t limit = int64_t{1} << 40;
    check(type != nullptr, "tensor type ", type_id, " has no CPU kernel");
    check(batch >= 0 && rows >= 0 && cols > 0 && batch <= limit && rows <= limit && cols <= limit,
          type->name, " matrix: shape (", batch, ", ", rows, ", ", cols, ") is not usable");
    check(cols % type->block_weights == 0, type->name, " matrix: ", cols,
          " columns, expected a multiple of ", type->block_weights);
    row_bytes = cols / type->block_weights * type->block_bytes;
    int64_t expected = 0;
    const bool overflow = __builtin_mul_overflow(batch, row_bytes, &expected) ||
                          __builtin_mul_overflow(expected, rows, &expected);
    check(!overflow && num_bytes == expected, type->name, " matrix (", batch, ", ", rows, ", ",
          cols, "): ", num_bytes, " bytes, expected ", expected);
    check(reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(type->alignment) == 0,
          type->name, " matrix: data is not aligned to ", type->alignment, " bytes");
  }

  const uint8_t* row(int64_t b, int64_t r) const { return data + (b * rows + r) * row_bytes; }
};

}  // namespace hm
