// Every row of every matrix in exactly one task, and every row with the node that its place in the
// matrix says, whatever the rows of a task. Compiled and run by tests/csrc/test_numa.py.
#include "base/row_tasks.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

// Node of each row of a matrix in tasks of one row.
std::vector<int> node_of_rows(const std::vector<int>& thread_ends, int64_t rows) {
  const hm::RowTasks tasks(thread_ends, 1, rows, 1);
  std::vector<int> nodes;
  for (std::size_t n = 0; n < thread_ends.size(); ++n) nodes.resize(tasks.ends()[n], int(n));
  return nodes;
}

bool covers_each_row_once(const std::vector<int>& thread_ends, int64_t matrices, int64_t rows,
                          int64_t rows_per_task) {
  const hm::RowTasks tasks(thread_ends, matrices, rows, rows_per_task);
  const std::vector<int> node_of_row = node_of_rows(thread_ends, rows);
  std::vector<int> seen(matrices * rows);
  int64_t task = 0;
  for (std::size_t n = 0; n < thread_ends.size(); ++n) {
    const bool is_last = n + 1 == thread_ends.size();
    // Within half a border's step of the node's share.
    const int64_t end = is_last ? rows : rows * thread_ends[n] / thread_ends.back();
    for (; task < tasks.ends()[n]; ++task) {
      const auto [matrix, first, last, node_end] = tasks[task];
      if (first >= last || last > std::min(first + rows_per_task, node_end)) return false;
      if (node_end != rows && std::abs(node_end - end) > hm::kBorderRows / 2) return false;
      for (int64_t r = first; r < last; ++r) {
        ++seen[matrix * rows + r];
        if (node_of_row[r] != static_cast<int>(n)) return false;
      }
      if (last < node_end && node_of_row[last] != static_cast<int>(n)) return false;
    }
  }
  for (const int count : seen) {
    if (count != 1) return false;
  }
  return task == tasks.ends().back();
}

}  // namespace

int main() {
  const std::vector<std::vector<int>> plans = {{1},      {4},          {1, 2},    {2, 3},
                                               {0, 2},   {1, 1, 3},    {2, 2, 2}, {1, 2, 3, 4, 5},
                                               {16, 32}, {48, 96, 100}};
  int64_t cases = 0;
  for (const auto& plan : plans) {
    for (const int64_t matrices : {0, 1, 3}) {
      for (int64_t rows = 0; rows < 200; rows += 1 + rows / 9) {
        for (const int64_t step : {1, 2, 7, 32, 64, 300}) {
          if (!covers_each_row_once(plan, matrices, rows, step)) {
            std::printf("%zu nodes, %lld matrices of %lld rows by %lld\n", plan.size(),
                        static_cast<long long>(matrices), static_cast<long long>(rows),
                        static_cast<long long>(step));
            return 1;
          }
          ++cases;
        }
      }
    }
  }
  std::printf("%lld cases\n", static_cast<long long>(cases));
  return 0;
}
