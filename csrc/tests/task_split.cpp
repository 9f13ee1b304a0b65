// Every row of every matrix with every token in exactly one task, by its row's node; and tasks that
// as many threads finish at about the same time; tasks of two jobs as those of one. Compiled and
// run by tests/csrc/test_numa.py.
#include "ops/task_split.h"

#include <cstdio>
#include <queue>
#include <random>
#include <utility>
#include <vector>

#include "ops/joined_tasks.h"

namespace {

double cycles(int64_t rows, int64_t tokens) {
  return 8.0 * static_cast<double>(rows) * (40.0 + 5.0 * static_cast<double>(tokens));
}

bool covers_each_once(const std::vector<int>& thread_ends, const hm::Product& p,
                      hm::TaskSize size) {
  const hm::MatrixTasks tasks(thread_ends, p.batch, p.rows, p.tokens, size);
  std::vector<int> seen(p.batch * p.rows * p.tokens);
  for (int64_t i = 0; i < tasks.ends().back(); ++i) {
    const auto [matrix, row, num_rows, token, num_tokens] = tasks[i];
    if (num_rows < 1 || num_tokens < 1 || num_rows > size.rows || num_tokens > size.tokens)
      return false;
    for (int64_t r = row; r < row + num_rows; ++r) {
      for (int64_t t = token; t < token + num_tokens; ++t) {
        ++seen[(matrix * p.rows + r) * p.tokens + t];
      }
    }
  }
  for (const int count : seen) {
    if (count != 1) return false;
  }
  return true;
}

// All tasks of both jobs, each on its node, the first job's first.
bool joins_each_once(const std::vector<int>& thread_ends, const hm::Product& p, hm::TaskSize size) {
  const hm::MatrixTasks first(thread_ends, p.batch, p.rows, p.tokens, size);
  const hm::RowTasks second(thread_ends, p.batch, p.tokens, 5);
  const hm::JoinedTasks joined(first.ends(), second.ends());
  int64_t task = 0;
  for (std::size_t n = 0; n < thread_ends.size(); ++n) {
    for (const auto& [job, ends] : {std::pair{0, first.ends()}, std::pair{1, second.ends()}}) {
      for (int64_t number = n == 0 ? 0 : ends[n - 1]; number < ends[n]; ++number) {
        if (task >= joined.ends()[n]) return false;
        const auto found = joined[task++];
        if (found.job != job || found.number != number) return false;
      }
    }
    if (task != joined.ends()[n]) return false;
  }
  return true;
}

// The longest thread's time over that of even shares of uncut work.
double stretch(const hm::Product& p, hm::TaskSize size, int threads) {
  const hm::MatrixTasks tasks(std::vector<int>{threads}, p.batch, p.rows, p.tokens, size);
  std::priority_queue<double, std::vector<double>, std::greater<>> free;
  for (int i = 0; i < threads; ++i) free.push(0);
  double last = 0;
  for (int64_t i = 0; i < tasks.ends().back(); ++i) {
    const auto task = tasks[i];
    const double end = free.top() + hm::kTaskCycles + cycles(task.num_rows, task.num_tokens);
    free.pop();
    free.push(end);
    last = std::max(last, end);
  }
  return last * threads / (static_cast<double>(p.batch) * cycles(p.rows, p.tokens));
}

int fail(const char* what, const hm::Product& p, hm::TaskSize size, int threads) {
  std::printf("%s: %lld x %lld rows, %lld tokens on %d threads: tasks of %lld rows, %lld tokens\n",
              what, static_cast<long long>(p.batch), static_cast<long long>(p.rows),
              static_cast<long long>(p.tokens), threads, static_cast<long long>(size.rows),
              static_cast<long long>(size.tokens));
  return 1;
}

}  // namespace

int main() {
  const std::vector<std::vector<int>> plans = {{1}, {4}, {16}, {2, 3}, {0, 2}, {48, 96}, {1, 2, 3}};
  std::mt19937 random(5);
  int64_t cases = 0;
  for (int i = 0; i < 400; ++i) {
    const auto& plan = plans[random() % plans.size()];
    const auto below = [&](unsigned n) { return static_cast<int64_t>(1 + random() % n); };
    const hm::Product p{.batch = below(4),
                        .rows = below(i % 2 == 0 ? 40 : 700),
                        .tokens = below(i % 3 == 0 ? 3 : 150),
                        .row_step = i % 2 == 0 ? 4 : 32,
                        .token_step = 24,
                        .most_rows = 512,
                        .most_tokens = 192};
    const hm::TaskSize size = hm::best_task(p, plan.back(), cycles);
    if (size.rows % p.row_step != 0 || (size.tokens % p.token_step != 0 && size.tokens < p.tokens))
      return fail("no multiple of a step", p, size, plan.back());
    if (!covers_each_once(plan, p, size)) return fail("not each once", p, size, plan.back());
    if (!joins_each_once(plan, p, size)) return fail("not all of two jobs", p, size, plan.back());
    ++cases;
  }
  for (const int threads : {1, 2, 3, 7, 8, 16, 32, 64}) {
    for (const int64_t rows : {576, 1536, 2048, 7168, 12288}) {
      for (const int64_t tokens : {256, 512}) {
        const hm::Product p{1, rows, tokens, 32, 24, rows, 528};
        const hm::TaskSize size = hm::best_task(p, threads, cycles);
        const double most = rows < 96 * threads ? 2.0 : 1.15;
        if (stretch(p, size, threads) > most) return fail("uneven", p, size, threads);
        ++cases;
      }
    }
  }
  std::printf("%lld cases\n", static_cast<long long>(cases));
  return 0;
}
