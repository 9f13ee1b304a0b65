// Memory of weights near the threads that will work on them, row by row: the system provides a page
// where the thread is that touches it first. RowTasks says which.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hm {

// Reads a byte of every page of (num_matrices, rows, row_bytes), mapped from a file, from which the
// system reads what is not in memory yet.
void touch_rows(const uint8_t* data, int64_t num_matrices, int64_t rows, int64_t row_bytes);

// Writes a zero to every page of new, anonymous memory for the same; nothing with one node, where
// whatever writes first will do.
void claim_rows(std::byte* data, int64_t num_matrices, int64_t rows, int64_t row_bytes);

}  // namespace hm
