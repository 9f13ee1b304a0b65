// How the rows of a stack of matrices are shared out among NUMA nodes, in tasks of some rows each.
//
// Node n works on rows [rows * threads before n / threads, ...) of every matrix, whichever
// operation reads them: its threads touch these rows first when a file is read (ops/touch_rows.h),
// so that they lie in its memory, and nothing is stored twice. A task that crosses a border belongs
// to the node of its first row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hm {

constexpr int kMaxNodes = 64;

class RowTasks {
 public:
  struct Task {
    int64_t matrix, first_row;
  };

  // `thread_ends[n]`: threads of nodes 0..n. `rows_per_task` >= 1.
  RowTasks(std::span<const int> thread_ends, int64_t num_matrices, int64_t rows,
           int64_t rows_per_task)
      : num_nodes_(static_cast<int>(thread_ends.size())), rows_per_task_(rows_per_task) {
    const int64_t blocks = blocks_below(rows);
    for (int n = 0; n < num_nodes_; ++n) {
      const bool is_last = n + 1 == num_nodes_;
      block_ends_[n] = is_last ? blocks : blocks_below(rows * thread_ends[n] / thread_ends.back());
      task_ends_[n] = num_matrices * block_ends_[n];
    }
  }

  // Tasks of nodes 0..n, for ThreadPool::run_on_nodes.
  std::span<const int64_t> ends() const {
    return {task_ends_, static_cast<std::size_t>(num_nodes_)};
  }

  // Those of one node follow each other matrix by matrix.
  Task operator[](int64_t task) const {
    int n = 0;
    while (task >= task_ends_[n]) ++n;
    const int64_t first_task = n == 0 ? 0 : task_ends_[n - 1];
    const int64_t first_block = n == 0 ? 0 : block_ends_[n - 1];
    const int64_t blocks = block_ends_[n] - first_block, at = task - first_task;
    return {at / blocks, (first_block + at % blocks) * rows_per_task_};
  }

 private:
  // Blocks whose first row is below `rows`.
  int64_t blocks_below(int64_t rows) const { return (rows + rows_per_task_ - 1) / rows_per_task_; }

  int num_nodes_;
  int64_t rows_per_task_;
  int64_t block_ends_[kMaxNodes] = {};  // of one matrix
  int64_t task_ends_[kMaxNodes] = {};
};

}  // namespace hm
