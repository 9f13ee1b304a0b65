// Tasks of rows of matrices that cost differently, as experts do by their tokens: cut such that all
// threads together are done soonest, by estimate, the longest first. Results do not depend on it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/row_tasks.h"
#include "ops/task_split.h"

namespace hm {

class UnevenTasks {
 public:
  // row_cycles[m]: of a row of matrix m. A task has `row_step` rows or more, but for the last of a
  // node, and costs `fixed_rows` more.
  UnevenTasks(std::span<const int> thread_ends, std::span<const double> row_cycles, int64_t rows,
              int64_t row_step, double fixed_rows)
      : fixed_rows_(fixed_rows) {
    const auto num_matrices = static_cast<int64_t>(row_cycles.size());
    const double target = best_target(row_cycles, rows, row_step, thread_ends.back());
    struct Costly {
      double cycles;
      RowTasks::Task task;
    };
    std::vector<std::vector<Costly>> of_node(thread_ends.size());
    is_cut_.resize(num_matrices);
    for (int64_t m = 0; m < num_matrices; ++m) {
      const int64_t step = rows_of_task(target, row_cycles[m], rows, row_step);
      const RowTasks cut(thread_ends, 1, rows, step);
      is_cut_[m] = cut.ends().back() > 1;
      int64_t i = 0;
      for (std::size_t n = 0; n < thread_ends.size(); ++n) {
        for (; i < cut.ends()[n]; ++i) {
          RowTasks::Task task = cut[i];
          task.matrix = m;
          of_node[n].push_back({static_cast<double>(task.num_rows()) * row_cycles[m], task});
        }
      }
    }
    for (auto& tasks : of_node) {
      std::stable_sort(tasks.begin(), tasks.end(),
                       [](const Costly& a, const Costly& b) { return a.cycles > b.cycles; });
      for (const Costly& costly : tasks) tasks_.push_back(costly.task);
      ends_.push_back(static_cast<int64_t>(tasks_.size()));
    }
  }

  // Tasks of nodes 0..n, for ThreadPool::run_on_nodes.
  std::span<const int64_t> ends() const { return ends_; }
  const RowTasks::Task& operator[](int64_t task) const { return tasks_[task]; }
  // True if a matrix is in several tasks.
  bool is_cut(int64_t matrix) const { return is_cut_[matrix]; }

 private:
  static int64_t rows_of_task(double target, double row_cycles, int64_t rows, int64_t row_step) {
    const int64_t most = std::max(round_up(rows, row_step), row_step);
    const double wanted = std::min(target / row_cycles, static_cast<double>(most));
    return std::clamp(round_up(static_cast<int64_t>(wanted), row_step), row_step, most);
  }

  // Cycles of a task.
  double best_target(std::span<const double> row_cycles, int64_t rows, int64_t row_step,
                     int num_threads) const {
    double total = 0;
    for (const double cycles : row_cycles) total += cycles * static_cast<double>(rows);
    double best = total, least = -1;
    for (const int share : {1, 2, 3, 4, 5, 6, 8, 10, 12}) {
      const double target = total / (num_threads * share);
      double work = 0, longest = 0;
      int64_t tasks = 0;
      for (const double cycles : row_cycles) {
        const int64_t step = rows_of_task(target, cycles, rows, row_step);
        const int64_t count = (rows + step - 1) / step;
        const double fixed = kTaskCycles + fixed_rows_ * cycles;
        tasks += count;
        work += cycles * static_cast<double>(rows) + static_cast<double>(count) * fixed;
        longest = std::max(longest, cycles * static_cast<double>(std::min(step, rows)) + fixed);
      }
      // Of few tasks some threads get one more.
      const int64_t even = (tasks + num_threads - 1) / num_threads * num_threads;
      const bool is_few = tasks < 4 * num_threads;
      const double stretch = is_few ? static_cast<double>(even) / static_cast<double>(tasks) : 1.0;
      const double time = work * stretch / num_threads + longest / 4;
      if (tasks > 0 && (least < 0 || time < least)) {
        least = time;
        best = target;
      }
    }
    return best;
  }

  const double fixed_rows_;
  std::vector<RowTasks::Task> tasks_;
  std::vector<int64_t> ends_;
  std::vector<bool> is_cut_;
};

}  // namespace hm
