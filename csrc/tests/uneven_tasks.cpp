// Every row of every matrix in exactly one task, of the node that works on it whatever the costs;
// the longest first; and threads that are done at about the same time. Compiled and run by
// tests/csrc/test_numa.py.
#include "ops/uneven_tasks.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <queue>
#include <random>
#include <vector>

namespace {

constexpr double kFixedRows = 32;

double cycles_of(const hm::RowTasks::Task& task, const std::vector<double>& row_cycles) {
  return hm::kTaskCycles +
         (kFixedRows + static_cast<double>(task.num_rows())) * row_cycles[task.matrix];
}

const char* wrong_tasks(const std::vector<int>& thread_ends, const std::vector<double>& row_cycles,
                        int64_t rows, int64_t step) {
  const hm::UnevenTasks tasks(thread_ends, row_cycles, rows, step, kFixedRows);
  const hm::RowTasks nodes(thread_ends, 1, rows, rows);
  std::vector<int> seen(row_cycles.size() * rows), count(row_cycles.size());
  int64_t i = 0;
  for (std::size_t n = 0; n < thread_ends.size(); ++n) {
    double before = -1;
    for (; i < tasks.ends()[n]; ++i) {
      const hm::RowTasks::Task& task = tasks[i];
      const int64_t of_node = n == 0 ? 0 : nodes.ends()[n - 1];
      const hm::RowTasks::Task own = nodes[of_node];
      if (task.first_row < own.first_row || task.end_row > own.end_row)
        return "another node's rows";
      const double work = static_cast<double>(task.num_rows()) * row_cycles[task.matrix];
      if (before >= 0 && work > before) return "a longer task comes later";
      before = work;
      ++count[task.matrix];
      for (int64_t r = task.first_row; r < task.end_row; ++r) ++seen[task.matrix * rows + r];
    }
  }
  if (std::any_of(seen.begin(), seen.end(), [](int times) { return times != 1; }))
    return "not each row once";
  for (std::size_t m = 0; m < count.size(); ++m) {
    if (tasks.is_cut(static_cast<int64_t>(m)) != (count[m] > 1)) return "is_cut is wrong";
  }
  return nullptr;
}

// The longest thread's time over that of even shares of uncut work.
double stretch(int threads, const std::vector<double>& row_cycles, int64_t rows) {
  const hm::UnevenTasks tasks(std::vector<int>{threads}, row_cycles, rows, 32, kFixedRows);
  std::priority_queue<double, std::vector<double>, std::greater<>> free;
  for (int i = 0; i < threads; ++i) free.push(0);
  double last = 0, work = 0;
  for (int64_t i = 0; i < tasks.ends().back(); ++i) {
    const double end = free.top() + cycles_of(tasks[i], row_cycles);
    free.pop();
    free.push(end);
    last = std::max(last, end);
  }
  for (const double cycles : row_cycles) work += cycles * static_cast<double>(rows);
  return last * threads / work;
}

// A prompt's tokens over experts, some of which are more popular; a row's cycles by tiles of 16.
std::vector<double> routed(std::mt19937& random, int64_t tokens, int experts) {
  std::vector<double> weights(experts);
  for (double& weight : weights) weight = 0.2 + static_cast<double>(random() % 1000) / 1000.0;
  std::discrete_distribution<int> choose(weights.begin(), weights.end());
  std::vector<int> count(experts);
  for (int64_t i = 0; i < 8 * tokens; ++i) ++count[choose(random)];
  std::vector<double> cycles;
  for (const int n : count) {
    if (n > 0) cycles.push_back(2 * 28 * (50 + 10 * static_cast<double>((n + 15) / 16)));
  }
  return cycles;
}

}  // namespace

int main() {
  const std::vector<std::vector<int>> plans = {{1}, {4}, {16}, {2, 5}, {0, 2}, {48, 96}, {1, 2, 3}};
  std::mt19937 random(6);
  int64_t cases = 0;
  for (int i = 0; i < 300; ++i) {
    std::vector<double> cycles(random() % 20);
    for (double& c : cycles) c = 1.0 + static_cast<double>(random() % 5000);
    const auto& plan = plans[random() % plans.size()];
    const auto rows = static_cast<int64_t>(1 + random() % 900);
    if (const char* what = wrong_tasks(plan, cycles, rows, i % 2 == 0 ? 32 : 64)) {
      std::printf("%s: %zu matrices of %lld rows, %zu nodes\n", what, cycles.size(),
                  static_cast<long long>(rows), plan.size());
      return 1;
    }
    ++cases;
  }
  for (const int threads : {1, 2, 3, 7, 8, 16, 32, 64}) {
    for (const int experts : {1, 2, 16, 48, 384}) {
      for (const int64_t tokens : {256, 512, 2048}) {
        const std::vector<double> cycles = routed(random, tokens, experts);
        const double found = stretch(threads, cycles, 2048);
        // Where a thread has a part of an expert, beginning its task is a good part of it.
        const double most = threads > 8 * experts ? 2.05 : threads > 1.4 * experts ? 1.35 : 1.15;
        if (found > most) {
          std::printf("%.2f times an even share: %d threads, %lld tokens, %d experts\n", found,
                      threads, static_cast<long long>(tokens), experts);
          return 1;
        }
        ++cases;
      }
    }
  }
  std::printf("%lld cases\n", static_cast<long long>(cases));
  return 0;
}
