// Every row of every matrix in exactly one task, and every row with the node that its place in the
// matrix says. Compiled and run by tests/csrc/test_numa.py.
#include "base/row_tasks.h"

#include <cstdio>
#include <vector>

namespace {

bool covers_each_row_once(const std::vector<int>& thread_ends, int64_t matrices, int64_t rows,
                          int64_t rows_per_task) {
  const hm::RowTasks tasks(thread_ends, matrices, rows, rows_per_task);
  std::vector<int> seen(matrices * rows), node_of_row(rows, -1);
  int64_t task = 0;
  for (std::size_t n = 0; n < thread_ends.size(); ++n) {
    for (; task < tasks.ends()[n]; ++task) {
      const auto [matrix, first] = tasks[task];
      // The share of the node begins at this row, within what one task holds.
      const int64_t before = n == 0 ? 0 : thread_ends[n - 1];
      if (first < rows * before / thread_ends.back()) return false;
      if (first > 0 && first >= rows * thread_ends[n] / thread_ends.back()) return false;
      for (int64_t r = first; r < first + rows_per_task && r < rows; ++r) {
        ++seen[matrix * rows + r];
        const int node = static_cast<int>(n);
        if (node_of_row[r] >= 0 && node_of_row[r] != node) return false;
        node_of_row[r] = node;
      }
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
