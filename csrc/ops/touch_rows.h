// Reads mapped weights into memory, each row near the threads that will work on it.
#pragma once

#include <cstdint>

namespace hm {

// Reads a byte of every page of (num_matrices, rows, row_bytes). What the system has not in memory
// yet it reads from the file, into memory near the thread that asks first: RowTasks says which.
void touch_rows(const uint8_t* data, int64_t num_matrices, int64_t rows, int64_t row_bytes);

}  // namespace hm
