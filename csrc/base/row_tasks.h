// How the rows of a stack of matrices are shared out among NUMA nodes, in tasks of some rows each.
//
// Node n works on its share of the rows of every matrix, whichever operation reads them: its
// threads touch these rows first when a file is read (ops/touch_rows.h), so that they lie in its
// memory, and nothing is stored twice. Borders between nodes depend on the rows and the threads
// alone, and no task crosses one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace hm {

constexpr int kMaxNodes = 64;
// Borders are multiples of it: whole panels of a gemm, and whole blocks of activations.
constexpr int64_t kBorderRows = 32;

class RowTasks {
 public:
  struct Task {
    int64_t matrix, first_row, end_row;
    int64_t node_end;  // of the rows that the node works on
    int64_t num_rows() const { return end_row - first_row; }
  };

  // `thread_ends[n]`: threads of nodes 0..n. `rows_per_task` >= 1.
  RowTasks(std::span<const int> thread_ends, int64_t num_matrices, int64_t rows,
           int64_t rows_per_task)
      : num_nodes_(static_cast<int>(thread_ends.size())), rows_per_task_(rows_per_task) {
    for (int n = 0; n < num_nodes_; ++n) {
      const bool is_last = n + 1 == num_nodes_;
      row_ends_[n] = is_last ? rows : border(rows * thread_ends[n] / thread_ends.back(), rows);
      const int64_t before = n == 0 ? 0 : task_ends_[n - 1];
      task_ends_[n] = before + num_matrices * blocks(n);
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
    const int64_t at = task - (n == 0 ? 0 : task_ends_[n - 1]);
    const int64_t first = first_row(n) + at % blocks(n) * rows_per_task_;
    return {at / blocks(n), first, std::min(first + rows_per_task_, row_ends_[n]), row_ends_[n]};
  }

 private:
  static int64_t border(int64_t row, int64_t rows) {
    return std::min((row + kBorderRows / 2) / kBorderRows * kBorderRows, rows);
  }
  int64_t first_row(int n) const { return n == 0 ? 0 : row_ends_[n - 1]; }
  // Tasks of a node in one matrix.
  int64_t blocks(int n) const {
    return (row_ends_[n] - first_row(n) + rows_per_task_ - 1) / rows_per_task_;
  }

  int num_nodes_;
  int64_t rows_per_task_;
  int64_t row_ends_[kMaxNodes] = {};  // of one matrix
  int64_t task_ends_[kMaxNodes] = {};
};

}  // namespace hm
