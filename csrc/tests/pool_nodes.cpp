// Chunks of a node's own memory: its threads' as soon as one of them is awake, however slow they
// are. Compiled and run by tests/csrc/test_numa.py.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "base/thread_pool.h"

namespace {

constexpr std::chrono::milliseconds kSlow{5};  // far longer than the caller waits for a thread

bool leaves_slow_nodes_alone() {
  hm::ThreadPool pool({{{}}, {{}}});
  const int caller = pool.num_threads();
  const int64_t ends[] = {1, 4};
  for (int job = 0; job < 3; ++job) {
    std::atomic<bool> has_begun{false};
    std::atomic<int> by_caller{0};
    pool.run_on_nodes(ends, [&](int64_t chunk, int worker) {
      if (chunk > 0 && worker == caller) ++by_caller;
      if (chunk == 0) {
        while (!has_begun.load()) std::this_thread::yield();
      } else {
        has_begun.store(true);
        std::this_thread::sleep_for(kSlow);
      }
    });
    if (by_caller != 0) return false;
  }
  return true;
}

bool takes_those_of_a_node_without_threads() {
  hm::ThreadPool pool({{{}, {}}, {}});
  const int64_t ends[] = {1, 4};
  std::atomic<int> done{0};
  pool.run_on_nodes(ends, [&](int64_t, int) { ++done; });
  return done == 4;
}

}  // namespace

int main() {
  const bool is_right = leaves_slow_nodes_alone() && takes_those_of_a_node_without_threads();
  std::puts(is_right ? "ok" : "a node's chunks ran elsewhere");
  return is_right ? 0 : 1;
}
