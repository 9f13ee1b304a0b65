#include "ops/touch_rows.h"

#include <algorithm>

#include "base/check.h"
#include "base/row_tasks.h"
#include "base/runtime.h"
#include "ops/read_log.h"

namespace hm {
namespace {

constexpr int64_t kPageBytes = 4096;
constexpr int64_t kTaskBytes = 1 << 20;

// touch(byte) for a byte of every page, in a thread of the node that works on its row.
template <class Byte, class Touch>
void for_each_page(Byte* data, int64_t num_matrices, int64_t rows, int64_t row_bytes,
                   const Touch& touch) {
  check(num_matrices >= 0 && rows >= 0 && row_bytes >= 1, "touch_rows: ", num_matrices,
        " matrices of ", rows, " rows of ", row_bytes, " bytes");
  const RuntimeLock runtime;
  const int64_t step = std::max<int64_t>(1, kTaskBytes / row_bytes);
  const RowTasks tasks(runtime->pool.thread_ends(), num_matrices, rows, step);
  runtime->pool.run_on_nodes(tasks.ends(), [&](int64_t i, int) {
    const RowTasks::Task task = tasks[i];
    const int64_t count = task.num_rows() * row_bytes;
    volatile Byte* bytes = data + (task.matrix * rows + task.first_row) * row_bytes;
    note_touch(const_cast<const Byte*>(bytes), count);
    for (int64_t at = 0; at < count; at += kPageBytes) touch(bytes[at]);
    touch(bytes[count - 1]);
  });
}

}  // namespace

void touch_rows(const uint8_t* data, int64_t num_matrices, int64_t rows, int64_t row_bytes) {
  for_each_page(data, num_matrices, rows, row_bytes,
                [](const volatile uint8_t& byte) { [[maybe_unused]] const uint8_t read = byte; });
}

void claim_rows(std::byte* data, int64_t num_matrices, int64_t rows, int64_t row_bytes) {
  if (threads().size() == 1) return;
  for_each_page(data, num_matrices, rows, row_bytes,
                [](volatile std::byte& byte) { byte = std::byte{0}; });
}

}  // namespace hm
