// How a product is cut into tasks: by rows and by tokens, such that all threads together are done
// soonest, by estimate. Results do not depend on it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "base/row_tasks.h"

namespace hm {

// A stack of matrices times the tokens of each.
struct Product {
  int64_t batch, rows, tokens;
  int64_t row_step, token_step;  // what kernels take at once; tasks are multiples, but for the last
  int64_t most_rows, most_tokens;  // of a task; multiples of the steps
};

struct TaskSize {
  int64_t rows, tokens;
};

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Cycles until a task is at full speed: it begins with data that nothing has fetched.
constexpr double kTaskCycles = 4000;
// Of what comes from the cache that cores share, or from memory, while all of them read.
constexpr double kCyclesPerByte = 0.15;
constexpr int64_t kOwnCacheBytes = 768 * 1024;  // what stays in a core's own cache

// `cycles(rows, tokens)`: of one task, without kTaskCycles. Half a task is added to the longest
// thread's share, since threads are not equally fast.
template <class Cycles>
TaskSize best_task(const Product& p, int num_threads, const Cycles& cycles) {
  constexpr int64_t most_tasks_of_thread = 24, most_token_parts = 8;
  TaskSize best{std::min(p.rows, p.row_step), std::min(p.tokens, p.token_step)};
  double least = -1;
  const int64_t fewest_parts = (p.tokens + p.most_tokens - 1) / p.most_tokens;
  int64_t tokens_before = 0;
  for (int64_t wanted = fewest_parts; wanted < fewest_parts + most_token_parts; ++wanted) {
    const int64_t tokens =
        std::min(p.tokens, round_up((p.tokens + wanted - 1) / wanted, p.token_step));
    if (tokens == tokens_before) continue;
    tokens_before = tokens;
    const int64_t parts = (p.tokens + tokens - 1) / tokens;
    int64_t rows_before = 0;
    for (int64_t share = 1; share <= most_tasks_of_thread; ++share) {
      const int64_t even = p.batch * p.rows * parts / (num_threads * share);
      const int64_t rows =
          std::clamp(round_up(even, p.row_step), p.row_step, std::max(p.row_step, p.most_rows));
      if (rows == rows_before) continue;
      rows_before = rows;
      const int64_t tasks = p.batch * ((p.rows + rows - 1) / rows) * parts;
      const double rounds = static_cast<double>((tasks + num_threads - 1) / num_threads) + 0.5;
      const double time = rounds * (kTaskCycles + cycles(std::min(rows, p.rows), tokens));
      if (least < 0 || time < least) {
        least = time;
        best = {rows, tokens};
      }
    }
  }
  return best;
}

// Tasks of some rows of a matrix and some of its tokens: those of the same rows follow each other,
// and a row is worked on by its node.
class MatrixTasks {
 public:
  MatrixTasks(std::span<const int> thread_ends, int64_t batch, int64_t rows, int64_t tokens,
              TaskSize size)
      : size_(size),
        tokens_(tokens),
        parts_((tokens + size.tokens - 1) / size.tokens),
        row_tasks_(thread_ends, batch, rows, size.rows) {
    std::transform(row_tasks_.ends().begin(), row_tasks_.ends().end(), ends_,
                   [&](int64_t end) { return end * parts_; });
  }

  // Tasks of nodes 0..n, for ThreadPool::run_on_nodes.
  std::span<const int64_t> ends() const { return {ends_, row_tasks_.ends().size()}; }

  struct Task {
    int64_t matrix, first_row, num_rows, first_token, num_tokens;
  };
  Task operator[](int64_t task) const {
    const RowTasks::Task rows = row_tasks_[task / parts_];
    const int64_t token = task % parts_ * size_.tokens;
    return {rows.matrix, rows.first_row, rows.num_rows(), token,
            std::min(size_.tokens, tokens_ - token)};
  }

 private:
  const TaskSize size_;
  const int64_t tokens_, parts_;
  const RowTasks row_tasks_;
  int64_t ends_[kMaxNodes] = {};
};

}  // namespace hm
